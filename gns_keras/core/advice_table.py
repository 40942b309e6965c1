"""The rows of an advice: what each batch size would mean."""

import math

from gns_keras.core.advice_parts import AdviceRow
from gns_keras.core.evidence import Evidence
from gns_keras.core.learning_rate import LearningRateRule
from gns_keras.core.tradeoff import batch_size_at_overhead, relative_examples, relative_steps

COST_OVERHEAD = 0.2  # "cost": 20 % more examples than the minimum.


def nearest_power_of_two(value: float) -> int:
    """The power of two nearest in ratio, at least 1."""
    return 2 ** max(0, round(math.log2(value))) if value > 1 else 1


def power_of_two_below(value: float) -> int:
    """The largest power of two that is not above `value`, at least 1."""
    return 2 ** max(0, math.floor(math.log2(value))) if value > 1 else 1


def powers_of_two(low: float, high: float) -> list[int]:
    """Powers of two from the one below `low` to the one below `high`."""
    first = power_of_two_below(low).bit_length() - 1
    last = max(first, power_of_two_below(high).bit_length() - 1)
    return [2**exponent for exponent in range(first, last + 1)]


def table_rows(
    evidence: Evidence, critical: float, cap: float, recommended: int
) -> tuple[AdviceRow, ...]:
    """Rows at powers of two from below the present size to four times the critical one."""
    base = evidence.base_batch_size
    low = min(
        base, recommended, batch_size_at_overhead(COST_OVERHEAD, critical) if critical > 0 else base
    )
    high = min(max(base, 2 * recommended, 4 * critical), cap)
    sizes = {size for size in powers_of_two(low, high) if size <= cap} | {base, recommended}
    return tuple(rows_for(evidence, critical, sorted(sizes)))


def rows_for(evidence: Evidence, critical: float, sizes: list[int]) -> list[AdviceRow]:
    """One row per batch size."""
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


def rule_for(evidence: Evidence, critical: float) -> LearningRateRule | None:
    """The learning-rate rule at a critical batch size, 0 where it is unknown."""
    return None if evidence.rule is None else evidence.rule.at(critical if critical > 0 else None)


def _learning_rate(evidence: Evidence, critical: float, size: int) -> float:
    rule = rule_for(evidence, critical)
    if rule is None:
        return math.nan
    return evidence.base_learning_rate * rule.scale(size, evidence.base_batch_size)
