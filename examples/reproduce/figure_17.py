"""Figure 17: a line search along the update finds that half of the update would have been best.

    python examples/reproduce/figure_17.py --plot docs/reproduction/figure_17.png

Two trainings, each at several learning rates: a small convolutional network with SGD on
20,000 images of Fashion-MNIST, and an LSTM with Adam (beta_1 0.5) on Shakespeare. At a few points
of the run 10 updates in a row are probed: with the weights w before and w + d after, the loss along
w + a d is minimized over a, and a is the optimal step over the actual one. The loss is that of
examples drawn anew for every update, as the batch of the update itself would favor it.

Printed are the median of the line searches of a point, and the ratio of the averages: the a at
which the mean loss along all probed updates has its minimum, from a parabola through a = 0, 1/2
and 1.
Stop it at any moment and start it again: finished runs are kept in figure_17.json. The data come
from the folder GNS_KERAS_DATA, else from tensorflow_datasets.
"""

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from figure_18 import build_cnn, load_images, mean_interval
from scipy import optimize

from gns_keras.tasks import language_model, texts

# Updates after which the probed ones follow.
POINTS = (0, 10, 100, 1_000, 2_000, 3_000, 4_000)
PROBED = 10  # Updates in a row.
STEADY = 2_000  # The points from here on are pooled.
VOCABULARY = 500


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A training.

    Attributes:
        build: Returns a new compiled model.
        load: Returns the training data.
        learning_rates: Each is one run.
        batch_size: In examples.
        searched: Examples that the loss of a line search is averaged over.
    """

    build: Callable[[], keras.Model]
    load: Callable[[], tuple[np.ndarray, np.ndarray]]
    learning_rates: tuple[float, ...]
    batch_size: int
    searched: int


def build_lstm() -> keras.Model:
    """The paper's language model in small: embedding 32, LSTM 32, 500 tokens."""
    return language_model.build_model(32, vocabulary_size=VOCABULARY, embedding_size=32)


def load_shakespeare() -> tuple[np.ndarray, np.ndarray]:
    """Sequences of 20 tokens."""
    return texts.book_sequences("tinyshakespeare", "train", VOCABULARY)


SETTINGS = {
    "CNN, SGD": Setting(
        build=lambda: build_cnn(keras.optimizers.SGD()),
        load=load_images,
        learning_rates=(0.02, 0.2),
        batch_size=32,
        searched=2_048,
    ),
    "LSTM, Adam": Setting(
        build=build_lstm,
        load=load_shakespeare,
        learning_rates=(0.002, 0.018),
        batch_size=16,
        searched=512,
    ),
}


class Training:
    """A training that can evaluate the loss along its last update."""

    def __init__(self, setting: Setting, learning_rate: float, seed: int) -> None:
        keras.utils.set_random_seed(seed)
        self.setting, self.rng = setting, np.random.default_rng(seed)
        self.model = setting.build()
        self.model.optimizer.build(self.model.trainable_variables)
        self.model.optimizer.learning_rate = learning_rate
        self.x, self.y = (tf.constant(part) for part in setting.load())
        self.weights = self.model.trainable_variables
        self.before = [tf.Variable(weight.value) for weight in self.weights]
        self.change = [tf.Variable(weight.value) for weight in self.weights]

    def train(self, updates: int) -> float:
        """Takes updates on batches drawn with replacement; returns their mean loss."""
        rows = self._drawn(updates * self.setting.batch_size)
        return float(self._updates(tf.reshape(rows, [updates, -1])))

    def probe(self) -> dict[str, float]:
        """Takes one update, and finds how much of it would have been best."""
        for weight, kept in zip(self.weights, self.before, strict=True):
            kept.assign(weight)
        self.train(1)
        after = [weight.numpy() for weight in self.weights]
        for weight, kept, change in zip(self.weights, self.before, self.change, strict=True):
            change.assign(weight - kept)
        rows = self._drawn(self.setting.searched)
        found = line_search(
            lambda share: float(self._loss_at(tf.constant(share, tf.float32), rows))
        )
        for weight, value in zip(self.weights, after, strict=True):
            weight.assign(value)
        return found

    def _drawn(self, count: int) -> tf.Tensor:
        return tf.constant(self.rng.integers(0, len(self.x), count), tf.int32)

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32)])
    def _updates(self, rows: tf.Tensor) -> tf.Tensor:
        total = 0.0
        for index in tf.range(tf.shape(rows)[0]):
            x, y = tf.gather(self.x, rows[index]), tf.gather(self.y, rows[index])
            with tf.GradientTape() as tape:
                loss = self.model.compute_loss(x, y, self.model(x, training=True))
            self.model.optimizer.apply(tape.gradient(loss, self.weights), self.weights)
            total += loss
        return total / tf.cast(tf.shape(rows)[0], tf.float32)

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32), tf.TensorSpec([None], tf.int32)])
    def _loss_at(self, share: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        for weight, before, change in zip(self.weights, self.before, self.change, strict=True):
            weight.assign(before + share * change)
        logits = self.model(tf.gather(self.x, rows), training=False)
        losses = tf.keras.losses.sparse_categorical_crossentropy(
            tf.gather(self.y, rows), logits, from_logits=True
        )
        return tf.reduce_mean(tf.cast(losses, tf.float64))  # Differences are small against it.


def line_search(loss: Callable[[float], float]) -> dict[str, float]:
    """Brent's minimum of the loss over the share of an update, and the losses at 0, 1/2 and 1."""
    known = {"start": loss(0.0), "half": loss(0.5), "full": loss(1.0)}
    found = optimize.minimize_scalar(loss, bracket=(0.0, 1.0), tol=0.05)
    return {**known, "optimal": float(found.x), "best": float(found.fun)}


def ratio_of_averages(probes: list[dict[str, float]]) -> float:
    """Minimum over a of the mean loss along several updates, on a parabola through 0, 1/2 and 1.

    With L(a) - L(0) = s a + c a^2 it is -s/2c. Where the loss neither falls nor rises on average,
    L(1) = L(0), it is 1/2, whatever the learning rate.
    """
    half = float(np.mean([probe["half"] - probe["start"] for probe in probes]))
    full = float(np.mean([probe["full"] - probe["start"] for probe in probes]))
    return (full - 4 * half) / (4 * (full - 2 * half))


def run(setting: Setting, learning_rate: float, seed: int) -> dict[str, list[Any]]:
    """One training: the probes of every point, and the learning curve."""
    training = Training(setting, learning_rate, seed)
    done, found = 0, {"probes": [], "curve": []}
    for point in POINTS:
        while done < point:
            updates = min(50, point - done)
            loss = training.train(updates)
            found["curve"].append([done + updates / 2, loss])
            done += updates
        probes = [training.probe() for _ in range(PROBED)]
        found["probes"].append(probes)
        found["curve"].append([done + PROBED / 2, float(np.mean([p["start"] for p in probes]))])
        done += PROBED
    return found


def steady(one: dict[str, list[Any]]) -> list[dict[str, float]]:
    """The probes of the steady state."""
    return [p for at, probes in zip(POINTS, one["probes"], strict=True) if at >= STEADY
            for p in probes]  # fmt: skip


def stated(values: list[float]) -> str:
    """Mean and interval over seeds."""
    return "{:.2f} ({:.2f} to {:.2f})".format(*mean_interval(np.array(values)))


def report(label: str, runs: dict[float, list[dict[str, list[Any]]]]) -> None:
    """Prints the ratios of every learning rate, with 95 % intervals over the seeds."""
    print(f"\n{label}: optimal over actual step")
    for rate, seeds in runs.items():
        cells = []
        for index, at in enumerate(POINTS):
            medians = [np.median([p["optimal"] for p in one["probes"][index]]) for one in seeds]
            cells.append(f"{at}: {stated(medians)}")
        print(f"  rate {rate}, median by update  " + "; ".join(cells))
        pooled = [steady(one) for one in seeds]
        medians = [float(np.median([p["optimal"] for p in probes])) for probes in pooled]
        losses = [float(np.mean([p["start"] for p in probes])) for probes in pooled]
        gained = [float(np.mean([p["start"] - p["full"] for p in probes])) for probes in pooled]
        best = [float(np.mean([p["start"] - p["half"] for p in probes])) for probes in pooled]
        share = [one / other for one, other in zip(gained, best, strict=True)]
        averages = [ratio_of_averages(probes) for probes in pooled]
        print(
            f"  rate {rate}, from update {STEADY} on: median {stated(medians)}; ratio of averages "
            f"{stated(averages)}; loss {stated(losses)}; gained by the whole update over gained by "
            f"half of it {stated(share)}",
            flush=True,
        )


def draw(found: dict[str, dict[float, list[Any]]], path: Path) -> None:
    """Left the ratios, right the learning curves; a row a setting."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(found), 2, figsize=(10, 3.6 * len(found)), squeeze=False,
                                layout="constrained")  # fmt: skip
    for (left, right), (label, runs) in zip(axes, found.items(), strict=True):
        for color, (rate, seeds) in enumerate(runs.items()):
            medians = np.array([[np.median([p["optimal"] for p in probes])
                                 for probes in one["probes"]] for one in seeds])  # fmt: skip
            where = np.array(POINTS) + PROBED / 2
            left.plot(where, medians.mean(axis=0), "o-", ms=4, color=f"C{color}")
            left.plot(where, medians.T, ".", ms=3, color=f"C{color}", alpha=0.6)
            for index, one in enumerate(seeds):
                name = f"learning rate {rate}" if not index else None
                right.plot(*np.array(one["curve"]).T, lw=0.8, color=f"C{color}", label=name)
        left.axhline(0.5, color="k", ls=":", label="one half")
        left.set(xscale="log", yscale="log", ylabel="optimal step / actual step", title=label)
        right.set(xscale="log", ylabel="training loss", title=label)
        left.legend()
        right.legend()
    for axis in axes[-1]:
        axis.set_xlabel("updates")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs what is missing, prints the ratios, and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--store", type=Path, default=Path("figure_17.json"))
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    runs = json.loads(args.store.read_text()) if args.store.exists() else {}
    found: dict[str, dict[float, list[Any]]] = {}
    for label in args.settings:
        setting, found[label] = SETTINGS[label], {}
        for rate in setting.learning_rates:
            names = [f"{label}/{rate}/{seed}" for seed in range(args.seeds)]
            for seed, name in enumerate(names):
                if name not in runs:
                    runs[name] = run(setting, rate, seed)
                    args.store.write_text(json.dumps(runs))
                    print(f"{name}: done", flush=True)
            found[label][rate] = [runs[name] for name in names]
        report(label, found[label])
    if args.plot:
        draw(found, args.plot)


if __name__ == "__main__":
    main()
