"""A small problem, and data sets and models with one fault each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gns_keras.training.batch_scheduler import BatchSizeScheduler
from gns_keras.training.monitor import NoiseScaleMonitor

BATCH = 16
SWEEP = {
    "batch_sizes": [8, 16],
    "goals": [1.5],
    "learning_rates": [0.05],
    "max_examples": 600,
    "half_life": 64,
    "verbose": 0,
}


def arrays(num_examples: int = 320) -> tuple[np.ndarray, np.ndarray]:
    """A noisy linear map of six inputs to two outputs."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num_examples, 6))
    y = x @ rng.normal(size=(6, 2)) + rng.normal(size=(num_examples, 2))
    return x.astype(np.float32), y.astype(np.float32)


def make_model(*, built: bool = True, compiled: bool = True, **changes: Any) -> keras.Model:
    """Two dense layers; equal arguments give equal weights."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((6,)), *layers] if built else layers)
    if compiled:
        model.compile(keras.optimizers.SGD(0.05), "mse", **changes)
    return model


def make_frozen(*, built: bool = True) -> keras.Model:
    """A compiled model with nothing to train."""
    model = make_model(built=built)
    model.trainable = False
    return model


def make_monitor() -> NoiseScaleMonitor:
    return NoiseScaleMonitor(every=2)


def make_scheduler() -> BatchSizeScheduler:
    return BatchSizeScheduler(update_every=2, max_batch_size=128)


CALLBACKS = {"monitor": make_monitor, "scheduler": make_scheduler}


def dataset_of(*, batches: int = 20, empty: int = -1, fails: int = -1) -> tf.data.Dataset:
    """Batches from a generator: of unknown number, one without examples, or one that raises."""
    x, y = arrays(BATCH * batches)

    def generate() -> Iterator[Any]:
        for number in range(batches):
            if number == fails:
                raise OSError("the disk is on fire")
            part = slice(number * BATCH, (number + (number != empty)) * BATCH)
            yield x[part], y[part]

    signature = (tf.TensorSpec((None, 6)), tf.TensorSpec((None, 2)))
    return tf.data.Dataset.from_generator(generate, output_signature=signature)


def sized(dataset: tf.data.Dataset, batches: int) -> tf.data.Dataset:
    return dataset.apply(tf.data.experimental.assert_cardinality(batches))


def weights(model: keras.Model) -> list[bytes]:
    return [weight.tobytes() for weight in model.get_weights()]
