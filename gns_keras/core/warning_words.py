"""The warnings of an advice: what each means for the person who reads it, and what to do."""

import math
from collections.abc import Iterator
from dataclasses import replace

from gns_keras.core.advice import Advice
from gns_keras.core.calibrated import GROWTH
from gns_keras.core.learning_rate_words import learning_rate_warning
from gns_keras.core.noise_scale import NoiseScale
from gns_keras.core.numbers import format_number
from gns_keras.core.run_average import average_along_run
from gns_keras.core.run_forecast import RunForecast

WIDE = 2.0  # An interval that spans more than this factor gets a warning.
ERROR_OF_WIDE = math.log(WIDE) / 2 / 1.96  # Relative error at which the interval spans `WIDE`.
GROWING = 1.5
FEW_STEPS = 20
SLOWER = 1.1
UNEVEN = 0.25


def warnings_for(
    advice: Advice, *, dataset_size: int | None = None, max_batch_size: int | None = None
) -> Advice:
    """Returns the advice with its warnings, after those that it had.

    Args:
        advice: The advice.
        dataset_size: Number of examples, or None if unknown.
        max_batch_size: Largest global batch size that fits into memory, or None.
    """
    check = advice.learning_rate_check
    found = [
        *([learning_rate_warning(check)] if check and learning_rate_warning(check) else []),
        *advice.warnings,
        *(_about_precision(advice) if not (check and check.forbids_measuring) else []),
        *_about_growth(advice),
        *_about_size(advice, dataset_size, max_batch_size),
        *_about_time(advice),
        *_about_learning_rate(advice),
    ]
    return replace(advice, warnings=tuple(found))


def _examples_needed(noise_scale: NoiseScale) -> str:
    """Half a sentence on how many more examples would give a useful interval."""
    steps = noise_scale.steps_needed(ERROR_OF_WIDE)
    if math.isnan(steps) or noise_scale.num_steps == 0:
        return "How many more examples would be enough cannot be said yet; try ten times as many"
    examples = steps * noise_scale.num_examples / noise_scale.num_steps
    return f"At most about {format_number(examples, 2)} more examples would be enough"


def _about_precision(advice: Advice) -> Iterator[str]:
    if advice.limited_by == "insufficient_data" and not math.isnan(advice.critical_batch_size):
        low, high = advice.batch_size_interval
        if high > 16 * low:
            yield (
                f"The ends of the interval ask for batch sizes of {low:,.0f} and {high:,.0f}: no "
                "batch size is sensible for both, and the advice goes only as far as the lower end."
            )
    scale = advice.noise_scale
    measured = format_number(scale.num_examples, 4)
    more = "watch a longer run" if advice.is_watched else "raise `budget`"
    remedy = f"{_examples_needed(scale)}: {more}"
    if math.isnan(advice.critical_batch_size):
        if scale.resolved:
            return  # It is the forecast that is unresolved.
        known = (
            f"It is at least {format_number(advice.interval[0])} examples "
            f"({scale.confidence:.0%} confidence); the table is for that value and shows the least "
            "that bigger batches gain."
            if advice.interval[0] > 0
            else "Nothing is known about it, and the batch size stays as it is."
        )
        yield (
            f"The noise scale is unresolved: over {measured} examples the mean gradient does not "
            f"stand out from its noise. {known} {remedy}."
        )
        return
    low, high = advice.interval
    if not 0 < high <= WIDE * low:
        holds = ["the spread between tasks"] if advice.calibration is not None else []
        if advice.forecast is not None and advice.forecast.is_extrapolated:
            holds.append("that of the forecast")
        yield (
            f"The {scale.confidence:.0%} interval [{format_number(low)}, {format_number(high)}] "
            f"spans more than a factor of {WIDE:g}. "
            + (f"It holds {' and '.join(holds)}." if holds else f"{remedy}.")
        )


def _about_growth(advice: Advice) -> Iterator[str]:
    if advice.forecast is not None and (
        advice.forecast.is_extrapolated or advice.forecast.is_given
    ):
        yield from _about_forecast(advice.forecast)
        return
    half = len(advice.points) // 2
    early = average_along_run(advice.points[:half], advice.base_batch_size)
    late = average_along_run(advice.points[half:], advice.base_batch_size)
    if (
        early.resolved
        and late.value > GROWING * early.value
        and late.interval[0] > early.interval[1]
    ):
        yield (
            f"The noise scale is growing: {format_number(early.value)} in the first half of the "
            f"trial run, {format_number(late.value)} in the second. Later in training a bigger "
            "batch size is likely to pay; ask again from a checkpoint."
        )


def _about_forecast(forecast: RunForecast) -> Iterator[str]:
    length = f"{format_number(forecast.examples, 2)} examples"
    if not forecast.resolved:
        known = not math.isnan(forecast.target_loss)
        run = f"down to a training loss of {format_number(forecast.target_loss)}"
        yield (
            f"The noise scale of the run {run if known else f'of {length}'} is unresolved. "
            f"{forecast.reason}"
        )
        return
    if forecast.is_long:
        yield (
            f"A run of about {length} is more than one pass over the data. No law carries "
            "the noise scale that far: in sweeps of such runs the critical batch size grew little "
            "after the second pass. The prediction is for there, from the beginning of the run, "
            "and its interval is wide; a sweep says more."
        )
    elif forecast.is_extrapolated:
        yield (
            f"This is a forecast for a run {format_number(forecast.growth, 2)} times as long as "
            "the trial run: critical batch sizes of small tasks grew with the length of the run "
            f"to the power {GROWTH.exponent:.2g}, which makes it "
            f"{format_number(forecast.growth**GROWTH.exponent, 2)} times that of the trial. Ask "
            "again from a checkpoint, or with a larger `budget`, to measure more of it"
            + ("." if forecast.is_given else "; for another length, give `run_examples`.")
        )


def _about_size(
    advice: Advice, dataset_size: int | None, max_batch_size: int | None
) -> Iterator[str]:
    if advice.limited_by == "memory":
        yield (
            f"Memory limits the batch size (`max_batch_size`={max_batch_size:,}): with gradient "
            "accumulation or more devices a bigger one would still pay."
        )
    if dataset_size is not None and advice.batch_size * FEW_STEPS > dataset_size:
        yield (
            f"At batch size {advice.batch_size:,} an epoch of {dataset_size:,} examples has only "
            f"{max(1, dataset_size // advice.batch_size)} steps: plan the training in steps, as in "
            "the table, and not in epochs."
        )
    base = advice.base_batch_size
    if not math.isnan(advice.critical_batch_size) and base > 4 * advice.critical_batch_size:
        share = 1 + base / advice.critical_batch_size
        yield (
            f"The present batch size {base:,} is far beyond the critical one: it spends "
            f"{format_number(share)} times the smallest number of examples."
        )


def _about_time(advice: Advice) -> Iterator[str]:
    if advice.objective == "time" and all(math.isnan(row.step_time_s) for row in advice.table):
        yield (
            'Step times are unknown, so objective="time" could not be followed: the batch size is '
            "the balanced one."
        )
        return
    timed = [row for row in advice.table if not math.isnan(row.relative_time)]
    chosen = advice.recommended_row
    if advice.step_time is not None and advice.step_time.residual_rms > UNEVEN:
        yield (
            "The step times lie far from a line in the batch size "
            f"(by {advice.step_time.residual_rms:.0%}). If other work ran on these devices, time "
            "and predicted step times are unreliable: ask again on idle devices."
        )
    if not timed or math.isnan(chosen.relative_time):
        return
    fastest = min(timed, key=lambda row: row.relative_time)
    if chosen.relative_time > SLOWER * fastest.relative_time:
        factor = chosen.relative_time / fastest.relative_time
        reason = (
            "the bigger batch pays when more devices share it"
            if fastest.batch_size < chosen.batch_size
            else 'objective="time" would choose that one'
        )
        yield (
            f"On these devices a whole run at batch size {chosen.batch_size:,} takes about "
            f"{format_number(factor)} times as long as at {fastest.batch_size:,}: {reason}."
        )


def _about_learning_rate(advice: Advice) -> Iterator[str]:
    if advice.rule is None and advice.batch_size != advice.base_batch_size:
        yield (
            "No learning-rate rule is known for this optimizer: tune the learning rate anew at "
            f"batch size {advice.batch_size:,}."
        )
