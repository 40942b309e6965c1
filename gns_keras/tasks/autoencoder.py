"""An autoencoder on SVHN (McCandlish et al. 2018, appendix A.4.3), and on data easier to come by.

"For generative image modeling, we train a Variational Autoencoder using the InfoGAN architecture
(see their appendix C.2) on the SVHN dataset. Since VAEs introduce additional stochasticity beyond
gradient noise, we also provide training data on a simple autoencoder with the same architecture."
The paper names no optimizer; this is Adam.
"""

import functools
from typing import TYPE_CHECKING

import numpy as np

from gns_keras.tasks import Task
from gns_keras.tasks.datasets import DATA_NEEDED, load_arrays

if TYPE_CHECKING:
    import keras

LEARNING_RATE = 0.001  # Adam's default; not tuned.
BATCH_SIZE = 32
# As tfds calls the data, channels, number of training images.
DATA = {
    "svhn": ("svhn_cropped", 3, 73_257),
    "cifar10": ("cifar10", 3, 50_000),
    "fashion_mnist": ("fashion_mnist", 1, 60_000),
}
# Mean squared errors of pixels in [-1, 1].
GOALS = {
    "svhn": (0.1, 0.05, 0.03, 0.02, 0.01),
    "cifar10": (0.2, 0.1, 0.07, 0.05, 0.04),
    "fashion_mnist": (0.2, 0.1, 0.07, 0.05, 0.03),
}


def build_model(data: str = "svhn") -> "keras.Model":
    """Returns a new autoencoder, compiled with Adam; 4,004,267 weights are trained in colour.

    Args:
        data: A key of `DATA`.
    """
    import keras

    from gns_keras.tasks.image_codes import PixelError, autoencoder_network

    model = autoencoder_network(DATA[data][1], name="autoencoder")
    model.compile(optimizer=keras.optimizers.Adam(LEARNING_RATE), loss=PixelError())
    return model


def load_data(split: str = "train", *, data: str = "svhn") -> tuple[np.ndarray, np.ndarray]:
    """Returns the images as bytes, twice: what goes in should come out.

    Images of 28 x 28 pixels get a black frame of two pixels.

    Args:
        split: "train" or "test".
        data: A key of `DATA`.

    Returns:
        `(x, x)`: uint8, shape `(n, 32, 32, channels)`.

    Raises:
        RuntimeError: The data are neither in the local folder nor to be had from tfds.
    """
    images, _ = load_arrays(DATA[data][0], split)
    rows, columns = ((32 - size) // 2 for size in images.shape[1:3])
    images = np.pad(images, ((0, 0), (rows, rows), (columns, columns), (0, 0)))
    return images, images


def _task(name: str, data: str, status: str) -> Task:
    source, _, count = DATA[data]
    return Task(
        name=name,
        description=f"InfoGAN's networks as an autoencoder of {count:,} images of {source}, "
        "32 x 32 pixels",
        unit="examples",
        data_needed=DATA_NEEDED.format(name=source),
        build_model=functools.partial(build_model, data),
        load_data=functools.partial(load_data, data=data),
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        optimizer="adam",
        goals=GOALS[data],
        status=status,
    )


TASK = _task("autoencoder", "svhn", "learning rate not tuned; 50 steps on mock data only")
_RUN = {"cifar10": "8,000 examples of", "fashion_mnist": "8,000 examples of"}
VARIANTS = {
    f"autoencoder_{data}": _task(
        f"autoencoder_{data}", data, f"learning rate not tuned; {run} the real data"
    )
    for data, run in _RUN.items()
}
