"""Verdicts on the learning rate, from losses that are given."""

import json
import math
from dataclasses import replace

import pytest

from gns_keras.core.json_records import record_from_json, record_to_json
from gns_keras.core.learning_rate_check import FACTORS, LearningRateCheck
from gns_keras.core.learning_rate_words import learning_rate_warning

INF, NAN = math.inf, math.nan


def check(*means: float, noise: float = 0.01, factors=FACTORS, **changes) -> LearningRateCheck:
    """Losses with these means and a relative noise between the seeds that all share in part."""
    losses = tuple(
        tuple(mean * (1 + noise * sign * (1 + 0.1 * place)) for sign in (-1.0, 0.0, 1.0))
        for place, mean in enumerate(means)
    )
    given = {"learning_rate": 0.1, "batch_size": 32, "steps": 40, "start_loss": 2.3, **changes}
    return LearningRateCheck(factors=factors, losses=losses, **given)


@pytest.mark.parametrize(
    ("means", "verdict", "best"),
    [
        # Losses of a 784-128-10 network on MNIST after 50 steps at the best rate, / 8 and x 8.
        ((0.681, 0.514, 0.479, 1.447, 2.329), "good", 1.0),
        ((1.882, 1.506, 1.026, 0.681, 0.514), "too_low", 4.0),
        ((0.514, 0.479, 1.447, 2.329, 2.312), "too_high", 0.5),
        ((0.60, 0.55, 0.50, 0.52, 0.55), "good", 1.0),
        ((0.5, 0.5, 0.5, 0.5, 0.5), "unresolved", 4.0),
        ((0.501, 0.5005, 0.5, 0.6, 0.7), "unresolved", 1.0),
        ((0.7, 0.6, 0.5, INF, INF), "good", 1.0),
        ((0.7, 0.6, INF, INF, INF), "too_high", 0.5),
        ((INF, INF, INF, INF, INF), "too_high", NAN),
        ((0.7, 0.6, NAN, 0.6, 0.7), "too_high", 0.5),
        ((-1.0, -2.0, -3.0, -4.0, -5.0), "too_low", 4.0),  # A likelihood may be negative.
    ],
)
def test_verdicts(means: tuple[float, ...], verdict: str, best: float) -> None:
    found = check(*means)
    assert found.verdict == verdict
    assert found.best_factor == pytest.approx(best, nan_ok=True)


def test_the_interval_holds_what_is_not_significantly_worse() -> None:
    # 0.5 and 0.502 differ by less than the noise in their difference, which is 0.1 of 1 %.
    assert check(0.7, 0.6, 0.5, 0.7, 0.9).best_factor_interval == pytest.approx(
        (0.707, 1.414), 1e-3
    )
    low, high = check(0.7, 0.5001, 0.5, 0.7, 0.9).best_factor_interval
    assert (low, high) == pytest.approx((0.3536, 1.4142), rel=1e-3)
    assert check(0.9, 0.8, 0.7, 0.6, 0.5).best_factor_interval == (pytest.approx(2.83, 0.01), INF)
    assert check(INF, INF, INF, INF, INF).best_factor_interval == (0.0, 0.25)
    assert LearningRateCheck(learning_rate=1.0, batch_size=1).best_factor_interval == (0.0, INF)


def test_the_t_test_by_hand() -> None:
    """Differences of 1, 2 and 3 have mean 2 and standard error 1/sqrt(3): t = 3.46.

    The one-sided 5 % quantile of Student's t with 2 degrees of freedom is 2.92, that of 2 % 4.85.
    """
    losses = ((-1.0, -2.0, -3.0), (0.0, 0.0, 0.0), (9.0, 9.0, 9.0))
    factors = (0.25, 1.0, 4.0)
    found = check(factors=factors, confidence=0.95)
    found = replace(found, losses=losses)
    assert found.verdict == "too_high"
    assert replace(found, confidence=0.98).verdict == "unresolved"


def test_one_seed_decides_nothing_but_divergence() -> None:
    one = replace(check(0.9, 0.8, 0.7, 0.6, 0.5), losses=((0.9,), (0.8,), (0.7,), (0.6,), (0.5,)))
    assert one.verdict == "unresolved"


def test_a_check_without_differences_looks_further_down() -> None:
    flat = check(2.3, 2.3, 2.3, 2.3, 2.3)
    assert flat.next_factor == 0.125
    dead = flat.with_runs(0.125, (0.51, 0.5, 0.49))
    assert (dead.verdict, dead.best_factor, dead.next_factor) == ("too_high", 0.125, None)
    down = flat.with_runs(0.125, flat.losses[2]).with_runs(0.0625, flat.losses[2])
    assert (down.verdict, down.next_factor) == ("unresolved", None)
    assert check(0.6, 0.55, 0.5, 0.55, 0.6).next_factor is None


def test_a_search_ends_when_the_best_is_inside() -> None:
    found = check(0.9, 0.8, 0.7, 0.6, 0.5, searched=True)
    assert found.next_factor == 8.0
    found = found.with_runs(8.0, (0.41, 0.4, 0.39))
    assert found.next_factor == 16.0
    found = found.with_runs(16.0, (0.51, 0.5, 0.49))
    assert (found.next_factor, found.best_factor, found.factor_to_use) == (None, 8.0, 8.0)
    assert not found.forbids_measuring
    gone = check(INF, INF, INF, INF, INF, searched=True)
    assert gone.next_factor == 0.125
    assert gone.forbids_measuring


def test_the_bias_of_short_runs_is_taken_off() -> None:
    """Losses of 784-128-10 with Adam at 1, 2, 4, 8 and 16 times the best rate of a whole run."""
    factors = (1.0, 2.0, 4.0, 8.0, 16.0)
    tuned = check(0.624, 0.465, 0.432, 0.454, 0.46, factors=factors, bias=4.0)
    assert (tuned.verdict, tuned.best_factor, tuned.factor_to_use) == ("good", 1.0, 1.0)
    low = check(1.899, 1.514, 0.998, 0.624, 0.465, factors=factors, bias=4.0)
    assert (low.verdict, low.best_factor, low.at_edge) == ("too_low", 4.0, "high")
    assert low.best_factor_interval == (pytest.approx(2.83, 0.01), INF)
    assert "about 1/4" in learning_rate_warning(low)
    high = check(0.454, 0.46, 0.525, 0.835, 1.2, factors=factors, bias=4.0)
    assert (high.verdict, high.best_factor) == ("too_high", 0.25)


def test_a_search_keeps_a_rate_that_none_is_better_than() -> None:
    found = check(0.7, 0.5, 0.5001, 0.6, 0.7, searched=True)
    assert found.best_factor == 0.5
    assert (found.chosen_factor, found.factor_to_use) == (1.0, 1.0)
    assert learning_rate_warning(found) == ""


def test_what_to_measure_with() -> None:
    assert check(0.7, 0.4, 0.5, 0.6, 0.7).factor_to_use == 1.0  # Good enough, and no search.
    low = check(0.9, 0.8, 0.7, 0.6, 0.5)  # Said, and measured all the same.
    assert (low.verdict, low.factor_to_use, low.forbids_measuring) == ("too_low", 1.0, False)
    high = check(0.5, 0.6, 0.7, 0.8, 0.9)
    assert (high.verdict, high.factor_to_use, high.forbids_measuring) == ("too_high", 0.25, True)
    assert LearningRateCheck(learning_rate=0.1, batch_size=8, reason="No.").factor_to_use == 1.0


@pytest.mark.parametrize(
    ("found", "parts"),
    [
        (check(0.9, 0.8, 0.7, 0.6, 0.5), ["0.1 is too low", "Compare a run at 0.4 or", "a hint"]),
        (check(0.5, 0.6, 0.7, 0.8, 0.9), ["0.1 is too high", "0.025 or less", "too low"]),
        (check(0.5, 0.4, INF, INF, INF), ["diverged within 40 steps", "Set it to 0.05 and"]),
        (check(INF, INF, INF, INF, INF), ["every run down to 0.025 diverged", "search"]),
        (check(0.5, 0.5, 0.5, 0.5, 0.5), ["could not be checked", "1/(learning rate)"]),
        (check(0.5, 0.4, 0.7, 0.8, 0.9, searched=True), ["found at batch size 32: 0.05"]),
        (replace(check(), reason="No budget."), ["No budget."]),
        (check(0.7, 0.6, 0.5, 0.6, 0.7), []),
    ],
)  # fmt: skip
def test_words_say_what_to_do(found: LearningRateCheck, parts: list[str]) -> None:
    said = learning_rate_warning(found)
    assert all(part in said for part in parts)
    assert bool(said) is bool(parts)
    assert "nan" not in said
    assert "inf" not in said


def test_it_goes_to_json_and_back() -> None:
    found = check(0.7, 0.6, 0.5, INF, INF)
    text = record_to_json(found, 1)
    assert json.loads(text)["losses"][4] == ["inf", "inf", "inf"] or "nan" in text
    assert record_from_json(LearningRateCheck, text, 1).verdict == "good"
