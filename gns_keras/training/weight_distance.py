"""`WeightDistance`: how far the weights have gone since the training began, update by update."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gns_keras.core.diffusion import DiffusionFit, fit_diffusion


class WeightDistance(keras.callbacks.Callback):
    """Records `|w_t - w_0|`, the Euclidean distance of all trainable weights from their start.

    The start is the first `fit` with a model; further fits of that model go on from there, another
    model starts over. Updates are counted by the optimizer, so that accumulated or combined batches
    count once. `History` and the epoch logs gain `weight_distance`.

    Args:
        every: Updates between two records, or "log": evenly spaced in the logarithm.
        points_per_octave: Records for every doubling of the updates, for `every="log"`. Early on
            there are fewer updates than that.

    Attributes:
        history: Lists "update" (from 1) and "weight_distance", one entry per record. With
            `steps_per_execution` above 1, updates inside an execution cannot be seen.

    Raises:
        ValueError: An argument is out of range; from `fit`, a model has no weights before it.

    Example:
        ```python
        distance = WeightDistance()
        model.fit(x, y, callbacks=[distance])
        print(distance.diffusion().laws[0].name)
        ```

    Reference: Hoffer et al. 2017, arXiv 1705.08741, section 3.
    """

    def __init__(self, *, every: int | str = "log", points_per_octave: int = 8) -> None:
        super().__init__()
        is_count = isinstance(every, int) and not isinstance(every, bool) and every >= 1
        if (every != "log" and not is_count) or points_per_octave < 1:
            raise ValueError(
                'Expected `every` to be "log" or a number of updates of at least 1, and '
                f"`points_per_octave` of at least 1. Received: every={every!r}, "
                f"points_per_octave={points_per_octave}."
            )
        self.every = every
        self.points_per_octave = points_per_octave
        self.history: dict[str, list[float]] = {"update": [], "weight_distance": []}
        self._watched: keras.Model | None = None
        self._start: list[np.ndarray] = []
        self._first = 0
        self._due = 1

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Keeps the initial weights of a model that was not watched before."""
        if self._watched is self.model:
            return
        if not self.model.built:
            raise ValueError(
                "Expected a model that has its weights: the distance is from where they start. "
                "Received one that gets them from its first batch. Call it on a batch before fit, "
                "or begin it with keras.Input."
            )
        self._watched = self.model
        self._first, self._start, self._due = self._iterations(), self._weights(), 1
        self.history = {"update": [], "weight_distance": []}

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Records the distance where one is due."""
        update = self._iterations() - self._first
        if update >= self._due:
            self._record(update)
            self._due = self._next_after(update)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the present distance to the logs."""
        if logs is not None:
            logs["weight_distance"] = self._distance()

    def diffusion(self, *, first_update: int = 1, confidence: float = 0.95) -> DiffusionFit:
        """Fits the laws of diffusion to the records so far.

        Args:
            first_update: Leave out the records before this update.
            confidence: Coverage of the interval of the exponent.

        Raises:
            ValueError: There are fewer than six records, or the training diverged.
        """
        updates, distances = (np.array(self.history[key]) for key in self.history)
        used = updates >= first_update
        return fit_diffusion(updates[used], distances[used], confidence=confidence)

    def _record(self, update: int) -> None:
        self.history["update"].append(update)
        self.history["weight_distance"].append(self._distance())

    def _next_after(self, update: int) -> int:
        if self.every != "log":
            return (update // int(self.every) + 1) * int(self.every)
        return max(update + 1, round(update * 2 ** (1 / self.points_per_octave)))

    def _distance(self) -> float:
        pairs = zip(self._weights(), self._start, strict=True)
        # In double precision: early distances are small beside the weights.
        return float(np.sqrt(sum(np.square(now - start).sum() for now, start in pairs)))

    def _weights(self) -> list[np.ndarray]:
        return [
            tf.convert_to_tensor(variable.value).numpy().astype(np.float64)
            for variable in self.model.trainable_variables
        ]

    def _iterations(self) -> int:
        return int(tf.convert_to_tensor(self.model.optimizer.iterations.value).numpy())
