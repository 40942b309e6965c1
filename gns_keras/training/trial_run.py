"""A short training run with snapshots of the noise scale at frozen weights along it.

A snapshot costs little and says little; many of them average out what the run's oscillations do to
the gradient. Most of the examples are therefore spread over the run, not spent at one point of it.
As many again are measured at the mean of the weights over the last part of the run, for the
calibration (docs/decisions/0006-calibration.md).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from gns_keras.core.advice_parts import NoisePoint
from gns_keras.core.noise_scale import NoiseScale
from gns_keras.core.pooled import MIN_BLOCKS
from gns_keras.core.run_average import average_along_run
from gns_keras.training.example_source import Source
from gns_keras.training.frozen import FrozenMeasurement
from gns_keras.training.mean_weights import MeanWeights, sampling_stride
from gns_keras.training.trial_plan import MIN_SNAPSHOTS, NUM_GROUPS, TrialPlan

WANTED_SPREAD = 1.8  # Stop once the ends of the interval are this close in ratio.
CHECK_EVERY = 5  # Snapshots between two looks at the interval.
STRETCH = 1.5  # Ratio of the steps at which two stretches of the mean weights end.

Advance = Callable[[float], None]


@dataclass
class TrialResult:
    """What a trial run found.

    Attributes:
        points: Snapshots along the run.
        losses: Mean training loss between snapshots; empty where the train step reports none.
        examples_used: Examples trained and measured on.
        noise_scale: Average of the snapshots.
        mean_points: Measurements at mean weights.
        mean_noise_scale: Their average; None where the plan has none.
    """

    points: list[NoisePoint] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    examples_used: int = 0
    noise_scale: NoiseScale = field(
        default_factory=lambda: NoiseScale(value=math.nan, interval=(math.nan, math.nan))
    )
    mean_points: list[NoisePoint] = field(default_factory=list)
    mean_noise_scale: NoiseScale | None = None


def run_trial(
    model: keras.Model, source: Source, plan: TrialPlan, *, seed: int, advance: Advance
) -> TrialResult:
    """Trains with `fit` and takes snapshots until the interval is narrow, or the plan ends.

    It trains the model: call it inside `preserved`.

    Args:
        model: Compiled and built model.
        source: The data.
        plan: How much of what.
        seed: Seed of the order of the examples.
        advance: Called with every number of examples that are done.

    Raises:
        RuntimeError: The training loss is not finite.
    """
    snapshots = _Snapshots(FrozenMeasurement(model, num_groups=NUM_GROUPS), source, plan, seed)
    snapshots.advance = advance
    model.fit(
        source.batches(plan.batch_size, seed=seed),
        steps_per_epoch=plan.max_snapshots * plan.every,
        shuffle=False,
        verbose=0,
        callbacks=[snapshots],
    )
    return snapshots.result


class _Snapshots(keras.callbacks.Callback):
    """Measures between steps of `fit`, and ends it when the answer is there."""

    def __init__(
        self, measurement: FrozenMeasurement, source: Source, plan: TrialPlan, seed: int
    ) -> None:
        super().__init__()
        self.result = TrialResult()
        self.advance: Advance = lambda examples: None
        self._measurement = measurement
        self._plan = plan
        self._dataset_size = source.num_examples
        # The batches of one snapshot are pooled: examples that repeat each other would pass for
        # signal.
        self._batches = iter(
            source.batches(plan.measure_batch_size, seed=seed + 1, independent=MIN_BLOCKS)
        )
        self._steps = self._examples_measured = 0
        self._measured_at = 0
        self._loss_sum = 0.0
        self._means: MeanWeights | None = None
        self._stretch = (0, 2 * plan.every)  # First and last step.
        self._measured_in_stretch = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Prepares for the mean weights."""
        if self._plan.at_mean:
            self._means = MeanWeights(self.model)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Counts the steps and takes a snapshot where one is due."""
        self.advance((batch + 1 - self._steps) * self._plan.batch_size)
        self._steps = batch + 1
        begin, end = self._stretch
        if self._means is not None and (self._steps - begin) % sampling_stride(end - begin) == 0:
            self._means.add()
        if self._steps - self._measured_at >= self._plan.every:
            loss = self._note_loss(logs or {})
            self._measured_at = self._steps
            self._take(loss)
            done = self._is_done()
            if self._means is not None and (done or self._steps >= end):
                self._take_at_mean(self._means)
            self.model.stop_training = done

    def _note_loss(self, logs: dict[str, Any]) -> float:
        """Takes the mean loss since the last snapshot out of the mean since the beginning."""
        if "loss" not in logs:
            return math.nan
        loss = float(np.asarray(logs["loss"]))
        if not math.isfinite(loss):
            raise RuntimeError(
                f"The training loss became {loss} within {self._steps} steps at batch size "
                f"{self._plan.batch_size}: training diverges, and there is no noise scale to "
                "measure. Lower the learning rate, or check the data for values that are not "
                "finite."
            )
        total = loss * self._steps
        self.result.losses.append((total - self._loss_sum) / (self._steps - self._measured_at))
        self._loss_sum = total
        return self.result.losses[-1]

    def _take(self, loss: float) -> None:
        found = self._measure(MIN_BLOCKS)
        point = NoisePoint(examples_seen=self._seen, noise_scale=found, loss=loss)
        self.result.points.append(point)
        self._measured_in_stretch += 1

    def _take_at_mean(self, means: MeanWeights) -> None:
        """Ends a stretch: as many examples at the mean weights as its snapshots took."""
        means.close()
        with means.in_place():
            found = self._measure(MIN_BLOCKS * self._measured_in_stretch)
        self.result.mean_points.append(NoisePoint(examples_seen=self._seen, noise_scale=found))
        self.result.mean_noise_scale = self._average(self.result.mean_points)
        self._stretch = (self._steps, math.ceil(STRETCH * self._steps))
        self._measured_in_stretch = 0

    def _measure(self, num_batches: int) -> NoiseScale:
        self._measurement.reset()
        for _ in range(num_batches):
            self._measurement.add_batch(next(self._batches))
            self.advance(self._plan.measure_batch_size)
        self._examples_measured += num_batches * self._plan.measure_batch_size
        self.result.examples_used = self._seen + self._examples_measured
        return self._measurement.noise_scale()

    @property
    def _seen(self) -> int:
        return self._steps * self._plan.batch_size

    def _average(self, points: list[NoisePoint]) -> NoiseScale:
        size = self._plan.batch_size
        return average_along_run(points, size, dataset_size=self._dataset_size)

    def _is_done(self) -> bool:
        count = len(self.result.points)
        last = count >= self._plan.max_snapshots
        if not last and count % CHECK_EVERY:
            return False
        self.result.noise_scale = self._average(self.result.points)
        return last or (count >= MIN_SNAPSHOTS and self._is_enough())

    def _is_enough(self) -> bool:
        """Whether both noise scales are known, and the loss in question has been reached."""
        mean, target = self.result.mean_noise_scale, self._plan.target_loss
        known = self.result.noise_scale.spread <= WANTED_SPREAD
        known = known and (mean is None or mean.resolved)
        recent = float(np.mean(self.result.losses[-CHECK_EVERY:])) if self.result.losses else 0.0
        far = self._seen >= self._plan.least_examples
        return known and far and (target is None or recent <= target)
