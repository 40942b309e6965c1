"""The noise scale of a stretch of training from snapshots along it."""

import math

import numpy as np
import pytest

from gns_keras.core.advice_parts import NoisePoint
from gns_keras.core.noise_scale import NoiseScale
from gns_keras.core.run_average import average_along_run


def snapshot(trace_cov: float, grad_sq_norm: float, examples_seen: int) -> NoisePoint:
    """A snapshot whose own interval is never looked at."""
    scale = NoiseScale(
        value=math.nan,
        interval=(0.0, math.inf),
        trace_cov=trace_cov,
        grad_sq_norm=grad_sq_norm,
        num_examples=256.0,
    )
    return NoisePoint(examples_seen=examples_seen, noise_scale=scale)


def test_two_snapshots_by_hand() -> None:
    # B_1 = 100/1 and B_2 = 100/0.25 = 400 at batch size 100, 10 and 30 steps:
    # ds = 10/(1 + 1) = 5 and 30/(1 + 4) = 6; (5 * 100 + 6 * 400)/11 = 263.6.
    points = [snapshot(100.0, 1.0, 1000), snapshot(100.0, 0.25, 4000)]
    average = average_along_run(points, 100)
    assert average.trace_cov / average.grad_sq_norm == pytest.approx(2900 / 11)
    assert (average.num_steps, average.num_examples) == (2, 512.0)


def test_equal_snapshots_are_their_own_average() -> None:
    points = [snapshot(50.0, 0.5, 320 * (i + 1)) for i in range(6)]
    average = average_along_run(points, 32)
    assert average.value == pytest.approx(100.0)
    assert average.interval == (pytest.approx(100.0), pytest.approx(100.0))


def test_a_finite_data_set_adds_its_own_gradient() -> None:
    # |G_D|^2 = 0.5 + 50/1000 = 0.55.
    points = [snapshot(50.0, 0.5, 320 * (i + 1)) for i in range(6)]
    average = average_along_run(points, 32, dataset_size=1000)
    assert average.value == pytest.approx(50 / 0.55)


def test_a_snapshot_with_a_negative_estimate_counts_for_what_it_is() -> None:
    # c_i = 1/(B Y_i + S_i): 1/116, 1/96, ... of equal steps at batch size 16, Y = 1, -.25, 1.
    # The traces are 100, 100 and 120: the last c_i is 1/136.
    pairs = ((100.0, 1.0), (100.0, -0.25), (120.0, 1.0))
    points = [snapshot(*pair, 16 * (i + 1)) for i, pair in enumerate(pairs)]
    average = average_along_run(points, 16)
    total = 100 / 116 + 100 / 96 + 120 / 136
    signal = 1 / 116 - 0.25 / 96 + 1 / 136
    assert average.trace_cov / average.grad_sq_norm == pytest.approx(total / signal)


@pytest.mark.parametrize("number", [0, 1])
def test_too_few_snapshots_are_unresolved(number: int) -> None:
    points = [snapshot(50.0, 0.5, 320)][:number]
    assert not average_along_run(points, 32).resolved


def test_a_snapshot_that_measured_nothing_is_left_out() -> None:
    points = [snapshot(50.0, 0.5, 320 * (i + 1)) for i in range(6)]
    points.insert(3, snapshot(math.nan, math.nan, 1100))
    assert average_along_run(points, 32).value == pytest.approx(100.0)


def test_the_interval_covers_swings_and_measuring_errors() -> None:
    # 1,000 runs of 30 snapshots: |G|^2 log-normal (its log has standard deviation 0.8), each
    # measured with an error of 0.3 of its mean. Coverage 0.95, binomial standard error 0.007; the
    # skewed swings cost about two per cent.
    rng = np.random.default_rng(0)
    trace, batch_size, examples = 100.0, 32, [320 * (i + 1) for i in range(30)]
    swings = np.exp(0.8 * rng.normal(size=200_000) - 0.32)
    weights = 1 / (batch_size * swings + trace)
    truth = trace * weights.sum() / (weights * swings).sum()
    inside = 0
    for _ in range(1000):
        grads = np.exp(0.8 * rng.normal(size=30) - 0.32) + 0.3 * rng.normal(size=30)
        traces = trace * (1 + 0.02 * rng.normal(size=30))
        points = [snapshot(*values) for values in zip(traces, grads, examples, strict=True)]
        low, high = average_along_run(points, batch_size).interval
        inside += low < truth < high
    assert 0.91 < inside / 1000 < 0.975
