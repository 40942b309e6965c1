"""What NoiseScaleMonitor costs: step time of a monitored fit over that of a plain one.

Blocks of steps run with and without it in turns, in one fit of one model; the ratio is taken of
neighbouring blocks and its median printed, so that the speed of the machine and its other load
cancel. Warm-up (tracing, the calibration of `every="auto"`) is left out, as a real run is long.

    python benchmarks/overhead.py              # the table
    python benchmarks/overhead.py --repeats 15 --models cnn --batch-sizes 64
"""

import argparse
import functools
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import tensorflow as tf
from models import MODELS
from tables import head, machine, row

from gns_keras import NoiseScaleMonitor

TARGETS = {1: 1.05, 4: 1.02}


@functools.cache
def strategy(replicas: int) -> tf.distribute.Strategy:
    """One strategy per number of replicas: the collectives of two would collide."""
    if replicas == 1:
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])


class Turns(keras.callbacks.Callback):
    """Lets blocks of steps run with and without the monitor in turns, within one fit.

    One fit, because the speed of several logical devices on one processor differs between fits by
    up to three times, as their threads and iterators happen to fall; within a fit it holds.
    """

    def __init__(self, warm_up: int, block: int) -> None:
        super().__init__()
        self.warm_up, self.block = warm_up, block
        self.seconds: dict[bool, list[float]] = {False: [], True: []}

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.plain = self.model.train_function  # Listed first, before the monitor takes its place.

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        if batch == 0:
            self.watched = self.model.train_function
        if batch < self.warm_up or (batch - self.warm_up) % self.block:
            return
        number = (batch - self.warm_up) // self.block
        now = time.perf_counter()
        if number:
            self.seconds[self.is_watched].append(now - self.started)
        self.is_watched = number % 4 in (1, 2)  # plain, watched, watched, plain: no drift.
        self.model.train_function = self.watched if self.is_watched else self.plain
        self.started = time.perf_counter()

    def on_train_end(self, logs: dict | None = None) -> None:
        self.model.train_function = self.watched


def compile_model(name: str, replicas: int) -> tuple[keras.Model, tuple[np.ndarray, np.ndarray]]:
    with strategy(replicas).scope():
        keras.utils.set_random_seed(0)
        model, data = MODELS[name]()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-4), loss)
    return model, data


def run(model: keras.Model, data: tuple, batch_size: int, steps: int, callbacks: list) -> float:
    """Time of a fit of so many steps."""
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(batch_size, drop_remainder=True)
    started = time.perf_counter()
    model.fit(
        dataset.cache().repeat().prefetch(2),
        steps_per_epoch=steps,
        verbose=0,
        shuffle=False,
        callbacks=callbacks,
    )
    return time.perf_counter() - started


def measure(name: str, replicas: int, batch_size: int, repeats: int, seconds: float) -> None:
    """Prints one row of the table."""
    model, data = compile_model(name, replicas)
    run(model, data, batch_size, 10, [])
    per_step = run(model, data, batch_size, 10, []) / 10
    block = max(20, round(seconds / per_step))
    monitor, turns = NoiseScaleMonitor(), Turns(40, block)
    run(model, data, batch_size, 41 + 2 * repeats * block, [turns, monitor])
    plain, watched = (np.array(turns.seconds[key]) for key in (False, True))
    ratios = watched / plain[: len(watched)]
    low, median, high = np.percentile(ratios, [25, 50, 75])
    row(
        *(name, replicas, batch_size, f"{1e3 * np.median(plain) / block:.3g}"),
        *(monitor.measures_every, f"{median:.3f}", f"{low:.3f} to {high:.3f}", TARGETS[replicas]),
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="per block")
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--batch-sizes", nargs="*", type=int, default=[64, 512])
    parser.add_argument("--replicas", nargs="*", type=int, default=[1, 4])
    args = parser.parse_args()
    # Replicas wait for each other inside operations: with fewer threads than replicas they take
    # turns at random, and the time of a step varies twofold.
    tf.config.threading.set_inter_op_parallelism_threads(4 * max(args.replicas))
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
    )
    print(f"{machine()}; {args.repeats} pairs of blocks of {args.seconds:g} s\n")
    head("model", "replicas", "batch", "ms/step", "full every", "ratio", "quartiles", "aim")
    for name in args.models:
        for replicas in args.replicas:
            for batch_size in args.batch_sizes:
                measure(name, replicas, batch_size, args.repeats, args.seconds)


if __name__ == "__main__":
    main()
