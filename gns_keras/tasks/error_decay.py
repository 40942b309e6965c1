"""A learning rate that falls as the training error does. This module imports Keras."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import keras

# McCandlish et al. 2018, appendix A.4.1: about where ImageNet's usual schedule, by epochs, decays.
ERRORS = (0.487, 0.312, 0.229)


class DecayAtTrainingError(keras.callbacks.Callback):
    """Multiplies the learning rate by a factor whenever the training error reaches the next value.

    So runs at different batch sizes decay at the same progress, and not at the same epoch. The
    error is one minus the accuracy of the training batches, as a moving average without bias. The
    model needs a metric of accuracy and a constant learning rate.

    Args:
        errors: Classification errors, falling.
        factor: What the learning rate is multiplied by at each of them.
        half_life: Examples after which a batch counts half as much.
        batch_size: Global batch size, in examples.
        metric: Name of the accuracy in the logs.

    Attributes:
        decays: `(update, smoothed error)` of every decay so far.

    Raises:
        ValueError: The errors do not fall, or an argument is out of range.
    """

    def __init__(
        self,
        errors: Sequence[float] = ERRORS,
        *,
        factor: float = 0.1,
        half_life: float = 10_000.0,
        batch_size: int,
        metric: str = "accuracy",
    ) -> None:
        super().__init__()
        if any(later >= earlier for earlier, later in itertools.pairwise(errors)):
            raise ValueError(f"Expected `errors` that fall. Received: {tuple(errors)}.")
        if not (0 < factor < 1 and half_life > 0 and batch_size >= 1):
            raise ValueError(
                "Expected a factor between 0 and 1, a positive half-life and a batch size. "
                f"Received: factor={factor}, half_life={half_life}, batch_size={batch_size}."
            )
        self.decays: list[tuple[int, float]] = []
        self._errors = tuple(errors)
        self._factor = factor
        self._decay = 0.5 ** (batch_size / half_life)
        self._metric = metric
        self._sum = self._weight = 0.0
        self._steps, self._total = 0, 0.0

    @property
    def error(self) -> float:
        """The smoothed training error; NaN before the first batch."""
        return self._sum / self._weight if self._weight else math.nan

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Keras averages its metrics anew in every epoch."""
        self._steps, self._total = 0, 0.0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the error of the latest batches, and decays the learning rate where it is time."""
        if self._metric not in (logs or {}):
            raise ValueError(
                f"Expected the training logs to hold {self._metric!r}. Received: "
                f"{sorted(logs or {})}. Compile the model with metrics=['accuracy']."
            )
        # The logs hold the mean since the beginning of the epoch.
        steps, total = batch + 1, float(logs[self._metric]) * (batch + 1)
        new = steps - self._steps
        kept = self._decay**new
        self._sum = kept * self._sum + (1 - kept) * (1 - (total - self._total) / new)
        self._weight = kept * self._weight + (1 - kept)
        self._steps, self._total = steps, total
        while len(self.decays) < len(self._errors) and self.error <= self._errors[len(self.decays)]:
            optimizer = self.model.optimizer
            self.decays.append((int(optimizer.iterations.numpy()), self.error))
            optimizer.learning_rate = float(optimizer.learning_rate) * self._factor
