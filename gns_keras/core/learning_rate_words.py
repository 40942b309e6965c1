"""What a learning-rate check means for the person who reads it, and what to do."""

import math

from gns_keras.core.learning_rate_check import LearningRateCheck
from gns_keras.core.numbers import format_number
from gns_keras.core.short_run_bias import WHOLE_RUN


def learning_rate_warning(check: LearningRateCheck) -> str:
    """One warning, or nothing where the learning rate is fine.

    Args:
        check: The check or search.
    """
    if check.reason:
        return check.reason
    if check.searched and not check.forbids_measuring:
        return _search_result(check)
    if check.verdict == "good":
        return ""
    if check.verdict == "unresolved":
        return (
            f"Whether the learning rate {format_number(check.learning_rate)} is right is not clear "
            f"from runs of {check.steps} steps: the best is {_best(check)}. If it is off "
            "by some factor, the noise scale is off by about the same factor, since it goes with "
            "1/(learning rate): too low a rate makes it too high."
        )
    return f"{_finding(check)} {_consequence(check)} {_remedy(check)}"


def _search_result(check: LearningRateCheck) -> str:
    """What a search found, or nothing where it kept the learning rate."""
    if not check.is_wrong:
        return ""
    return (
        "Everything here is for the learning rate that the search found at batch size "
        f"{check.batch_size:,}: {_best(check)} instead of {format_number(check.learning_rate)}. "
        "The model still has its own."
    )


def _best(check: LearningRateCheck) -> str:
    """The best learning rate with its interval."""
    low, high = check.best_learning_rate_interval
    ends = f"{format_number(low)} or more" if math.isinf(high) else (
        f"{format_number(low)} to {format_number(high)}" if low > 0
        else f"{format_number(high)} or less"
    )  # fmt: skip
    return f"{format_number(check.best_learning_rate)} ({check.confidence:.0%}: {ends})"


def _finding(check: LearningRateCheck) -> str:
    present, size = format_number(check.learning_rate), f"{check.batch_size:,}"
    if math.isnan(check.best_factor):
        least = format_number(check.learning_rate * check.factors[0])
        return f"The learning rate {present} is too high: every run down to {least} diverged."
    if math.isinf(check.loss_at(1.0)):
        return (
            f"The learning rate {present} is too high for batch size {size}: training diverged "
            f"within {check.steps} steps."
        )
    run = format_number(check.learning_rate * check.best_run)
    return (
        f"The learning rate {present} is too {check.verdict.removeprefix('too_')} for batch size "
        f"{size}: in {check.steps} steps from here it came to a training loss of "
        f"{format_number(check.loss_at(1.0))}, {run} to "
        f"{format_number(check.loss_at(check.best_run))}. The best for a run of "
        f"{check.bias.run_examples:,} examples is about {_best(check)}."
    )


def _consequence(check: LearningRateCheck) -> str:
    wrong = "low" if check.verdict == "too_high" else "high"
    return (
        f"The noise scale goes with 1/(learning rate) and would come out too {wrong}, so no batch "
        "size is advised yet."
    )


def _remedy(check: LearningRateCheck) -> str:
    if math.isnan(check.best_factor):
        return (
            "Lower it a lot, or check the data for values that are not finite."
            if check.searched
            else 'Lower it, or let learning_rate="search" find one.'
        )
    best = format_number(check.best_learning_rate)
    beyond = {"high": " or more", "low": " or less", "": ""}[check.at_edge]
    said = (
        f"Set it to {best}{beyond} and ask again, or let "
        'learning_rate="search" measure with it; "keep" advises as it is.'
    )
    if check.verdict == "too_low" and check.bias.run_examples == WHOLE_RUN:
        said += " Longer runs want lower rates: `run_examples` says how long yours is."
    return said
