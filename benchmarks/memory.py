"""Memory that watching takes: peak of the process with and without the monitor or the scheduler.

Every case is a process of its own; what counts is the difference of the peaks, in gradients (bytes
of all trainable weights). The activations of the model are small against its weights.

    python benchmarks/memory.py
    python benchmarks/memory.py --width 4096 --repeats 3
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

STEPS = 40
KINDS = ("plain", "monitor", "scheduler")


def run(kind: str, replicas: int, width: int) -> None:
    """Trains, and prints the peak of this process and the size of a gradient, in MB."""
    import keras
    import numpy as np
    import tensorflow as tf

    from gns_keras import BatchSizeScheduler, NoiseScaleMonitor

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
    strategy = tf.distribute.get_strategy()
    if replicas > 1:
        strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])
    with strategy.scope():
        layers = [keras.layers.Dense(width, use_bias=False) for _ in range(4)]
        model = keras.Sequential([keras.Input((width,)), *layers])
        model.compile(keras.optimizers.SGD(1e-4), "mse")
    x = np.random.default_rng(0).normal(size=(STEPS * 16, width)).astype("float32")
    callbacks = {
        "plain": [],
        "monitor": [NoiseScaleMonitor(every=4)],
        "scheduler": [BatchSizeScheduler(batch_sizes={0: 16})],
    }[kind]
    model.fit(x, x, batch_size=16, epochs=1, verbose=0, callbacks=callbacks)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    gradient = sum(v.shape.num_elements() for v in model.trainable_variables) * 4 / 2**20
    print(f"peak {peak} gradient {gradient}")


def peak(kind: str, replicas: int, width: int) -> tuple[float, float]:
    """Peak and gradient of one case, in MB."""
    arguments = ["--case", kind, "--replicas", str(replicas), "--width", str(width)]
    found = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, check=True
    )
    line = next(line for line in found.stdout.splitlines() if line.startswith("peak "))
    _, megabytes, _, gradient = line.split()
    return float(megabytes), float(gradient)


def main() -> None:
    """Prints the table, or runs one case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=3072)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--case", choices=KINDS)
    parser.add_argument("--replicas", type=int, default=1)
    args = parser.parse_args()
    if args.case:
        run(args.case, args.replicas, args.width)
        return
    print("replicas  callback   peak MB  more than plain, in gradients (of each replica)")
    for replicas in (1, 4):
        peaks: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(args.repeats):
            for kind in KINDS:
                megabytes, gradient = peak(kind, replicas, args.width)
                peaks[kind].append(megabytes)
        plain = statistics.median(peaks["plain"])
        for kind in KINDS:
            middle = statistics.median(peaks[kind])
            more = (middle - plain) / gradient / replicas
            spread = (max(peaks[kind]) - min(peaks[kind])) / gradient / replicas
            print(f"{replicas:8d}  {kind:9s} {middle:8.0f}  {more:5.2f} (spread {spread:.2f})")


if __name__ == "__main__":
    main()
