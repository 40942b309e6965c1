"""How far the monitor is from its floor: reads of the gradient.

A model that is nearly all weights spends its steps on passes over them, and what the monitor adds
can be seen. The floor is one read of the gradient on one device (the steps between full
measurements), and two on every replica (the gradient before and after the all-reduce). Blocks of
steps run with and without the monitor in turns, as in overhead.py; a read is timed in the same
process, right after.

    python benchmarks/floor.py
    python benchmarks/floor.py --repeats 7 --seconds 1 --replicas 1
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import tensorflow as tf
from overhead import Turns, run, strategy
from tables import head, machine, row

from gns_keras import NoiseScaleMonitor
from gns_keras.ops.sq_norms import sq_norms

BATCH = 16
READS = {1: 1, 2: 2}  # By the number of replicas.


def wide_model(replicas: int, width: int) -> tuple[keras.Model, tuple[np.ndarray, np.ndarray]]:
    with strategy(replicas).scope():
        layers = [keras.layers.Dense(width, use_bias=False) for _ in range(4)]
        model = keras.Sequential([keras.Input((width,)), *layers])
        model.compile(keras.optimizers.Adam(1e-4), "mse")
    x = np.random.default_rng(0).normal(size=(4 * BATCH, width)).astype("float32")
    return model, (x, x)


def read_seconds(model: keras.Model, replicas: int, repeats: int) -> float:
    """Time of one read of as many numbers as the gradient has, on all replicas at once."""

    @tf.function
    def read() -> tf.Tensor:
        def one() -> tf.Tensor:
            weights = model.trainable_variables
            return sq_norms([tf.convert_to_tensor(w) for w in weights], [0] * len(weights), 1)

        return strategy(replicas).run(one)

    read()
    times = []
    for _ in range(5 * repeats):
        started = time.perf_counter()
        local = strategy(replicas).experimental_local_results(read())
        [each.numpy() for each in local]
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def measure(replicas: int, width: int, repeats: int, seconds: float) -> None:
    """Prints one row of the table."""
    model, data = wide_model(replicas, width)
    run(model, data, BATCH, 5, [])
    per_step = run(model, data, BATCH, 10, []) / 10
    block = max(5, round(seconds / per_step))
    # One device: only the steps between full measurements, of which the first is the only one.
    monitor = NoiseScaleMonitor(every=1 if replicas > 1 else 10**9)
    turns = Turns(10, block)
    run(model, data, BATCH, 11 + 2 * repeats * block, [turns, monitor])
    plain, watched = (np.array(turns.seconds[key]) / block for key in (False, True))
    more = watched - plain[: len(watched)]
    low, median, high = 1e3 * np.percentile(more, [25, 50, 75])
    floor = 1e3 * READS[replicas] * read_seconds(model, replicas, repeats)
    megabytes = 4 * width**2 * 4 / 2**20
    row(
        *(replicas, f"{megabytes:.0f}", f"{1e3 * np.median(plain):.3g}", f"{median:.2f}"),
        *(f"{low:.2f} to {high:.2f}", READS[replicas], f"{floor:.2f}", f"{median / floor:.2f}"),
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1.0, help="per block")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--replicas", nargs="*", type=int, default=list(READS))
    args = parser.parse_args()
    tf.config.threading.set_inter_op_parallelism_threads(4 * max(args.replicas))
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
    )
    print(f"{machine()}; {args.repeats} pairs of blocks of {args.seconds:g} s\n")
    head(
        *("replicas", "gradient, MB", "ms/step", "monitor adds, ms", "quartiles"),
        *("reads", "their time, ms", "ratio"),
    )
    for replicas in args.replicas:
        measure(replicas, args.width, args.repeats, args.seconds)


if __name__ == "__main__":
    main()
