"""Batches of a measurement meet different dropout masks: their noise is noise, and not gradient."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from gns_keras.training.curvature_measurement import CurvatureMeasurement
from gns_keras.training.fresh_draws import FreshDraws, seed_states
from gns_keras.training.frozen import FrozenMeasurement

SIZE, TARGET, KEPT = 20, 3.0, 0.5


def dropout_model() -> keras.Model:
    """Squared error of a linear unit behind dropout; at inputs of 1 all noise is that of masks."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((SIZE,)), layers.Dropout(1 - KEPT), layers.Dense(1, use_bias=False)]
    )
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def exact_noise_scale(weights: np.ndarray) -> float:
    """tr(Sigma)/|G|^2 of `2 (u.w - t) u` for masks `u` of 0 and 2, each with probability 1/2.

    By moments of independent `u`: `E u = 1`, `E u^2 = 2`, and with `a = u.w` split into the part of
    one coordinate and the rest.
    """
    total, squares = weights.sum(), np.square(weights).sum()
    # Given u_i = 2 (else the gradient's coordinate is 0): a = 2 w_i + rest of mean and variance:
    mean = total - weights + 2 * weights - TARGET
    variance = squares - np.square(weights)  # Var u = 1.
    first = KEPT * 2 * 2 * mean
    second = KEPT * 4 * 4 * (np.square(mean) + variance)
    return float((second - np.square(first)).sum() / np.square(first).sum())


@pytest.mark.parametrize("kind", ["frozen", "curvature"])
def test_dropout_noise_averages_out_over_batches(kind: str) -> None:
    model = dropout_model()
    measurement: Any = FrozenMeasurement(model) if kind == "frozen" else CurvatureMeasurement(model)
    data = np.ones((16, SIZE), np.float32), np.full((16, 1), TARGET, np.float32)
    for _ in range(400):
        measurement.add_batch(data)
    found = measurement.noise_scale() if kind == "frozen" else measurement.simple_noise_scale()
    truth = exact_noise_scale(model.get_weights()[0][:, 0].astype(np.float64))
    # 95 % intervals, a fixed seed; with the same masks in every batch the interval has no width.
    low, high = found.interval
    assert 1.005 < high / low < 1.5
    assert low < truth < high


def test_seeds_are_those_of_layers_and_the_shared_one_and_come_back() -> None:
    model = dropout_model()
    keras.random.normal((1,))  # The shared generator comes into being.
    states = seed_states(model)
    assert len(states) == 2
    before = [state.numpy() for state in states]
    draws, seen = FreshDraws(model), []
    for _ in range(3):
        with draws.another():
            seen.append(tuple(states[0].numpy()))
    assert len({*seen, tuple(before[0])}) == 4
    for state, value in zip(states, before, strict=True):
        np.testing.assert_array_equal(state.numpy(), value)
        assert state.dtype == value.dtype


def test_seeds_come_back_after_an_error() -> None:
    model = dropout_model()
    [state, *_] = seed_states(model)
    before = state.numpy()
    with pytest.raises(KeyboardInterrupt), FreshDraws(model).another():
        raise KeyboardInterrupt
    np.testing.assert_array_equal(state.numpy(), before)
