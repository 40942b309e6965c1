"""Handwritten digits that come with scikit-learn: the task that needs no download.

1,797 grey images of 8 x 8 pixels in 10 classes (Alpaydin and Kaynak 1998, UCI repository). It is
not a task of the paper; it stands in where MNIST would have to be fetched first.
"""

from typing import TYPE_CHECKING

import numpy as np

from gns_keras.tasks import Task

if TYPE_CHECKING:
    import keras

# Powers of 2 from 2^-5 to 2^1 were tried at batch size 32. 2^-1 needs the fewest examples to reach
# a training loss of 0.5 and 0.3; 2^0 is level at 0.2 and faster below, and 2^1 reaches no goal.
# The table: docs/tasks.md; made by benchmarks/task_learning_rates.py.
LEARNING_RATE = 0.5
NUM_TRAIN = 1500
# The images are sorted by writer. One fixed shuffle gives both splits the same distribution.
SPLIT_SEED = 0


def build_model() -> "keras.Model":
    """Returns a new Dense 64-10 classifier, compiled with plain SGD; 4,810 weights."""
    import keras

    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ],
        name="digits",
    )
    model.compile(
        optimizer=keras.optimizers.SGD(LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def load_data(split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """Returns images in [0, 1] and labels 0 to 9.

    Args:
        split: "train" (1,500 images) or "test" (297).

    Returns:
        `(x, y)`: float32, shape `(n, 8, 8, 1)`, and int32, shape `(n,)`.

    Raises:
        ValueError: There is no such split.
        ModuleNotFoundError: scikit-learn is not installed.
    """
    if split not in ("train", "test"):
        raise ValueError(f'`split` should be "train" or "test". Received: split={split!r}.')
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The task digits takes its images from scikit-learn, which is not installed. "
            "Install it with: pip install scikit-learn (it is the extra `demo` of gns-keras).",
            name=error.name,
        ) from error
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    rows = order[:NUM_TRAIN] if split == "train" else order[NUM_TRAIN:]
    x = (images[rows] / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    return x, labels[rows].astype(np.int32)


TASK = Task(
    name="digits",
    description="Dense 64-10 on 1,500 handwritten digits of 8 x 8 pixels",
    unit="examples",
    data_needed="none to download; comes with scikit-learn (pip install scikit-learn)",
    build_model=build_model,
    load_data=load_data,
    batch_size=32,
    learning_rate=LEARNING_RATE,
    optimizer="sgd",
    goals=(0.5, 0.3, 0.2, 0.1, 0.05),
    status="learning rate tuned, trained to all goals",
)
