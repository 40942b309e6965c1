"""Start and average of a record, against appendix D summed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from gns_keras.core.advice_parts import NoisePoint
from gns_keras.core.noise_scale import NoiseScale
from gns_keras.core.reproduction import PointsOfRun, PublishedRow, ReproductionRecord
from gns_keras.core.run_average import average_along_run, average_over_runs

BATCH_SIZE, UNITS = 10, 20
EXAMPLES = (0, 10, 30, 60, 200, 1000)
TRACES = (5.0, 4.0, 4.5, 5.0, 6.0, 5.5)
SIGNALS = (2.0, 1.0, 0.5, 0.25, 0.05, 0.01)


def point(examples: int, trace: float, signal: float) -> NoisePoint:
    scale = NoiseScale(
        value=trace / signal,
        interval=(0.9 * trace / signal, 1.2 * trace / signal),
        trace_cov=trace,
        grad_sq_norm=signal,
        num_examples=64.0,
    )
    return NoisePoint(examples_seen=examples, noise_scale=scale, loss=1.0)


def run(seed: int, factor: float = 1.0) -> PointsOfRun:
    rows = zip(EXAMPLES, TRACES, SIGNALS, strict=True)
    return PointsOfRun(seed=seed, points=tuple(point(e, factor * t, s) for e, t, s in rows))


def record(*runs: PointsOfRun, **other: object) -> ReproductionRecord:
    values: dict[str, object] = {
        "task": "toy", "description": "a toy", "status": "not run", "optimizer": "sgd",
        "learning_rate": 0.1, "unit": "tokens", "units_per_example": UNITS,
        "batch_size": BATCH_SIZE, "early": 60, "examples": 1000, "dataset_size": 500,
        "normalized_group": None, "published": None, "runs": runs,
    }  # fmt: skip
    return ReproductionRecord(**(values | other))  # type: ignore[arg-type]


def by_hand(last: int, factor: float = 1.0) -> float:
    """`sum ds_i B_i / sum ds_i` with `ds = dt/(1 + B_i/B)`, in units, point by point."""
    done, scaled, progress = 0, 0.0, 0.0
    for examples, trace, signal in list(zip(EXAMPLES, TRACES, SIGNALS, strict=True))[1 : last + 1]:
        noise_scale = factor * trace / signal
        updates = (examples - done) / BATCH_SIZE
        full_batch_updates = updates / (1 + noise_scale / BATCH_SIZE)
        scaled += full_batch_updates * noise_scale
        progress += full_batch_updates
        done = examples
    return UNITS * scaled / progress


def test_start_and_average_are_sums_over_their_points() -> None:
    found = record(run(0))
    assert found.start.trace_cov / found.start.grad_sq_norm == pytest.approx(by_hand(3))
    assert found.average.trace_cov / found.average.grad_sq_norm == pytest.approx(by_hand(5))
    assert {found.start.unit, found.average.unit} == {"tokens"}
    assert found.initial.value == pytest.approx(UNITS * 2.5)
    assert found.examples_trained == 1000


def test_a_stretch_counts_its_steps_from_its_beginning() -> None:
    found = record(run(0)).between(60, 1000)
    weights = [140 / (1 + 120 / 10), 800 / (1 + 550 / 10)]
    expected = UNITS * (weights[0] * 120 + weights[1] * 550) / sum(weights)
    assert found.trace_cov / found.grad_sq_norm == pytest.approx(expected)


def test_without_a_point_at_the_beginning_the_initial_value_is_unknown() -> None:
    later = PointsOfRun(seed=0, points=run(0).points[1:])
    assert math.isnan(record(later).initial.value)
    assert record(PointsOfRun(seed=0, points=())).examples_trained == 0
    nothing = record(PointsOfRun(seed=0, points=())).average
    assert not nothing.resolved
    assert nothing.lower_bound == 0


def test_one_run_is_its_own_average() -> None:
    points = run(0).points
    both = average_over_runs([points], BATCH_SIZE), average_along_run(points, BATCH_SIZE)
    ratios = [scale.trace_cov / scale.grad_sq_norm for scale in both]
    assert ratios[0] == pytest.approx(ratios[1])
    for name in ("num_steps", "num_examples"):
        assert getattr(both[0], name) == getattr(both[1], name)


def test_a_gradient_that_falls_by_orders_of_magnitude_leaves_the_average_resolved() -> None:
    # |G|^2 falls by half at every point, each known to 5 %; the noise scale rises as fast.
    rng = np.random.default_rng(0)
    points = [
        point(BATCH_SIZE * (i + 1), 5 * rng.uniform(0.95, 1.05), 10 * 2.0**-i) for i in range(10)
    ]
    found = average_over_runs([points], BATCH_SIZE)
    assert found.resolved
    assert found.spread < 5
    low, high = found.interval
    assert low < found.value < high


def noisy_run(seed: int, num_points: int = 12) -> list[NoisePoint]:
    rng = np.random.default_rng(seed)
    return [
        point(BATCH_SIZE * (i + 1), 5 * rng.uniform(0.9, 1.1), 0.5 * rng.uniform(0.8, 1.2))
        for i in range(num_points)
    ]


def test_two_runs_halve_the_variance_within_them() -> None:
    one = average_over_runs([noisy_run(0)], BATCH_SIZE)
    two = average_over_runs([noisy_run(0), noisy_run(0)], BATCH_SIZE)
    assert two.value == pytest.approx(one.value)
    assert two.relative_variance == pytest.approx(one.relative_variance / 2)
    assert (two.num_steps, two.num_examples) == (24, 2 * one.num_examples)


def test_the_interval_of_many_runs_covers_what_differs_between_them() -> None:
    # Every run has a noise scale of its own, sd 20 %, and hardly any noise within. The 95 %
    # interval of the ratio should hold its expectation in 95 % of trials; 400 trials: +- 2.2 %.
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        factors = np.exp(rng.normal(scale=0.2, size=5))
        runs = [[point(BATCH_SIZE * (i + 1), 5 * f, 0.5) for i in range(3)] for f in factors]
        found = average_over_runs(runs, BATCH_SIZE)
        # 1/(1 + B_k/B) weighs the runs: the ratio estimates E[w B_k]/E[w].
        low, high = found.interval
        inside += low < _expected() < high
    assert 0.91 < inside / 400 < 0.985


def _expected() -> float:
    factors = np.exp(0.2 * stats.norm.ppf((np.arange(10_000) + 0.5) / 10_000))
    weights = 1 / (1 + 10 * factors / BATCH_SIZE)
    return float((weights * 10 * factors).sum() / weights.sum())


@pytest.mark.parametrize(("growth", "least", "most"), [(1.0, 0.92, 0.975), (1.3, 0.94, 1.0)])
def test_the_interval_of_one_run_covers_its_average(
    growth: float, least: float, most: float
) -> None:
    # 600 runs of 12 points, |G|^2 known to 20 %: 95 % +- 1.8 % (two standard errors). Where the
    # noise scale grows steadily the interval holds that too, and covers more.
    rng = np.random.default_rng(0)
    truth = 10 * growth ** np.arange(12)
    weights = 1 / (1 + truth / BATCH_SIZE)
    expected = (weights * truth).sum() / weights.sum()
    inside = 0
    for _ in range(600):
        signal = 5 / truth * (1 + 0.2 * rng.normal(size=12))
        points = [point(BATCH_SIZE * (i + 1), 5.0, signal[i]) for i in range(12)]
        low, high = average_over_runs([points], BATCH_SIZE).interval
        inside += low < expected < high
    assert least < inside / 600 <= most


def test_each_run_has_its_own_numbers() -> None:
    found = record(run(0), run(1, 2.0))
    values = [scale.trace_cov / scale.grad_sq_norm for scale in found.average_of_each]
    assert values == pytest.approx([by_hand(5), by_hand(5, 2.0)])
    assert len(found.start_of_each) == 2
    assert values[0] < found.average.trace_cov / found.average.grad_sq_norm < values[1]


def test_a_record_survives_json() -> None:
    row = PublishedRow(
        system="Dota", unit="frames", critical_start=(math.nan, math.nan),
        critical_average=(8e6, math.inf), noise_start=(1.0, 2.0), noise_average=(1.0, 2.0),
        length="unknown",
    )  # fmt: skip
    found = record(run(0), run(1), published=row, dataset_size=None, normalized_group=16)
    again = ReproductionRecord.from_json(found.to_json())
    assert again.to_json() == found.to_json()
    assert again.runs == found.runs
    assert again.published is not None
    assert again.published.critical_average == (8e6, math.inf)
    with pytest.raises(ValueError, match="Unknown: \\['more'\\]"):
        ReproductionRecord.from_json(found.to_json().replace('"task"', '"more": 1, "task"', 1))
