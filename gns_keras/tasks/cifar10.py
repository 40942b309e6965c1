"""CIFAR-10 with ResNet-32 and momentum (McCandlish et al. 2018, appendix A.4.1).

"We use Residual Networks of size 32 and 50, based on the TensorFlow Models implementation. All
hyperparameters are unchanged aside from the learning rate schedule": momentum 0.9, weight decay
2e-4, images shifted and mirrored. The compiled loss contains the weight decay.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from gns_keras.tasks import Task
from gns_keras.tasks.datasets import DATA_NEEDED, load_arrays

if TYPE_CHECKING:
    import keras

# TensorFlow Models: 0.1 at a batch of 128. Not tuned.
LEARNING_RATE = 0.1
BATCH_SIZE = 128


def build_model(depth: int = 32, *, augment: bool = True) -> "keras.Model":
    """Returns a new ResNet, compiled with SGD and momentum 0.9; 464,154 weights are trained.

    Args:
        depth: Layers with weights, `6 n + 2`.
        augment: Shift and mirror images in training.
    """
    import keras

    from gns_keras.tasks.residual import cifar_network

    model = cifar_network(depth, augment=augment)
    model.compile(
        optimizer=keras.optimizers.SGD(LEARNING_RATE, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def load_data(split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """Returns images as bytes and labels 0 to 9.

    Args:
        split: "train" (50,000 images) or "test" (10,000).

    Returns:
        `(x, y)`: uint8, shape `(n, 32, 32, 3)`, and int32, shape `(n,)`.
    """
    images, labels = load_arrays("cifar10", split)
    return images, labels.astype(np.int32)


def build_callbacks() -> list[Any]:
    """Returns the callback that divides the learning rate by 10 as the training error falls."""
    from gns_keras.tasks.error_decay import DecayAtTrainingError

    return [DecayAtTrainingError(batch_size=BATCH_SIZE)]


TASK = Task(
    name="cifar10",
    description="ResNet-32 on 50,000 images of 32 x 32 pixels, shifted and mirrored",
    unit="examples",
    data_needed=DATA_NEEDED.format(name="cifar10"),
    build_model=build_model,
    load_data=load_data,
    batch_size=BATCH_SIZE,
    learning_rate=LEARNING_RATE,
    optimizer="sgd",
    goals=(2.0, 1.5, 1.2, 1.0, 0.8, 0.6),
    status="learning rate of TensorFlow Models, not tuned; 12,800 examples of the real data",
    build_callbacks=build_callbacks,
)
