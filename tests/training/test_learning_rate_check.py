"""The paired runs of the learning-rate check: what they measure, and that they are paired."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gns_keras.training.example_source import ExampleSource
from gns_keras.training.learning_rate_check import (
    FEWEST_STEPS,
    USUAL_RUNS,
    CheckPlan,
    _Runs,
    check_learning_rate,
    plan_check,
    scaled_learning_rate,
)
from gns_keras.training.preserve import preserved
from tests.helpers.models import digits_dense

PLAN = CheckPlan(batch_size=16, steps=8)


def runs_of(model: keras.Model, source: ExampleSource, scale, plan: CheckPlan = PLAN) -> _Runs:
    return _Runs(model, source, plan, scale, 0, lambda examples: None)


def test_the_losses_are_those_of_the_last_quarter_of_the_batches() -> None:
    """By hand, with plain SGD: the loss of every batch before the step on it, 8 steps."""
    model, x, y = digits_dense(num_examples=256)
    source = ExampleSource((x, y), 16)
    with preserved(model), scaled_learning_rate(model) as scale:
        runs = runs_of(model, source, scale)
        found, seed = runs.losses(2.0), runs._seed
    weights = [variable.numpy().astype(np.float64) for variable in model.trainable_variables]
    losses = []
    for images, labels in source.batches(16, seed=seed).take(8):
        assign(model, weights)
        with tf.GradientTape() as tape:
            value = model.compute_loss(images, labels, model(images, training=True))
        grads = tape.gradient(value, [v.value for v in model.trainable_variables])
        weights = [w - 2 * 0.05 * grad.numpy() for w, grad in zip(weights, grads, strict=True)]
        losses.append(float(value))
    assert found == pytest.approx(losses[-2:], rel=1e-4)
    assert runs.examples_used == 8 * 16


def assign(model: keras.Model, weights: list[np.ndarray]) -> None:
    for variable, value in zip(model.trainable_variables, weights, strict=True):
        variable.assign(value)


@pytest.mark.parametrize("kind", ["dropout", "dataset"])
def test_runs_of_one_seed_are_paired(kind: str) -> None:
    _, x, y = digits_dense(num_examples=256)
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dropout(0.5), keras.layers.Dense(10)]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = (x, y) if kind == "dropout" else tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    with preserved(model), scaled_learning_rate(model) as scale:
        runs = runs_of(model, ExampleSource(data, 16), scale)
        first, again = runs.losses(1.0), runs.losses(1.0)
    assert first == again
    assert len(set(first)) == 2  # The last quarter of 8 batches.


def test_a_schedule_is_multiplied_as_a_whole() -> None:
    plain, x, y = digits_dense(num_examples=256, learning_rate=0.05)
    scheduled, _, _ = digits_dense(num_examples=256)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1000], [0.05, 0.0])
    scheduled.compile(keras.optimizers.SGD(schedule), scheduled.loss)
    found = []
    for model in (plain, scheduled):
        with preserved(model), scaled_learning_rate(model) as scale:
            found.append(runs_of(model, ExampleSource((x, y), 16), scale).losses(4.0))
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert scheduled.optimizer._learning_rate is schedule
    assert float(scheduled.optimizer.learning_rate) == pytest.approx(0.05)
    scheduled.fit(x[:16], y[:16], verbose=0)  # With its own train function again.


def test_steps_that_run_several_at_a_time() -> None:
    model, x, y = digits_dense(num_examples=256)
    found = []
    for steps in (1, 3):
        model.compile(model.optimizer, model.loss, steps_per_execution=steps)
        with preserved(model), scaled_learning_rate(model) as scale:
            plan = CheckPlan(batch_size=16, steps=36)
            found.append(runs_of(model, ExampleSource((x, y), 16), scale, plan).losses(1.0))
    one, three = found
    assert (len(one), len(three)) == (9, 3)
    assert three == pytest.approx(np.reshape(one, (3, 3)).mean(axis=1), rel=1e-3)


def test_a_train_step_without_loss_is_no_check() -> None:
    class Silent(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(10)

        def call(self, inputs):
            return self.dense(inputs)

        def train_step(self, data):
            super().train_step(data)
            return {"score": tf.constant(1.0)}

    _, x, y = digits_dense(num_examples=64)
    model = Silent()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model(x[:2])
    with preserved(model), scaled_learning_rate(model) as scale:
        found = check_learning_rate(
            model, ExampleSource((x, y), 16), PLAN, scale, seed=0, advance=lambda examples: None
        )
    assert "reports no `loss`" in found.reason
    assert found.verdict == "unresolved"


def test_runs_are_paired_under_mirrored_strategy(strategy) -> None:
    with strategy(2).scope():
        model, x, y = digits_dense(num_examples=256)
    with preserved(model), scaled_learning_rate(model) as scale:
        runs = runs_of(model, ExampleSource((x, y), 16), scale)
        first, again, higher = runs.losses(1.0), runs.losses(1.0), runs.losses(8.0)
    assert first == pytest.approx(again, rel=1e-5)  # Two replicas add up in any order.
    assert np.mean(higher) < np.mean(first) - 0.01


def test_a_run_that_diverges_ends_and_its_losses_are_not_finite() -> None:
    model, x, y = digits_dense(num_examples=256, learning_rate=1e30)
    with preserved(model), scaled_learning_rate(model) as scale:
        runs = runs_of(model, ExampleSource((x, y), 16), scale)
        assert not np.all(np.isfinite(runs.losses(1.0)))
        assert np.all(np.isfinite(runs.losses(1e-32)))


def test_the_best_rate_of_a_short_run_is_found_from_both_sides() -> None:
    """From a 32nd and from 32 times of it, the same rate to a factor of 1.5."""
    found = []
    for rate in (0.02, 20.0):
        model, x, y = digits_dense(num_examples=1500, learning_rate=rate)
        source, plan = ExampleSource((x, y), 32), plan_check(32, None)
        with preserved(model), scaled_learning_rate(model) as scale:
            found.append(
                check_learning_rate(
                    model, source, plan, scale, seed=0, advance=lambda examples: None
                )
            )
    assert [one.verdict for one in found] == ["too_low", "too_high"]
    assert 1 / 1.5 < found[0].best_learning_rate / found[1].best_learning_rate < 1.5
    assert found[0].examples_used == 128 * 32 * len(found[0].factors)


def test_a_trained_model_is_told_from_a_new_one() -> None:
    model, x, y = digits_dense(num_examples=256)
    source, biases = ExampleSource((x, y), 16), []
    for _ in range(2):
        with preserved(model), scaled_learning_rate(model) as scale:
            check = check_learning_rate(
                model, source, PLAN, scale, seed=0, advance=lambda examples: None
            )
        biases.append(check.bias.log2_bias)
        model.fit(x, y, verbose=0)  # 8 updates, as many as a run has.
    assert biases[1] < 0 <= biases[0]


@pytest.mark.parametrize("factor", [1.0, 1e30])
def test_progress_is_told_batch_by_batch_and_adds_up_if_a_run_diverges(factor: float) -> None:
    model, x, y = digits_dense(num_examples=256)
    done: list[float] = []
    with preserved(model), scaled_learning_rate(model) as scale:
        runs = _Runs(model, ExampleSource((x, y), 16), PLAN, scale, 0, done.append)
        losses = runs.losses(factor)
    assert np.isfinite(losses).all() == (factor == 1)
    assert done[0] == 16
    assert sum(done) == PLAN.run_examples


def test_the_plan_keeps_to_a_third_of_the_budget() -> None:
    assert [plan_check(size, None).steps for size in (2, 16, 24, 32, 512)] == [
        256, 256, 170, 128, 128
    ]  # fmt: skip
    least = 3 * USUAL_RUNS * FEWEST_STEPS * 32
    assert plan_check(32, least).steps == FEWEST_STEPS
    plan = plan_check(32, least)
    assert USUAL_RUNS * plan.run_examples == least // 3
    assert plan_check(32, None).most_examples == 7 * 128 * 32  # From a quarter to 4**5 times.
    assert plan.most_examples == least // 2
    assert plan_check(32, least - 1).steps == 0
    assert plan_check(32, 10**9).steps == 128
