"""The calibration benchmark: what it measures and predicts is right where the answer is known."""

import dataclasses
import functools
import math
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from gns_keras.core.goals import Goal
from gns_keras.core.learning_rate_check import LearningRateCheck
from gns_keras.core.run_record import RunRecord
from gns_keras.core.sweep_result import SweepRecord
from gns_keras.core.tradeoff_result import Tradeoff

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import calibration_check as check
import calibration_predictors as predictors
import calibration_run
import calibration_shares as shares
import calibration_table as table
import calibration_tasks


def run_of(scale: float, steps: int = 1000) -> dict:
    """A run whose noise scale is known; its snapshots scatter by a factor of 2 either way."""
    snapshots = [{"simple": [scale * f, 1.0, 0.0, 0.0]} for f in (0.5, 1.0, 2.0)]
    at = [10, 30, 100, 300]
    return {
        "steps_to": [float(steps)],
        "points": [
            {
                "steps": step,
                "snapshots": snapshots,
                "half": {},
                "mean": [{"simple": [3 * scale, 1.0, 0.0, 0.0]}] * 2,
                "curvature": {"trace": scale / 2, "grad": 1.0},
            }
            for step in at
        ],
        # With 8 examples, 4 groups: |g|^2 = 1 + scale/8 and sum b|g_j|^2 = 8 + 4 scale.
        "series": [[1.0, 8 + 4 * scale, 1 + scale / 8]] * steps,
    }


def test_a_constant_noise_scale_is_predicted_by_every_average() -> None:
    found = predictors.predict([run_of(100.0), run_of(100.0)], [], 0, 8, half_life=64.0)
    for name in ("running", "frozen"):
        assert found[name].value == pytest.approx(100.0)
    assert found["pairs"].value == pytest.approx(100 * 3.5 / 3)
    assert found["mean"].value == pytest.approx(300.0)
    assert found["hessian"].value == pytest.approx(50.0)
    assert math.isnan(found["adam"].value)
    assert math.isnan(found["branch"].value)


def test_two_runs_make_an_interval() -> None:
    # ln 80 and ln 125: mean ln 100, standard error ln(1.25), t of one degree of freedom.
    found = predictors.predict([run_of(80.0), run_of(125.0)], [], 0, 8, half_life=64.0)["frozen"]
    assert found.value == pytest.approx(100.0)
    assert math.log(found.interval[1] / found.value) == pytest.approx(12.706 * math.log(1.25), 1e-3)


def test_progress_weighs_the_average() -> None:
    # Points stand for 0 to sqrt(5000) and on to 100 steps; noise scales 8 and 24 at batch size 8:
    # ds = 70.71/2 and 29.29/4.
    run = run_of(8.0, steps=100)
    run["points"] = run["points"][:2]
    run["points"][0]["steps"], run["points"][1]["steps"] = 47, 97
    run["points"][1]["snapshots"] = [{"simple": [24.0, 1.0, 0.0, 0.0]}] * 3
    middle = math.sqrt(50 * 100)
    weights = np.array([middle / 2, (100 - middle) / 4])
    found = predictors.of_run("frozen", run, 100.0, 8)
    assert found == pytest.approx(weights @ [8.0, 24.0] / weights.sum())


def sweep_of(half_life: float) -> SweepRecord:
    """`S = 20 + 8000/B`, late by d/(1 - d) steps, at two learning rates of which one is worse."""
    records = []
    for size in (8, 64, 512, 4096):
        for rate, worse in ((0.1, 1.0), (0.2, 1.5)):
            steps = worse * (20 + 8000 / size) + predictors.delay(size, half_life)
            records.append(
                RunRecord(
                    batch_size=size, learning_rate=rate, seed=0, status="reached", reason="",
                    steps=math.ceil(steps), examples=math.ceil(steps) * size, steps_to=(steps,),
                    last_loss=0.1, seconds=1.0,
                )
            )  # fmt: skip
    return SweepRecord(
        goals=(Goal(threshold=0.5),), seeds=(0,), records=tuple(records), base_learning_rate=0.1,
        base_batch_size=8, max_examples=10**6, half_life=half_life, optimizer="SGD", alpha=1.0,
    )  # fmt: skip


def test_the_truth_has_no_delay() -> None:
    assert predictors.truth(sweep_of(1024.0), 0.5).critical_batch_size == pytest.approx(400.0)


def test_a_goal_that_the_smoothing_delays_too_much_is_unresolved() -> None:
    # 8,000 examples at least; the delay is the half-life over ln 2, and may be half of them.
    assert predictors.truth(sweep_of(2700.0), 0.5).resolved
    late = predictors.truth(sweep_of(2800.0), 0.5)
    assert not late.resolved
    assert late.interval == (0.0, math.inf)
    assert late.reason == predictors.TOO_EARLY


@pytest.fixture(name="training")
def small_training(monkeypatch: pytest.MonkeyPatch) -> calibration_run.MeasuredTraining:
    """A tiny task on random images."""
    rng = np.random.default_rng(0)
    images = rng.random((300, 2, 2, 1)).astype(np.float32)
    labels = rng.integers(0, 3, 300)
    arrays = functools.cache(lambda name, side: (images, labels))
    monkeypatch.setattr(calibration_tasks, "image_arrays", arrays)
    calibration_tasks.image_table.cache_clear()
    monkeypatch.setattr(calibration_run, "CHUNK", 8)
    task = calibration_tasks.Task(
        name="random_mlp_adam", role="fit", data="random", body=calibration_tasks.mlp(5, 3), side=2,
        optimizer="adam", learning_rate=0.01, levels_off=100.0, batch_sizes=(4, 16), goals=(0.5,),
        max_examples=2560,
    )  # fmt: skip
    yield calibration_run.MeasuredTraining(task)
    calibration_tasks.image_table.cache_clear()


@pytest.mark.slow
def test_watched_training_is_ordinary_training(
    training: calibration_run.MeasuredTraining,
) -> None:
    training.restart(5, 0.02)
    rows = training.rows(5, 4)[:11]  # More than one chunk, and not a whole number of them.
    values = training.train(rows)
    keras.utils.set_random_seed(5)
    plain = training.task.build_model()
    plain.optimizer.learning_rate = 0.02
    x, y = training.task.examples()
    losses = [plain.train_on_batch(x[batch], y[batch]) for batch in rows]
    # float32 sums in another order.
    np.testing.assert_allclose(values[:, 0], losses, rtol=2e-5)
    for mine, other in zip(
        training.model.trainable_variables, plain.trainable_variables, strict=True
    ):
        np.testing.assert_allclose(mine.numpy(), other.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_group_gradients_are_those_of_the_model(
    training: calibration_run.MeasuredTraining,
) -> None:
    import tensorflow as tf

    training.restart(5, 0.02)
    rows = training.rows(7, 16)[:6]
    x, y = training.task.examples()
    for found, batch in zip(training.group_gradients(rows), rows, strict=True):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(
                keras.losses.sparse_categorical_crossentropy(
                    y[batch], training.model(x[batch]), from_logits=True
                )
            )
        expected = tape.gradient(loss, [v.value for v in training.model.trainable_variables])
        flat = np.concatenate([np.ravel(part) for part in expected])
        np.testing.assert_allclose(found, flat, rtol=1e-4, atol=1e-7)


def test_snapshots_agree_with_known_noise() -> None:
    # tr Sigma = 40 * 9 per example, |G|^2 = 40 * 0.25; groups of 16. Three standard errors.
    rng = np.random.default_rng(3)
    groups = (0.5 + rng.normal(scale=3 / 4, size=(64, 40))).astype(np.float32)
    trace, grad, trace_error, grad_error = calibration_run.snapshot(groups, None)["simple"]
    assert abs(trace - 360.0) < 3 * trace_error
    assert abs(grad - 10.0) < 3 * grad_error
    metric = calibration_run.snapshot(groups, np.full(40, 4.0))
    assert metric["adam"][:2] == pytest.approx([4 * trace, 4 * grad], rel=1e-5)
    assert metric["adam_squared"][:2] == pytest.approx([16 * trace, 16 * grad], rel=1e-5)


def test_the_lookup_gives_the_images(training: calibration_run.MeasuredTraining) -> None:
    images, _ = calibration_tasks.image_arrays("random", 2)
    found = calibration_tasks.Lookup("random", 2)(np.array([3, 0, 299]))
    np.testing.assert_array_equal(found, images[[3, 0, 299]])


def test_shifted_images_are_moved_and_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), np.uint8)
    monkeypatch.setattr(calibration_tasks, "load_arrays", lambda name: (images, None))
    calibration_tasks.padded_table.cache_clear()
    layer = calibration_tasks.Shifted("random", 2, 1)
    still, moved = 4 * 3 + 1, 5 * 3 + 1  # The second image in its place, and a pixel to the left.
    found = layer(tf.constant([still, moved]))
    wider = np.pad(images[1] / 255.0, ((0, 0), (0, 1), (0, 0)))
    for place, pixels in zip(found, (wider[:, :4], wider[:, 1:]), strict=True):
        by_hand = pixels.reshape(2, 2, 2, 2, 1).mean(axis=(1, 3))
        np.testing.assert_allclose(place, by_hand, rtol=1e-6)
    calibration_tasks.padded_table.cache_clear()


def test_fresh_examples_are_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.zeros((60_000, 2, 2, 1)), np.arange(60_000) % 10
    monkeypatch.setattr(calibration_tasks, "image_arrays", lambda name, side: images)
    task = calibration_tasks.TASKS["fashion_mlp_sgd_fresh"]
    short = dataclasses.replace(task, max_examples=2000)
    assert short.num_examples == 49 * 60_000
    rows, labels = short.examples()
    assert len(np.unique(rows)) == 2000
    assert rows.max() < short.num_examples
    np.testing.assert_array_equal(labels, rows % 60_000 % 10)


def row_of(task: str, measured: float, frozen: float, mean: float) -> table.Row:
    """A goal with two noise scales."""
    predicted = {
        name: predictors.Predicted(value=value)
        for name, value in (("frozen", frozen), ("mean", mean))
    }
    fit = Tradeoff(batch_sizes=(), steps=(), critical_batch_size=measured)
    return table.Row(
        task=calibration_tasks.TASKS[task], goal=1.0, measured=fit, predicted=predicted
    )


def test_the_weight_comes_from_the_other_tasks() -> None:
    # B_c = 2 frozen^0.7 mean^0.3.
    rng = np.random.default_rng(0)
    tasks = [name for name, task in calibration_tasks.TASKS.items() if task.family == "momentum"][
        :6
    ]
    rows = []
    for task in tasks:
        for frozen, mean in rng.uniform(10, 1000, (3, 2)):
            rows.append(row_of(task, 2 * frozen**0.7 * mean**0.3, frozen, mean))
    found = table.weight_left_out(rows)
    assert "(weights 0.3 to 0.3): 18 goals of 6 tasks, 100%, 1.0, 1.00" in found
    assert "0.3: 0.000" in found


def test_growth_is_that_of_the_other_tasks() -> None:
    names = ("mnist_mlp_sgd", "fashion_mlp_sgd", "cifar10_mlp_sgd")
    seen = [
        shares.Seen(calibration_tasks.TASKS[name], 10.0, 10.0 * times)
        for name, times in zip(names, (1.0, 4.0, 16.0), strict=True)
    ]
    points, growth = shares.grown(seen)
    assert growth == pytest.approx(4.0)
    assert [point.noise_scale for point in points] == pytest.approx([80.0, 40.0, 20.0])


def test_the_tuned_rate_is_the_vertex_of_the_steps() -> None:
    task = calibration_tasks.TASKS["mnist_mlp_sgd"]

    def swept(*rates: float) -> SweepRecord:
        records = []
        for rate in rates:
            steps = 1000 * math.exp(0.3 * math.log2(rate / 0.13) ** 2)
            one = {"batch_size": task.base_batch_size, "learning_rate": rate, "steps_to": (steps,)}
            records.append(dataclasses.replace(sweep_of(1024.0).records[0], **one))
        return dataclasses.replace(sweep_of(1024.0), records=tuple(records))

    assert check.tuned_rate(task, swept(0.05, 0.1, 0.2)) == pytest.approx(0.13)
    assert check.tuned_rate(task, swept(0.2, 0.4)) == 0.2


def test_the_fall_of_the_best_rate_is_found() -> None:
    found = []
    constants = {"sgd": 0.5, "momentum": 1.0, "adaptive": 1.5}
    for kind, name in zip(constants, ("sgd", "momentum", "adam"), strict=True):
        task = calibration_tasks.TASKS[f"mnist_mlp_{name}"]
        for octaves in (0.0, 2.0, 4.0):
            rate = 0.1 * 2 ** -(constants[kind] + 0.25 * octaves)
            one = LearningRateCheck(
                learning_rate=0.1, batch_size=16, steps=256, factors=(0.25, 1.0, 4.0),
                losses=((0.6,) * 8, (0.5,) * 8, (0.6,) * 8),
            )  # fmt: skip
            examples = 30_000 * 2**octaves
            found.append(check.Tuned(task=task, rate=rate, examples=examples, checks={1.0: one}))
    steps, fitted, spread = check.fit(found)
    assert steps == 256
    assert fitted == constants | {"fall": 0.25}
    assert spread == pytest.approx(0.0, abs=1e-9)
