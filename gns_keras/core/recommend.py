"""From what was measured to a recommended batch size: pure functions, one step after the other."""

import math

from gns_keras.core.adaptive import adaptive_gain
from gns_keras.core.advice import Advice
from gns_keras.core.advice_parts import AdviceRow, ReplicaRow
from gns_keras.core.advice_table import (
    COST_OVERHEAD,
    nearest_power_of_two,
    power_of_two_below,
    powers_of_two,
    rows_for,
    rule_for,
    table_rows,
)
from gns_keras.core.critical_batch_size import CriticalBatchSize, predicted_critical_batch_size
from gns_keras.core.evidence import Evidence
from gns_keras.core.replicas import replica_rows, worthwhile_replicas
from gns_keras.core.tradeoff import batch_size_at_overhead
from gns_keras.core.warning_words import warnings_for

OBJECTIVES = ("balanced", "time", "cost")
SENSIBLE = (
    4.0  # A batch size within this factor of what an end of the interval asks for is sensible.
)
ADAPTIVE_GAIN = 0.81  # `gamma` at which an adaptive batch size saves 5 % of steps and examples.
WIDEST = 16  # "time": from 16 B_c on, a bigger batch saves at most 6 % of the steps.


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
    ends = tuple(_end(evidence, objective, bound, cap) for bound in critical.interval)
    batch_size, limited_by = _choose(evidence, objective, critical, max_batch_size)
    batch_size, limited_by = _sensible(evidence, batch_size, limited_by, ends)
    table = table_rows(evidence, critical.supported, cap, batch_size)
    advice = Advice(
        noise_scale=evidence.noise_scale,
        critical_batch_size=critical.value,
        interval=critical.interval,
        batch_size=batch_size,
        batch_size_interval=(ends[0], ends[1]),
        learning_rate=next(row.learning_rate for row in table if row.batch_size == batch_size),
        limited_by=limited_by,
        exchange_rate=critical.value,
        adaptive_gain=_gain(evidence)
        if evidence.forecast is None
        else evidence.forecast.adaptive_gain,
        table=table,
        warnings=evidence.remarks,
        examples_used=evidence.examples_used,
        objective=objective,
        base_batch_size=evidence.base_batch_size,
        base_learning_rate=evidence.base_learning_rate,
        rule=rule_for(evidence, critical.supported),
        step_time=evidence.step_time,
        points=evidence.points,
        learning_rate_check=evidence.learning_rate_check,
        forecast=evidence.forecast,
        schedule=_schedule(evidence),
        replicas=_replicas(evidence, critical.supported),
        num_replicas=_worthwhile(evidence, critical),
        is_watched=evidence.is_watched,
        mean_noise_scale=evidence.mean_noise_scale,
        calibration=evidence.calibration,
    )
    return warnings_for(advice, dataset_size=evidence.dataset_size, max_batch_size=max_batch_size)


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


def _sensible(
    evidence: Evidence, size: int, limited_by: str, ends: tuple[float, ...]
) -> tuple[int, str]:
    """Keeps a batch size only if it is within `SENSIBLE` of what both ends would ask for.

    Where no size is, the interval says too little: as far as its lower end supports, no further.
    """
    low, high = ends
    if limited_by == "insufficient_data" or not (low > 0 and math.isfinite(high)):
        return size, limited_by
    least, most = high / SENSIBLE, SENSIBLE * low
    if least > most:
        return max(int(low), evidence.base_batch_size), "insufficient_data"
    return int(min(max(size, least), most)), limited_by


def _schedule(evidence: Evidence) -> str:
    """Returns "adaptive" where growth is significant and worth it, else "fixed"."""
    forecast = evidence.forecast
    if forecast is None or not forecast.resolved or not forecast.law.exponent_interval[0] > 0:
        return "fixed"
    return "adaptive" if forecast.adaptive_gain <= ADAPTIVE_GAIN else "fixed"


def _replicas(evidence: Evidence, critical: float) -> tuple[ReplicaRow, ...]:
    most = evidence.dataset_size or math.inf
    return replica_rows(evidence.step_time, critical, evidence.num_replicas, most)


def _worthwhile(evidence: Evidence, critical: CriticalBatchSize) -> int:
    """The number that is worth it at both ends of the interval."""
    bounds = [bound for bound in (*critical.interval, critical.supported) if 0 < bound < math.inf]
    return min((worthwhile_replicas(_replicas(evidence, b)) for b in bounds), default=1)


def _timed_rows(evidence: Evidence, critical: float, high: float) -> list[AdviceRow]:
    """Rows with a step time, from the smallest measured batch size on."""
    if evidence.step_time is None:
        return []
    rows = rows_for(evidence, critical, powers_of_two(min(evidence.step_time.batch_sizes), high))
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
