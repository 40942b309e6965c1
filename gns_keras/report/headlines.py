"""The sentences that every report of an advice begins with, and the rows of its table."""

import math

from gns_keras.core.advice import Advice
from gns_keras.core.advice_parts import AdviceRow
from gns_keras.core.numbers import format_number

REASONS = {
    "noise_scale": "a bigger one would mostly repeat what the gradient already says",
    "memory": "a bigger one does not fit into memory",
    "throughput": "on these devices a bigger one takes longer than the steps it saves",
    "insufficient_data": "what was measured does not support a bigger one",
}
WRONG_RATE = "kept for now: first change the learning rate, and ask again"
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
SURE, FAIRLY_SURE, MAGNITUDE = 2.0, 4.0, 100.0  # Ratio of the ends of the interval.
CALIBRATED = 8.0  # The spread between tasks alone makes it 5 to 6.


def headlines(advice: Advice) -> list[tuple[str, str]]:
    """Label and sentence of what was found, most important first."""
    recommended = f"{advice.batch_size:,}{_range(advice)}"
    reason = WRONG_RATE if is_refused(advice) else REASONS[advice.limited_by]
    found = [
        ("Batch size", f"{recommended}; {reason}"),
        ("Learning rate", _learning_rate(advice)),
        ("How sure", how_sure(advice)),
        ("Critical batch size", _critical(advice)),
        ("For a run", _run(advice)),
        ("While training", _schedule(advice)),
        ("Replicas", _replicas(advice)),
        ("Objective", f"{advice.objective}: {OBJECTIVES[advice.objective]}"),
    ]
    return [(label, sentence) for label, sentence in found if sentence]


def is_refused(advice: Advice) -> bool:
    """Whether the learning rate has to change before a batch size can be advised."""
    check = advice.learning_rate_check
    return check is not None and check.forbids_measuring


def how_sure(advice: Advice) -> str:
    """One sentence on how far the number can be trusted."""
    if is_refused(advice):
        return "the learning rate is off by more than a factor of 2; the batch size is not measured"
    low, high = advice.interval
    if math.isnan(advice.critical_batch_size):
        more = "watch a longer run" if advice.is_watched else "raise `budget`"
        return f"not: the critical batch size is unresolved; {more}"
    ratio = high / low if low > 0 else math.inf
    spread = f"the interval spans a factor of {format_number(ratio, 2)}"
    if advice.calibration is not None and ratio <= CALIBRATED:
        return f"as sure as sweeps of small tasks allow: {spread}"
    if ratio <= SURE:
        return f"of the noise scale, quite: {spread}"
    if ratio <= FAIRLY_SURE:
        return f"of the noise scale, fairly: {spread}"
    if ratio <= MAGNITUDE:
        return f"of the order of magnitude: {spread}"
    return f"hardly, not even of the order of magnitude: {spread}"


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
    if is_refused(advice) and not math.isnan(advice.base_learning_rate):
        check = advice.learning_rate_check
        side = check.verdict.replace("_", " ")
        beyond = {"high": " or more", "low": " or less", "": ""}[check.at_edge]
        return (
            f"{format_number(check.best_learning_rate)}{beyond} at {advice.base_batch_size:,}; "
            f"the present {format_number(check.learning_rate)} is {side}"
        )
    if math.isnan(advice.learning_rate):
        return "no rule is known for this optimizer; tune it anew"
    check = advice.learning_rate_check
    present = check.learning_rate if check else advice.base_learning_rate
    now = f"now {format_number(present)} at {advice.base_batch_size:,}"
    verdict = ", within a factor of 2 of the best" if check and check.verdict == "good" else ""
    return f"{format_number(advice.learning_rate)} to begin with ({now}{verdict})"


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


def _run(advice: Advice) -> str:
    forecast = advice.forecast
    if forecast is None:
        return ""
    known = not math.isnan(forecast.target_loss)
    loss = f"down to a training loss of {format_number(forecast.target_loss)}"
    if not forecast.resolved:
        return f"{loss if known else _length(advice)}: unresolved"
    if not forecast.is_extrapolated:
        end = "as measured" if forecast.is_given else "where the trial run ended"
        return f"{loss if known else _length(advice)}, {end}"
    kind = "" if forecast.is_given else ", where this one is heading"
    ended = f", the trial run ended at {format_number(forecast.reached_loss)}" if known else ""
    return f"{_length(advice)}{f', {loss}' if known else ''}{kind}: a forecast{ended}"


def _length(advice: Advice) -> str:
    examples = format_number(advice.forecast.examples, 2)
    return f"of about {examples} examples at batch size {advice.base_batch_size:,}"


def _schedule(advice: Advice) -> str:
    gain = advice.adaptive_gain
    if math.isnan(advice.critical_batch_size) or math.isnan(gain):
        return ""
    saved = f"{50 * (1 - math.sqrt(gain)):.0f} % of steps and examples"
    if advice.schedule == "adaptive":
        return f"let the batch size grow (BatchSizeScheduler): saves about {saved}"
    return f"a fixed batch size will do: one that grows would save about {saved}"


def _replicas(advice: Advice) -> str:
    if not advice.replicas or math.isnan(advice.critical_batch_size):
        return ""
    if advice.num_replicas == 1:
        return "one is enough: a second would not make the run 1.4 times shorter"
    row = next(row for row in advice.replicas if row.num_replicas == advice.num_replicas)
    return (
        f"up to {row.num_replicas} are worth paying for: {format_number(1 / row.relative_time)} "
        f"times faster at {format_number(row.relative_cost)} times the cost, batch size "
        f"{row.batch_size:,}; less with slow communication, which is left out"
    )
