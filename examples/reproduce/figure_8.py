"""Figure 8: at equal loss the noise scale of three LSTM sizes is about equal; in time it is not.

    python examples/reproduce/figure_8.py --plot docs/reproduction/figure_8.png

LSTMs of size 32, 64 and 128 read War and Peace, in 62,138 sequences of 20 tokens out of a
vocabulary of 500, for 1,400 batches of 32 sequences: none of them twice. Optimizer and clipping are
those of A.4.3, and the smallest has a smaller embedding, as in the paper. Along the run the weights
are frozen, and gradients of 2,048 sequences, drawn anew, give the simple noise scale, split by
sequence.

Compared are the three sizes at equal training loss, where all seeds of all sizes have passed, and
at the same updates: once at one learning rate for all, as in the paper, and once at the rate that
is best for each, of five that are a factor of 2 apart, by the loss at the end with seed 0. Stop it
at any moment and start it again: finished runs are kept in figure_8.json. War and Peace is read
from the folder GNS_KERAS_DATA.
"""

import argparse
import itertools
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from figure_15 import over_seeds

from gns_keras.tasks import language_model, texts
from gns_keras.training.frozen import FrozenMeasurement

EMBEDDING_SIZES = {32: 32, 64: 64, 128: 64}  # As 256, 512 and 512 for 512, 1024 and 2048.
BOOK, VOCABULARY = "warandpeace", 500
LEARNING_RATE = 0.003  # One for all sizes.
LEARNING_RATES = (0.0015, 0.003, 0.006, 0.012, 0.024)
BATCH_SIZE = 32  # Sequences.
UPDATES = (50, 100, 150, 200, 300, 400, 600, 800, 1_000, 1_200, 1_400)
MEASURED, MEASURED_BATCH = 2_048, 256  # Sequences of a snapshot, and of a batch of 8 groups.
FIRST_COMPARED = 100  # The updates before are the first steps, whose noise scale is a few tokens.


def load() -> tuple[np.ndarray, np.ndarray]:
    """Sequences of the training split."""
    return texts.book_sequences(BOOK, "train", VOCABULARY)


def run(
    size: int, seed: int, updates: tuple[int, ...] = UPDATES, learning_rate: float = LEARNING_RATE
) -> list[list[float]]:
    """One training: rows of updates, tr(Sigma) and |G|^2 by sequence, and training loss."""
    keras.utils.set_random_seed(seed)
    model = language_model.build_model(
        size, vocabulary_size=VOCABULARY, embedding_size=EMBEDDING_SIZES[size]
    )
    model.optimizer.learning_rate = learning_rate
    model.optimizer.build(model.trainable_variables)
    frozen, rng = FrozenMeasurement(model), np.random.default_rng([seed, size])
    x, y = load()
    order, rows, done = np.random.default_rng(seed).permutation(len(x)), [], 0
    data = tf.data.Dataset.from_tensor_slices((x[order], y[order])).batch(BATCH_SIZE)
    batches = iter(data)
    for until in updates:
        for batch in itertools.islice(batches, until - done):
            model.train_on_batch(*batch)
        done = until
        rows.append([done, *measure(model, frozen, (x, y), rng)])
    return rows


def measure(
    model: keras.Model, frozen: FrozenMeasurement, data: tuple[Any, Any], rng: np.random.Generator
) -> tuple[float, float, float]:
    """tr(Sigma), |G|^2 and loss on sequences drawn with replacement, at the present weights."""
    x, y = data
    frozen.reset()
    rows = rng.integers(0, len(x), (MEASURED // MEASURED_BATCH, MEASURED_BATCH))
    for batch in rows:
        frozen.add_batch((tf.constant(x[batch]), tf.constant(y[batch])))
    losses = [
        model.compute_loss(tf.constant(x[batch]), tf.constant(y[batch]), model(x[batch]))
        for batch in rows
    ]
    scale = frozen.noise_scale()
    return scale.trace_cov, scale.grad_sq_norm, float(np.mean(losses))


def curve(rows: list[list[float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Updates, losses and noise scales in tokens, of the snapshots that are compared."""
    updates, trace, signal, loss = np.array(rows).T
    used = updates >= FIRST_COMPARED
    noise = trace[used] / signal[used] * texts.SEQUENCE_LENGTH
    return updates[used], loss[used], noise


def common_losses(found: dict[int, list[list[list[float]]]], count: int = 20) -> np.ndarray:
    """Losses that every run has passed between its first compared snapshot and its last."""
    losses = [curve(rows)[1] for runs in found.values() for rows in runs]
    return np.linspace(max(min(part) for part in losses), min(max(part) for part in losses), count)


def at_losses(rows: list[list[float]], losses: np.ndarray) -> np.ndarray:
    """Logarithm of the noise scale of a run, interpolated to losses."""
    _, loss, noise = curve(rows)
    order = np.argsort(loss)
    return np.interp(losses, loss[order], np.log(noise[order]))


def compared(found: dict[int, list[Any]], small: int, large: int) -> dict[str, list[float]]:
    """Noise scale of a large model over that of a small one: a mean of logarithms a seed."""
    losses, ratios = common_losses(found), {"equal loss": [], "equal tokens": []}
    for one, other in zip(found[small], found[large], strict=True):
        apart = at_losses(other, losses) - at_losses(one, losses)
        ratios["equal loss"].append(float(np.exp(apart.mean())))
        apart = np.log(curve(other)[2] / curve(one)[2])
        ratios["equal tokens"].append(float(np.exp(apart[len(apart) // 2 :].mean())))
    return ratios


def slopes(found: dict[int, list[Any]], size: int) -> list[float]:
    """Factor by which the noise scale grows while the perplexity halves, for every seed."""
    losses = common_losses(found)
    fits = [np.polyfit(losses, at_losses(rows, losses), 1)[0] for rows in found[size]]
    return [float(np.exp(-slope * np.log(2))) for slope in fits]


def stated(values: list[float]) -> str:
    """Geometric mean and interval over seeds."""
    return "{:.3g} ({:.3g} to {:.3g})".format(*over_seeds(values))


def report(found: dict[int, list[Any]]) -> None:
    """Prints sizes and ratios with 95 % intervals over the seeds."""
    losses = common_losses(found)
    print(f"perplexities compared: {np.exp(losses[-1]):.1f} down to {np.exp(losses[0]):.1f}")
    for size, runs in found.items():
        last = [curve(rows) for rows in runs]
        print(f"size {size}: at the end perplexity {stated([np.exp(c[1][-1]) for c in last])}, "
              f"noise scale {stated([c[2][-3:].mean() for c in last])} tokens; "
              f"x {stated(slopes(found, size))} while the perplexity halves")  # fmt: skip
    for small, large in itertools.combinations(found, 2):
        for where, ratios in compared(found, small, large).items():
            print(f"size {large} / size {small} at {where}: {stated(ratios)}", flush=True)


def best_rates(tried: dict[int, dict[float, Any]]) -> dict[int, float]:
    """The rate of each size that is lowest in loss at the end, of those that were tried."""
    best = {}
    for size, runs in tried.items():
        losses = {rate: rows[-1][-1] for rate, rows in runs.items()}
        best[size] = min(losses, key=losses.__getitem__)
        shown = ", ".join(f"{np.exp(loss):.4g} at {rate:g}" for rate, loss in losses.items())
        print(f"size {size}, perplexity at the end: {shown}")
    return best


class Runs:
    """The runs that are there, and how the others are made."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._made = json.loads(store.read_text()) if store.exists() else {}

    def get(self, size: int, learning_rate: float, seed: int) -> list[list[float]]:
        """The rows of one run."""
        name = f"{size}/{learning_rate:g}/{seed}"
        if name not in self._made:
            self._made[name] = run(size, seed, learning_rate=learning_rate)
            self._store.write_text(json.dumps(self._made))
            print(f"size {size}, learning rate {learning_rate:g}, seed {seed}: done", flush=True)
        return self._made[name]


def draw(found: dict[str, dict[int, list[Any]]], path: Path) -> None:
    """Noise scale against perplexity, and against tokens; a row for each choice of rates."""
    import matplotlib.pyplot as plt

    figure, rows = plt.subplots(
        len(found), 2, figsize=(10, 3.8 * len(found)), sharey=True, layout="constrained"
    )
    for (name, sizes), axes in zip(found.items(), rows, strict=True):
        for color, (size, runs) in enumerate(sizes.items()):
            for index, run_rows in enumerate(runs):
                updates, trace, signal, loss = np.array(run_rows).T
                noise = trace / signal * texts.SEQUENCE_LENGTH
                tokens = updates * BATCH_SIZE * texts.SEQUENCE_LENGTH
                label = f"LSTM {size}" if not index else None
                for axis, where in zip(axes, (np.exp(loss), tokens), strict=True):
                    axis.plot(where, noise, ".-", ms=4, lw=0.7, color=f"C{color}", label=label)
        axes[0].set(xscale="log", xlabel="training perplexity", ylabel="noise scale, tokens")
        axes[0].set_title(name)
        ticks = [30, 40, 60, 80, 100, 150, 200]
        axes[0].set_xticks(ticks, [str(tick) for tick in ticks])
        axes[0].minorticks_off()
        axes[0].invert_xaxis()
        axes[1].set(xscale="log", yscale="log", xlabel="tokens processed")
        axes[0].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs what is missing, prints the ratios, and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--store", type=Path, default=Path("figure_8.json"))
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    runs = Runs(args.store)
    tried = {
        size: {rate: runs.get(size, rate, 0) for rate in LEARNING_RATES} for size in EMBEDDING_SIZES
    }
    tuned = best_rates(tried)
    found = {}
    for name, rates in (("one rate", dict.fromkeys(tuned, LEARNING_RATE)), ("best rates", tuned)):
        found[name] = {
            size: [runs.get(size, rate, seed) for seed in range(args.seeds)]
            for size, rate in rates.items()
        }
        print(f"\n{name}: {', '.join(f'{rate:g} for {size}' for size, rate in rates.items())}")
        report(found[name])
    if args.plot:
        draw(found, args.plot)


if __name__ == "__main__":
    main()
