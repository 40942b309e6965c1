"""The small tasks that the noise scale is calibrated on, with their sweeps' settings.

Those marked "fit" below give the factors, those marked "test" do not, and those marked "new" came
when predictor and factors were fixed. A run of those named "long" takes about a million examples,
of those named "fresh" too, and sees none of them twice: every image is shifted in 49 ways.
Images and texts are drawn with replacement: with epochs, training losses fall in steps at their
boundaries and goals cluster there. Images come by row number through a lookup, so that a stream of
them stays small.
"""

import dataclasses
import functools
import gzip
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gns_keras import LearningRateRule
from gns_keras.core.sweep_policy import LearningRateGrid
from gns_keras.tasks.datasets import find_data_folder, load_arrays

TEXT = "tinyshakespeare.txt.gz"
Body = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model, its data, and how it is swept.

    Attributes:
        name: Data, architecture and optimizer.
        role: "fit", "test", or "new".
        data: Name of the data set.
        body: From inputs to outputs.
        side: Images are averaged down to this many pixels a side; 0 for texts.
        optimizer: Name in `OPTIMIZERS`.
        learning_rate: Centre of the grid at the base batch size.
        levels_off: `B_*` of Eq. A.3, a guess that centres the grid at other batch sizes.
        batch_sizes: Of the sweep; the first one is that of the measured runs.
        goals: Smoothed training losses.
        max_examples: Of one run.
        half_life: Of the smoothing, in examples.
        branch_batch_size: Of branches; 0 for none.
        shift: Images are shifted by up to this many pixels, before they are averaged down, and no
            example is drawn twice in a pass over all shifts; 0: drawn with replacement.
    """

    name: str
    role: str
    data: str
    body: Body
    side: int
    optimizer: str
    learning_rate: float
    levels_off: float
    batch_sizes: tuple[int, ...]
    goals: tuple[float, ...]
    max_examples: int
    half_life: float = 1024.0
    branch_batch_size: int = 0
    shift: int = 0

    @property
    def base_batch_size(self) -> int:
        """Batch size of the measured runs."""
        return self.batch_sizes[0]

    @property
    def family(self) -> str:
        """Class of optimizers that share a factor: with a moving average of gradients, or not."""
        return "sgd" if self.optimizer == "sgd" else "momentum"

    @property
    def num_examples(self) -> int:
        """Size of the training set; of a text, sequences end to end."""
        if self.data == "text":
            return len(text_codes()) // self.length
        images = 50_000 if self.data == "cifar10" else 60_000
        return images * (2 * self.shift + 1) ** 2

    @property
    def length(self) -> int:
        """Characters of a sequence."""
        return 20 if "lstm" in self.name else 32

    @property
    def unit(self) -> str:
        """What a batch size counts."""
        return "sequences" if self.data == "text" else "examples"

    @property
    def grid(self) -> LearningRateGrid:
        """Learning rates of the sweep."""
        alpha = 0.5 if self.optimizer in ("adam", "adamw", "rmsprop") else 1.0
        return LearningRateGrid(
            base_learning_rate=self.learning_rate,
            base_batch_size=self.base_batch_size,
            rule=LearningRateRule(alpha=alpha, critical_batch_size=self.levels_off),
            num=3,
        )

    def build_model(self) -> keras.Model:
        """Returns a new compiled model."""
        return self._text_model() if self.data == "text" else self._image_model()

    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        """The stream that all runs draw from: inputs and targets."""
        rng = np.random.default_rng(0)
        if self.data == "text":
            codes, length = text_codes(), self.length
            starts = rng.integers(len(codes) - length - 1, size=self.max_examples)
            windows = codes[starts[:, None] + np.arange(length + 1)]
            return windows[:, :-1], windows[:, 1:]
        images, labels = image_arrays(self.data, self.side)
        if self.shift:
            passes = math.ceil(self.max_examples / self.num_examples)
            orders = [rng.permutation(self.num_examples) for _ in range(passes)]
            rows = np.concatenate(orders)[: self.max_examples].astype(np.int32)
        else:
            rows = rng.integers(len(images), size=self.max_examples).astype(np.int32)
        if self.compares_pixels:
            return rows, np.zeros((len(rows), 1), np.float32)
        return rows, labels[rows % len(images)].astype(np.int32)

    @property
    def compares_pixels(self) -> bool:
        """Whether the output is a difference of images, to be compared with zero."""
        return "_ae_" in self.name or "_vae_" in self.name

    def _image_model(self) -> keras.Model:
        rows = keras.Input((), dtype="int32")
        layer = (
            Shifted(self.data, self.side, self.shift)
            if self.shift
            else Lookup(self.data, self.side)
        )
        pixels = layer(rows)
        model = keras.Model(rows, self.body(pixels))
        loss = "mse" if self.compares_pixels else _cross_entropy()
        if "_vae_" in self.name:
            loss = _sum_of_squares
        model.compile(OPTIMIZERS[self.optimizer](self.learning_rate), loss)
        return model

    def _text_model(self) -> keras.Model:
        codes = keras.Input((self.length,), dtype="int32")
        model = keras.Model(codes, self.body(codes))
        model.compile(OPTIMIZERS[self.optimizer](self.learning_rate), _cross_entropy())
        return model


class Lookup(keras.layers.Layer):
    """From row numbers to images with values from 0 to 1, shape `(side, side, channels)`."""

    def __init__(self, data: str, side: int) -> None:
        super().__init__(trainable=False)
        self._settings = {"data": data, "side": side}
        self._table = image_table(data, side)

    def call(self, rows: Any) -> Any:
        """Returns the images."""
        return tf.gather(self._table, rows)

    def compute_output_shape(self, rows_shape: tuple) -> tuple:
        """Shape of the images."""
        return (*rows_shape, *self._table.shape[1:])

    def get_config(self) -> dict:
        """What it was made of."""
        return {**super().get_config(), **self._settings}


class Shifted(keras.layers.Layer):
    """As `Lookup`; a row number says which image, and by how much it is shifted."""

    def __init__(self, data: str, side: int, shift: int) -> None:
        super().__init__(trainable=False)
        self._settings = {"data": data, "side": side, "shift": shift}
        self._table = padded_table(data, shift)
        self._side, self._ways = side, 2 * shift + 1
        self._size = self._table.shape[1] - 2 * shift

    def call(self, rows: Any) -> Any:
        """Returns the images."""
        count, *_, channels = self._table.shape
        which, pixels = rows // count, tf.range(self._size)
        images = tf.gather(self._table, rows % count)
        for axis, first in ((1, which // self._ways), (2, which % self._ways)):
            images = tf.gather(images, first[:, None] + pixels, axis=axis, batch_dims=1)
        by = self._size // self._side
        cells = (-1, self._side, by, self._side, by, channels)
        return tf.reduce_mean(tf.reshape(tf.cast(images, tf.float32) / 255, cells), axis=(2, 4))

    def compute_output_shape(self, rows_shape: tuple) -> tuple:
        """Shape of the images."""
        return (*rows_shape, self._side, self._side, self._table.shape[-1])

    def get_config(self) -> dict:
        """What it was made of."""
        return {**super().get_config(), **self._settings}


class Sample(keras.layers.Layer):
    """Draws from `N(mean, exp(log_variance))`; adds the divergence from `N(0, 1)` to the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, inputs: Any) -> Any:
        """Returns the sample."""
        mean, log_variance = inputs
        divergence = 0.5 * (keras.ops.exp(log_variance) + mean**2 - 1 - log_variance)
        self.add_loss(keras.ops.mean(keras.ops.sum(divergence, axis=-1)))
        noise = keras.random.normal(keras.ops.shape(mean), seed=self.seed_generator)
        return mean + keras.ops.exp(log_variance / 2) * noise


def _cross_entropy() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _sum_of_squares(zero: Any, difference: Any) -> Any:
    """`-ln p` of an image under a normal distribution of standard deviation 0.25 per pixel."""
    return keras.ops.sum((difference - zero) ** 2, axis=-1) / (2 * 0.25**2)


OPTIMIZERS: dict[str, Callable[[float], keras.optimizers.Optimizer]] = {
    "sgd": keras.optimizers.SGD,
    "momentum": lambda rate: keras.optimizers.SGD(rate, momentum=0.9),
    "adam": keras.optimizers.Adam,
    "adamw": lambda rate: keras.optimizers.AdamW(rate, weight_decay=0.01),
    "rmsprop": keras.optimizers.RMSprop,
}


@functools.cache
def image_arrays(name: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Training images, averaged down to `side` pixels, float32 from 0 to 1, and labels."""
    images, labels = load_arrays(name)
    by = images.shape[1] // side
    values = images.astype(np.float32) / 255
    count, _, _, channels = values.shape
    values = values.reshape(count, side, by, side, by, channels).mean(axis=(2, 4))
    return values, labels


@functools.cache
def image_table(name: str, side: int) -> tf.Tensor:
    """The images as one tensor."""
    with tf.init_scope():
        return tf.constant(image_arrays(name, side)[0])


@functools.cache
def padded_table(name: str, shift: int) -> tf.Tensor:
    """The images with a black margin, uint8, shape `(images, rows, columns, channels)`."""
    images = load_arrays(name)[0]
    images = images.reshape(*images.shape[:3], -1)
    margin = (shift, shift)
    with tf.init_scope():
        return tf.constant(np.pad(images, ((0, 0), margin, margin, (0, 0))))


@functools.cache
def text_codes() -> np.ndarray:
    """Tinyshakespeare as numbers of characters, int32."""
    folder = find_data_folder()
    if folder is None or not (folder / TEXT).is_file():
        raise FileNotFoundError(
            f"The text tasks need {TEXT}. Set GNS_KERAS_DATA to a folder that holds it."
        )
    raw = np.frombuffer(gzip.decompress((folder / TEXT).read_bytes()), np.uint8)
    return np.unique(raw, return_inverse=True)[1].astype(np.int32)


def mlp(*widths: int) -> Body:
    """Dense layers with relu, the last one without."""

    def body(inputs: Any) -> Any:
        hidden = keras.layers.Flatten()(inputs)
        for width in widths[:-1]:
            hidden = keras.layers.Dense(width, activation="relu")(hidden)
        return keras.layers.Dense(widths[-1])(hidden)

    return body


def cnn(inputs: Any) -> Any:
    """Two convolutions with strides of 2 on 14x14 pixels, and a dense layer."""
    hidden = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(inputs)
    hidden = keras.layers.Conv2D(16, 3, strides=2, activation="relu")(hidden)
    return keras.layers.Dense(10)(keras.layers.Flatten()(hidden))


def autoencoder(inputs: Any) -> Any:
    """196-64-16-64-196; the output is what it gets wrong."""
    return mlp(64, 16, 64, 196)(inputs) - keras.layers.Flatten()(inputs)


def colour_autoencoder(inputs: Any) -> Any:
    """768-64-16-64-768 for 16x16 colour pixels."""
    return mlp(64, 16, 64, 768)(inputs) - keras.layers.Flatten()(inputs)


def normalized(inputs: Any) -> Any:
    """64-10 with batch normalization before the relu."""
    hidden = keras.layers.Dense(64, use_bias=False)(keras.layers.Flatten()(inputs))
    hidden = keras.layers.ReLU()(keras.layers.BatchNormalization()(hidden))
    return keras.layers.Dense(10)(hidden)


def vae(inputs: Any) -> Any:
    """196-64-8-64-196 with a normal distribution of 8 dimensions in the middle."""
    flat = keras.layers.Flatten()(inputs)
    hidden = keras.layers.Dense(64, activation="relu")(flat)
    code = Sample()([keras.layers.Dense(8)(hidden), keras.layers.Dense(8)(hidden)])
    return mlp(64, 196)(code) - flat


def lstm(codes: Any) -> Any:
    """48 units; a prediction after every character."""
    hidden = keras.layers.Embedding(65, 16)(codes)
    hidden = keras.layers.LSTM(48, return_sequences=True)(hidden)
    return keras.layers.Dense(65)(hidden)


class Positions(keras.layers.Layer):
    """Adds a trained vector for every place in the sequence."""

    def build(self, shape: tuple) -> None:
        """Makes the vectors."""
        self.vectors = self.add_weight(shape=shape[1:], initializer="random_normal")

    def call(self, inputs: Any) -> Any:
        """Returns the sum."""
        return inputs + self.vectors


def transformer(codes: Any) -> Any:
    """One block of width 32 with two heads; a prediction after every character."""
    layers = keras.layers
    hidden = Positions()(layers.Embedding(65, 32)(codes))
    normal = layers.LayerNormalization()(hidden)
    hidden += layers.MultiHeadAttention(2, 16)(normal, normal, use_causal_mask=True)
    normal = layers.LayerNormalization()(hidden)
    hidden += layers.Dense(32)(layers.Dense(64, activation="gelu")(normal))
    return layers.Dense(65)(layers.LayerNormalization()(hidden))


SMALL = (8, 32, 128, 512)  # For SGD.
WIDE = (8, 32, 128, 512, 2048)  # For momentum.
LARGE = (16, 64, 256, 1024, 4096)  # For Adam.
MIDDLE = (16, 64, 256, 1024)
TINY = (2, 4, 16, 64, 256, 1024)  # For autoencoders, whose critical batch sizes are small.
MNIST = (0.4, 0.3, 0.2, 0.14)
FASHION = (0.75, 0.6, 0.5, 0.45)
CIFAR = (2.05, 1.95, 1.85, 1.75)
SHIFTED = (0.7, 0.6, 0.55, 0.5)
WIDE_AND_LONG: dict[str, Any] = {"batch_sizes": LARGE, "max_examples": 6_000_000}
SLOW: dict[str, Any] = {"batch_sizes": (4, 16, 64, 256), "levels_off": 20.0}  # As TINY.


def _task(name: str, role: str, optimizer: str, rate: float, sizes: tuple, goals: tuple, **rest):
    data, architecture = name.split("_")
    body, side = BODIES[architecture], 14
    if data == "cifar10":
        body, side = (colour_autoencoder if architecture == "ae" else body), 16
    elif name == "mnist_mlp":
        body, side = mlp(128, 10), 28
    plain = optimizer in ("sgd", "momentum")
    defaults = {"levels_off": 100.0 if plain else 400.0, "max_examples": 500_000}
    return Task(
        name=f"{name}_{optimizer}", role=role, data=DATA.get(data, data), body=body, side=side,
        optimizer=optimizer, learning_rate=rate, batch_sizes=sizes, goals=goals,
        **{**defaults, **rest},
    )  # fmt: skip


def _long(name: str, optimizer: str, rate: float, goals: tuple, **rest):
    # Losses fall slowly by then: smoothed over more examples, so that noise does not reach a goal.
    rest = {"max_examples": 3_000_000, "half_life": 16_384.0, **rest}
    task = _task(name, "new", optimizer, rate, rest.pop("batch_sizes", LARGE), goals, **rest)
    return dataclasses.replace(task, name=f"{task.name}_long")


def _fresh(name: str, optimizer: str, rate: float, goals: tuple, **rest):
    rest = {"max_examples": 4_000_000, "half_life": 16_384.0, **rest}
    task = _task(name, "new", optimizer, rate, rest.pop("batch_sizes", LARGE[:4]), goals, **rest)
    return dataclasses.replace(task, name=f"{task.name}_fresh", shift=3)


DATA = {"fashion": "fashion_mnist"}
BODIES = {
    "mlp": mlp(64, 10),
    "cnn": cnn,
    "ae": autoencoder,
    "vae": vae,
    "lstm": lstm,
    "transformer": transformer,
    "bn": normalized,
}
TASKS = {
    task.name: task
    for task in (
        _task("mnist_mlp", "fit", "sgd", 0.1, SMALL, MNIST, levels_off=50.0, max_examples=320_000),
        _task("mnist_mlp", "fit", "adam", 1.4e-3, LARGE, MNIST, max_examples=400_000),
        _task("mnist_cnn", "fit", "momentum", 0.007, WIDE, (0.6, 0.4, 0.3, 0.2)),
        _task(
            "fashion_ae",
            "fit",
            "adam",
            1e-3,
            TINY,
            (0.022, 0.016, 0.0125, 0.011),
            half_life=512.0,
            branch_batch_size=256,
            levels_off=50.0,
        ),
        _task("text_transformer", "test", "adamw", 4e-3, MIDDLE[:3], (2.6, 2.4, 2.25, 2.1)),
        _task("fashion_mlp", "test", "sgd", 0.1, SMALL, FASHION, branch_batch_size=512),
        _task("fashion_cnn", "test", "adam", 6e-3, MIDDLE, (0.85, 0.7, 0.6, 0.52)),
        _task("text_lstm", "fit", "adam", 1.6e-2, MIDDLE, (2.6, 2.4, 2.25, 2.1)),
        _task("fashion_mlp", "fit", "momentum", 0.01, WIDE, FASHION, branch_batch_size=2048),
        _task(
            "fashion_vae", "test", "adam", 3e-3, LARGE, (55.0, 42.0, 36.0, 33.5), half_life=512.0
        ),
        _task("fashion_mlp", "test", "adamw", 2e-3, LARGE, FASHION, branch_batch_size=1024),
        _task("cifar10_mlp", "test", "adam", 5e-4, LARGE, CIFAR),
        _task("cifar10_mlp", "test", "sgd", 0.02, SMALL, CIFAR),
        _task(
            "fashion_ae",
            "fit",
            "sgd",
            1.5,
            TINY,
            (0.03, 0.02, 0.015, 0.0125),
            half_life=512.0,
            levels_off=20.0,
        ),
        _task(
            "fashion_ae",
            "test",
            "momentum",
            0.15,
            TINY,
            (0.03, 0.02, 0.015, 0.0125),
            half_life=512.0,
            levels_off=20.0,
        ),
        _task("mnist_mlp", "test", "momentum", 0.01, WIDE, MNIST, max_examples=320_000),
        # Added when predictor and factors were fixed.
        _task("mnist_cnn", "new", "adam", 5e-3, LARGE, (0.6, 0.4, 0.3, 0.24)),
        _task("cifar10_cnn", "new", "momentum", 0.007, WIDE, (2.0, 1.85, 1.72, 1.65)),
        _task(
            "cifar10_ae",
            "new",
            "adam",
            5e-4,
            TINY,
            (0.032, 0.028, 0.0258, 0.0246),
            half_life=512.0,
            levels_off=50.0,
        ),
        _task(
            "mnist_ae",
            "new",
            "sgd",
            1.5,
            TINY,
            (0.04, 0.03, 0.024, 0.02),
            half_life=128.0,
            levels_off=20.0,
        ),
        _task("fashion_bn", "new", "momentum", 0.01, WIDE, (0.9, 0.75, 0.65, 0.56)),
        _task("fashion_mlp", "new", "rmsprop", 2e-3, LARGE, FASHION),
        # Of which 5 % are enough for `advise`.
        _long("mnist_mlp", "sgd", 0.2, (0.1, 0.05, 0.02, 0.01), max_examples=5_000_000),
        _long("fashion_mlp", "momentum", 0.01, (0.4, 0.33, 0.3, 0.28)),
        _long("fashion_mlp", "adamw", 1e-3, (0.4, 0.33, 0.3, 0.28)),
        _long("fashion_ae", "adam", 5e-4, (0.01, 0.0085, 0.0075, 0.007)),
        _long("fashion_vae", "adam", 1.5e-3, (32.0, 30.5, 29.5, 29.0)),
        _long("fashion_ae", "momentum", 0.3, (0.011, 0.0095, 0.0088, 0.0082)),
        _long("cifar10_mlp", "adam", 2.5e-4, (1.65, 1.55, 1.45, 1.4)),
        _long("cifar10_mlp", "sgd", 0.02, (1.65, 1.55, 1.45, 1.4)),
        _long("fashion_mlp", "sgd", 0.1, (0.4, 0.33, 0.3, 0.28), batch_sizes=LARGE[:4]),
        # The same without repetition.
        _fresh("fashion_mlp", "sgd", 0.1, SHIFTED),
        _fresh("mnist_mlp", "sgd", 0.15, (0.3, 0.2, 0.15, 0.12)),
        _fresh("fashion_mlp", "adamw", 1e-3, SHIFTED, **WIDE_AND_LONG),
        _fresh("fashion_mlp", "momentum", 0.01, SHIFTED, **WIDE_AND_LONG),
        _fresh("fashion_ae", "adam", 7e-4, (0.016, 0.013, 0.012, 0.011)),
        _fresh("cifar10_mlp", "sgd", 0.02, (1.85, 1.75, 1.65, 1.6)),
        _fresh("cifar10_mlp", "adam", 2.5e-4, (1.85, 1.75, 1.7, 1.65), batch_sizes=LARGE),
        _fresh("fashion_vae", "adam", 1.5e-3, (45.0, 42.0, 40.0, 38.5)),
        # Added when the law of growth was in the package.
        _fresh("fashion_ae", "sgd", 0.56, (0.022, 0.018, 0.015, 0.0135), **SLOW),
        _fresh("mnist_ae", "sgd", 0.56, (0.03, 0.026, 0.0225), **SLOW),
        _fresh("fashion_ae", "momentum", 0.075, (0.022, 0.018, 0.015, 0.0135), **SLOW),
        _fresh("mnist_mlp", "adam", 7e-4, (0.3, 0.2, 0.15, 0.12), **WIDE_AND_LONG),
        _fresh("mnist_mlp", "momentum", 0.01, (0.3, 0.2, 0.15, 0.125), **WIDE_AND_LONG),
        _fresh("cifar10_mlp", "momentum", 2e-3, (1.9, 1.8, 1.7, 1.6), **WIDE_AND_LONG),
        _fresh("fashion_mlp", "rmsprop", 7e-4, (0.75, 0.62, 0.57, 0.54), **WIDE_AND_LONG),
        _fresh("fashion_cnn", "adam", 3e-3, (0.8, 0.7, 0.65, 0.61)),
        _fresh("cifar10_ae", "adam", 5e-4, (0.0245, 0.023, 0.0218, 0.021), levels_off=50.0),
    )
}
