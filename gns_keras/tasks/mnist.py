"""MNIST with the convolutional network of the paper (McCandlish et al. 2018, appendix A.4.1).

"a simple deep network with two sets of convolutional and pooling layers (32 and 64 filters,
respectively, with 5x5 filters), one fully-connected hidden layer with 1024 units, and a final
dropout layer with dropout rate of 0.4", trained with SGD.
"""

from typing import TYPE_CHECKING

import numpy as np

from gns_keras.tasks import Task
from gns_keras.tasks.datasets import DATA_NEEDED, load_arrays

if TYPE_CHECKING:
    import keras

# Powers of 2 from 2^-6 to 2^-1 were tried at batch size 32, one seed. 2^-3 and 2^-2 need the
# fewest examples and are level from a training loss of 0.2 down; 2^-3 is ahead before, and 2^-1
# reaches no goal. The table: docs/tasks.md; made by benchmarks/task_learning_rates.py.
LEARNING_RATE = 0.125


def build_model() -> "keras.Model":
    """Returns a new network, compiled with plain SGD; 3,274,634 weights."""
    import keras

    from gns_keras.tasks.networks import convolutional_network

    model = convolutional_network((28, 28, 1), name="mnist")
    model.compile(
        optimizer=keras.optimizers.SGD(LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def load_data(split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """Returns images in [0, 1] and labels 0 to 9; where they come from: `datasets.load_arrays`.

    Args:
        split: "train" (60,000 images) or "test" (10,000).

    Returns:
        `(x, y)`: float32, shape `(n, 28, 28, 1)`, and int32, shape `(n,)`.
    """
    images, labels = load_arrays("mnist", split)
    return images.astype(np.float32) / 255, labels.astype(np.int32)


TASK = Task(
    name="mnist",
    description="Two convolutions and Dense 1024 on 60,000 handwritten digits of 28 x 28 pixels",
    unit="examples",
    data_needed=DATA_NEEDED.format(name="mnist"),
    build_model=build_model,
    load_data=load_data,
    batch_size=32,
    learning_rate=LEARNING_RATE,
    optimizer="sgd",
    goals=(0.5, 0.3, 0.2, 0.1, 0.05),
    status="learning rate tuned, trained to all goals",
)
