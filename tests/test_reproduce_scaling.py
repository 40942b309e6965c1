"""Scripts of figures 5 to 7, 9, 14 and 19: what they compute is right where the answer is known."""

import math
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from gns_keras import sweep
from gns_keras.core.goals import Goal
from gns_keras.core.run_record import RunRecord
from gns_keras.core.sweep_policy import RunKey
from gns_keras.core.sweep_result import SweepRecord
from gns_keras.sweep.loop import CompiledLoop
from gns_keras.sweep.stream import ArraySource

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples/reproduce"))

import line_searches
import scaling_curves
import scaling_noise
import scaling_tasks

STEPS = [round(10 * 1.2**i) for i in range(38)]


def run_to(scale: float, steps: list[int] = STEPS) -> dict[str, list]:
    """Errors that fall like a power of the steps, 1 at `scale`; test errors are 1.5 times those."""
    errors = np.sqrt(scale / np.array(steps, dtype=float))
    return {"steps": steps, "values": [[[9.0, e], [9.0, 1.5 * e]] for e in errors]}


@pytest.mark.parametrize("size", [14, 6])
def test_the_fast_convolution_is_a_convolution(size: int) -> None:
    images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype("float32")
    fast = scaling_tasks.PatchConvolution(5)
    found = fast(images)
    plain = keras.layers.Conv2D(5, 3, strides=2, activation="relu")
    plain.build(images.shape)
    plain.set_weights(fast.get_weights())
    assert np.allclose(found, plain(images), atol=1e-5)


def test_an_error_goal_is_an_accuracy() -> None:
    goal = scaling_tasks.error_goal(0.165)
    assert (goal.metric, goal.threshold, goal.direction) == ("accuracy", 0.835, "above")


def test_a_crossing_is_where_the_curve_crosses() -> None:
    # sqrt(100/t) = 0.5 at 400; a centred mean over a factor of 1.4 of a power law is 1 % off.
    assert scaling_curves.crossing(run_to(100), "train", "error", 0.5) == pytest.approx(400, 0.02)
    assert scaling_curves.crossing(run_to(100), "test", "error", 0.5) == pytest.approx(900, 0.02)
    assert math.isnan(scaling_curves.crossing(run_to(100), "train", "error", 0.01))


def test_a_single_lucky_evaluation_reaches_no_goal() -> None:
    run = run_to(100)
    run["values"][15][0][1] *= 0.6
    assert run["values"][15][0][1] < 0.5
    plain = scaling_curves.crossing(run_to(100), "train", "error", 0.5)
    assert scaling_curves.crossing(run, "train", "error", 0.5) == pytest.approx(plain)


def test_a_front_has_the_critical_batch_size_of_its_runs() -> None:
    runs = {}
    for size in (4, 16, 64, 256, 1024):
        for rate, slower in ((0.1, 1.0), (0.2, 1.4)):
            for seed, noise in ((0, 1.01), (1, 0.99)):
                key = RunKey(batch_size=size, learning_rate=rate, seed=seed)
                # sqrt(scale/t) = 0.5 at 4 scale: S = 100 (1 + 80/B).
                runs[key] = run_to(25 * (1 + 80 / size) * slower * noise)
    found = scaling_curves.front(runs, "train", "error", 0.5)
    assert found.fit.critical_batch_size == pytest.approx(80, rel=0.05)
    assert found.fit.min_steps == pytest.approx(100, rel=0.05)
    assert found.fit.num_points == 10
    assert set(found.rates.values()) == {0.1}


def sweep_of(steps_to: dict[tuple[int, float], tuple[float, float]]) -> SweepRecord:
    """A sweep with two goals, by batch size and learning rate."""
    records = tuple(
        RunRecord(
            batch_size=size, learning_rate=rate, seed=0, status="reached", reason="",
            steps=int(steps[1]), examples=int(size * steps[1]), steps_to=steps, last_loss=0.1,
            seconds=0.0,
        )
        for (size, rate), steps in steps_to.items()
    )  # fmt: skip
    return SweepRecord(
        goals=(Goal(threshold=0.5), Goal(threshold=0.2)), seeds=(0,), records=records,
        base_learning_rate=0.1, base_batch_size=8, max_examples=10_000, half_life=0.0,
        optimizer="SGD", alpha=1.0,
    )  # fmt: skip


def test_only_runs_that_are_best_for_a_goal_are_recorded_as_far_as_that_goal() -> None:
    result = sweep_of({(8, 0.1): (100.0, 300.0), (8, 0.2): (60.0, 500.0), (8, 0.4): (90.0, 900.0)})
    wanted = scaling_curves.wanted(result)
    assert {key.learning_rate: examples for key, examples in wanted.items()} == {
        0.1: 1.5 * 300 * 8,
        0.2: 1.5 * 60 * 8,
    }


def test_rows_come_in_the_order_of_a_sweep() -> None:
    source = ArraySource((np.zeros((50, 1)), np.zeros(50)))
    rows = scaling_curves.Rows(source, seed=3)
    taken = np.concatenate([rows.take(count) for count in (7, 64, 1)])
    block = next(source.blocks(3, 8)).numpy().ravel()
    assert np.array_equal(taken, block[:72])


def test_a_recorded_run_is_that_of_the_sweep() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)).astype("float32")
    y = x @ rng.normal(size=(4, 1)).astype("float32")

    def build() -> keras.Model:
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.03), "mse")
        return model

    # Nothing is smoothed: the last loss is that of the last batch. More than one epoch.
    (record,) = sweep(
        build, (x, y), batch_sizes=[8], goals=[1e-12], learning_rates=[0.03], max_examples=800,
        seeds=[5], half_life=0.0, jit_compile=False, verbose=0,
    ).records  # fmt: skip
    source = ArraySource((x, y))
    keras.utils.set_random_seed(5)
    loop = CompiledLoop(build(), source, 8, jit_compile=False)
    loop.restart(loop.initial_state, 0.03)
    rows = scaling_curves.Rows(source, seed=5)
    parts = [scaling_curves.advance(loop, rows, steps, 8) for steps in (1, 30, 69)]
    values = np.concatenate(parts)
    assert len(values) == record.steps == 100
    assert values[-1, loop.metric_names.index("loss")] == record.last_loss


def noise_run(scale: float, length: int = 2000) -> dict:
    """A run with a known `B_simple`, half of it as `B_noise`, and the loss 1/sqrt(step)."""
    points = [
        {
            "steps": steps,
            "snapshots": [{"simple": [scale * factor, 1.0, 0, 0]} for factor in (0.5, 1, 2)],
            "half": {},
            "mean": [{"simple": [scale, 1.0, 0, 0]}] * 2,
            "curvature": {"trace": scale / 2, "grad": 1.0},
        }
        for steps in (10, 100, 1000)
    ]
    series = [[1 / math.sqrt(step + 1), 8.0, 1.0] for step in range(length)]
    return {"points": points, "series": series, "steps_to": []}


def test_noise_points_are_geometric_means_at_the_loss_there() -> None:
    points = scaling_noise.noise_points([noise_run(50.0), noise_run(200.0)])
    assert [point.loss for point in points] == pytest.approx([0.31, 0.1, 0.0316], rel=0.1)
    assert points[1].simple == pytest.approx(100.0)
    # ln 50 and ln 200: standard error ln 2, t of one degree of freedom.
    assert math.log(points[1].interval[1] / 100) == pytest.approx(12.706 * math.log(2), 1e-3)
    assert points[1].noise == pytest.approx((25 + 100) / 2)
    assert points[1].noise_runs == (25.0, 100.0)


def test_a_constant_noise_scale_is_its_own_average() -> None:
    runs = [noise_run(80.0), noise_run(80.0)]
    found = scaling_noise.average_to(runs, "mnist_mlp_sgd", 0.1)
    assert found["frozen"].value == pytest.approx(80.0)
    assert found["hessian"].value == pytest.approx(40.0)
    assert math.isnan(scaling_noise.average_to(runs, "mnist_mlp_sgd", 1e-3)["frozen"].value)


def test_a_noise_scale_without_signal_is_not_averaged_away() -> None:
    value, ends = scaling_noise.geometric_mean([10.0, math.nan])
    assert math.isnan(value)
    assert math.isnan(ends[0])


def test_line_searches_are_fitted_three_ways() -> None:
    sizes = np.array(line_searches.SIZES, dtype=float)
    progress, steps = 0.3 / (1 + 100 / sizes), 0.5 / (1 + 50 / sizes)
    points = np.stack([sizes, steps, progress, progress / 20, progress * (1 + 5 / sizes)], axis=1)
    fits = line_searches.fits_of(
        {"points": points.tolist(), "noise": [90.0, 80.0, 100.0], "simple": [1.0, 0.9, 1.1]}
    )
    assert fits.shared.noise_scale == pytest.approx(100, rel=1e-3)
    assert fits.separate.noise_scale < 96
    assert fits.rates.critical_batch_size == pytest.approx(50, rel=1e-3)
