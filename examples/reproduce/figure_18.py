"""Figure 18: the gradient oscillates rapidly, and for long, also with Adam.

    python examples/reproduce/figure_18.py --plot docs/reproduction/figure_18.png

A small convolutional network learns 20,000 images of Fashion-MNIST, at half their resolution, with
Adam at its default settings. In a few windows of 192 updates the gradient of every batch is kept,
and its moving average with decay 0.5, m_t = (m_(t-1) + g_t)/2, as in the paper. Printed are the
correlation of m_t with m_(t+lag), the mean over a window, beside the 0.5^lag of a gradient that is
noise alone; and the spectrum of g_t over time, summed over all weights.

Stop it at any moment and start it again: finished seeds are kept in figure_18.json. The data come
from the folder GNS_KERAS_DATA, else from tensorflow_datasets.
"""

import argparse
import json
import math
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from figure_15 import over_seeds
from scipy import stats

from gns_keras.tasks.datasets import load_arrays

BATCH_SIZE = 256
STARTS = (16, 256, 1_024)  # First updates of the windows.
WINDOW = 192
SEGMENT = 64  # Updates of a part of the window that a spectrum is taken of.
DECAY = 0.5
LAGS = tuple(range(1, 65))
STATED = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64)


def load_images(count: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Images of 14 by 14 pixels, each the mean of four, and their labels."""
    x, y = (part[:count] for part in load_arrays("fashion_mnist"))
    halved = x.reshape(len(x), 14, 2, 14, 2, 1).mean(axis=(2, 4), dtype=np.float32) / 255
    return halved, y.astype(np.int32)


def build_cnn(optimizer: keras.optimizers.Optimizer) -> keras.Model:
    """Two convolutions with pooling, and a dense layer: 8,394 weights."""
    conv = {"kernel_size": 5, "padding": "same", "activation": "relu"}
    model = keras.Sequential(
        [
            keras.Input((14, 14, 1)),
            keras.layers.Conv2D(8, **conv),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(16, **conv),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    optimizer.build(model.trainable_variables)
    return model


def gradients(seed: int) -> tuple[list[np.ndarray], list[float]]:
    """The gradients of every window, shape (updates, weights), and the loss in them."""
    keras.utils.set_random_seed(seed)
    model = build_cnn(keras.optimizers.Adam())
    x, y = (tf.constant(part) for part in load_images())
    rng = np.random.default_rng(seed)

    @tf.function
    def step(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images, labels = tf.gather(x, rows), tf.gather(y, rows)
        with tf.GradientTape() as tape:
            loss = model.compute_loss(images, labels, model(images, training=True))
        gradient = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply(gradient, model.trainable_variables)
        return tf.concat([tf.reshape(part, [-1]) for part in gradient], 0), loss

    windows, losses = [[] for _ in STARTS], [[] for _ in STARTS]
    for update in range(STARTS[-1] + WINDOW):
        rows = rng.integers(0, len(x), BATCH_SIZE)
        found, loss = step(tf.constant(rows, tf.int32))
        for index, start in enumerate(STARTS):
            if start <= update < start + WINDOW:
                windows[index].append(found.numpy())
                losses[index].append(float(loss))
    return [np.array(rows) for rows in windows], [float(np.mean(part)) for part in losses]


def moving_average(gradients: np.ndarray, decay: float = DECAY) -> np.ndarray:
    """m_t of every row, without the first ones, in which the start at zero is felt."""
    found, average = [], np.zeros(gradients.shape[1])
    for gradient in gradients:
        average = decay * average + (1 - decay) * gradient
        found.append(average)
    settled = math.ceil(math.log(0.01) / math.log(decay))
    return np.array(found[settled:])


def correlations(vectors: np.ndarray, lags: tuple[int, ...]) -> list[float]:
    """Mean cosine between vectors that are `lag` rows apart."""
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return [float(np.mean(np.sum(units[:-lag] * units[lag:], axis=1))) for lag in lags]


def spectrum(gradients: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Power over frequency, summed over the weights; white noise has 1 everywhere.

    Args:
        gradients: Shape (updates, weights).
        length: Updates of a segment; segments overlap by half and are averaged (Welch).

    Returns:
        Frequencies above zero, per update, and the share of the power at each, times their number.
    """
    window = np.hanning(length + 1)[:-1, None]
    power = np.zeros(length // 2)
    for start in range(0, len(gradients) - length + 1, length // 2):
        part = gradients[start : start + length]
        waves = np.fft.rfft((part - part.mean(axis=0)) * window, axis=0)[1:]
        power += np.sum(np.abs(waves) ** 2, axis=1)
    return np.fft.rfftfreq(length)[1:], power / power.mean()


def run(seed: int) -> dict[str, list]:
    """What is kept of a seed: for every window correlations, spectrum and loss."""
    windows, losses = gradients(seed)
    return {
        "loss": losses,
        "correlations": [correlations(moving_average(rows), LAGS) for rows in windows],
        "batches": [correlations(rows, LAGS) for rows in windows],
        "spectrum": [spectrum(rows, SEGMENT)[1].tolist() for rows in windows],
    }


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and its 95 % Student-t interval."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return mean, math.nan, math.nan
    half = stats.t.ppf(0.975, count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return mean, mean - half, mean + half


def report(runs: list[dict[str, list]]) -> None:
    """Prints correlations and spectra, with intervals over seeds."""
    frequencies = np.fft.rfftfreq(SEGMENT)[1:]
    for index, start in enumerate(STARTS):
        loss = np.mean([run["loss"][index] for run in runs])
        print(f"\nupdates {start} to {start + WINDOW}, loss {loss:.3f}")
        for key in ("correlations", "batches"):
            found = np.array([run[key][index] for run in runs])
            cells = ["{}: {:.2f} ({:.2f} to {:.2f})".format(lag, *mean_interval(found[:, at]))
                     for at, lag in enumerate(LAGS) if lag in STATED]  # fmt: skip
            print(f"  {key} by lag  " + "; ".join(cells))
        power = np.array([run["spectrum"][index] for run in runs])
        peaks = 1 / frequencies[np.argmax(power, axis=1)]
        print(
            "  strongest in the spectrum: a period of {:.1f} ({:.1f} to {:.1f}) updates, ".format(
                *over_seeds(peaks)
            )
            + "with {:.1f} ({:.1f} to {:.1f}) times the mean power".format(
                *over_seeds(power.max(axis=1))
            ),
            flush=True,
        )


def draw(runs: list[dict[str, list]], path: Path) -> None:
    """Correlations against lag, and spectra."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    frequencies = np.fft.rfftfreq(SEGMENT)[1:]
    panels = [("correlations", LAGS, mean_interval), ("spectrum", frequencies, over_seeds)]
    for index, start in enumerate(STARTS):
        label = f"updates {start:,} to {start + WINDOW:,}"
        for axis, (key, where, interval) in zip(axes, panels, strict=True):
            found = np.array([run[key][index] for run in runs])
            mean, low, high = np.array([interval(part) for part in found.T]).T
            axis.plot(where, mean, ".-", ms=4, color=f"C{index}", label=label)
            axis.fill_between(where, low, high, color=f"C{index}", alpha=0.2, lw=0)
    axes[0].plot(LAGS, DECAY ** np.array(LAGS), "k:", label="noise alone")
    axes[0].axhline(0, color="0.7", lw=0.8)
    axes[0].set(xlabel="lag, updates", ylabel="correlation of the moving average")
    axes[0].set_xticks(range(0, LAGS[-1] + 1, 8))
    axes[1].axhline(1, color="k", ls=":")
    axes[1].set(yscale="log", xlabel="frequency, per update", ylabel="power, mean 1")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs the seeds that are missing, prints, and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--store", type=Path, default=Path("figure_18.json"))
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    runs = json.loads(args.store.read_text()) if args.store.exists() else {}
    for seed in range(args.seeds):
        if str(seed) not in runs:
            runs[str(seed)] = run(seed)
            args.store.write_text(json.dumps(runs))
            print(f"seed {seed}: done", flush=True)
    found = [runs[str(seed)] for seed in range(args.seeds)]
    report(found)
    if args.plot:
        draw(found, args.plot)


if __name__ == "__main__":
    main()
