"""How the weights leave their start: ultra-slow diffusion, or not, at several batch sizes.

    python examples/reproduce/diffusion.py --plot diffusion.png

Hoffer et al. 2017 found that |w_t - w_0| grows like log t in the first phase of training, and that
batch sizes coincide where the learning rate goes with the square root of the batch. You et al. 2020
contradict the former for very large batches. Here a 784-32-10 network trains on 8,192 images of
MNIST with momentum 0.9, at batches from 16 to all of the data, each for the same number of updates
at a constant learning rate that goes with the square root of the batch. Each run is fitted from
update 10, or --first-update, on; the exponent of the power law is stated over the seeds.

Stop it at any moment and start it again: finished runs are kept in diffusion.json.
"""

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from scipy import stats

from gns_keras.core.diffusion import DiffusionFit, fit_diffusion
from gns_keras.tasks import mnist
from gns_keras.training.weight_distance import WeightDistance

BATCH_SIZES = (16, 128, 1_024, 8_192)
NUM_EXAMPLES = 8_192
LEARNING_RATE = 0.01  # At a batch of 128.


def run(batch_size: int, seed: int, updates: int) -> dict[str, list[float]]:
    """The distance along one run."""
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(32, activation="relu"), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((784,)), *layers])
    rate = LEARNING_RATE * math.sqrt(batch_size / 128)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), loss)
    x, y = (part[:NUM_EXAMPLES] for part in mnist.load_data())
    x, y = tf.constant(x.reshape(len(x), -1)), tf.constant(y)
    order = tf.data.Dataset.range(len(x)).shuffle(len(x), seed=seed).repeat()
    data = order.batch(batch_size).map(lambda rows: (tf.gather(x, rows), tf.gather(y, rows)))
    distance = WeightDistance()
    history = model.fit(
        data.prefetch(2), steps_per_epoch=updates, shuffle=False, verbose=0, callbacks=[distance]
    )
    return {**distance.history, "loss": history.history["loss"]}


def fitted(found: dict[str, list[float]], first_update: int) -> DiffusionFit:
    """The laws of one run, from an update on."""
    updates, distances = np.array(found["update"]), np.array(found["weight_distance"])
    used = updates >= first_update
    return fit_diffusion(updates[used], distances[used])


def mean_interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and its 95 % Student-t interval."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return mean, math.nan, math.nan
    half = stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count)
    return mean, mean - half, mean + half


def report(found: dict[int, list[dict[str, Any]]], first_update: int) -> None:
    """Prints a row for every batch size."""
    print("batch  exponent (95 % over seeds)  best law of every seed  excess AIC of log, sqrt, t")
    for batch_size, runs in found.items():
        fits = [fitted(one, first_update) for one in runs]
        exponent = "{:.2f} ({:.2f} to {:.2f})".format(*mean_interval([f.exponent for f in fits]))
        best = ", ".join(f.laws[0].name for f in fits)
        names = ("logarithm", "diffusion", "ballistic")
        excess = [np.mean([f.law(n).aic - f.laws[0].aic for f in fits]) for n in names]
        last = "{:.2f} ({:.2f} to {:.2f})".format(
            *mean_interval([one["weight_distance"][-1] for one in runs])
        )
        print(
            f"{batch_size:6d}  {exponent}  {best}  " + " ".join(f"{value:.0f}" for value in excess)
            + f"; distance at the end {last}",
            flush=True,
        )  # fmt: skip


def draw(found: dict[int, list[dict[str, Any]]], first_update: int, path: Path) -> None:
    """The distances of all runs against log t, and the free power law of the first seed."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4.2), layout="constrained")
    for color, (batch_size, runs) in enumerate(found.items()):
        for index, one in enumerate(runs):
            label = f"batch {batch_size:,}" if not index else None
            axis.plot(one["update"], one["weight_distance"], ".", ms=3, color=f"C{color}",
                      label=label)  # fmt: skip
        updates = np.geomspace(first_update, runs[0]["update"][-1], 200)
        axis.plot(
            updates, fitted(runs[0], first_update).law("power").at(updates), color=f"C{color}", lw=1
        )
    axis.set(xscale="log", xlabel="updates", ylabel="distance from the initial weights")
    axis.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs what is missing, prints the fits, and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=BATCH_SIZES)
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--first-update", type=int, default=10, help="fit from here on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--store", type=Path, default=Path("diffusion.json"))
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    runs = json.loads(args.store.read_text()) if args.store.exists() else {}
    for seed in range(args.seeds):
        for batch_size in args.batch_sizes:
            name = f"{batch_size}/{args.updates}/{seed}"
            if name not in runs:
                runs[name] = run(batch_size, seed, args.updates)
                args.store.write_text(json.dumps(runs))
    found = {
        size: [runs[f"{size}/{args.updates}/{seed}"] for seed in range(args.seeds)]
        for size in args.batch_sizes
    }
    report(found, args.first_update)
    if args.plot:
        draw(found, args.first_update, args.plot)


if __name__ == "__main__":
    main()
