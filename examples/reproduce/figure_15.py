"""Figure 15: a sixteenth of the temperature makes the noise scale rise by about 16, and it returns.

    python examples/reproduce/figure_15.py --plot docs/reproduction/figure_15.png

From one state of training, four runs go on: unchanged, with the learning rate divided by 16, with
the batch multiplied by 16, and with both by 4. All see the same number of examples so; then the
first learning rate and batch size come back. The noise scale is that of frozen weights, measured
along every run on the training data and pooled: the sum of tr(Sigma) over the sum of |G|^2.

Two settings: an image classifier with SGD on 20,000 images of Fashion-MNIST, and a language model
with Adam on Shakespeare.
Stop it at any moment and start it again: finished seeds are kept in figure_15.json. The data come
from the folder GNS_KERAS_DATA, else from tensorflow_datasets.
"""

import argparse
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from scipy import stats

from gns_keras.tasks import texts
from gns_keras.tasks.datasets import load_arrays
from gns_keras.training.frozen import FrozenMeasurement

COLDER = 16
# Name: what the learning rate is divided by, and the batch multiplied by, for a while.
CURVES = {
    "unchanged": (1, 1),
    "learning rate / 16": (16, 1),
    "batch x 16": (1, 16),
    "both / and x 4": (4, 4),
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A training, in spans of snapshots.

    Attributes:
        build: Returns a new compiled model.
        load: Returns the training data.
        learning_rate: At the normal temperature.
        batch_size: At the normal temperature, in examples.
        every: Examples between two snapshots, a multiple of 16 batches.
        warm_up: Snapshots of training that are not measured.
        before: Snapshots before the change, all of them used.
        changed: Snapshots at a sixteenth of the temperature.
        after: Snapshots after the return.
        settling: First snapshots after either change, which are shown and not used.
        measured_size: Examples in a batch that a snapshot is measured on, a multiple of 8 groups.
        measured_batches: Such batches, drawn with replacement; None: all of the data, whose mean
            gradient is then known exactly.
    """

    build: Callable[[], keras.Model]
    load: Callable[[], tuple[np.ndarray, np.ndarray]]
    learning_rate: float
    batch_size: int
    every: int
    warm_up: int
    before: int
    changed: int
    after: int
    settling: int
    measured_size: int
    measured_batches: int | None = None
    unit: str = "examples"


def build_classifier() -> keras.Model:
    """784-64-10 with SGD."""
    layers = [keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)]
    return compiled([keras.Input((784,)), *layers], keras.optimizers.SGD())


def load_images() -> tuple[np.ndarray, np.ndarray]:
    """The first 20,000 images as rows."""
    x, y = (part[:20_000] for part in load_arrays("fashion_mnist"))
    return x.reshape(len(x), -1).astype(np.float32) / 255, y


VOCABULARY = 500


def build_language_model() -> keras.Model:
    """The paper's language model in small: embedding 64, LSTM 64, 500 tokens."""
    layers = [
        keras.layers.Embedding(VOCABULARY, 64),
        keras.layers.LSTM(64, return_sequences=True),
        keras.layers.Dense(VOCABULARY),
    ]
    optimizer = keras.optimizers.Adam(beta_1=0.5, global_clipnorm=10.0)
    return compiled([keras.Input((texts.SEQUENCE_LENGTH,), dtype="int32"), *layers], optimizer)


def load_shakespeare() -> tuple[np.ndarray, np.ndarray]:
    """Sequences of 20 tokens."""
    return texts.book_sequences("tinyshakespeare", "train", VOCABULARY)


def compiled(layers: list[Any], optimizer: keras.optimizers.Optimizer) -> keras.Model:
    """A sequential classifier."""
    model = keras.Sequential(layers)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


SETTINGS = {
    "classifier, SGD": Setting(
        build=build_classifier,
        load=load_images,
        learning_rate=0.1,
        batch_size=16,
        every=4_096,
        warm_up=20,
        before=20,
        changed=15,
        after=15,
        settling=5,
        measured_size=1_000,
    ),
    "language model, Adam": Setting(
        build=build_language_model,
        load=load_shakespeare,
        learning_rate=0.006,
        batch_size=8,
        every=2_048,
        warm_up=10,
        before=5,
        changed=10,
        after=7,
        settling=4,
        measured_size=256,
        measured_batches=16,
        unit="sequences of 20 tokens",
    ),
}


# The same from a hotter and from a colder state: what part of |G|^2 does the temperature make?
for _rate in (0.003, 0.012):
    _hotter = replace(SETTINGS["language model, Adam"], learning_rate=_rate)
    SETTINGS[f"language model, Adam, {_rate}"] = _hotter
FIGURE = ("classifier, SGD", "language model, Adam")


class Training:
    """A model that goes back to a state, and trains at any batch size and learning rate."""

    def __init__(self, setting: Setting, seed: int) -> None:
        keras.utils.set_random_seed(seed)
        self.setting = setting
        self.model = setting.build()
        self.model.optimizer.build(self.model.trainable_variables)
        self.x, self.y = (tf.constant(part) for part in setting.load())
        self.order = endless_order(len(self.x), np.random.default_rng(seed))
        self.frozen = FrozenMeasurement(self.model)
        self.variables = [*self.model.variables, *self.model.optimizer.variables]

    def state(self) -> list[np.ndarray]:
        """All weights and what the optimizer knows."""
        return [keras.ops.convert_to_numpy(variable).copy() for variable in self.variables]

    def restore(self, state: list[np.ndarray]) -> None:
        """Goes back to a state."""
        for variable, value in zip(self.variables, state, strict=True):
            variable.assign(value)

    def train(self, colder: tuple[int, int] = (1, 1)) -> float:
        """Trains for one span between snapshots; returns the mean loss."""
        divisor, factor = colder
        size = self.setting.batch_size * factor
        self.model.optimizer.learning_rate = self.setting.learning_rate / divisor
        rows = [next(self.order) for _ in range(self.setting.every)]
        return float(self._steps(tf.reshape(tf.constant(rows, tf.int32), [-1, size])))

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32)])
    def _steps(self, rows: tf.Tensor) -> tf.Tensor:
        total = 0.0
        variables = self.model.trainable_variables
        for index in tf.range(tf.shape(rows)[0]):
            x, y = tf.gather(self.x, rows[index]), tf.gather(self.y, rows[index])
            with tf.GradientTape() as tape:
                loss = self.model.compute_loss(x, y, self.model(x, training=True))
            self.model.optimizer.apply(tape.gradient(loss, variables), variables)
            total += loss
        return total / tf.cast(tf.shape(rows)[0], tf.float32)

    def measure(self, rng: np.random.Generator) -> tuple[float, float]:
        """tr(Sigma) and |G|^2 at the present weights, over the training data."""
        self.frozen.reset()
        count, size = len(self.x), self.setting.measured_size
        drawn = self.setting.measured_batches
        order = rng.permutation(count) if drawn is None else rng.integers(0, count, drawn * size)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            self.frozen.add_batch((tf.gather(self.x, rows), tf.gather(self.y, rows)))
        scale = self.frozen.noise_scale()
        # Where all data were seen, the noise that is subtracted from their mean is not there.
        subtracted = scale.trace_cov / len(order) if drawn is None else 0.0
        return scale.trace_cov, scale.grad_sq_norm + subtracted


def endless_order(count: int, rng: np.random.Generator) -> Iterator[int]:
    """Rows of the data, in a new order in every epoch."""
    while True:
        yield from rng.permutation(count).tolist()


def run_seed(setting: Setting, seed: int) -> dict[str, list[list[float]]]:
    """All curves of a seed: rows of examples seen, tr(Sigma), |G|^2 and training loss."""
    training, rng = Training(setting, seed), np.random.default_rng([seed, 1])
    seen, common = 0, []
    for index in range(setting.warm_up + setting.before):
        loss = training.train()
        seen += setting.every
        if index >= setting.warm_up:
            common.append([seen, *training.measure(rng), loss])
    state, found = training.state(), {}
    for name, colder in CURVES.items():
        training.restore(state)
        rows = list(common)
        for index in range(setting.changed + setting.after):
            loss = training.train(colder if index < setting.changed else (1, 1))
            at = seen + (index + 1) * setting.every
            rows.append([at, *training.measure(rng), loss])
        found[name] = rows
    return found


def spans(setting: Setting) -> dict[str, slice]:
    """Where the snapshots are that count."""
    changed = setting.before + setting.changed
    return {
        "before": slice(0, setting.before),
        "changed": slice(setting.before + setting.settling, changed),
        "after": slice(changed + setting.settling, changed + setting.after),
    }


def pooled(rows: list[list[float]], span: slice) -> float:
    """Noise scale of several snapshots: one ratio of sums."""
    part = np.array(rows)[span]
    return float(part[:, 1].sum() / part[:, 2].sum())


def over_seeds(values: list[float]) -> tuple[float, float, float]:
    """Geometric mean and its 95 % Student-t interval."""
    logs = np.log(values)
    if len(logs) < 2:
        return math.exp(logs.mean()), math.nan, math.nan
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    return tuple(math.exp(logs.mean() + sign * half) for sign in (0, -1, 1))


def ratios(setting: Setting, runs: list[dict[str, Any]], name: str) -> dict[str, list[float]]:
    """Of every seed: the rise, the return, and the rise beside the unchanged run."""
    where, found = spans(setting), {"rise": [], "return": [], "beside unchanged": []}
    for run in runs:
        noise = {label: pooled(run[name], span) for label, span in where.items()}
        found["rise"].append(noise["changed"] / noise["before"])
        found["return"].append(noise["after"] / noise["before"])
        unchanged = pooled(run["unchanged"], where["changed"])
        found["beside unchanged"].append(noise["changed"] / unchanged)
    return found


def report(label: str, setting: Setting, runs: list[dict[str, Any]]) -> None:
    """Prints the ratios of a setting, with 95 % intervals over the seeds."""
    before = over_seeds([pooled(run["unchanged"], spans(setting)["before"]) for run in runs])
    print(f"\n{label}, {len(runs)} seeds: noise scale before the change {before[0]:.0f}")
    print(f"({before[1]:.0f} to {before[2]:.0f}) {setting.unit}")
    print("curve: in the changed span / before; after the return / before; changed / unchanged run")
    for name in CURVES:
        cells = [
            "{:.2f} ({:.2f} to {:.2f})".format(*over_seeds(values))
            for values in ratios(setting, runs, name).values()
        ]
        print(f"  {name}: " + "; ".join(cells), flush=True)


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """A panel a setting: four curves, pooled over three snapshots, geometric means of seeds."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(5.5 * len(found), 4.2), squeeze=False)
    for axis, (label, runs) in zip(axes[0], found.items(), strict=True):
        setting = SETTINGS[label]
        for color, name in zip(("0.6", "C0", "C1", "C2"), CURVES, strict=True):
            rows = np.array([run[name] for run in runs])
            three = np.array(
                [
                    np.convolve(r, np.ones(3), "same")
                    for r in rows[:, :, 1:3].transpose(0, 2, 1).reshape(-1, rows.shape[1])
                ]
            )
            trace, signal = three.reshape(len(runs), 2, -1).transpose(1, 0, 2)
            with np.errstate(invalid="ignore"):
                noise = np.exp(np.log(trace / signal).mean(axis=0))
            axis.plot(rows[0, :, 0] / 1000, noise, color=color, label=name)
        start = rows[0, setting.before - 1, 0]
        end = start + setting.changed * setting.every
        axis.axvspan(start / 1000, end / 1000, color="0.93")
        low = over_seeds([pooled(run["unchanged"], spans(setting)["before"]) for run in runs])[0]
        axis.axhline(low, color="0.5", lw=0.8, ls=":")
        axis.axhline(COLDER * low, color="0.5", lw=0.8, ls=":", label="before, and 16 times that")
        axis.set(
            yscale="log",
            xlabel=f"thousands of {setting.unit}",
            ylabel=f"noise scale, {setting.unit}",
            title=label,
        )
    axes[0][0].legend(fontsize=8, loc="center left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs the seeds that are missing, prints the ratios, and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="*", default=FIGURE, choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--store", type=Path, default=Path("figure_15.json"))
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    runs = json.loads(args.store.read_text()) if args.store.exists() else {}
    found = {}
    for label in args.settings:
        for seed in range(args.seeds):
            name = f"{label}/{seed}"
            if name not in runs:
                runs[name] = run_seed(SETTINGS[label], seed)
                args.store.write_text(json.dumps(runs))
        found[label] = [runs[f"{label}/{seed}"] for seed in range(args.seeds)]
        report(label, SETTINGS[label], found[label])
    if args.plot:
        draw(found, args.plot)


if __name__ == "__main__":
    main()
