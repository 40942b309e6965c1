"""The mean of a model's weights over the last part of a run.

A constant learning rate leaves noise in the weights, and the gradient there is mostly that of the
noise: `|G|^2` at the weights says how warm the run is, not how far it has to go. The mean of the
weights has lost most of the noise. docs/decisions/0006-calibration.md has what that is good for.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import keras
import numpy as np

SAMPLES = 32  # Of a stretch, about; each is a copy of all weights to the host.


class MeanWeights:
    """Sums the trainable weights of a model over stretches of its training.

    Args:
        model: Built model.
    """

    def __init__(self, model: keras.Model) -> None:
        self._weights = model.trainable_variables
        self._stretches: list[tuple[int, list[np.ndarray]]] = [self._empty()]

    def add(self) -> None:
        """Takes the weights as they are."""
        count, sums = self._stretches[-1]
        for total, weight in zip(sums, self._weights, strict=True):
            total += keras.ops.convert_to_numpy(weight.value)
        self._stretches[-1] = (count + 1, sums)

    def close(self) -> None:
        """Ends a stretch. The last two closed ones are kept."""
        if self._stretches[-1][0]:
            self._stretches = [*self._stretches[-2:], self._empty()]

    def mean(self) -> list[np.ndarray]:
        """Mean over the last two closed stretches, float64, one array per weight.

        Raises:
            ValueError: No stretch has been closed.
        """
        closed = self._stretches[:-1][-2:]
        if not closed:
            raise ValueError("Expected a closed stretch. Call `add` and `close` first.")
        steps = sum(count for count, _ in closed)
        totals = zip(*(sums for _, sums in closed), strict=True)
        return [np.sum(parts, axis=0) / steps for parts in totals]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts the mean in the place of the weights, for the length of a `with` block."""
        means = self.mean()
        own = [keras.ops.convert_to_numpy(weight.value) for weight in self._weights]
        try:
            for weight, value in zip(self._weights, means, strict=True):
                weight.assign(value)
            yield
        finally:
            for weight, value in zip(self._weights, own, strict=True):
                weight.assign(value)

    def _empty(self) -> tuple[int, list[np.ndarray]]:
        return 0, [np.zeros(weight.shape) for weight in self._weights]


def sampling_stride(steps: int) -> int:
    """Steps between two samples of a stretch.

    Args:
        steps: Length of the stretch.
    """
    return max(1, steps // SAMPLES)
