"""SVHN with the network of the paper and SGD (McCandlish et al. 2018, appendix A.4.1).

The network is that of `mnist`, on colour images of 32 x 32 pixels. The variants train it on data
that are easier to come by.
"""

import functools
from typing import TYPE_CHECKING

import numpy as np

from gns_keras.tasks import Task
from gns_keras.tasks.datasets import DATA_NEEDED, load_arrays

if TYPE_CHECKING:
    import keras

# The paper's own rule for this task, 0.27 B/(96 + B) (appendix D.2, footnote 20), at B = 32. It is
# not tuned on the variants.
LEARNING_RATE = 0.0675
BATCH_SIZE = 32
# As tfds calls the data, shape of an image, number of training images.
DATA = {
    "svhn": ("svhn_cropped", (32, 32, 3), 73_257),
    "cnn_cifar10": ("cifar10", (32, 32, 3), 50_000),
    "cnn_fashion_mnist": ("fashion_mnist", (28, 28, 1), 60_000),
}
GOALS = {
    "svhn": (1.0, 0.5, 0.3, 0.2, 0.1, 0.05),
    "cnn_cifar10": (1.5, 1.2, 1.0, 0.8, 0.5, 0.2),
    "cnn_fashion_mnist": (0.6, 0.4, 0.3, 0.2, 0.1, 0.05),
}


def build_model(name: str = "svhn") -> "keras.Model":
    """Returns a new network, compiled with plain SGD; 4,259,274 weights on colour images.

    Args:
        name: "svhn", or the name of a variant.
    """
    import keras

    from gns_keras.tasks.networks import convolutional_network

    model = convolutional_network(DATA[name][1], name=name, pixel_scale=1 / 255)
    model.compile(
        optimizer=keras.optimizers.SGD(LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def load_data(split: str = "train", *, name: str = "svhn") -> tuple[np.ndarray, np.ndarray]:
    """Returns images as bytes, which the network scales to [0, 1], and labels 0 to 9.

    Args:
        split: "train" or "test".
        name: "svhn", or the name of a variant.

    Returns:
        `(x, y)`: uint8, shape `(n, height, width, channels)`, and int32, shape `(n,)`.

    Raises:
        RuntimeError: The data are neither in the local folder nor to be had from tfds.
    """
    images, labels = load_arrays(DATA[name][0], split)
    return images, labels.astype(np.int32)


def _task(name: str, status: str) -> Task:
    data, (height, width, _), count = DATA[name]
    return Task(
        name=name,
        description=f"Two convolutions and Dense 1024 on {count:,} images of {data}, "
        f"{height} x {width} pixels",
        unit="examples",
        data_needed=DATA_NEEDED.format(name=data),
        build_model=functools.partial(build_model, name),
        load_data=functools.partial(load_data, name=name),
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        optimizer="sgd",
        goals=GOALS[name],
        status=status,
    )


TASK = _task("svhn", "learning rate of the paper; 50 steps on mock data only")
_RUN = {"cnn_cifar10": "100,000 examples", "cnn_fashion_mnist": "480,000 examples"}
VARIANTS = {
    name: _task(name, f"learning rate of svhn, not tuned; {run} of the real data")
    for name, run in _RUN.items()
}
