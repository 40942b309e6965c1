"""`LineSearchMeasurement`: against least squares, whose lines are known; nothing left behind."""

import keras
import numpy as np
import pytest
from keras import layers

from gns_keras.training.line_search import LineSearchMeasurement
from tests.training.runs import differences, variables_of

NUM_EXAMPLES, DIMENSION = 64, 5


def examples() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(NUM_EXAMPLES, DIMENSION)).astype("float32")
    noise = rng.normal(size=(NUM_EXAMPLES, 1))
    return x, (x[:, :2].sum(axis=1, keepdims=True) + noise).astype("float32")


def batches(size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = examples()
    rows = np.random.default_rng(1).integers(0, NUM_EXAMPLES, size=(count, size))
    return x[rows], y[rows]


def linear() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((DIMENSION,)), layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def with_state() -> keras.Model:
    keras.utils.set_random_seed(0)
    middle = [layers.Dense(8), layers.BatchNormalization(), layers.Dropout(0.3)]
    model = keras.Sequential([keras.Input((DIMENSION,)), *middle, layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
    return model


def test_progress_on_least_squares_is_that_of_the_formula() -> None:
    model = linear()
    x, y = examples()
    hessian = 2 * x.T.astype(float) @ x / NUM_EXAMPLES
    weights = model.get_weights()[0].astype(float)
    bx, by = batches(4, 30)
    gradients = 2 * np.einsum("msd,ms->md", bx, (bx @ weights - by)[..., 0]) / 4
    along = gradients @ (2 * x.T @ (x @ weights - y) / NUM_EXAMPLES)[:, 0]
    curved = np.einsum("mi,ij,mj->m", gradients, hessian, gradients)

    shared, separate = LineSearchMeasurement(model, (x, y)).progress((bx, by), 0.01)

    # Losses of 2 in float32, of which differences are taken: 1e-6.
    assert shared.value == pytest.approx(along.mean() ** 2 / (2 * curved.mean()), rel=1e-4)
    assert shared.step == pytest.approx(along.mean() / curved.mean(), rel=1e-3)
    best = np.where(along > 0, along**2 / (2 * curved), 0.0)
    # The lengths tried end soon after the best shared one, and a few gradients ask for more.
    assert shared.value < separate <= best.mean() * 1.0001


def test_a_step_lowers_the_loss_by_what_was_measured() -> None:
    model = linear()
    x, y = examples()
    one = (x[None, :16], y[None, :16])
    found, _ = LineSearchMeasurement(model, (x, y)).progress(one, 0.01)
    before = model.evaluate(x, y, verbose=0)
    model.optimizer.learning_rate = found.step
    model.train_on_batch(x[:16], y[:16])
    assert before - model.evaluate(x, y, verbose=0) == pytest.approx(found.value, rel=1e-3)


def test_nothing_is_left_behind() -> None:
    model = with_state()
    x, y = examples()
    model.fit(x, y, batch_size=16, verbose=0)
    before = variables_of(model)
    measurement = LineSearchMeasurement(model, (x, y))
    first = measurement.progress(batches(8, 6), 0.01)
    assert differences(before, variables_of(model)) == []
    # The same masks again.
    assert measurement.progress(batches(8, 6), 0.01) == first


def test_a_model_without_weights_is_refused() -> None:
    model = keras.Sequential([layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="no weights yet"):
        LineSearchMeasurement(model, examples())
