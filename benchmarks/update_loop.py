"""What batches made of parts cost: examples per second over those of plain fit at the true batch.

Both run in one process, in turns, on the same examples; the ratio is taken of neighbouring runs and
its median printed, so that the speed of the machine and its other load cancel. The data set yields
batches of 64. "concatenated" joins them into one real batch, "accumulated" adds up their gradients;
"fit at 64" is plain fit with as many updates as there are parts, for comparison: what accumulating
would cost if adding up were free and updates too.

    python benchmarks/update_loop.py                # the table
    python benchmarks/update_loop.py --repeats 3 --seconds 1 --models cnn --batch-sizes 256
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import tensorflow as tf
from models import MODELS
from tables import head, machine, row

from gns_keras.training.batch_scheduler import BatchSizeScheduler

GRANULE = 64
TARGET = 0.95


class Clock(keras.callbacks.Callback):
    """Times a fit from its fourth update on: its start and end take up to half a second."""

    START = 4

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if batch == self.START:
            self.started = time.perf_counter()
        self.count, self.stopped = batch - self.START, time.perf_counter()


class Contestant:
    """A compiled model that is fit again and again on the same examples.

    Args:
        name: Of the model.
        strategy: Where it lives.
        batch_size: Of an update.
        yielded: Batch size of the data set.
        part: Largest batch of one gradient for the scheduler; None for plain fit.
    """

    def __init__(
        self,
        name: str,
        strategy: tf.distribute.Strategy,
        batch_size: int,
        yielded: int,
        part: int | None = None,
    ) -> None:
        with strategy.scope():
            keras.utils.set_random_seed(0)
            self.model, (x, y) = MODELS[name]()
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            self.model.compile(keras.optimizers.Adam(1e-4), loss)
        dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(yielded, drop_remainder=True)
        self.dataset = dataset.cache().repeat().prefetch(2)
        self.callbacks = []
        if part is not None:
            scheduler = BatchSizeScheduler(
                batch_sizes={0: batch_size}, max_microbatch_size=part, learning_rate_rule=None
            )
            self.callbacks = [scheduler]
        self.steps = 1 if part is not None else batch_size // yielded  # That make up an update.

    def seconds(self, updates: int) -> float:
        """Time for the examples of an update, in one fit of so many."""
        clock = Clock()
        self.model.fit(
            self.dataset,
            steps_per_epoch=updates * self.steps,
            verbose=0,
            shuffle=False,
            callbacks=[*self.callbacks, clock],
        )
        return (clock.stopped - clock.started) / clock.count * self.steps


def measure(name: str, replicas: int, batch_size: int, repeats: int, seconds: float) -> None:
    """Prints the rows of one model and batch size."""
    strategy = tf.distribute.get_strategy()
    if replicas > 1:
        strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])
    plain = Contestant(name, strategy, batch_size, batch_size)
    others = {
        "concatenated": Contestant(name, strategy, batch_size, GRANULE, batch_size),
        "accumulated": Contestant(name, strategy, batch_size, GRANULE, GRANULE),
        f"fit at {GRANULE}": Contestant(name, strategy, batch_size, GRANULE),
    }
    least = -(-batch_size // GRANULE) + 5  # Enough for the limit by the size of the data.
    plain.seconds(least)
    per_update = plain.seconds(least)
    updates = max(least, round(seconds / per_update))
    for kind, other in others.items():
        other.seconds(100 if other.callbacks else least)  # Past the first looks, which are dearer.
        ratios = []
        for repeat in range(repeats):
            order = (plain, other) if repeat % 2 else (other, plain)
            measured = {id(one): one.seconds(updates) for one in order}
            ratios.append(measured[id(plain)] / measured[id(other)])
        low, median, high = np.percentile(ratios, [25, 50, 75])
        aim = TARGET if kind == "concatenated" else ""
        quartiles = f"{low:.3f} to {high:.3f}"
        ms = f"{1e3 * per_update:.3g}"
        row(name, replicas, batch_size, ms, kind, f"{median:.3f}", quartiles, aim)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="per run")
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--batch-sizes", nargs="*", type=int, default=[256, 1024])
    parser.add_argument("--replicas", type=int, default=1)
    args = parser.parse_args()
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
    )
    print(f"{machine()}; {args.repeats} pairs of {args.seconds:g} s\n")
    head("model", "replicas", "batch", "ms/update", "parts", "ratio", "quartiles", "aim")
    for name in args.models:
        for batch_size in args.batch_sizes:
            measure(name, args.replicas, batch_size, args.repeats, args.seconds)


if __name__ == "__main__":
    main()
