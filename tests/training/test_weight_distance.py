"""The distance of the weights from their start, against weights kept by hand."""

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

from gns_keras.training.weight_distance import WeightDistance


def steady_model() -> keras.Model:
    """Every update adds (0.3, 0.4) to the two weights, whose start is not zero."""
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")]
    )
    model.compile(keras.optimizers.SGD(0.1), loss=lambda y, p: -keras.ops.mean(p))
    return model


def steady_data(updates: int) -> tuple[np.ndarray, np.ndarray]:
    return np.tile([[3.0, 4.0]], (updates, 1)).astype(np.float32), np.zeros((updates, 1))


class KeptWeights(keras.callbacks.Callback):
    """All trainable weights after every update, in one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors: list[np.ndarray] = []

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.keep()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.keep()

    def keep(self) -> None:
        values = [tf.convert_to_tensor(v.value).numpy() for v in self.model.trainable_weights]
        self.vectors.append(np.concatenate([v.ravel() for v in values]).astype(np.float64))


def test_equal_steps_go_equal_distances_and_are_ballistic() -> None:
    distance = WeightDistance(every=1)
    history = steady_model().fit(
        *steady_data(40), batch_size=1, epochs=2, verbose=0, callbacks=[distance]
    )
    assert distance.history["update"] == list(range(1, 81))
    expected = 0.5 * np.arange(1, 81)
    np.testing.assert_allclose(distance.history["weight_distance"], expected, rtol=1e-5)
    np.testing.assert_allclose(history.history["weight_distance"], [20.0, 40.0], rtol=1e-5)
    fit = distance.diffusion()
    assert fit.exponent == pytest.approx(1.0, abs=1e-3)
    assert not fit.accepts("logarithm")


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_the_distance_is_that_of_all_trainable_weights(
    num_replicas: int, strategy: Callable[[int], tf.distribute.Strategy]
) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 3)).astype(np.float32), rng.integers(0, 4, 64)
    with strategy(num_replicas).scope():
        model = keras.Sequential(
            [
                keras.Input((3,)),
                keras.layers.Dense(5, activation="relu"),
                keras.layers.BatchNormalization(),
                keras.layers.Dense(4),
            ]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.1), loss)
    kept, distance = KeptWeights(), WeightDistance(every=3)
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[kept, distance])
    assert distance.history["update"] == [1, 3, 6, 9, 12, 15]
    expected = [np.linalg.norm(kept.vectors[t] - kept.vectors[0]) for t in [1, 3, 6, 9, 12, 15]]
    np.testing.assert_allclose(distance.history["weight_distance"], expected, rtol=1e-12)


def test_log_spaced_records_and_a_second_fit_that_goes_on() -> None:
    model, distance = steady_model(), WeightDistance(points_per_octave=2)
    model.fit(*steady_data(10), batch_size=1, verbose=0, callbacks=[distance])
    assert distance.history["update"] == [1, 2, 3, 4, 6, 8]
    model.fit(*steady_data(10), batch_size=1, verbose=0, callbacks=[distance])
    assert distance.history["update"] == [1, 2, 3, 4, 6, 8, 11, 16]
    assert distance.history["weight_distance"][-1] == pytest.approx(8.0)
    other = steady_model()
    other.fit(*steady_data(2), batch_size=1, verbose=0, callbacks=[distance])
    assert distance.history["update"] == [1, 2]
    np.testing.assert_allclose(distance.history["weight_distance"], [0.5, 1.0], rtol=1e-6)


def test_several_updates_in_one_execution_are_counted() -> None:
    model, distance = steady_model(), WeightDistance()
    model.compile(model.optimizer, model.loss, steps_per_execution=4)
    model.fit(*steady_data(12), batch_size=1, verbose=0, callbacks=[distance])
    assert distance.history["update"] == [4, 8, 12]
    np.testing.assert_allclose(distance.history["weight_distance"], [2.0, 4.0, 6.0], rtol=1e-6)


def test_a_model_that_gets_its_weights_from_the_first_batch_is_refused() -> None:
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"has its weights.*Call it on a batch before fit"):
        model.fit(*steady_data(3), batch_size=1, verbose=0, callbacks=[WeightDistance()])


@pytest.mark.parametrize("arguments", [{"every": 0}, {"every": "linear"}, {"points_per_octave": 0}])
def test_arguments_out_of_range_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match=r'"log" or a number of updates.*Received'):
        WeightDistance(**arguments)
