"""The paired runs of the learning-rate check: what they measure, and that they are paired."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gns_keras.training.example_source import ExampleSource
from gns_keras.training.learning_rate_check import (
    FEWEST_STEPS,
    NUM_RUNS,
    PROBE_STEPS,
    CheckPlan,
    _Runs,
    check_learning_rate,
    plan_check,
    scaled_learning_rate,
)
from gns_keras.training.preserve import preserved
from tests.helpers.models import digits_dense

PLAN = CheckPlan(batch_size=16, steps=4)


def runs_of(model: keras.Model, source: ExampleSource, scale, plan: CheckPlan = PLAN) -> _Runs:
    return _Runs(model, source, plan, scale, 0, lambda examples: None)


def test_the_loss_is_the_one_at_the_mean_weights() -> None:
    """By hand, with plain SGD: 4 steps, the mean after steps 2, 3 and 4, then 8 fresh batches."""
    model, x, y = digits_dense(num_examples=256)
    source = ExampleSource((x, y), 16)
    with preserved(model), scaled_learning_rate(model) as scale:
        found = runs_of(model, source, scale)
        (loss, *_), seeds = found.losses(2.0), found._seeds
    batches = list(source.batches(16, seed=seeds[0]).take(4 + PROBE_STEPS))
    weights = [variable.numpy().astype(np.float64) for variable in model.trainable_variables]
    kept = []
    for images, labels in batches[:4]:
        assign(model, weights)
        with tf.GradientTape() as tape:
            value = model.compute_loss(images, labels, model(images, training=True))
        grads = tape.gradient(value, [v.value for v in model.trainable_variables])
        weights = [w - 2 * 0.05 * grad.numpy() for w, grad in zip(weights, grads, strict=True)]
        kept.append(weights)
    assign(model, [np.mean(parts, axis=0) for parts in zip(*kept[1:], strict=True)])
    losses = [model.compute_loss(a, b, model(a, training=True)).numpy() for a, b in batches[4:]]
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)


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
    assert len(set(first)) == 4


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
            plan = CheckPlan(batch_size=16, steps=30)
            found.append(runs_of(model, ExampleSource((x, y), 16), scale, plan).losses(1.0))
    assert found[1] == pytest.approx(found[0], rel=0.1)


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


def test_the_plan_keeps_to_a_third_of_the_budget() -> None:
    assert plan_check(32, None).steps == 32
    least = 3 * NUM_RUNS * (FEWEST_STEPS + PROBE_STEPS) * 32
    assert plan_check(32, least).steps == FEWEST_STEPS
    assert plan_check(32, least).usual_examples == least // 3
    assert plan_check(32, least - 1).steps == 0
    assert plan_check(32, 10**9).steps == 32
