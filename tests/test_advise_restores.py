"""`advise` interrupted at random moments leaves no trace, bit for bit, whatever is raised.

The moments are the ends of train steps of the learning-rate check, of the trial run and of the
timing, measurements at frozen weights, and the making of every stream of batches.
"""

import random
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from gns_keras.advise import advise
from gns_keras.training import learning_rate_check, step_timer, trial_run
from gns_keras.training.example_source import ExampleSource
from gns_keras.training.frozen import FrozenMeasurement
from tests.helpers.models import digits_dense

MOMENTS = [
    (learning_rate_check._Losses, "on_train_batch_end"),
    (trial_run._Snapshots, "on_train_batch_end"),
    (step_timer._Clock, "on_train_batch_end"),
    (FrozenMeasurement, "add_batch"),
    (ExampleSource, "batches"),
]
# With 4 examples a step the check needs 3 * 4 * 64 * 4 = 3,072 examples of a budget.
ASK = {"batch_size": 4, "budget": 9000, "verbose": 0}


class Moments:
    """Counts the moments that go by, and raises at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.stop_at, self.error = 0, -1, Exception
        for owner, name in MOMENTS:
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, original: Callable) -> Callable:
        def method(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self.stop_at:
                raise self.error
            return original(*args, **kwargs)

        return method


def trained_model() -> tuple[keras.Model, tuple[np.ndarray, np.ndarray]]:
    """Momentum, dropout, batch normalisation, a metric: everything that has a state."""
    _, x, y = digits_dense(num_examples=512)
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(16),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss, metrics=["accuracy"])
    model.fit(x, y, batch_size=32, verbose=0)
    model.stop_training = "as it was"
    return model, (x, y)


def everything(model: keras.Model) -> list[Any]:
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    values = [tf.convert_to_tensor(variable.value).numpy().tobytes() for variable in variables]
    numpy_state = np.random.get_state()[1].tobytes()  # noqa: NPY002  the user's global one
    tensorflow_state = tf.random.get_global_generator().state.numpy().tobytes()
    kept = (model.stop_training, model.history, model.train_function)
    return [*values, random.getstate(), numpy_state, tensorflow_state, *map(id, kept)]


def interrupt(model: keras.Model, data: Any, moments: Moments, stop_at: int, error: type) -> None:
    before = everything(model)
    moments.count, moments.stop_at, moments.error = 0, stop_at, error
    with pytest.raises(error):
        advise(model, data, **ASK)
    assert moments.count >= stop_at
    assert everything(model) == before


def run_through(monkeypatch: pytest.MonkeyPatch, draws: int, seed: int) -> None:
    model, data = trained_model()
    moments = Moments(monkeypatch)
    before = everything(model)
    advise(model, data, **ASK)
    assert everything(model) == before
    total = moments.count
    assert total > 600
    rng = np.random.default_rng(seed)
    for index in range(draws):
        stop_at = int(rng.integers(1, total))
        interrupt(model, data, moments, stop_at, (KeyboardInterrupt, RuntimeError)[index % 2])


def test_an_interruption_at_any_moment_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    run_through(monkeypatch, draws=3, seed=0)


@pytest.mark.slow
def test_many_interruptions_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    run_through(monkeypatch, draws=30, seed=1)


@pytest.mark.parametrize("step", [1, 20, 47])
def test_an_error_inside_a_train_step_leaves_no_trace(step: int) -> None:
    """Run eagerly, so that the model's own code is called, and fails, at every step."""

    class Failing(keras.Sequential):
        steps, fails_at = 0, -1

        def train_step(self, data):
            type(self).steps += 1
            if self.steps == self.fails_at:
                raise KeyboardInterrupt
            return super().train_step(data)

    _, x, y = digits_dense(num_examples=128)
    model = Failing([keras.Input((64,)), keras.layers.Dropout(0.2), keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, run_eagerly=True)
    model.fit(x, y, batch_size=64, verbose=0)
    before = everything(model)
    Failing.fails_at = Failing.steps + step
    with pytest.raises(KeyboardInterrupt):
        advise(model, (x, y), **ASK)
    assert everything(model) == before
