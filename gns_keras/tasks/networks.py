"""Networks that several tasks share. This module imports Keras: tasks import it when they build."""

import keras
from keras import layers


def convolutional_network(
    input_shape: tuple[int, int, int], *, name: str, pixel_scale: float = 1.0
) -> keras.Sequential:
    """Two 5 x 5 convolutions with pooling and Dense 1024 (McCandlish et al. 2018, A.4.1).

    Args:
        input_shape: Height, width and channels of an image.
        name: Name of the model.
        pixel_scale: What pixels are multiplied by first.

    Returns:
        A new model with 10 logits, not compiled.
    """
    scaling = [] if pixel_scale == 1 else [layers.Rescaling(pixel_scale)]
    return keras.Sequential(
        [
            keras.Input(input_shape),
            *scaling,
            layers.Conv2D(32, 5, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 5, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(1024, activation="relu"),
            layers.Dropout(0.4),
            layers.Dense(10),
        ],
        name=name,
    )
