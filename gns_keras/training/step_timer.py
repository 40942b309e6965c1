"""Seconds per training step of a model, at several batch sizes."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gns_keras.core.step_time import StepTime, fit_step_time
from gns_keras.training.example_source import DrawnExamples, Source

WARM_UP_CALLS = 2  # The first compiles, the second may still allocate.
CALLS = 12
SHARE = 3  # No batch size may take more than this part of the time that is left.


def time_steps(
    model: keras.Model,
    source: Source,
    batch_sizes: Sequence[int],
    *,
    seconds: float = 20.0,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> tuple[StepTime | None, int | None]:
    """Times whole steps of `model.fit`, on one batch that is at hand: no data loading.

    Data that the model draws itself belong to the step, and are drawn anew.

    It trains the model: call it inside `preserved`.

    Args:
        model: Compiled model.
        source: Where the batches come from.
        batch_sizes: Global batch sizes, increasing.
        seconds: Time for all of them, compiling included; the sizes that no longer fit are left
            out. At least the first is timed.
        seed: Seed of the choice of examples.
        advance: Called after every batch size, timed or not.

    Returns:
        The step times with their fit, None if even the first size does not run; and the batch size
        that did not fit into memory, or None.
    """
    end = time.perf_counter() + seconds
    timed: dict[int, list[float]] = {}
    too_big = None
    last_cost = 0.0
    for size in batch_sizes:
        growth = size / max(timed) if timed else 1.0
        left = end - time.perf_counter()
        if too_big is None and (not timed or last_cost * max(1.0, growth / 2) < left):
            started = time.perf_counter()
            try:
                timed[size] = _time_batch(model, source, size, seed, max(left, 0.0) / SHARE)
            except tf.errors.ResourceExhaustedError:
                too_big = size
            last_cost = time.perf_counter() - started
        advance()
    return (fit_step_time(list(timed), list(timed.values())) if timed else None), too_big


def _time_batch(
    model: keras.Model, source: Source, batch_size: int, seed: int, seconds: float
) -> list[float]:
    """Returns the seconds per step of some calls, after those that compile."""
    data = source.batches(batch_size, seed=seed)
    if not isinstance(source, DrawnExamples):
        data = tf.data.Dataset.from_tensors(next(iter(data))).repeat()
    clock = _Clock(seconds)
    per_call = max(1, int(model.steps_per_execution))
    model.fit(
        data,
        steps_per_epoch=(WARM_UP_CALLS + CALLS) * per_call,
        shuffle=False,
        verbose=0,
        callbacks=[clock],
    )
    return [max(seconds / per_call, 1e-9) for seconds in clock.calls[WARM_UP_CALLS:]]


class _Clock(keras.callbacks.Callback):
    """Notes how long every call of the train function takes, until the time is up."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.calls: list[float] = []
        self._end = time.perf_counter() + seconds
        self._started = 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Starts the clock."""
        self._started = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Stops it, once the device has finished."""
        keras.tree.map_structure(np.asarray, logs or {})
        self.calls.append(time.perf_counter() - self._started)
        if len(self.calls) > WARM_UP_CALLS and time.perf_counter() > self._end:
            self.model.stop_training = True
