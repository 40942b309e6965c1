"""What is decided from an interval: batch size, fixed or adaptive, number of replicas."""

import math

import pytest

from gns_keras.core.critical_batch_size import predicted_critical_batch_size
from gns_keras.core.evidence import Evidence
from gns_keras.core.forecast import fit_power_law
from gns_keras.core.learning_rate import LearningRateRule
from gns_keras.core.learning_rate_check import FACTORS, LearningRateCheck
from gns_keras.core.noise_scale import NoiseScale
from gns_keras.core.recommend import recommend
from gns_keras.core.run_forecast import RunForecast
from gns_keras.core.step_time import fit_step_time

NOTHING = NoiseScale(value=math.nan, interval=(math.nan, math.nan))
LINE = {size: 1e-3 + 1e-5 * size for size in (32, 64, 128, 256, 512)}


def evidence(low: float, value: float, high: float, **changes) -> Evidence:
    scale = NoiseScale(
        value=value, interval=(low, high), grad_sq_norm=1.0, trace_cov=value, num_steps=40,
        num_examples=8000.0, relative_variance=0.01, effective_num_steps=40.0,
    )  # fmt: skip
    given = {
        "noise_scale": scale,
        "base_batch_size": 32,
        "base_learning_rate": 0.1,
        "rule": LearningRateRule(),
        **changes,
    }
    return Evidence(**given)


@pytest.mark.parametrize(
    ("low", "value", "high", "batch_size", "limited_by"),
    [
        (100, 130, 160, 128, "noise_scale"),
        (60, 130, 500, 128, "noise_scale"),  # The ends ask for 64 and 512: both within 4 of 128.
        (100, 130, 1000, 256, "noise_scale"),  # 1,024 at the upper end: 128 would be too little.
        (16, 130, 130, 64, "noise_scale"),  # 16 at the lower end: 128 would be too much.
        (50, 400, 2000, 64, "insufficient_data"),  # 64 and 2,048: nothing is sensible for both.
    ],
)
def test_a_batch_size_is_sensible_at_both_ends(
    low: float, value: float, high: float, batch_size: int, limited_by: str
) -> None:
    advice = recommend(evidence(low, value, high))
    assert (advice.batch_size, advice.limited_by) == (batch_size, limited_by)
    assert advice.recommended_row.batch_size == batch_size
    no_size = any("no batch size is sensible" in warning for warning in advice.warnings)
    assert no_size is (limited_by == "insufficient_data")


def forecast(exponent: float, gain: float, value: float = 130.0) -> RunForecast:
    losses = [1.0, 0.8, 0.6, 0.4, 0.3, 0.2]
    wiggle = [1.01, 0.99, 1.01, 0.99, 1.01, 0.99]
    scales = [100 * loss**-exponent * w for loss, w in zip(losses, wiggle, strict=True)]
    return RunForecast(
        target_loss=0.1, is_given=True, reached_loss=0.2, examples=1e5, value=value,
        interval=(100.0, 160.0),
        adaptive_gain=gain, law=fit_power_law(losses, scales),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("exponent", "gain", "schedule"),
    [(2.0, 0.6, "adaptive"), (2.0, 0.95, "fixed"), (-2.0, 0.6, "fixed"), (0.0, 0.6, "fixed")],
)
def test_adaptive_only_where_growth_is_significant_and_pays(
    exponent: float, gain: float, schedule: str
) -> None:
    advice = recommend(evidence(40, 50, 60, forecast=forecast(exponent, gain)))
    assert advice.schedule == schedule
    assert advice.adaptive_gain == gain


def test_the_forecast_and_not_the_trial_run_is_what_is_advised_on() -> None:
    given = evidence(40, 50, 60, forecast=forecast(2.0, 0.6))
    assert predicted_critical_batch_size(given).value == 130.0
    advice = recommend(given)
    assert (advice.critical_batch_size, advice.interval) == (130.0, (100.0, 160.0))
    assert advice.noise_scale.value == 50
    assert advice.forecast.target_loss == 0.1


def test_an_unresolved_forecast_stays_unresolved() -> None:
    lost = RunForecast(
        target_loss=0.01, is_given=True, reached_loss=0.2, interval=(40.0, math.inf), reason="Lost."
    )
    advice = recommend(evidence(40, 50, 60, forecast=lost))
    assert math.isnan(advice.critical_batch_size)
    assert (advice.batch_size, advice.limited_by) == (32, "insufficient_data")
    assert any("Lost." in warning for warning in advice.warnings)
    assert not any("does not stand out" in warning for warning in advice.warnings)


def test_replicas_that_pay_at_both_ends() -> None:
    """t = 1 ms + 10 us B: T(N) ~ (1 + sqrt(c B_c/(a N)))^2, doubling pays above sqrt(2).

    At B_c = 1000: 17.3, 10.5, 6.66, 4.49, 3.21 for 1 to 16 replicas: 8 pay. At 250: 6.66, 4.49,
    3.21, 2.43: ratios 1.48, 1.40: 2 pay.
    """
    # A little off the line, so that there is an interval.
    times = [[t * (1 + 1e-4 * (-1) ** i)] for i, t in enumerate(LINE.values())]
    step_time = fit_step_time(list(LINE), times)
    wide = recommend(evidence(250, 500, 1000, step_time=step_time))
    narrow = recommend(evidence(990, 1000, 1010, step_time=step_time))
    assert (wide.num_replicas, narrow.num_replicas) == (2, 8)
    assert [row.num_replicas for row in narrow.replicas][:4] == [1, 2, 4, 8]
    assert recommend(evidence(100, 130, 160)).num_replicas == 1


def test_too_high_a_learning_rate_comes_first() -> None:
    noise = (0.99, 1.0, 1.01)
    check = LearningRateCheck(
        learning_rate=0.1, batch_size=32, steps=128, factors=FACTORS,
        losses=tuple(tuple(loss * one for one in noise) for loss in (0.5, 0.7, 0.9)),
    )  # fmt: skip
    given = Evidence(
        noise_scale=NOTHING, base_batch_size=32, base_learning_rate=0.025, rule=LearningRateRule(),
        learning_rate_check=check,
    )  # fmt: skip
    advice = recommend(given)
    assert (advice.batch_size, advice.learning_rate) == (32, pytest.approx(0.025))
    assert advice.limited_by == "insufficient_data"
    assert "too high" in advice.warnings[0]
    assert len(advice.warnings) == 1
