"""Networks and data for `limit.py`, small enough for one thread."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from gns_keras.tasks import get_task
from gns_keras.tasks.datasets import load_arrays

Arrays = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Setting:
    """A network on its data.

    `load` takes "train" or "test"; `goals` are training losses; `starts` are exponents of 2: where
    the search for the learning rate of an optimizer begins at the smallest batch.
    """

    build: Callable[[], keras.Model]
    load: Callable[[str], Arrays]
    batch_sizes: tuple[int, ...]
    goals: tuple[float, ...]
    starts: dict[str, int]


def pooled(name: str, split: str, size: int) -> Arrays:
    """Images of `size` x `size` pixels: means over blocks; values about from -2 to 2."""
    images, labels = load_arrays(name, split)
    factor = images.shape[1] // size
    blocks = images.reshape(len(images), size, factor, size, factor, -1).mean(axis=(2, 4))
    return (blocks / 64 - 2).astype(np.float32), labels.astype(np.int32)


def first_quarter(split: str) -> Arrays:
    """MNIST with 15,000 images to train on."""
    x, y = pooled("mnist", split, 14)
    return (x[:15_000], y[:15_000]) if split == "train" else (x, y)


def build_dense() -> keras.Model:
    """196-128-10; 26,506 weights."""
    layers = keras.layers
    hidden = layers.Dense(128, activation="relu")
    return compiled([keras.Input((14, 14, 1)), layers.Flatten(), hidden, layers.Dense(10)])


def patches(split: str) -> Arrays:
    """CIFAR-10 at 16 x 16 pixels, as 4 x 4 patches of 4 x 4 pixels."""
    x, y = pooled("cifar10", split, 16)
    parts = x.reshape(len(x), 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5)
    return np.ascontiguousarray(parts).reshape(len(x), 4, 4, 48), y


def build_strided() -> keras.Model:
    """A 4 x 4 convolution of stride 4, 16 filters, on 16 x 16 pixels; dense 64; 17,882 weights.

    The convolution is one dense layer for all patches, which is several times faster here.
    """
    layers = keras.layers
    convolution, hidden = layers.Dense(16, activation="relu"), layers.Dense(64, activation="relu")
    head = [layers.Flatten(), hidden, layers.Dense(10)]
    return compiled([keras.Input((4, 4, 48)), convolution, *head])


def compiled(layers: list[Any]) -> keras.Model:
    """A classifier; the optimizer is put in later."""
    model = keras.Sequential(layers)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def of_task(name: str) -> Setting:
    """The network of a task itself, for those who have the time."""
    task = get_task(name)
    sizes = {"limit_mnist": (4_096, 60_000), "limit_cifar10": (4_096, 50_000)}
    starts = {"momentum": -3, "lars": -2, "lamb": -7}
    return Setting(task.build_model, task.load_data, sizes[name], task.goals, starts)


SETTINGS: dict[str, Callable[[], Setting]] = {
    "mnist": lambda: Setting(
        build=build_dense,
        load=lambda split: pooled("mnist", split, 14),
        batch_sizes=(256, 1_024, 4_096, 16_384, 60_000),
        goals=(1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.125, 0.09, 0.06),
        starts={"momentum": -5, "lars": -2, "lamb": -7},
    ),
    "quarter": lambda: replace(
        SETTINGS["mnist"](),
        load=first_quarter,
        batch_sizes=(64, 256, 1_024, 4_096, 15_000),
        starts={"momentum": -6, "lars": -2, "lamb": -7},
    ),
    "cifar10": lambda: Setting(
        build=build_strided,
        load=patches,
        batch_sizes=(256, 1_024, 8_192, 50_000),
        goals=(2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4, 1.3, 1.2, 1.1, 1.0),
        starts={"momentum": -5, "lars": -2, "lamb": -7},
    ),
    "limit_mnist": lambda: of_task("limit_mnist"),
    "limit_cifar10": lambda: of_task("limit_cifar10"),
}
