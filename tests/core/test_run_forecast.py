"""The noise scale of a run down to a loss, on runs that follow power laws exactly."""

import math

import numpy as np
import pytest

from gns_keras.core.advice_parts import NoisePoint
from gns_keras.core.noise_scale import NoiseScale
from gns_keras.core.run_forecast import forecast_run

BATCH = 32
END = 16_000


def loss_at(seen: float) -> float:
    return 30.0 * seen**-0.5


def noise_at(loss: float) -> float:
    return 20.0 / loss**1.5


def run(*, swing: float = 0.05, seed: int = 0, snapshots: int = 50) -> list[NoisePoint]:
    """L = 30 t^-1/2 and B = 20 L^-3/2, with noise in the trace."""
    rng = np.random.default_rng(seed)
    points = []
    for seen in np.linspace(END / snapshots, END, snapshots):
        loss = loss_at(seen)
        trace = noise_at(loss) * math.exp(swing * rng.normal())
        scale = NoiseScale(
            value=trace, interval=(trace / 2, trace * 2), grad_sq_norm=1.0, trace_cov=trace,
            num_steps=4, num_examples=256.0,
        )  # fmt: skip
        points.append(NoisePoint(examples_seen=round(seen), noise_scale=scale, loss=loss))
    return points


def average_by_hand(target: float, start: float = 0.0) -> float:
    """Appendix D, ds = dt/(1 + B/batch), by fine steps of the exact laws."""
    until = (30.0 / target) ** 2
    edges = np.linspace(start, until, 200_001)
    scales = noise_at(loss_at((edges[1:] + edges[:-1]) / 2))
    steps = np.diff(edges) / (BATCH + scales)
    return float(np.sum(steps * scales) / np.sum(steps))


@pytest.mark.parametrize("target", [0.2, 0.1, 0.05])
def test_a_forecast_is_the_average_of_the_laws(target: float) -> None:
    found = forecast_run(run(swing=0.2), BATCH, target_loss=target)
    assert found.resolved
    assert found.is_given
    assert found.is_extrapolated
    # 20 % noise in each of 50 snapshots; the first one stands for all that was before it.
    assert found.value == pytest.approx(average_by_hand(target), rel=0.15)
    assert found.interval[0] < average_by_hand(target) < found.interval[1]
    assert found.examples == pytest.approx((30 / target) ** 2, rel=0.05)
    assert found.at_target == pytest.approx(noise_at(target), rel=0.3)
    assert found.at_target_interval[0] < noise_at(target) < found.at_target_interval[1]


def test_further_is_less_certain() -> None:
    near, far = (forecast_run(run(), BATCH, target_loss=loss) for loss in (0.2, 0.05))
    assert far.interval[1] / far.interval[0] > near.interval[1] / near.interval[0]


def test_a_loss_that_was_reached_is_measured() -> None:
    target = loss_at(END / 2)
    found = forecast_run(run(), BATCH, target_loss=target)
    assert not found.is_extrapolated
    assert found.examples == pytest.approx(END / 2, rel=0.1)
    assert found.value == pytest.approx(average_by_hand(target), rel=0.1)


def test_without_a_loss_it_is_where_the_run_is_heading() -> None:
    found = forecast_run(run(), BATCH)
    assert not found.is_given
    assert found.target_loss == pytest.approx(loss_at(10 * END), rel=0.05)
    one_pass = forecast_run(run(), BATCH, dataset_size=60_000)
    assert one_pass.target_loss == pytest.approx(loss_at(60_000), rel=0.05)
    small = forecast_run(run(), BATCH, dataset_size=1200)
    assert small.target_loss == pytest.approx(loss_at(2 * END), rel=0.05)
    assert not one_pass.is_long
    assert not small.is_long


def test_beyond_one_pass_over_the_data_no_law_is_carried_on() -> None:
    # 0.1 is 90,000 examples away, and the trial run 16,000 long.
    within, beyond, trial = (
        forecast_run(run(), BATCH, target_loss=loss, dataset_size=size)
        for loss, size in ((0.1, 100_000), (0.1, 80_000), (loss_at(END), 80_000))
    )
    assert not within.is_long
    assert within.value == pytest.approx(average_by_hand(0.1), rel=0.15)
    assert beyond.is_long
    assert beyond.is_extrapolated
    assert beyond.examples == pytest.approx(90_000, rel=0.05)
    assert beyond.value == pytest.approx(trial.value, rel=0.05)
    assert math.isnan(beyond.adaptive_gain)
    assert math.isnan(beyond.at_target)
    assert not trial.is_long


def test_an_adaptive_batch_size_gains_where_the_noise_scale_grows() -> None:
    found = forecast_run(run(), BATCH, target_loss=0.05)
    assert 0.5 < found.adaptive_gain < 0.95
    flat = [
        NoisePoint(examples_seen=p.examples_seen, noise_scale=q.noise_scale, loss=p.loss)
        for p, q in zip(run(), reversed(run()), strict=True)
    ]
    shrinking = forecast_run(flat, BATCH, target_loss=0.05)
    assert shrinking.law.exponent < 0


def test_what_cannot_be_forecast_is_unresolved() -> None:
    flat = [
        NoisePoint(examples_seen=p.examples_seen, noise_scale=p.noise_scale, loss=0.5)
        for p in run()
    ]
    found = forecast_run(flat, BATCH, target_loss=0.1)
    assert math.isnan(found.value)
    assert math.isinf(found.interval[1])
    assert 0 < found.interval[0] < math.inf
    assert "does not clearly fall" in found.reason
    assert not forecast_run(flat, BATCH).is_extrapolated
    wild = forecast_run(run(swing=3.0), BATCH, target_loss=1e-4)
    assert math.isnan(wild.value)
    assert wild.reason


def test_without_losses_there_is_nothing_to_relate_to() -> None:
    blind = [NoisePoint(examples_seen=p.examples_seen, noise_scale=p.noise_scale) for p in run()]
    assert forecast_run(blind, BATCH) is None
    assert "reports no training losses" in forecast_run(blind, BATCH, target_loss=0.1).reason
    assert forecast_run(run(snapshots=10), BATCH) is None
