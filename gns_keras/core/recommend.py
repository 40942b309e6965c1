"""From what was measured to a recommended batch size: pure functions, one step after the other."""

import math
from dataclasses import dataclass

from gns_keras.core.adaptive import adaptive_gain
from gns_keras.core.advice import Advice, AdviceRow
from gns_keras.core.evidence import Evidence
from gns_keras.core.learning_rate import LearningRateRule
from gns_keras.core.tradeoff import batch_size_at_overhead, relative_examples, relative_steps
from gns_keras.core.warning_words import warnings_for

OBJECTIVES = ("balanced", "time", "cost")
COST_OVERHEAD = 0.2  # "cost": 20 % more examples than the minimum.
WIDEST = 16  # "time": from 16 B_c on, a bigger batch saves at most 6 % of the steps.


@dataclass(frozen=True, kw_only=True)
class CriticalBatchSize:
    """The predicted critical batch size, in examples.

    Attributes:
        value: The prediction; NaN while unresolved.
        interval: Its confidence interval; the upper end is `inf` while unresolved.
    """

    value: float
    interval: tuple[float, float]

    @property
    def resolved(self) -> bool:
        """Whether there is a critical batch size to act on."""
        return self.value > 0

    @property
    def supported(self) -> float:
        """The size to act on: the prediction, or else its lower bound, at least 0."""
        if self.resolved:
            return self.value
        return max(0.0, self.interval[0]) if self.interval[0] > 0 else 0.0


def predicted_critical_batch_size(evidence: Evidence) -> CriticalBatchSize:
    """The critical batch size that the noise scale predicts: the one place where it is made.

    Args:
        evidence: What was measured.
    """
    scale = evidence.noise_scale
    return CriticalBatchSize(
        value=scale.value if scale.resolved and scale.value > 0 else math.nan,
        interval=scale.interval,
    )


def recommend(
    evidence: Evidence, *, objective: str = "balanced", max_batch_size: int | None = None
) -> Advice:
    """Recommends a batch size and a learning rate.

    Args:
        evidence: What was measured.
        objective: "balanced": the critical batch size, where both sides of Eq. 2.11 are 1, twice
            the smallest number of steps and of examples. "time": the shortest run on these devices.
            "cost": 20 % more examples than the minimum.
        max_batch_size: Largest global batch size that fits into memory; None: not known.

    Returns:
        The advice. While the noise scale is unresolved the batch size stays as it is, or grows as
        far as the lower bound supports.

    Raises:
        ValueError: An argument is out of range.
    """
    _check(evidence, objective, max_batch_size)
    cap = min(max_batch_size or math.inf, evidence.dataset_size or math.inf)
    critical = predicted_critical_batch_size(evidence)
    batch_size, limited_by = _choose(evidence, objective, critical, max_batch_size)
    ends = tuple(_end(evidence, objective, bound, cap) for bound in critical.interval)
    table = _table(evidence, critical.supported, cap, batch_size)
    advice = Advice(
        noise_scale=evidence.noise_scale,
        critical_batch_size=critical.value,
        interval=critical.interval,
        batch_size=batch_size,
        batch_size_interval=(ends[0], ends[1]),
        learning_rate=next(row.learning_rate for row in table if row.batch_size == batch_size),
        limited_by=limited_by,
        exchange_rate=critical.value,
        adaptive_gain=_gain(evidence),
        table=table,
        warnings=evidence.remarks,
        examples_used=evidence.examples_used,
        objective=objective,
        base_batch_size=evidence.base_batch_size,
        base_learning_rate=evidence.base_learning_rate,
        rule=_rule(evidence, critical.supported),
        step_time=evidence.step_time,
        points=evidence.points,
        learning_rate_check=evidence.learning_rate_check,
    )
    return warnings_for(advice, dataset_size=evidence.dataset_size, max_batch_size=max_batch_size)


def nearest_power_of_two(value: float) -> int:
    """The power of two nearest in ratio, at least 1."""
    return 2 ** max(0, round(math.log2(value))) if value > 1 else 1


def power_of_two_below(value: float) -> int:
    """The largest power of two that is not above `value`, at least 1."""
    return 2 ** max(0, math.floor(math.log2(value))) if value > 1 else 1


def _choose(
    evidence: Evidence, objective: str, critical: CriticalBatchSize, max_batch_size: int | None
) -> tuple[int, str]:
    """Returns the batch size and what limits it."""
    memory = max_batch_size or math.inf
    data = evidence.dataset_size or math.inf
    base = evidence.base_batch_size
    if not critical.resolved:
        least = critical.supported
        supported = power_of_two_below(min(least, memory, data)) if least > 0 else 0
        return int(min(max(supported, base), memory)), "insufficient_data"
    wanted, limited_by = _wanted(evidence, objective, critical.value, min(memory, data))
    if wanted > memory and memory <= data:
        return max(power_of_two_below(memory), base), "memory"
    if wanted > data:
        return power_of_two_below(data), "insufficient_data"
    return wanted, limited_by


def _wanted(evidence: Evidence, objective: str, critical: float, cap: float) -> tuple[int, str]:
    """Returns the batch size that the objective asks for, as if all of `cap` were no limit."""
    if objective == "cost":
        return nearest_power_of_two(batch_size_at_overhead(COST_OVERHEAD, critical)), "noise_scale"
    if objective == "time":
        timed = _timed_rows(evidence, critical, min(WIDEST * critical, cap))
        if timed:
            fastest = min(timed, key=lambda row: row.relative_steps * row.step_time_s).batch_size
            if 2 * fastest <= min(WIDEST * critical, cap):
                return fastest, "throughput"
            # Still getting faster at the edge: the edge decides, memory or the noise scale.
            return nearest_power_of_two(WIDEST * critical), "noise_scale"
    return nearest_power_of_two(critical), "noise_scale"


def _timed_rows(evidence: Evidence, critical: float, high: float) -> list[AdviceRow]:
    """Rows with a step time, from the smallest measured batch size on."""
    if evidence.step_time is None:
        return []
    rows = _rows(evidence, critical, _powers(min(evidence.step_time.batch_sizes), high))
    return [row for row in rows if not math.isnan(row.step_time_s)]


def _end(evidence: Evidence, objective: str, bound: float, cap: float) -> float:
    """The recommendation if the critical batch size were at this end of its interval."""
    if math.isnan(bound):
        return math.nan
    if math.isinf(bound):
        return math.inf if math.isinf(cap) else float(power_of_two_below(cap))
    if bound <= 0:
        return 1.0
    wanted, _ = _wanted(evidence, objective, bound, cap)
    return float(wanted if wanted <= cap else power_of_two_below(cap))


def _powers(low: float, high: float) -> list[int]:
    first = power_of_two_below(low).bit_length() - 1
    last = max(first, power_of_two_below(high).bit_length() - 1)
    return [2**exponent for exponent in range(first, last + 1)]


def _table(
    evidence: Evidence, critical: float, cap: float, recommended: int
) -> tuple[AdviceRow, ...]:
    """Rows at powers of two from below the present size to four times the critical one."""
    base = evidence.base_batch_size
    low = min(
        base, recommended, batch_size_at_overhead(COST_OVERHEAD, critical) if critical > 0 else base
    )
    high = min(max(base, 2 * recommended, 4 * critical), cap)
    sizes = {size for size in _powers(low, high) if size <= cap} | {base, recommended}
    return tuple(_rows(evidence, critical, sorted(sizes)))


def _rows(evidence: Evidence, critical: float, sizes: list[int]) -> list[AdviceRow]:
    base = evidence.base_batch_size
    steps, examples, time = _relative(evidence, critical, base)
    rows = []
    for size in sizes:
        row_steps, row_examples, row_time = _relative(evidence, critical, size)
        measured = evidence.step_time is not None and size in evidence.step_time.batch_sizes
        rows.append(
            AdviceRow(
                batch_size=size,
                relative_steps=row_steps,
                relative_examples=row_examples,
                learning_rate=_learning_rate(evidence, critical, size),
                step_time_s=row_time,
                step_time_measured=measured,
                relative_time=row_steps * row_time / (steps * time),
                relative_cost=row_examples / examples,
            )
        )
    return rows


def _relative(evidence: Evidence, critical: float, size: int) -> tuple[float, float, float]:
    """Returns steps and examples over their minimum, and the step time in seconds."""
    time = math.nan if evidence.step_time is None else evidence.step_time.predict(size)
    if not critical > 0:
        return math.nan, math.nan, time
    return float(relative_steps(size, critical)), float(relative_examples(size, critical)), time


def _rule(evidence: Evidence, critical: float) -> LearningRateRule | None:
    return None if evidence.rule is None else evidence.rule.at(critical if critical > 0 else None)


def _learning_rate(evidence: Evidence, critical: float, size: int) -> float:
    rule = _rule(evidence, critical)
    if rule is None:
        return math.nan
    return evidence.base_learning_rate * rule.scale(size, evidence.base_batch_size)


def _gain(evidence: Evidence) -> float:
    """`gamma` of Eq. D.5 over the resolved points, by their progress `ds = dt/(1 + B_i/B)`."""
    scales, weights, seen = [], [], 0
    for point in evidence.points:
        value = point.noise_scale.value
        if point.noise_scale.resolved and value > 0:
            scales.append(value)
            weights.append((point.examples_seen - seen) / (evidence.base_batch_size + value))
        seen = point.examples_seen
    return adaptive_gain(scales, weights) if len(scales) > 1 else math.nan


def _check(evidence: Evidence, objective: str, max_batch_size: int | None) -> None:
    if objective not in OBJECTIVES:
        raise ValueError(
            f"Expected `objective` to be one of {OBJECTIVES}. Received: {objective!r}."
        )
    for name, value in (
        ("max_batch_size", max_batch_size),
        ("dataset_size", evidence.dataset_size),
        ("base_batch_size", evidence.base_batch_size),
    ):
        if value is not None and not value >= 1:
            raise ValueError(f"Expected `{name}` of at least 1 example. Received: {value}.")
    if max_batch_size is not None and max_batch_size < evidence.base_batch_size:
        raise ValueError(
            "Expected `max_batch_size` to be at least the present batch size "
            f"{evidence.base_batch_size}. Received: {max_batch_size}. Lower `batch_size`, or raise "
            "`max_batch_size`."
        )
