"""A training run of given length, with the noise scale at frozen weights at points along it.

Unlike `trial_run`, which stops as soon as it knows enough, this one goes where it is told, measures
at log-spaced points, and can be taken up again from any of them.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from gns_keras.core.advice_parts import NoisePoint
from gns_keras.core.noise_scale import NoiseScale
from gns_keras.core.pooled import MIN_BLOCKS
from gns_keras.training import checks
from gns_keras.training.example_source import DrawnExamples, Source
from gns_keras.training.frozen import FrozenMeasurement

EARLY_POINTS = 8  # Evenly spaced.
SPACING = 1.3  # Ratio of the steps of two later points.
TIMES_NOISE_SCALE = 8  # Examples of a measurement, over the noise scale of the one before.
NUM_GROUPS, GROUPS_OF_BATCH = 8, 4  # Of a measured batch; their size is a quarter of a batch.
MEASURE_SEED = 1_000_003  # Apart from the order of the training, whose seeds are small.

State = list[np.ndarray]
Keep = Callable[[NoisePoint, State], None]


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Where to measure, and on how much.

    Attributes:
        batch_size: Of the training, in examples.
        steps: Optimizer steps before each measurement, increasing.
        early_steps: Of them those that count as the start.
        num_groups: Groups in a measured batch.
        measure_batch_size: Examples in a measured batch.
        max_measured: Most examples of one measurement.
    """

    batch_size: int
    steps: tuple[int, ...]
    early_steps: int
    num_groups: int
    measure_batch_size: int
    max_measured: int

    @property
    def fewest(self) -> int:
        """Fewest examples of one measurement that say anything."""
        return MIN_BLOCKS * self.measure_batch_size


def plan_run(
    model: keras.Model, batch_size: int, *, examples: int, early: int, max_measured: int
) -> RunPlan:
    """Spreads the measurements: one at the initial weights, eight over the start, then log-spaced.

    Where the model normalizes over the batch, a measured group is a whole training batch, so that
    its statistics are those of the training; else a quarter of one.

    Args:
        model: Built model.
        batch_size: Of the training, in examples.
        examples: Length of the run.
        early: Examples that count as the start.
        max_measured: Most examples of one measurement.

    Raises:
        ValueError: The run has fewer than two steps.
    """
    last, early_steps = examples // batch_size, max(2, early // batch_size)
    if last < 2:
        raise ValueError(
            f"Expected a run of at least 2 steps, {2 * batch_size} examples. Received: {examples}."
        )
    early_steps = min(early_steps, last)
    steps = {0, *(math.ceil(early_steps * k / EARLY_POINTS) for k in range(1, EARLY_POINTS + 1))}
    position = early_steps * SPACING
    while position < last:
        steps.add(round(position))
        position *= SPACING
    normalized = checks.has_batch_normalization(model)
    num_groups = 2 if normalized else NUM_GROUPS
    group = batch_size if normalized else max(1, batch_size // GROUPS_OF_BATCH)
    return RunPlan(
        batch_size=batch_size,
        steps=tuple(sorted({*steps, last})),
        early_steps=early_steps,
        num_groups=num_groups,
        measure_batch_size=num_groups * group,
        max_measured=max_measured,
    )


def variables_of(model: keras.Model) -> list[Any]:
    """Everything that a later step of the training depends on, metrics left out."""
    metrics = {id(variable) for variable in model.metrics_variables}
    every = [*model.variables, *model.optimizer.variables]
    return [variable for variable in every if id(variable) not in metrics]


class MeasuredRun(keras.callbacks.Callback):
    """Trains with `fit`, and measures between its steps.

    Args:
        model: Compiled and built model.
        source: The data.
        plan: Where to measure.
        seed: Of the order of the examples; the weights are those that the model has.
        keep: Called with every point and the state of the model there.
        advance: Called with every number of examples that are done.
    """

    def __init__(
        self,
        model: keras.Model,
        source: Source,
        plan: RunPlan,
        *,
        seed: int,
        keep: Keep,
        advance: Callable[[float], None] = lambda examples: None,
    ) -> None:
        super().__init__()
        self._measurement = FrozenMeasurement(model, num_groups=plan.num_groups)
        self._trained, self._source, self._plan = model, source, plan
        self._seed, self._keep, self._advance = seed, keep, advance
        self._variables = variables_of(model)
        self._done = 0  # Steps before this call of fit, then with those of it.
        self._begin = 0
        self._left: list[int] = []
        self._loss_sum, self._loss_steps = 0.0, 0
        self._last: NoiseScale | None = None
        self._drawn: Iterator[Any] | None = None

    def run(
        self,
        points: list[NoisePoint],
        state: State | None = None,
        callbacks: tuple[keras.callbacks.Callback, ...] = (),
    ) -> None:
        """Trains to the end of the plan.

        Args:
            points: What is there already of this run.
            state: Of the model at the last of them; needed where there are any.
            callbacks: Those of the task.

        Raises:
            RuntimeError: The training loss is not finite.
        """
        if points and state is not None:
            for variable, value in zip(self._variables, state, strict=True):
                variable.assign(value)
            self._done = points[-1].examples_seen // self._plan.batch_size
            self._last = points[-1].noise_scale
        self._begin = self._done
        self._left = [step for step in self._plan.steps if step > self._done or not points]
        if self._left and self._left[0] == 0:
            self._measure_point(math.nan)
        if not self._left:
            return
        batches = self._source.batches(self._plan.batch_size, seed=self._seed)
        if not isinstance(self._source, DrawnExamples):
            batches = batches.skip(self._done)
        self._trained.fit(
            batches,
            steps_per_epoch=self._plan.steps[-1] - self._done,
            shuffle=False,
            verbose=0,
            callbacks=[*callbacks, self],
        )

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts the steps and measures where it is time."""
        steps = self._begin + batch + 1
        self._advance((steps - self._done) * self._plan.batch_size)
        self._done = steps
        if self._left and steps >= self._left[0]:
            self._measure_point(self._mean_loss(logs or {}, batch + 1))

    def _mean_loss(self, logs: dict[str, Any], steps: int) -> float:
        """Mean loss since the last point; the logs hold the mean since the call of `fit`."""
        if "loss" not in logs:
            return math.nan
        total = float(np.asarray(logs["loss"])) * steps
        if not math.isfinite(total):
            raise RuntimeError(
                f"The training loss became {total} within {self._done} steps: training diverges, "
                "and there is no noise scale to measure. Lower the learning rate."
            )
        loss = (total - self._loss_sum) / (steps - self._loss_steps)
        self._loss_sum, self._loss_steps = total, steps
        return loss

    def _measure_point(self, loss: float) -> None:
        index = self._plan.steps.index(self._left.pop(0))
        self._last = self._measure(index, self._wanted())
        point = NoisePoint(
            examples_seen=self._done * self._plan.batch_size, noise_scale=self._last, loss=loss
        )
        self._keep(point, [keras.ops.convert_to_numpy(v.value).copy() for v in self._variables])

    def _wanted(self) -> int:
        """Examples to measure on: decided by the point before, not by what is being measured."""
        plan, last = self._plan, self._last
        if last is None:
            return plan.fewest
        wanted = TIMES_NOISE_SCALE * last.value if last.resolved else 2 * last.num_examples
        return int(min(max(wanted, plan.fewest), max(plan.max_measured, plan.fewest)))

    def _measure(self, index: int, examples: int) -> NoiseScale:
        size = self._plan.measure_batch_size
        self._measurement.reset()
        for batch in itertools.islice(self._fresh(index), math.ceil(examples / size)):
            self._measurement.add_batch(batch)
        return self._measurement.noise_scale()

    def _fresh(self, index: int) -> Iterator[Any]:
        """Batches to measure on, independent of each other within a point."""
        size, seed = self._plan.measure_batch_size, MEASURE_SEED + 1000 * self._seed
        if not isinstance(self._source, DrawnExamples):
            return iter(self._source.batches(size, seed=seed + index))
        if self._drawn is None:  # To begin new games for every point would take too long.
            count = math.ceil(max(self._plan.max_measured, self._plan.fewest) / size)
            self._drawn = iter(self._source.batches(size, seed=seed, independent=count))
        return self._drawn
