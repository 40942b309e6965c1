"""The noise scale of a run early on and on average, beside what the paper's Table 1 has for it.

McCandlish et al. 2018 (arXiv 1812.06162), Table 1, reports the simple noise scale "both early in
training and averaged over a training run". Here "start" is the average over the points within the
first `early` examples, and "average" that over all of them, both with the weights of Appendix D
(`gns_keras.core.run_average`). The value at the initial weights is another number, kept as such.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gns_keras.core.advice_parts import NoisePoint
from gns_keras.core.json_records import JsonRecord
from gns_keras.core.noise_scale import NoiseScale
from gns_keras.core.run_average import average_over_runs

Range = tuple[float, float]
_NOTHING = NoiseScale(value=math.nan, interval=(math.nan, math.nan))


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One row of the paper's Table 1. A single number is a range of equal ends, NaN not measured.

    Attributes:
        system: As the paper calls it.
        unit: What the numbers count: "images", "tokens", "frames".
        critical_start: Critical batch size early in the run.
        critical_average: Critical batch size over the run.
        noise_start: Simple noise scale early in training.
        noise_average: Simple noise scale averaged over the training run.
        length: What the paper says about how long it trained.
    """

    system: str
    unit: str
    critical_start: Range
    critical_average: Range
    noise_start: Range
    noise_average: Range
    length: str


@dataclass(frozen=True, kw_only=True)
class PointsOfRun:
    """What was measured along one run.

    Attributes:
        seed: Of weights, order of the examples, and which were measured on.
        points: Snapshots in order, in examples. The first may be at the initial weights.
    """

    seed: int
    points: tuple[NoisePoint, ...]


@dataclass(frozen=True, kw_only=True)
class ReproductionRecord(JsonRecord):
    """Noise scales of a task along its training.

    Attributes:
        task: Name of the task.
        description: Its data and model.
        status: What else has been run of the task, and whether the learning rate was tuned.
        optimizer: As Keras calls it.
        learning_rate: At the beginning; constant unless the task decays it.
        unit: What `start` and `average` count.
        units_per_example: Of them in one example.
        batch_size: Of the training, in examples.
        early: Examples that count as the start.
        examples: Length of the run that was asked for, in examples.
        dataset_size: Examples in the training data; None: unknown or unlimited.
        normalized_group: Where the model normalizes over the batch: examples that share their
            statistics in the measured objective. None: it does not.
        published: The paper's row; None: the paper has no such task.
        runs: One or more runs.
    """

    task: str
    description: str
    status: str
    optimizer: str
    learning_rate: float
    unit: str
    units_per_example: int
    batch_size: int
    early: int
    examples: int
    dataset_size: int | None
    normalized_group: int | None
    published: PublishedRow | None
    runs: tuple[PointsOfRun, ...]

    @property
    def initial(self) -> NoiseScale:
        """At the initial weights, in `unit`: of the first run."""
        first = self.runs[0].points[0] if self.runs and self.runs[0].points else None
        at_start = first is not None and first.examples_seen == 0
        return self._in_units(first.noise_scale if first and at_start else _NOTHING)

    @property
    def start(self) -> NoiseScale:
        """Over the first `early` examples, without the initial weights, in `unit`."""
        return self.between(0, self.early)

    @property
    def average(self) -> NoiseScale:
        """Over the whole run, in `unit`."""
        return self.between(0, self.examples)

    @property
    def start_of_each(self) -> tuple[NoiseScale, ...]:
        """`start` of every run alone."""
        return tuple(replace(self, runs=(run,)).start for run in self.runs)

    @property
    def average_of_each(self) -> tuple[NoiseScale, ...]:
        """`average` of every run alone."""
        return tuple(replace(self, runs=(run,)).average for run in self.runs)

    @property
    def examples_trained(self) -> int:
        """Length of the shortest run, in examples: whole batches of `examples`."""
        ends = [run.points[-1].examples_seen for run in self.runs if run.points]
        return min(ends, default=0)

    def between(self, begin: int, end: int) -> NoiseScale:
        """Average over a stretch, of all runs together.

        Args:
            begin: Examples trained on before the stretch.
            end: And at its end.

        Returns:
            In `unit`. The interval is that within the runs; from three runs on that between them.
        """
        stretches = [_stretch(run.points, begin, end) for run in self.runs]
        return self._in_units(average_over_runs(stretches, self.batch_size))

    def _in_units(self, scale: NoiseScale) -> NoiseScale:
        return scale.scaled(self.units_per_example, self.unit)


def _stretch(points: Sequence[NoisePoint], begin: int, end: int) -> list[NoisePoint]:
    """Points after `begin` up to `end`, with the examples counted from `begin`."""
    inside = [point for point in points if begin < point.examples_seen <= end]
    return [replace(point, examples_seen=point.examples_seen - begin) for point in inside]
