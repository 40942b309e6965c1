"""The mean of the weights over the last two stretches of a run."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gns_keras.training.mean_weights import SAMPLES, MeanWeights, sampling_stride


def small_model() -> keras.Model:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def put(model: keras.Model, value: float) -> None:
    for variable in model.trainable_variables:
        variable.assign(np.full(variable.shape, value, np.float32))


def values_of(model: keras.Model) -> list[np.ndarray]:
    return [variable.numpy() for variable in model.trainable_variables]


def test_mean_is_over_the_steps_of_the_last_two_closed_stretches():
    model = small_model()
    means = MeanWeights(model)
    for stretch in ([100.0], [1.0, 2.0, 3.0], [10.0], [1000.0]):
        for value in stretch:
            put(model, value)
            means.add()
        if stretch != [1000.0]:
            means.close()
    for array, variable in zip(means.mean(), model.trainable_variables, strict=True):
        assert array.shape == tuple(variable.shape)
        np.testing.assert_allclose(array, (1 + 2 + 3 + 10) / 4)


def test_an_empty_stretch_is_none():
    model = small_model()
    means = MeanWeights(model)
    means.close()
    with pytest.raises(ValueError, match="closed stretch"):
        means.mean()
    put(model, 2.0)
    means.add()
    means.close()
    means.close()
    np.testing.assert_allclose(means.mean()[0], 2.0)


@pytest.mark.parametrize("replicas", [1, 2])
def test_weights_are_put_back_bit_for_bit_after_an_error_too(replicas):
    strategy = tf.distribute.get_strategy()
    if replicas == 2:
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = small_model()
    means = MeanWeights(model)
    before = values_of(model)
    means.add()
    put(model, 4.0)
    means.add()
    means.close()
    own = values_of(model)
    seen: list[np.ndarray] = []

    def fail() -> None:
        with means.in_place():
            seen.extend(values_of(model))
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    for value, first in zip(seen, before, strict=True):
        np.testing.assert_allclose(value, (first + 4) / 2, rtol=1e-6)
    for value, kept in zip(values_of(model), own, strict=True):
        np.testing.assert_array_equal(value, kept)


def test_samples_are_about_as_many_for_every_stretch():
    assert [sampling_stride(steps) for steps in (1, SAMPLES, 10 * SAMPLES)] == [1, 1, 10]
