"""Other random numbers for every batch of a measurement, and the model's own back afterwards.

A measurement leaves the seeds as they are. So each of its batches would meet the same dropout masks
and the same random codes: their noise would be shared by all batches, would not average out over
them, and would pass for a part of the mean gradient.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from gns_keras.training import keras_private

# A seed is a pair of numbers, of which every draw raises the second by one. Batches are this far
# apart: more than one batch draws.
STRIDE = 2**16


class FreshDraws:
    """Hands out stretches of the random numbers of a model.

    Not covered, because their state is no seed of Keras: `tf.random` operations and generators.

    Args:
        model: Built model.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self.restart()

    def restart(self) -> None:
        """Begins again from the seeds that the model has by then."""
        self._batches = 0

    @contextmanager
    def another(self) -> Iterator[None]:
        """Random numbers that no batch before has had, for the length of a `with` block."""
        self._batches += 1
        states = seed_states(self._model)
        own = [keras.ops.convert_to_numpy(state.value) for state in states]
        try:
            for state, value in zip(states, own, strict=True):
                ahead = np.array([0, self._batches * STRIDE], dtype=np.uint64)
                moved = (value.astype(np.uint64) + ahead) % 2**32
                state.assign(moved.astype(value.dtype))
            yield
        finally:
            for state, value in zip(states, own, strict=True):
                state.assign(value)


def seed_states(model: keras.Model) -> list[Any]:
    """Variables in which the seed generators of a model's layers, and Keras' shared one, stand."""
    others = {id(v) for v in [*model.weights, *model.metrics_variables]}
    found = [v for v in model.variables if id(v) not in others and tuple(v.shape) == (2,)]
    shared = keras_private.global_seed_generator()
    return [*found, *([] if shared is None else [shared.state])]
