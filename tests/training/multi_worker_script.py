"""Trainings that have to come out alike under any strategy with two replicas.

`run` runs them; as a script, this is one of two workers:

    TF_CONFIG=... python -m tests.training.multi_worker_script results.npz [compared|all]
"""

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gns_keras.training.monitor import NoiseScaleMonitor
from gns_keras.training.multi_worker import enable_multi_worker
from tests.helpers.models import digits_dense

GLOBAL_BATCH_SIZE = 64
NUM_EXAMPLES = 464  # Seven batches and a quarter of one.
COLLECTIVE_TIMEOUT_S = 60

Results = dict[str, np.ndarray]
Training = Callable[[tf.distribute.Strategy, int], Results]


class OwnStepModel(keras.Model):
    """A train step whose logs are not those of the compiled metrics."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(10)

    def call(self, inputs: Any) -> Any:
        return self.dense(inputs)

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            # Keras sums the replicas' gradients.
            loss = (
                self.compute_loss(y=y, y_pred=self(x))
                / self.distribute_strategy.num_replicas_in_sync
            )
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        return {"first_label": tf.cast(y[0], tf.float32)}


class MidEpochReader(keras.callbacks.Callback):
    """Asks for the result on one worker alone, which must not wait for the other."""

    def __init__(self, monitor: NoiseScaleMonitor, reads: bool) -> None:
        super().__init__()
        self.monitor, self.reads = monitor, reads

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.reads:
            self.monitor.result()


def sgd() -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(0.1, momentum=0.9)


def clipped_adam() -> keras.optimizers.Optimizer:
    return keras.optimizers.Adam(0.01, clipnorm=0.1)


def build(strategy: tf.distribute.Strategy, optimizer: Any = sgd, **compiled: Any) -> keras.Model:
    """The digits model, ready for any strategy."""
    with strategy.scope():
        model, _, _ = digits_dense(num_examples=NUM_EXAMPLES)
        model.compile(
            optimizer=optimizer(),
            loss=model.loss,
            metrics=["accuracy"],
            **compiled,
        )
    return enable_multi_worker(model)


def dataset(num_examples: int = NUM_EXAMPLES, *, ragged: bool = False) -> tf.data.Dataset:
    """Global batches in a fixed order; every worker reads them all and keeps its share."""
    _, x, y = digits_dense(num_examples=NUM_EXAMPLES)
    batches = tf.data.Dataset.from_tensor_slices((x[:num_examples], y[:num_examples])).batch(
        GLOBAL_BATCH_SIZE, drop_remainder=not ragged
    )
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return batches.with_options(options)


def weights(model: keras.Model) -> np.ndarray:
    return np.concatenate([w.ravel() for w in model.get_weights()])


def noise_scale(monitor: NoiseScaleMonitor) -> np.ndarray:
    found = monitor.result()
    return np.array(
        [found.value, *found.interval, found.grad_sq_norm, found.trace_cov, found.num_steps]
    )


def logs(history: keras.callbacks.History) -> np.ndarray:
    names = ("accuracy", "loss", "val_accuracy", "val_loss")
    return np.array([history.history[name] for name in names])


def _plain(strategy: tf.distribute.Strategy, worker: int) -> Results:
    model = build(strategy)
    history = model.fit(dataset(), epochs=4, verbose=0, validation_data=dataset(128))
    return {
        "plain_weights": weights(model),
        "plain_logs": logs(history),
        "evaluate": np.array(model.evaluate(dataset(128), verbose=0)),
        "predict": model.predict(dataset(128).map(lambda x, y: x), verbose=0),
    }


def _watched(strategy: tf.distribute.Strategy, worker: int) -> Results:
    monitor = NoiseScaleMonitor(every=1)
    model = build(strategy)
    callbacks = [monitor, MidEpochReader(monitor, reads=worker == 0)]
    history = model.fit(
        dataset(), epochs=4, verbose=0, validation_data=dataset(128), callbacks=callbacks
    )
    return {
        "watched_weights": weights(model),
        "watched_logs": logs(history),
        "watched_noise_scale": noise_scale(monitor),
    }


def _clipped(strategy: tf.distribute.Strategy, worker: int) -> Results:
    monitor = NoiseScaleMonitor(every=1, per_layer=True)
    model = build(strategy, clipped_adam)
    model.fit(dataset(ragged=True), epochs=2, verbose=0, callbacks=[monitor])
    return {
        "clipped_weights": weights(model),
        "clipped_noise_scale": noise_scale(monitor),
        "clipped_layers": np.array([s.value for s in monitor.per_layer().values()]),
    }


def _own_step(strategy: tf.distribute.Strategy, worker: int) -> Results:
    monitor = NoiseScaleMonitor(every=1)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = OwnStepModel()  # Its weights come into being inside `fit`.
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
        model.compile(optimizer=keras.optimizers.SGD(0.01), loss=loss)
    enable_multi_worker(model)
    history = model.fit(dataset(), epochs=2, verbose=0, callbacks=[monitor])
    return {
        "own_weights": weights(model),
        "own_noise_scale": noise_scale(monitor),
        "own_logs": np.array(history.history["first_label"]),
    }


def _clipped_unwatched(strategy: tf.distribute.Strategy, worker: int) -> Results:
    model = build(strategy, clipped_adam)
    model.fit(dataset(ragged=True), epochs=2, verbose=0)
    return {"clipped_unwatched_weights": weights(model)}


def _auto(strategy: tf.distribute.Strategy, worker: int) -> Results:
    monitor = NoiseScaleMonitor()
    model = build(strategy)
    callbacks = [monitor, MidEpochReader(monitor, reads=worker == 0)]
    model.fit(dataset(), epochs=6, verbose=0, callbacks=callbacks)
    return {
        "auto_weights": weights(model),
        "auto_noise_scale": noise_scale(monitor),
        "auto_every": np.array(monitor.measures_every),
    }


def _several_steps(strategy: tf.distribute.Strategy, worker: int) -> Results:
    monitor = NoiseScaleMonitor(every=1)
    model = build(strategy, steps_per_execution=2)
    model.fit(dataset(), epochs=4, verbose=0, callbacks=[monitor])
    return {"several_weights": weights(model), "several_noise_scale": noise_scale(monitor)}


def _resumed(strategy: tf.distribute.Strategy, worker: int) -> Results:
    # A folder per worker: all of them write, and remove it at the end.
    with tempfile.TemporaryDirectory() as folder:
        for epochs, last in ((2, False), (4, True)):
            backup = keras.callbacks.BackupAndRestore(
                os.path.join(folder, "backup"), delete_checkpoint=last
            )
            monitor = NoiseScaleMonitor(every=1)
            model = build(strategy)
            history = model.fit(dataset(), epochs=epochs, verbose=0, callbacks=[backup, monitor])
    return {
        "resumed_epochs": np.array(history.epoch),
        "resumed_weights": weights(model),
        "resumed_noise_scale": noise_scale(monitor),
    }


COMPARED = (_plain, _watched, _clipped, _own_step)
# Under MirroredStrategy stock Keras 3.15 fails at several steps per execution ("You must feed a
# value for placeholder"), for the reason that `enable_multi_worker` goes round.
ALONE = (_clipped_unwatched, _auto, _several_steps, _resumed)


def run(
    strategy: tf.distribute.Strategy, trainings: Sequence[Training], worker: int = 0
) -> Results:
    """Runs trainings and returns what they gave."""
    found: Results = {}
    for training in trainings:
        found |= training(strategy, worker)
        print(training.__name__, flush=True)  # A worker that stays silent hangs.
    return found


def main(path: str, which: str = "all") -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)  # Two workers share the machine.
    options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=COLLECTIVE_TIMEOUT_S)
    strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    worker = strategy.cluster_resolver.task_id
    found = run(strategy, COMPARED if which == "compared" else COMPARED + ALONE, worker)
    np.savez(path, num_replicas=strategy.num_replicas_in_sync, worker=worker, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
