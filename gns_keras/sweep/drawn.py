"""Runs on data that the model makes itself: reinforcement learning.

Nothing is compiled over several steps, as the games are played between them, by the weights of that
moment. What a goal can be on besides the metrics is "reward", the mean reward of a step: the losses
of different policies on their own data cannot be compared.
"""

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gns_keras.sweep.loop import initial_state
from gns_keras.sweep.stream import Source, open_source
from gns_keras.training.example_source import DrawnExamples

BLOCK_STEPS = 64  # Steps between two looks at the goals.
Draw = Callable[[keras.Model], DrawnExamples]


def is_draw(data: Any) -> bool:
    """Whether data are a function of a model, the one that makes them."""
    if not callable(data):
        return False
    parameters = inspect.signature(data).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters)


class DrawnSource:
    """Examples that every run's model draws for itself.

    Args:
        draw: From a model to its `DrawnExamples`. A model that draws has its weights from the
            start.
    """

    few = (None,)

    def __init__(self, draw: Draw) -> None:
        self.draw = draw

    def block_steps(self, batch_size: int) -> int:
        """Steps in a block."""
        return BLOCK_STEPS

    def blocks(self, seed: int, batch_size: int) -> Iterator[int]:
        """Yields the seed without end: what a run draws is up to its loop."""
        return itertools.repeat(seed)

    def fingerprint(self) -> str:
        """Names of the function and of what it is called with."""
        draw, arguments = self.draw, []
        while isinstance(draw, functools.partial):
            arguments += [repr(draw.args), repr(sorted(draw.keywords.items()))]
            draw = draw.func
        return " ".join([f"drawn by {draw.__module__}.{draw.__qualname__}", *arguments])


AnySource = Source | DrawnSource


def open_any_source(data: Any) -> AnySource:
    """As `open_source`, and for a function of the model that makes the data.

    Raises:
        ValueError: The data are of another kind, or belong to one model already.
    """
    if isinstance(data, DrawnExamples):
        raise ValueError(
            "A sweep trains a new model in every run, and each draws its own examples. Expected "
            "`data` as a function of the model that returns its DrawnExamples, such as "
            f"get_task(...).training_data. Received: {type(data).__name__} of one model."
        )
    return DrawnSource(data) if is_draw(data) else open_source(data)


class DrawnLoop:
    """Trains a compiled model on what it draws, a step at a time; the interface of `CompiledLoop`.

    Args:
        model: New compiled model, not trained.
        source: Where the examples come from.
        batch_size: Examples a step.

    Attributes:
        reusable: False: the games of a run are its own.
    """

    reusable = False

    def __init__(self, model: keras.Model, source: DrawnSource, batch_size: int) -> None:
        self.model = model
        self._drawn = source.draw(model)
        self._batch_size = batch_size
        self._variables, self.initial_state = initial_state(model, source.few)
        self._step = tf.function(self._train, autograph=False)
        signature = self._drawn.batches(batch_size, seed=0).element_spec
        self._logs = sorted(self._step.get_concrete_function(signature).structured_outputs)
        self._has_reward = self._drawn.reward is not None
        self.metric_names = (*self._logs, "reward") if self._has_reward else tuple(self._logs)
        self._batches: Iterator[Any] | None = None

    def restart(self, state: list[np.ndarray], learning_rate: float) -> None:
        """Makes the model new, and its games.

        Args:
            state: `initial_state` of a loop whose model was built the same way.
            learning_rate: Learning rate of the next run.
        """
        for variable, value in zip(self._variables, state, strict=True):
            variable.assign(value)
        self.model.optimizer.learning_rate = learning_rate
        self._batches = None

    def untrained_loss(self, block: int, state: list[np.ndarray], num_steps: int) -> float:
        """NaN: such losses have no scale of their own that a run could leave."""
        return math.nan

    def advance(self, block: int, num_steps: int) -> np.ndarray:
        """Draws batches and trains on them.

        Args:
            block: Seed of the run, from the source.
            num_steps: Number of batches.

        Returns:
            Values of `metric_names` for each step's own batch, float32, shape `(steps, metrics)`.
        """
        if self._batches is None:
            self._batches = iter(self._drawn.batches(self._batch_size, seed=block))
        rows = []
        for _ in range(num_steps):
            logs = self._step(next(self._batches))
            row = [float(logs[name]) for name in self._logs]
            rows.append([*row, self._drawn.reward] if self._has_reward else row)
        return np.array(rows, np.float32)

    def _train(self, batch: Any) -> dict[str, Any]:
        self.model.reset_metrics()
        return self.model.train_step(batch)
