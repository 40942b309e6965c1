"""A measured run: where it measures, what it finds, and that it goes on as if never stopped."""

from __future__ import annotations

import itertools
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from gns_keras.core.advice_parts import NoisePoint
from gns_keras.training.example_source import ExampleSource
from gns_keras.training.measured_run import MeasuredRun, State, plan_run

SIZE, COUNT, BATCH_SIZE = 3, 32, 4


def linear_model(*, rate: float = 0.01) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((SIZE,)), layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(rate), "mse")
    return model


def noisy_model() -> keras.Model:
    keras.utils.set_random_seed(1)
    parts = [layers.Dense(8), layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(1)]
    model = keras.Sequential([keras.Input((SIZE,)), *parts])
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
    return model


def regression(count: int = COUNT) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, SIZE)).astype("float32")
    return x, (x.sum(axis=1, keepdims=True) + rng.normal(size=(count, 1))).astype("float32")


def run(
    model: keras.Model,
    data: Any,
    *,
    examples: int,
    early: int = 16,
    most: int = 64,
    begun: Any = ((), None),
    **other: Any,
) -> tuple[list[NoisePoint], list[State]]:
    points, states = list(begun[0]), []
    plan = plan_run(model, BATCH_SIZE, examples=examples, early=early, max_measured=most)

    def keep(point: NoisePoint, state: State) -> None:
        points.append(point)
        states.append(state)

    source = ExampleSource(data, BATCH_SIZE)
    MeasuredRun(model, source, plan, seed=3, keep=keep, **other).run(list(points), begun[1])
    return points, states


def test_points_are_even_over_the_start_and_spread_out_after_it() -> None:
    plan = plan_run(linear_model(), 10, examples=9_999, early=800, max_measured=500)
    assert plan.steps[:9] == (0, 10, 20, 30, 40, 50, 60, 70, 80)
    ratios = [b / a for a, b in itertools.pairwise(plan.steps[8:])]
    assert plan.steps[-1] == 999
    assert max(ratios) == pytest.approx(1.3, abs=0.02)
    assert (plan.num_groups, plan.measure_batch_size, plan.fewest) == (8, 16, 64)


def test_a_group_is_a_training_batch_where_the_model_normalizes_over_it() -> None:
    plan = plan_run(noisy_model(), 32, examples=640, early=64, max_measured=500)
    assert (plan.num_groups, plan.measure_batch_size) == (2, 64)


def test_a_short_run_has_every_step_once() -> None:
    plan = plan_run(linear_model(), 4, examples=23, early=1_000, max_measured=500)
    assert plan.steps == (0, 1, 2, 3, 4, 5)
    with pytest.raises(ValueError, match=r"at least 2 steps, 64 examples\. Received: 63"):
        plan_run(linear_model(), 32, examples=63, early=10, max_measured=500)


def test_every_point_is_the_noise_scale_of_the_data_at_its_weights() -> None:
    # Groups of one example and a measurement of all 32: the sums over examples are exact.
    x, y = regression()
    points, states = run(linear_model(), (x, y), examples=64, most=COUNT)
    assert [point.examples_seen for point in points][:4] == [0, 4, 8, 12]
    assert points[-1].examples_seen == 64
    for point, state in zip(points, states, strict=True):
        weights = next(a for a in state if a.shape == (SIZE, 1)).astype(np.float64)
        gradients = 2 * (x @ weights - y) * x
        mean = gradients.mean(axis=0)
        trace = np.square(gradients - mean).sum() / (COUNT - 1)
        assert point.noise_scale.trace_cov == pytest.approx(trace, rel=1e-4)
        assert point.noise_scale.grad_sq_norm == pytest.approx(
            mean @ mean - trace / COUNT, rel=1e-4, abs=1e-5
        )


def test_the_loss_of_a_point_is_the_mean_since_the_one_before() -> None:
    x, y = regression()
    points, states = run(linear_model(rate=0.0), (x, y), examples=32, early=32)
    weights = next(a for a in states[0] if a.shape == (SIZE, 1))
    assert [point.examples_seen for point in points] == list(range(0, 36, 4))
    # Eight steps are one pass, and at a learning rate of 0 its mean loss is that of the data.
    every = np.square(x @ weights - y).mean()
    assert np.mean([point.loss for point in points[1:]]) == pytest.approx(every, rel=1e-5)
    assert np.std([point.loss for point in points[1:]]) > 0.1 * every
    assert np.isnan(points[0].loss)


def test_measuring_does_not_change_the_training() -> None:
    data = regression(128)
    measured = noisy_model()
    run(measured, data, examples=128)
    plain = noisy_model()
    batches = ExampleSource(data, BATCH_SIZE).batches(BATCH_SIZE, seed=3)
    plain.fit(batches, steps_per_epoch=32, shuffle=False, verbose=0)
    for ours, theirs in zip(measured.variables, plain.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_a_run_goes_on_bit_for_bit() -> None:
    stop, data = 4, regression(128)
    points, states = run(noisy_model(), data, examples=128)
    again, rest = run(noisy_model(), data, examples=128, begun=(points[:stop], states[stop - 1]))
    assert [p.noise_scale for p in again] == [p.noise_scale for p in points]
    # Keras' mean loss, from which the stretches are taken, is in float32.
    assert [p.loss for p in again[1:]] == pytest.approx([p.loss for p in points[1:]], rel=1e-4)
    for ours, theirs in zip(rest[-1], states[-1], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_is_measured_follows_the_point_before() -> None:
    data = regression(256)
    points, _ = run(linear_model(), data, examples=256)
    for before, point in itertools.pairwise(points):
        scale = before.noise_scale
        wanted = 8 * scale.value if scale.resolved else 2 * scale.num_examples
        assert point.noise_scale.num_examples == pytest.approx(min(max(wanted, 32), 64), abs=8)


def test_all_examples_are_announced() -> None:
    told: list[float] = []
    run(linear_model(), regression(), examples=64, advance=told.append)
    assert sum(told) == 64


def test_a_diverging_run_says_so() -> None:
    with pytest.raises(RuntimeError, match=r"training diverges.*Lower the learning rate"):
        run(linear_model(rate=1e20), regression(), examples=512, early=512)
