"""The tasks of figures 5 to 7, 9, 14 and 19, and their sweeps.

`fashion_cnn_sgd` stands for the paper's SVHN classifier with SGD: a small convolutional network on
Fashion-MNIST, with goals of training error as in appendix A.3. The others are tasks of
`benchmarks/calibration_tasks.py`, with goals of training loss; a folder of
`benchmarks/calibration.py` can be given as `--folder`, and its sweeps are then used as they are.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import benchmarks_path  # noqa: F401
import keras
import numpy as np
from calibration import SWEEP_SEEDS
from calibration_tasks import TASKS as CALIBRATION_TASKS
from calibration_tasks import Task

from gns_keras import SweepResult, sweep
from gns_keras.core.goals import Goal
from gns_keras.tasks.datasets import load_arrays

SGD_TASK = "fashion_cnn_sgd"
LSTM_TASK = "text_lstm_adam_early"
ERRORS = (0.4, 0.35, 0.3, 0.25, 0.22, 0.2, 0.18, 0.165)


class PatchConvolution(keras.layers.Layer):
    """A 3x3 convolution with strides of 2 and relu, as slices and one matrix product.

    The same numbers as `Conv2D(filters, 3, strides=2, activation="relu")` on inputs of even size;
    compiled by XLA on a CPU, several times faster at these sizes.

    Args:
        filters: Output channels.
    """

    def __init__(self, filters: int) -> None:
        super().__init__()
        self._filters = filters

    def build(self, shape: tuple) -> None:
        """Makes kernel and bias, as `Conv2D` does."""
        self.kernel = self.add_weight(shape=(3, 3, shape[-1], self._filters))
        self.bias = self.add_weight(shape=(self._filters,), initializer="zeros")

    def call(self, images: Any) -> Any:
        """Returns the features, shape `(batch, rows, columns, filters)`."""
        reach = 2 * ((images.shape[1] - 1) // 2)
        patches = [images[:, i : i + reach : 2, j : j + reach : 2] for i, j in _OFFSETS]
        kernel = keras.ops.reshape(self.kernel, (-1, self._filters))
        product = keras.ops.matmul(keras.ops.concatenate(patches, axis=-1), kernel)
        return keras.ops.relu(product + self.bias)

    def get_config(self) -> dict[str, Any]:
        """What it was made of."""
        return {**super().get_config(), "filters": self._filters}


_OFFSETS = [(i, j) for i in range(3) for j in range(3)]


def cnn(inputs: Any) -> Any:
    """Two convolutions with 8 and 16 filters on 14x14 pixels, and a dense layer: 1,898 weights."""
    hidden = PatchConvolution(16)(PatchConvolution(8)(inputs))
    return keras.layers.Dense(10)(keras.layers.Flatten()(hidden))


class ErrorTask(Task):
    """A task whose goals are training errors."""

    def build_model(self) -> keras.Model:
        """Returns a new compiled model, which reports its accuracy."""
        model = super().build_model()
        model.compile(model.optimizer, model.loss, metrics=["accuracy"])
        return model


def error_goal(error: float) -> Goal:
    """A share of wrong answers, as the accuracy that Keras reports."""
    return Goal(metric="accuracy", threshold=round(1 - error, 6), direction="above")


TASKS: dict[str, Task] = CALIBRATION_TASKS | {
    SGD_TASK: ErrorTask(
        name=SGD_TASK, role="test", data="fashion_mnist", body=cnn, side=14, optimizer="sgd",
        learning_rate=0.03, levels_off=100.0, goals=ERRORS, half_life=2048.0,
        batch_sizes=(4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048), max_examples=1_200_000,
    ),
    LSTM_TASK: replace(
        CALIBRATION_TASKS["text_lstm_adam"], name=LSTM_TASK, goals=(2.6, 2.4, 2.25, 2.15),
        half_life=256.0, max_examples=300_000,
    ),
}  # fmt: skip


def goals_of(task: Task) -> list[Goal]:
    """What the runs of a task are to reach."""
    if isinstance(task, ErrorTask):
        return [error_goal(error) for error in task.goals]
    return [Goal.of(goal) for goal in task.goals]


def swept(
    task: Task,
    folder: Path,
    *,
    learning_rates: Mapping[int, Sequence[float]] | None = None,
    what: str = "sweep",
    seeds: int = SWEEP_SEEDS,
) -> SweepResult:
    """The sweep of a task, from the folder as far as it is there.

    Args:
        task: The task.
        folder: Where stores are kept, one a task.
        learning_rates: Others than the task's own, by batch size.
        what: Ending of the file's name.
        seeds: Of every learning rate; a finished sweep is used with those that it has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    finished = folder / f"{task.name}_{what}.json"
    if finished.exists():
        return SweepResult.from_json(finished.read_text())
    result = sweep(
        task.build_model,
        task.examples,
        batch_sizes=task.batch_sizes if learning_rates is None else sorted(learning_rates),
        goals=goals_of(task),
        learning_rates=learning_rates or task.grid,
        max_examples=task.max_examples,
        seeds=seeds,
        store=folder / f"{task.name}.sqlite",
        half_life=task.half_life,
        jit_compile=True,
        base_batch_size=task.base_batch_size,
        verbose=1 if sys.stderr.isatty() else 0,
    )
    write(finished, result.to_json())
    return result


def test_arrays(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Test images as `calibration_tasks.image_arrays` makes them of training images, and labels."""
    images, labels = load_arrays(task.data, "test")
    by = images.shape[1] // task.side
    values = images.astype(np.float32) / 255
    count, _, _, channels = values.shape
    shape = (count, task.side, by, task.side, by, channels)
    return values.reshape(shape).mean(axis=(2, 4)), labels


def write(path: Path, text: str) -> None:
    """Writes a whole file or none."""
    partial = path.with_suffix(".part")
    partial.write_text(text)
    partial.replace(path)


def arguments(description: str | None, tasks: tuple[str, ...]) -> argparse.Namespace:
    """The command line of a figure.

    Args:
        description: Docstring of the script.
        tasks: Names of the tasks in the figure.
    """
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    add = parser.add_argument
    add("--folder", type=Path, default=Path("scaling"), help="where runs are kept; made if missing")
    add("--tasks", nargs="+", default=list(tasks), choices=list(TASKS))
    add("--plot", type=Path, help="the figure")
    add("--seeds", type=int, default=SWEEP_SEEDS, help="of every learning rate of a new sweep")
    add("--only-from-folder", action="store_true", help="run nothing, leave out what is missing")
    return parser.parse_args()


def present(args: argparse.Namespace) -> list[str]:
    """The tasks to show."""
    if not args.only_from_folder:
        return list(args.tasks)
    return [name for name in args.tasks if (args.folder / f"{name}_sweep.json").exists()]
