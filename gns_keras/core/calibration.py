"""From the noise scale to the critical batch size: factors that sweeps of small tasks gave.

The noise scale is not the critical batch size (McCandlish et al. 2018, arXiv 1812.06162, section
2.3 and Table 1: "within an order of magnitude"). For runs whose critical batch size `B_c` a sweep
measured, and whose noise scale `B` was averaged up to the same goal,

    ln B_c = ln c + p ln B + task + goal

with a factor `c` for each class of optimizers and, unless it is fitted, `p = 1`. Goals of one task
share most of their error, so tasks are what is counted: `ln c` is the mean over the tasks, each
with the mean of its goals, and a new task has

    variance = (1 + 1/tasks) var(task means) + (1 - 1/goals) var(goals within a task)

with Student's t at Satterthwaite's degrees of freedom of that sum. How the numbers at the end came
about is told in docs/validation.md and docs/decisions/0006-calibration.md.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gns_keras.core.groups import FloatArray
from gns_keras.core.intervals import student_quantile
from gns_keras.core.json_records import JsonRecord

MIN_TASKS = 3
WITHIN = 2.0  # What counts as a good prediction: within this factor.


@dataclass(frozen=True, kw_only=True)
class CalibrationPoint:
    """One goal of one task.

    Attributes:
        task: Name of the task; its goals share most of their error.
        optimizers: Class of optimizers, such as "sgd".
        noise_scale: Predictor, averaged along a run up to the goal.
        critical_batch_size: Measured by a sweep, in the same unit.

    Raises:
        ValueError: A number is not positive and finite.
    """

    task: str
    optimizers: str
    noise_scale: float
    critical_batch_size: float

    def __post_init__(self) -> None:
        for value in (self.noise_scale, self.critical_batch_size):
            if not 0 < value < math.inf:
                raise ValueError(
                    "Expected a positive and finite noise scale and critical batch size; leave "
                    f"unresolved ones out, and say so. Received for {self.task}: "
                    f"{self.noise_scale} and {self.critical_batch_size}."
                )


@dataclass(frozen=True, kw_only=True)
class Calibration(JsonRecord):
    """Turns a noise scale into a critical batch size with a predictive interval.

    Attributes:
        factor: Critical batch size over noise scale, at a noise scale of `centre`.
        log_spread: Standard deviation of `ln` critical batch size for a new task.
        degrees_of_freedom: Of that.
        slope: Power of the noise scale.
        centre: Noise scale at which `factor` holds, where the slope is not 1.
        num_tasks: Tasks behind the factor.
        source: Date and command that the numbers came from.
    """

    factor: float
    log_spread: float
    degrees_of_freedom: float
    slope: float = 1.0
    centre: float = 1.0
    num_tasks: int = 0
    source: str = ""

    def predict(
        self,
        noise_scale: float,
        interval: tuple[float, float] | None = None,
        confidence: float = 0.95,
    ) -> tuple[float, tuple[float, float]]:
        """The critical batch size to expect.

        The error of the measurement and the spread between tasks are independent: their widths, in
        the logarithm, add up as squares, on either side of its own.

        Args:
            noise_scale: Measured noise scale; NaN while unresolved.
            interval: Its interval at the same confidence. None: only the spread counts.
            confidence: Coverage of the interval.

        Returns:
            Value and interval, in the unit of the noise scale. Unresolved: NaN, with what remains
            of the interval: the lower bound, and `inf`.

        Raises:
            ValueError: The noise scale is not positive, or outside of its interval.
        """
        low, high = (noise_scale, noise_scale) if interval is None else interval
        if noise_scale <= 0 or noise_scale == math.inf or low > noise_scale or high < noise_scale:
            raise ValueError(
                "Expected a positive, finite `noise_scale` (NaN while unresolved) within its "
                f"`interval`. Received: {noise_scale} and {interval}."
            )
        spread = student_quantile(confidence, self.degrees_of_freedom) * self.log_spread
        if math.isnan(noise_scale):
            lower = self._value(low) * math.exp(-spread) if low > 0 else low
            return math.nan, (lower, math.inf if high == math.inf else math.nan)
        value = self._value(noise_scale)
        below = math.hypot(self.slope * math.log(noise_scale / low), spread) if low > 0 else None
        above = math.hypot(self.slope * math.log(high / noise_scale), spread)
        return value, (0.0 if below is None else value * math.exp(-below), value * math.exp(above))

    def _value(self, noise_scale: float) -> float:
        return self.factor * self.centre * float((noise_scale / self.centre) ** self.slope)


@dataclass(frozen=True, kw_only=True)
class CalibrationScore:
    """How good predictions were.

    Attributes:
        num_points: Goals.
        num_tasks: Tasks that they belong to.
        share_within: Share of goals predicted within a factor of `WITHIN`.
        worst_ratio: Largest factor by which one is off, in either direction.
        r_squared: 1 minus squared errors over the variance of what was measured, in the logarithm.
            It counts every error: the predictions are not fitted again.
        decades: Range of what was measured, as a power of ten.
        rms_log_error: Root mean square of the errors, natural logarithm.
    """

    num_points: int
    num_tasks: int
    share_within: float
    worst_ratio: float
    r_squared: float
    decades: float
    rms_log_error: float


def fit_calibration(
    points: Sequence[CalibrationPoint], *, slope: float | None = 1.0, source: str = ""
) -> dict[str, Calibration]:
    """Fits a factor for every class of optimizers; the spread is common to all classes.

    Args:
        points: Goals of at least `MIN_TASKS` tasks, and of at least one more than there are
            classes.
        slope: Power of the noise scale. None: fitted, one for all classes, to the means of tasks.
        source: Date and command, to keep with the numbers.

    Returns:
        A calibration for every class.

    Raises:
        ValueError: Too few tasks.
    """
    tasks = sorted({point.task for point in points})
    classes = {task: next(p.optimizers for p in points if p.task == task) for task in tasks}
    names = sorted(set(classes.values()))
    freedom = len(tasks) - len(names) - (slope is None)
    if len(tasks) < MIN_TASKS or freedom < 1:
        raise ValueError(
            f"Expected at least {MIN_TASKS} tasks, and one more than there are classes of "
            f"optimizers and fitted slopes. Received: {len(tasks)} tasks of {names}."
        )
    logs = {t: _logs([p for p in points if p.task == t]) for t in tasks}
    means = np.array([logs[task].mean(axis=0) for task in tasks])
    owner = np.array([names.index(classes[task]) for task in tasks])
    centres = np.array([means[owner == i, 0].mean() for i in range(len(names))])
    power = _common_slope(means, owner) if slope is None else slope
    shifted = means[:, 1] - power * (means[:, 0] - centres[owner])
    levels = np.array([shifted[owner == i].mean() for i in range(len(names))])
    between = float(np.square(shifted - levels[owner]).sum()) / freedom
    within = _within_tasks([rows[:, 1] - power * rows[:, 0] for rows in logs.values()])
    found = {}
    for i, name in enumerate(names):
        count = int(np.sum(owner == i))
        spread, total_freedom = _sum_of((between * (1 + 1 / count), freedom), within)
        found[name] = Calibration(
            factor=math.exp(levels[i] - centres[i]),
            log_spread=spread,
            degrees_of_freedom=total_freedom,
            slope=float(power),
            centre=math.exp(centres[i]),
            num_tasks=count,
            source=source,
        )
    return found


def score_calibration(
    points: Sequence[CalibrationPoint], calibrations: Mapping[str, Calibration]
) -> CalibrationScore:
    """Compares predictions with what was measured.

    Args:
        points: Goals.
        calibrations: By class of optimizers.
    """
    predicted = [calibrations[p.optimizers].predict(p.noise_scale)[0] for p in points]
    return _score(points, predicted)


def leave_one_task_out(
    points: Sequence[CalibrationPoint], *, slope: float | None = 1.0
) -> CalibrationScore:
    """Predicts every task with a calibration fitted to all others.

    Args:
        points: Goals.
        slope: As for `fit_calibration`.

    Raises:
        ValueError: Too few tasks, or a class of optimizers with one task.
    """
    predicted = []
    for point in points:
        others = fit_calibration([p for p in points if p.task != point.task], slope=slope)
        if point.optimizers not in others:
            raise ValueError(f"Expected two tasks or more of {point.optimizers!r}. Received one.")
        predicted.append(others[point.optimizers].predict(point.noise_scale)[0])
    return _score(points, predicted)


def _score(points: Sequence[CalibrationPoint], predicted: Sequence[float]) -> CalibrationScore:
    measured = np.log([point.critical_batch_size for point in points])
    errors = np.log(predicted) - measured
    total = float(np.square(measured - measured.mean()).sum())
    return CalibrationScore(
        num_points=len(points),
        num_tasks=len({point.task for point in points}),
        share_within=float(np.mean(np.abs(errors) <= math.log(WITHIN))),
        worst_ratio=math.exp(float(np.abs(errors).max())),
        r_squared=1 - float(np.square(errors).sum()) / total if total > 0 else math.nan,
        decades=float(np.ptp(measured)) / math.log(10),
        rms_log_error=math.sqrt(float(np.square(errors).mean())),
    )


def _logs(points: Sequence[CalibrationPoint]) -> FloatArray:
    return np.log([[point.noise_scale, point.critical_batch_size] for point in points])


def _common_slope(means: FloatArray, owner: FloatArray) -> float:
    """Least squares through the task means, with a level for every class."""
    centred = np.concatenate([means[owner == i] - means[owner == i].mean(axis=0)
                              for i in np.unique(owner)])  # fmt: skip
    return float(centred[:, 0] @ centred[:, 1] / (centred[:, 0] @ centred[:, 0]))


def _within_tasks(residuals: Sequence[FloatArray]) -> tuple[float, float]:
    """Variance of a goal around its task's mean, less what that mean holds of it; its freedom."""
    freedom = sum(len(rows) - 1 for rows in residuals)
    if freedom == 0:
        return 0.0, 1.0
    variance = sum(float(np.square(rows - rows.mean()).sum()) for rows in residuals) / freedom
    return variance * (1 - float(np.mean([1 / len(rows) for rows in residuals]))), freedom


def _sum_of(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    """Root of the sum of two variances, and Satterthwaite's degrees of freedom of the sum."""
    total = first[0] + second[0]
    uncertainty = first[0] ** 2 / first[1] + second[0] ** 2 / second[1]
    return math.sqrt(total), total**2 / uncertainty if uncertainty > 0 else first[1]
