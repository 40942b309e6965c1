"""What a learning-rate check means for the person who reads it, and what to do."""

import math

from gns_keras.core.learning_rate_check import LearningRateCheck
from gns_keras.core.numbers import format_number


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
            f"The learning rate {format_number(check.learning_rate)} could not be checked: in runs "
            f"of {check.steps} steps the loss does not depend on it clearly enough. If it is off "
            "by some factor, the noise scale is off by about the same factor, since it goes with "
            "1/(learning rate): too low a rate makes it too high."
        )
    return f"{_finding(check)} {_consequence(check)} {_remedy(check)}"


def _search_result(check: LearningRateCheck) -> str:
    """What a search found, or nothing where it kept the learning rate."""
    if check.chosen_factor == 1:
        return ""
    low, high = check.best_learning_rate_interval
    return (
        "Everything here is for the learning rate that the search found at batch size "
        f"{check.batch_size:,}: {format_number(check.best_learning_rate)} "
        f"({check.confidence:.0%}: {format_number(low)} to {format_number(high)}) instead of "
        f"{format_number(check.learning_rate)}. The model still has its own."
    )


def _finding(check: LearningRateCheck) -> str:
    present, size = format_number(check.learning_rate), f"{check.batch_size:,}"
    if math.isnan(check.best_factor):
        least = format_number(check.learning_rate * check.factors[0])
        return f"The learning rate {present} is too high: every run down to {least} diverged."
    best = format_number(check.learning_rate * check.best_run)
    lowest = format_number(check.loss_at(check.best_run))
    if math.isinf(check.loss_at(1.0)):
        return (
            f"The learning rate {present} is too high for batch size {size}: training diverged "
            f"within {check.steps} steps. At {best} it came to a training loss of {lowest}."
        )
    bias = (
        ""
        if check.bias == 1
        else f" Whole runs with this optimizer want about 1/{check.bias:g} of what short ones do."
    )
    return (
        f"The learning rate {present} is too {check.verdict.removeprefix('too_')} for batch size "
        f"{size}: {check.steps} steps from here brought the training loss from "
        f"{format_number(check.start_loss)} to {lowest} at {best}, and to "
        f"{format_number(check.loss_at(1.0))} at {present}.{bias}"
    )


def _consequence(check: LearningRateCheck) -> str:
    if check.verdict == "too_low":
        return (
            "Short runs favour high rates, so that this is a hint and no proof. If the rate is too "
            "low, the noise scale, which goes with 1/(learning rate), comes out too high, and the "
            "batch sizes here with it."
        )
    return (
        "The noise scale goes with 1/(learning rate) and would come out too low, so no batch size "
        "is advised yet."
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
    if check.verdict == "too_low":
        return f'Compare a run at {best}{beyond}, or ask again with learning_rate="search".'
    return (
        f"Set it to {best}{beyond} and ask again, or let "
        'learning_rate="search" find it; "keep" advises as it is.'
    )
