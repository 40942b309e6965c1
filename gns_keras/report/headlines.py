"""The sentences that every report of an advice begins with, and the rows of its table."""

import math

from gns_keras.core.advice import Advice
from gns_keras.core.advice_parts import AdviceRow
from gns_keras.core.numbers import format_number

REASONS = {
    "noise_scale": "a bigger one would mostly repeat what the gradient already says",
    "memory": "a bigger one does not fit into memory",
    "throughput": "on these devices a bigger one takes longer than the steps it saves",
    "insufficient_data": "the examples measured do not support a bigger one",
}
OBJECTIVES = {
    "balanced": "steps and examples weigh the same",
    "time": "the shortest run on these devices",
    "cost": "about 20 % more examples than the minimum",
}
COLUMNS = (
    ("batch\nsize", "global batch size, in examples"),
    ("steps\n/ least", "optimizer steps over the smallest possible number, 1 + B_c/B"),
    ("examples\n/ least", "examples over the smallest possible number, 1 + B/B_c"),
    ("learning\nrate", "first value to try at this batch size"),
    ("ms per\nstep", "measured on these devices; with ~ predicted from the others"),
    ("time\n/ now", "duration of a whole run on these devices, relative to the present batch size"),
    ("cost\n/ now", "examples to compute in a whole run, relative to the present batch size"),
)


def headlines(advice: Advice) -> list[tuple[str, str]]:
    """Label and sentence of what was found, most important first."""
    recommended = f"{advice.batch_size:,}{_range(advice)}"
    return [
        ("Batch size", f"{recommended}; {REASONS[advice.limited_by]}"),
        ("Learning rate", _learning_rate(advice)),
        ("Critical batch size", _critical(advice)),
        ("Objective", f"{advice.objective}: {OBJECTIVES[advice.objective]}"),
    ]


def cells(row: AdviceRow) -> tuple[str, ...]:
    """The cells of one row under `COLUMNS`."""
    predicted = "" if row.step_time_measured or math.isnan(row.step_time_s) else "~"
    return (
        f"{row.batch_size:,}",
        format_number(row.relative_steps),
        format_number(row.relative_examples),
        format_number(row.learning_rate),
        predicted + format_number(1000 * row.step_time_s),
        _ratio(row.relative_time),
        _ratio(row.relative_cost),
    )


def _ratio(value: float) -> str:
    return f"{value:.0e}" if 0 < value < 0.0095 else format_number(value)


def mark(advice: Advice, row: AdviceRow) -> str:
    """What a row stands for: "advised", "now", "keep" for both, or nothing."""
    is_now = row.batch_size == advice.base_batch_size
    if row.batch_size == advice.batch_size:
        return "keep" if is_now else "advised"
    return "now" if is_now else ""


def _range(advice: Advice) -> str:
    low, high = advice.batch_size_interval
    if math.isnan(low) or low == high == advice.batch_size:
        return ""
    upper = "more" if math.isinf(high) else f"{high:,.0f}"
    return f" (between {low:,.0f} and {upper} at the ends of the interval)"


def _learning_rate(advice: Advice) -> str:
    if math.isnan(advice.learning_rate):
        return "no rule is known for this optimizer; tune it anew"
    check = advice.learning_rate_check
    present = check.learning_rate if check else advice.base_learning_rate
    now = f"now {format_number(present)} at {advice.base_batch_size:,}"
    return f"{format_number(advice.learning_rate)} to begin with ({now})"


def _critical(advice: Advice) -> str:
    low, high = advice.interval
    percent = f"{advice.noise_scale.confidence:.0%}"
    if not math.isnan(advice.critical_batch_size):
        return (
            f"{format_number(advice.critical_batch_size)} examples ({percent} interval "
            f"{format_number(low)} to {format_number(high)})"
        )
    if low > 0:
        return f"unresolved: at least {format_number(low)} examples ({percent})"
    return "unresolved: no bound yet"
