"""The learning tasks of the paper (McCandlish et al. 2018, appendix A.4), ready to run.

One task is one file of this folder, imported only when somebody asks for it; TensorFlow is imported
only when its model or its data is. Every task is a constant `TASK` in its own module. The same
model on other data, or in another size, is one of the `VARIANTS` there, by name.
"""

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# The module of every task, in the order of the list.
_MODULES = {
    "digits": "digits",
    "mnist": "mnist",
    "svhn": "svhn",
    "cnn_cifar10": "svhn",
    "cnn_fashion_mnist": "svhn",
    "svhn_adam": "svhn_adam",
    "cnn_cifar10_adam": "svhn_adam",
    "cnn_fashion_mnist_adam": "svhn_adam",
    "cifar10": "cifar10",
    "imagenet": "imagenet",
    "autoencoder": "autoencoder",
    "autoencoder_cifar10": "autoencoder",
    "autoencoder_fashion_mnist": "autoencoder",
    "vae": "vae",
    "vae_cifar10": "vae",
    "vae_fashion_mnist": "vae",
    "lm_512": "language_model",
    "lm_1024": "language_model",
    "lm_2048": "language_model",
    "lm_512_tinyshakespeare": "language_model",
    "lm_1024_tinyshakespeare": "language_model",
    "lm_2048_tinyshakespeare": "language_model",
    "lm_512_warandpeace": "language_model",
    "lm_1024_warandpeace": "language_model",
    "lm_2048_warandpeace": "language_model",
    "limit_mnist": "limit_mnist",
    "limit_cifar10": "limit_cifar10",
    "atari_alien": "atari",
    "atari_beam_rider": "atari",
    "atari_breakout": "atari",
    "atari_pong": "atari",
    "atari_qbert": "atari",
    "atari_seaquest": "atari",
    "atari_space_invaders": "atari",
    "self_play_1v1": "self_play",
    "self_play_team": "self_play",
}
_TASK_NAMES = tuple(_MODULES)


class UnknownTargetError(ValueError):
    """There is no such task, or no such function of the user; the message says what to write."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set with the model, the optimizer and the goals that belong to it.

    Attributes:
        name: What `get_task` and the command line call it.
        description: One line on model and data.
        unit: What a batch size counts: "examples", "tokens", "frames".
        data_needed: Where the data comes from, and what has to be installed for it.
        build_model: `build_model()` returns a new compiled `keras.Model` with `learning_rate` set.
            Seed it with `keras.utils.set_random_seed`.
        load_data: `load_data(split="train")` returns arrays `(x, y)` with examples along the first
            axis, or an unbatched `tf.data.Dataset`. Splits: "train", "test". Where there is
            `draw_data` it only says that it cannot.
        batch_size: The small batch size that `learning_rate` was tuned at, in `unit`.
        learning_rate: Tuned, constant; how it was found stands in the task's module.
        optimizer: The optimizer of the paper, as Keras names it.
        goals: Training losses (compiled, smoothed) to reach, from the start of training to its
            end; what a sweep counts the steps to. With `draw_data` mean rewards of a step instead;
            empty where none were measured.
        status: One line on what has been run of it: on which data, and how far.
        units_per_example: Units in one example, which is what batches are made of and split by:
            20 for sequences of 20 tokens.
        draw_data: Reinforcement learning: `draw_data(model)` returns a
            `gns_keras.training.example_source.DrawnExamples`, whose batches the model makes with
            its present weights. None: the data are there without a model.
        build_callbacks: `build_callbacks()` returns new callbacks that belong to the training.

    Example:
        >>> task = get_task("digits")
        >>> task.optimizer, task.batch_size
        ('sgd', 32)
    """

    name: str
    description: str
    unit: str
    data_needed: str
    build_model: Callable[[], Any]
    load_data: Callable[..., Any]
    batch_size: int
    learning_rate: float
    optimizer: str
    goals: tuple[float, ...]
    status: str
    units_per_example: int = 1
    draw_data: Callable[[Any], Any] | None = None
    build_callbacks: Callable[[], list[Any]] = list

    @property
    def examples_per_batch(self) -> int:
        """The small batch size along the first axis: what `model.fit` calls `batch_size`."""
        return self.batch_size // self.units_per_example

    def in_units(self, batch_size: int) -> str:
        """One sentence on a batch size, where examples are not units; else empty.

        Args:
            batch_size: In examples.
        """
        if self.units_per_example == 1:
            return ""
        return (
            f"An example of this task is {self.units_per_example} {self.unit}: batch size "
            f"{batch_size:,} is {batch_size * self.units_per_example:,} {self.unit}."
        )

    def training_data(self, model: Any) -> Any:
        """Returns what `advise` takes: arrays, a dataset in batches of the small size, or a source.

        Args:
            model: What is going to be trained. Data that are drawn follow its weights.
        """
        if self.draw_data is not None:
            return self.draw_data(model)
        data = self.load_data("train")
        return data if isinstance(data, tuple) else data.batch(self.examples_per_batch)


def list_tasks() -> tuple[str, ...]:
    """Returns the names that `get_task` accepts. Imports none of the tasks."""
    return _TASK_NAMES


def get_task(name: str) -> Task:
    """Returns one task; neither its model is built nor its data loaded.

    Args:
        name: One of `list_tasks()`.

    Raises:
        UnknownTargetError: There is no such task. It is a `ValueError`.
    """
    if name not in _TASK_NAMES:
        close = difflib.get_close_matches(name, _TASK_NAMES, n=1)
        guess = f"Did you mean {close[0]!r}? " if close else ""
        raise UnknownTargetError(
            f"No task is called {name!r}. {guess}Tasks: {', '.join(_TASK_NAMES)}. For a model of "
            "your own write package.module:function."
        )
    module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    return module.TASK if module.TASK.name == name else module.VARIANTS[name]
