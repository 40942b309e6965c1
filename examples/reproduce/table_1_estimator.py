"""Table 1, the autoencoder: what the paper's own estimator makes of the start of training.

    python examples/reproduce/table_1_estimator.py --store table_1_estimator.json

The paper keeps moving averages of S and |G|^2 over the training steps and takes their ratio (A.1).
Where |G|^2 falls by orders of magnitude early on, the ratio stays that of the first steps for as
long as the averages remember them. Here every training step is split into two groups, and S and
|G|^2 of each step are kept, so that any average can be taken afterwards. Varied is what the paper
leaves open: the data here, how much detail they have and the range of their pixels, the learning
rate, and how many examples are normalized together. Finished variants are kept in the store.
"""

import argparse
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from gns_keras import estimate_noise_scale
from gns_keras.tasks import get_task

EXAMPLES, BATCH_SIZE, GROUPS = 3_000, 32, 2


@dataclass(frozen=True)
class Variant:
    """One run; its groups are normalized by themselves, as the batch of one device is."""

    task: str
    learning_rate: float
    batch_size: int = BATCH_SIZE
    groups: int = GROUPS
    examples: int = EXAMPLES
    smoothed: int = 1  # Side of the squares of pixels that are replaced by their mean.
    positive: bool = False  # Pixels go from 0 to 1 instead of -1 to 1.


VARIANTS = {
    "Fashion-MNIST, Adam 0.001": Variant("autoencoder_fashion_mnist", 0.001),
    "Fashion-MNIST, Adam 0.002": Variant("autoencoder_fashion_mnist", 0.002),
    "Fashion-MNIST, Adam 0.004": Variant("autoencoder_fashion_mnist", 0.004),
    "CIFAR-10, Adam 0.001": Variant("autoencoder_cifar10", 0.001),
    "CIFAR-10, Adam 0.002": Variant("autoencoder_cifar10", 0.002),
    "CIFAR-10, groups of 4": Variant("autoencoder_cifar10", 0.001, groups=8),
    "CIFAR-10, groups of 64": Variant("autoencoder_cifar10", 0.001, 128, 2, 6_000),
    "CIFAR-10, Adam 0.002, groups of 64": Variant("autoencoder_cifar10", 0.002, 128, 2, 6_000),
    "CIFAR-10, Adam 0.004, groups of 64": Variant("autoencoder_cifar10", 0.004, 128, 2, 6_000),
    "CIFAR-10 of 4 x 4 squares, Adam 0.001": Variant("autoencoder_cifar10", 0.001, smoothed=8),
    "CIFAR-10 of 4 x 4 squares, groups of 64": Variant(
        "autoencoder_cifar10", 0.001, 128, 2, 6_000, smoothed=8
    ),
    "CIFAR-10 from 0 to 1, Adam 0.001": Variant("autoencoder_cifar10", 0.001, positive=True),
    "CIFAR-10 from 0 to 1, Adam 0.002": Variant("autoencoder_cifar10", 0.002, positive=True),
    "CIFAR-10 from 0 to 1, groups of 64": Variant(
        "autoencoder_cifar10", 0.001, 128, 2, 6_000, positive=True
    ),
    "Fashion-MNIST, groups of 4": Variant("autoencoder_fashion_mnist", 0.001, groups=8),
    "Fashion-MNIST, groups of 64": Variant("autoencoder_fashion_mnist", 0.001, 128, 2, 6_000),
}
HALF_LIVES = (10, 50)  # Steps.


def train(variant: Variant, seed: int = 0) -> dict[str, list[float]]:
    """Trains over the start; squared norms of the groups' mean gradients and of their mean."""
    keras.utils.set_random_seed(seed)
    task, groups = get_task(variant.task), variant.groups
    model, (x, y) = task.build_model(), task.load_data()
    model.optimizer.learning_rate = variant.learning_rate
    weights = model.trainable_variables
    model.optimizer.build(weights)

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        found, losses = [], []
        for part in zip(tf.split(x, groups), tf.split(y, groups), strict=True):
            with tf.GradientTape() as tape:
                loss = model.compute_loss(*part, model(part[0], training=True), training=True)
            found.append(tape.gradient(loss, weights))
            losses.append(loss)
        mean = [tf.add_n(parts) / groups for parts in zip(*found, strict=True)]
        model.optimizer.apply(mean, weights)
        norms = tf.stack([sq_norm(gradients) for gradients in found])
        return norms, sq_norm(mean), tf.add_n(losses) / groups

    x, y = (smoothed(images, variant.smoothed) for images in (x, y))
    if variant.positive:  # The model maps bytes from 0 to 255 to -1 to 1.
        x, y = (128 + images // 2 for images in (x, y))
    order = np.random.default_rng(seed).permutation(len(x))[: variant.examples]
    order = order[: len(order) // variant.batch_size * variant.batch_size]
    rows: dict[str, list] = {"groups": [], "mean": [], "loss": []}
    for batch in order.reshape(-1, variant.batch_size):
        values = step(tf.constant(x[batch]), tf.constant(y[batch]))
        for name, value in zip(rows, values, strict=True):
            rows[name].append(value.numpy().tolist())
    return rows


def smoothed(images: np.ndarray, side: int) -> np.ndarray:
    """Images in which squares of pixels have the value of their mean."""
    count, height, width, channels = images.shape
    squares = images.reshape(count, height // side, side, width // side, side, channels)
    means = squares.mean(axis=(2, 4), dtype=np.float32, keepdims=True)
    return np.broadcast_to(means, squares.shape).reshape(images.shape).astype(images.dtype)


def sq_norm(gradients: list[tf.Tensor]) -> tf.Tensor:
    """Squared norm of a whole gradient."""
    return tf.add_n([tf.reduce_sum(tf.square(part)) for part in gradients])


def moving_ratio(rows: dict[str, list[float]], half_life: float, batch_size: int) -> float:
    """The paper's estimate at the end: ratio of two moving averages, both from zero."""
    groups, mean = np.array(rows["groups"]), np.array(rows["mean"])
    size = batch_size / groups.shape[1]
    trace = (groups.mean(axis=1) - mean) / (1 / size - 1 / batch_size)  # Eq. A.2
    signal = (batch_size * mean - size * groups.mean(axis=1)) / (batch_size - size)
    weights = 0.5 ** (np.arange(len(mean))[::-1] / half_life) if half_life else np.ones(len(mean))
    return float((weights * trace).sum() / (weights * signal).sum())


def report(name: str, variant: Variant, rows: dict[str, list[float]]) -> str:
    """A line of the table of docs/reproduction/table_1.md."""
    groups, mean = np.array(rows["groups"]), np.array(rows["mean"])
    batch_size = variant.batch_size
    sizes = np.full(variant.groups, batch_size / variant.groups)
    whole = estimate_noise_scale(groups, mean, sizes)
    later = estimate_noise_scale(groups[len(mean) // 4 :], mean[len(mean) // 4 :], sizes)
    cells = [name, *(f"{_text(found)}" for found in (whole, later))]
    cells += [f"{moving_ratio(rows, steps, batch_size):.2g}" for steps in HALF_LIVES]
    return "| " + " | ".join([*cells, f"{np.mean(rows['loss'][-10:]):.3g}"]) + " |"


def _text(scale: object) -> str:
    low, high = scale.interval
    if math.isfinite(scale.value):
        return f"{scale.value:.3g} ({low:.3g} to {high:.3g})"
    return f"unresolved: at least {scale.lower_bound:.3g}" if scale.lower_bound else "unresolved"


def main() -> None:
    """Runs what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, default=Path("table_1_estimator.json"))
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    args = parser.parse_args()
    found = json.loads(args.store.read_text("utf-8")) if args.store.exists() else {}
    for name in args.variants:
        if name not in found:
            found[name] = train(VARIANTS[name])
            args.store.write_text(json.dumps(found), encoding="utf-8")
    print("| Variant | All steps | Without the first quarter | Half-life 10 steps | 50 | Loss |")
    print("|---|---|---|---|---|---|")
    for name in args.variants:
        print(report(name, VARIANTS[name], found[name]))


if __name__ == "__main__":
    main()
