"""Figure 15, language model: why a sixteenth of the temperature gives less than 16 times the noise.

    python examples/reproduce/figure_15_slow.py --plot docs/reproduction/figure_15_slow.png

|G|^2 has two parts: one that fluctuates with the temperature, and one that does not, because the
weights still move in slow directions. Continuations from one state on different batches have the
second in common; the first is independent between them. So the mean inner product of gradients of
*different* continuations measures the common part, and what is left of |G|^2 the fluctuating one.

The language model of figure_15.py, with an embedding and an LSTM of 32, is changed early, after
3,840 updates as there, and late, after 15,360: its learning rate is divided by 16, twice, or its
batch multiplied by 16; early also its learning rate by 4 and by 64. A second setting has Adam's
beta_2 at 0.99 in place of 0.999.
Stop it at any moment and start it again: finished seeds are kept in figure_15_slow.json, and the
states before a change beside it.
"""

import argparse
import itertools
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import figure_15
import keras
import numpy as np
import tensorflow as tf
from figure_15 import over_seeds
from figure_18 import mean_interval

SIZE = 32
GROUP, GROUPS = 32, 128  # A snapshot: sequences of a group, and groups, drawn with replacement.
PARTS = ("embedding", "LSTM", "output")
NEAR = (6, 8, 10)  # Spans after a change that are measured, of 256 updates at a batch of 8.
FAR = (16, 18, 20)


@dataclass(frozen=True)
class Branch:
    """A continuation: learning rate divided, batch multiplied, snapshots after these spans."""

    divisor: int
    factor: int
    spans: tuple[int, ...] = NEAR


COLD, COLD_AGAIN, BATCH = "rate / 16", "rate / 16, again", "batch x 16"
QUARTER, LONGEST = "rate / 4", "rate / 64"
UNCHANGED = "unchanged"
USUAL = {COLD: Branch(16, 1), COLD_AGAIN: Branch(16, 1), BATCH: Branch(1, 16)}
SIXTEENTH = tuple(USUAL)  # The branches at a sixteenth of the temperature.


@dataclass(frozen=True)
class Study:
    """What is changed when: spans of training before the change, and branches from there."""

    beta_2: float
    change: int
    branches: dict[str, Branch]

    @property
    def spans(self) -> tuple[int, ...]:
        """Where the unchanged run is measured: wherever a branch is."""
        return tuple(sorted({at for branch in self.branches.values() for at in branch.spans}))


STUDIES_DRAWN = ("early", "early, longer", "late")
STUDIES = {
    "early": Study(0.999, 15, {**USUAL, QUARTER: Branch(4, 1)}),
    "early, longer": Study(0.999, 15, {COLD: Branch(16, 1, FAR), LONGEST: Branch(64, 1, FAR)}),
    "late": Study(0.999, 60, USUAL),
    "early, beta_2 0.99": Study(0.99, 15, {COLD: Branch(16, 1), BATCH: Branch(1, 16)}),
}


def setting(beta_2: float) -> figure_15.Setting:
    """The language model of figure 15, with a smaller network."""

    def build() -> keras.Model:
        layers = [
            keras.layers.Embedding(figure_15.VOCABULARY, SIZE),
            keras.layers.LSTM(SIZE, return_sequences=True),
            keras.layers.Dense(figure_15.VOCABULARY),
        ]
        optimizer = keras.optimizers.Adam(beta_1=0.5, beta_2=beta_2, global_clipnorm=10.0)
        inputs = keras.Input((figure_15.texts.SEQUENCE_LENGTH,), dtype="int32")
        return figure_15.compiled([inputs, *layers], optimizer)

    return replace(figure_15.SETTINGS["language model, Adam"], build=build)


class Probing(figure_15.Training):
    """A training whose snapshots are whole gradients."""

    @property
    def weights(self) -> list[keras.Variable]:
        """Embedding, three of the LSTM, two of the output."""
        return self.model.trainable_variables

    def snapshot(self, rng: np.random.Generator) -> dict[str, Any]:
        """The mean gradient of every part, tr(Sigma) and |G|^2 of it without bias, and the loss."""
        rows = rng.integers(0, len(self.x), (GROUPS, GROUP))
        gradients, squares, loss = self._gradients(tf.constant(rows, tf.int32))
        found: dict[str, Any] = {"loss": float(loss), "gradient": [], "trace": [], "signal": []}
        for indices in ([0], [1, 2, 3], [4, 5]):
            mean = np.concatenate([gradients[index].numpy().ravel() for index in indices])
            square = float(sum(squares[index] for index in indices))
            norm = float(mean @ mean)
            trace = (square - norm) * GROUP * GROUPS / (GROUPS - 1)
            found["gradient"].append(mean)
            found["trace"].append(trace)
            found["signal"].append(norm - trace / (GROUP * GROUPS))
        return found

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32)])
    def _gradients(self, rows: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        weights = [weight.value for weight in self.weights]
        total, losses = [tf.zeros_like(weight) for weight in weights], 0.0
        squares = tf.zeros([len(weights)])
        for index in tf.range(tf.shape(rows)[0]):
            x, y = tf.gather(self.x, rows[index]), tf.gather(self.y, rows[index])
            with tf.GradientTape() as tape:
                loss = self.model.compute_loss(x, y, self.model(x, training=False))
            gradient = [tf.convert_to_tensor(part) for part in tape.gradient(loss, weights)]
            total = [old + part for old, part in zip(total, gradient, strict=True)]
            squares += tf.stack([tf.reduce_sum(part * part) for part in gradient])
            losses += loss
        count = tf.cast(tf.shape(rows)[0], tf.float32)
        return [part / count for part in total], squares / count, losses / count


def run_seed(study: Study, seed: int, states: Path) -> dict[str, Any]:
    """Snapshots of all branches of a seed, and the inner products of their gradients."""
    training, rng = Probing(setting(study.beta_2), seed), np.random.default_rng([seed, 2])
    before = states.with_name(f"{states.stem}_{study.beta_2}_{study.change}_{seed}.npz")
    if before.exists():
        kept = np.load(before)
        state = [kept[name] for name in kept.files]
    else:
        for _ in range(study.change):
            training.train()
        state = training.state()
        np.savez(before, *state)
    snapshots = []
    for name, branch in {**study.branches, UNCHANGED: Branch(1, 1, study.spans)}.items():
        training.restore(state)
        snapshots += continued(training, name, branch, rng)
    return products(snapshots)


def continued(
    training: Probing, name: str, branch: Branch, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Trains a branch to its last snapshot; returns the snapshots."""
    found = []
    for span in range(1, branch.spans[-1] + 1):
        training.train((branch.divisor, branch.factor))
        if span in branch.spans:
            found.append({"branch": name, "span": span, **training.snapshot(rng)})
    return found


def products(snapshots: list[dict[str, Any]]) -> dict[str, Any]:
    """The snapshots without their gradients, and the gradients' inner products, part by part."""
    grams = []
    for part in range(len(PARTS)):
        rows = np.stack([one["gradient"][part] for one in snapshots]).astype(np.float64)
        grams.append((rows @ rows.T).tolist())
    rest = [{k: v for k, v in one.items() if k != "gradient"} for one in snapshots]
    return {"snapshots": rest, "products": grams}


class Change:
    """What one seed says about one change; parts are added up unless one is named."""

    def __init__(self, found: dict[str, Any], part: str | None = None) -> None:
        chosen = slice(None) if part is None else slice(PARTS.index(part), PARTS.index(part) + 1)
        self.products = np.array(found["products"])[chosen].sum(axis=0)
        self.branch = np.array([one["branch"] for one in found["snapshots"]])
        self.span = np.array([one["span"] for one in found["snapshots"]])
        self.loss = np.array([one["loss"] for one in found["snapshots"]])
        self.trace, self.signal = (
            np.array([np.sum(one[key][chosen]) for one in found["snapshots"]])
            for key in ("trace", "signal")
        )

    def of(self, branches: str | Iterable[str], spans: tuple[int, ...]) -> np.ndarray:
        """Which snapshots belong to branches and spans."""
        names = [branches] if isinstance(branches, str) else list(branches)
        return np.isin(self.branch, names) & np.isin(self.span, spans)

    def ratio(self, branches: str | Iterable[str], spans: tuple[int, ...]) -> float:
        """Noise scale of branches over that of the unchanged run, at the same examples."""
        cold, hot = self.of(branches, spans), self.of(UNCHANGED, spans)
        return float(
            (self.trace[cold].sum() / self.signal[cold].sum())
            / (self.trace[hot].sum() / self.signal[hot].sum())
        )

    def share(self, one: str, other: str, spans: tuple[int, ...]) -> float:
        """What two independent continuations have in common, over the unchanged |G|^2."""
        block = self.products[np.ix_(self.of(one, spans), self.of(other, spans))]
        return float(block.mean() / self.signal[self.of(UNCHANGED, spans)].mean())

    def left(self) -> float:
        """|G|^2 at a sixteenth of the temperature, over that of the unchanged run."""
        cold = self.signal[self.of(SIXTEENTH, NEAR)].mean()
        return float(cold / self.signal[self.of(UNCHANGED, NEAR)].mean())

    def common(self) -> float:
        """What the branches at a sixteenth of the temperature have in common, pair by pair."""
        pairs = itertools.combinations(SIXTEENTH, 2)
        return float(np.mean([self.share(one, other, NEAR) for one, other in pairs]))

    def fluctuation_ratio(self) -> float:
        """How many times smaller the fluctuating part of |G|^2 is at a 16th of the temperature."""
        hot = np.mean([self.share(UNCHANGED, name, NEAR) for name in SIXTEENTH])
        return float((1 - hot) / (self.left() - self.common()))


def expected_ratio(share: float, divisor: float) -> float:
    """|G|^2 over what is left where a share of it stays, and the rest falls by the divisor."""
    return 1 / (share + (1 - share) / divisor)


def geometric(values: list[float]) -> str:
    """Geometric mean and interval over seeds."""
    return "{:.1f} ({:.1f} to {:.1f})".format(*over_seeds(values))


def percent(values: list[float]) -> str:
    """Mean and interval over seeds."""
    return "{:.1%} ({:.1%} to {:.1%})".format(*mean_interval(np.array(values)))


def report(label: str, found: list[dict[str, Any]]) -> None:
    """Prints ratios and shares with 95 % intervals over the seeds."""
    study, seeds = STUDIES[label], [Change(one) for one in found]
    updates = study.change * figure_15_updates()
    print(f"\n{label}: changed after {updates:,} updates, {len(found)} seeds")
    loss = [float(one.loss[one.of(UNCHANGED, study.spans)].mean()) for one in seeds]
    print("  loss of the unchanged run {:.3f} ({:.3f} to {:.3f})".format(*over_seeds(loss)))
    for name, branch in study.branches.items():
        ratios = [one.ratio(name, branch.spans) for one in seeds]
        shares = [one.share(UNCHANGED, name, branch.spans) for one in seeds]
        print(f"  {name}, spans {branch.spans[0]} to {branch.spans[-1]}: x {geometric(ratios)}; in "
              f"common with the unchanged run {percent(shares)}", flush=True)  # fmt: skip
    if COLD_AGAIN in study.branches:
        report_parts(found)


def report_parts(found: list[dict[str, Any]]) -> None:
    """Prints the common part, with what it predicts, for all weights and for each part."""
    seeds = [Change(one) for one in found]
    shares = [one.common() for one in seeds]
    print(f"  all at a sixteenth: x {geometric([one.ratio(SIXTEENTH, NEAR) for one in seeds])}; "
          f"in common between them {percent(shares)}, which predicts "
          f"x {geometric([expected_ratio(share, 16) for share in shares])}; "
          f"the rest of |G|^2 falls by "
          f"{geometric([one.fluctuation_ratio() for one in seeds])}")  # fmt: skip
    for part in PARTS:
        seeds = [Change(one, part) for one in found]
        ratios = [one.ratio(SIXTEENTH, NEAR) for one in seeds]
        shares = [one.common() for one in seeds]
        print(f"  {part} alone: x {geometric(ratios)}, in common {percent(shares)}", flush=True)


def figure_15_updates() -> int:
    """Updates of a span at the normal batch size."""
    usual = figure_15.SETTINGS["language model, Adam"]
    return usual.every // usual.batch_size


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Ratio against the divisor, and the parts of |G|^2."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    early, longer, late = ([Change(one) for one in found[label]] for label in STUDIES_DRAWN)
    share = float(np.mean([one.common() for one in early]))
    divisors = np.geomspace(1, 100, 100)
    left.plot(divisors, divisors, "k:", label="in proportion")
    left.plot(divisors, [expected_ratio(share, divisor) for divisor in divisors], color="C0",
              label=f"where {share:.1%} of |G|² stay")  # fmt: skip
    points = [
        (4, early, QUARTER, "C0", None),
        (16, early, SIXTEENTH, "C0", "changed early"),
        (64, longer, LONGEST, "C0", None),
        (16, late, SIXTEENTH, "C1", "changed late"),
    ]
    for divisor, seeds, name, color, label in points:
        spans = FAR if name == LONGEST else NEAR
        mean, low, high = over_seeds([one.ratio(name, spans) for one in seeds])
        left.errorbar(divisor, mean, [[mean - low], [high - mean]], fmt="o", color=color,
                      capsize=3, label=label)  # fmt: skip
    left.set(xscale="log", yscale="log", xlabel="temperature divided by",
             ylabel="noise scale over that of the unchanged run")  # fmt: skip
    left.set_xticks([1, 4, 16, 64], ["1", "4", "16", "64"])
    left.set_yticks([1, 4, 16, 64], ["1", "4", "16", "64"])
    left.minorticks_off()
    left.legend()
    for index, seeds in enumerate((early, late)):
        common = np.mean([one.common() for one in seeds])
        rest = np.mean([one.left() for one in seeds]) - common
        right.bar(index, common, color="C3", label=None if index else "in common")
        right.bar(index, rest, bottom=common, color="0.7",
                  label=None if index else "fluctuating")  # fmt: skip
    right.axhline(1 / 16, color="k", ls=":", label="a sixteenth")
    right.set_xticks([0, 1], ["changed early", "changed late"])
    right.set(ylabel="|G|² at a 16th, over the unchanged run's")
    right.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs the seeds that are missing, prints, and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", nargs="*", default=list(STUDIES), choices=list(STUDIES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--store", type=Path, default=Path("figure_15_slow.json"))
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    runs = json.loads(args.store.read_text()) if args.store.exists() else {}
    found = {}
    for label in args.studies:
        for seed in range(args.seeds):
            name = f"{label}/{seed}"
            if name not in runs:
                runs[name] = run_seed(STUDIES[label], seed, args.store)
                args.store.write_text(json.dumps(runs))
                print(f"{name}: done", flush=True)
        found[label] = [runs[f"{label}/{seed}"] for seed in range(args.seeds)]
        report(label, found[label])
    if args.plot:
        draw(found, args.plot)


if __name__ == "__main__":
    main()
