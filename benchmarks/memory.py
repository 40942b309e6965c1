"""Memory that watching takes: peak of the process with and without the monitor or the scheduler.

Every case is a process of its own; what counts is the difference of the peaks. Part of it has
nothing to do with the size of the model: the compiled functions. It is measured with a small one
("fixed"), and the rest given in gradients (bytes of all trainable weights) of each replica. The
activations of the model are small against its weights.

    python benchmarks/memory.py
    python benchmarks/memory.py --width 2048 --repeats 1 --replicas 1
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys

from tables import head, machine, row

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

STEPS = 40
SMALL = 128  # Width of the model with hardly any weights.
KINDS = ("plain", "monitor", "scheduler")
# Copies of the gradient, by callback and whether there are replicas.
AIMS = {("monitor", False): 1, ("monitor", True): 0}
AIMS |= {("scheduler", False): "", ("scheduler", True): ""}


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


def more_than_plain(replicas: int, width: int, repeats: int) -> tuple[dict[str, float], float]:
    """MB above plain fit, by callback, in medians; and the size of a gradient."""
    peaks: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(repeats):
        for kind in KINDS:
            megabytes, gradient = peak(kind, replicas, width)
            peaks[kind].append(megabytes)
    medians = {kind: statistics.median(peaks[kind]) for kind in KINDS}
    return {kind: medians[kind] - medians["plain"] for kind in KINDS[1:]}, gradient


def main() -> None:
    """Prints the table, or runs one case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--replicas", nargs="*", type=int, default=[1, 4])
    parser.add_argument("--case", choices=KINDS)
    args = parser.parse_args()
    if args.case:
        run(args.case, args.replicas[0], args.width)
        return
    print(f"{machine()}; medians of {args.repeats} processes\n")
    head("replicas", "callback", "fixed, MB", "more, MB", "gradient, MB", "copies", "aim")
    for replicas in args.replicas:
        fixed, _ = more_than_plain(replicas, SMALL, args.repeats)
        more, gradient = more_than_plain(replicas, args.width, args.repeats)
        for kind in KINDS[1:]:
            copies = (more[kind] - fixed[kind]) / gradient / replicas
            row(
                *(replicas, kind, f"{fixed[kind]:.0f}", f"{more[kind]:.0f}", f"{gradient:.0f}"),
                *(f"{copies:.2f}", AIMS[kind, replicas > 1]),
            )


if __name__ == "__main__":
    main()
