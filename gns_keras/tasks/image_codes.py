"""Autoencoders of InfoGAN's architecture for SVHN. This module imports Keras: tasks import it late.

Chen et al. 2016 (arXiv 1606.03657), appendix C.2, table 2. The encoder is its recognition network
`Q`, the decoder its generator, from a code of 168 numbers:

    encoder                                         decoder
    4 x 4 conv, 64, lReLU, stride 2                 dense 2 x 2 x 448, ReLU, batch norm
    4 x 4 conv, 128, lReLU, stride 2, batch norm    4 x 4 upconv, 256, ReLU, stride 2, batch norm
    4 x 4 conv, 256, lReLU, stride 2, batch norm    4 x 4 upconv, 128, ReLU, stride 2
    dense 128, batch norm, lReLU                    4 x 4 upconv, 64, ReLU, stride 2
    dense: the code                                 4 x 4 upconv, the image, tanh, stride 2
"""

from typing import Any

import keras
from keras import layers

CODE_SIZE = 168
LEAK = 0.01  # Slope of the leaky rectifier, as in InfoGAN's code.


def autoencoder_network(channels: int = 3, *, name: str) -> keras.Model:
    """Encoder and decoder of images of 32 x 32 bytes.

    Args:
        channels: Channels of an image.
        name: Name of the model.

    Returns:
        A new model from bytes to pixels in [-1, 1], not compiled.
    """
    inputs = keras.Input((32, 32, channels))
    code = layers.Dense(CODE_SIZE, name="code")(_encoder(inputs))
    return keras.Model(inputs, _decoder(code, channels), name=name)


def variational_network(channels: int = 3, *, name: str) -> keras.Model:
    """The same with a Gaussian code: every number of it has a mean and a spread.

    The Kullback-Leibler divergence is added to the loss, on the scale of `PixelError`: their sum is
    `2/n` times the negative evidence lower bound for pixels of unit variance, up to a constant, for
    images of `n` numbers.

    Args:
        channels: Channels of an image.
        name: Name of the model.

    Returns:
        A new model from bytes to pixels in [-1, 1], not compiled.
    """
    inputs = keras.Input((32, 32, channels))
    features = _encoder(inputs)
    mean = layers.Dense(CODE_SIZE, name="mean")(features)
    log_variance = layers.Dense(CODE_SIZE, name="log_variance")(features)
    code = GaussianCode(2 / (32 * 32 * channels), name="code")([mean, log_variance])
    return keras.Model(inputs, _decoder(code, channels), name=name)


@keras.saving.register_keras_serializable("gns_keras")
class GaussianCode(layers.Layer):
    """Draws a code around its mean, and adds its divergence from the standard normal to the loss.

    Without training the code is the mean. Kingma & Welling 2013 (arXiv 1312.6114), appendix B.

    Args:
        divergence_weight: Multiplies the divergence per example.
        seed: Seed of the draws.
        **kwargs: What every layer takes.
    """

    def __init__(self, divergence_weight: float, *, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.divergence_weight = divergence_weight
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Args: mean and log variance, shapes `(batch, size)`. Returns: codes of that shape."""
        mean, log_variance = inputs
        ops = keras.ops
        # -KL = 1/2 sum(1 + log s^2 - m^2 - s^2)
        each = 0.5 * ops.sum(ops.square(mean) + ops.exp(log_variance) - 1 - log_variance, axis=-1)
        self.add_loss(self.divergence_weight * ops.mean(each))
        if not training:
            return mean
        noise = keras.random.normal(ops.shape(mean), dtype=mean.dtype, seed=self.seed_generator)
        return mean + ops.exp(0.5 * log_variance) * noise

    def get_config(self) -> dict[str, Any]:
        """Arguments that make a layer like this one."""
        own = {"divergence_weight": self.divergence_weight, "seed": self.seed}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("gns_keras")
class PixelError(keras.losses.Loss):
    """Mean squared difference between bytes, scaled to [-1, 1], and predicted pixels."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Args: bytes, and pixels in [-1, 1]. Returns: one number per image."""
        difference = keras.ops.cast(y_true, y_pred.dtype) / 127.5 - 1 - y_pred
        return keras.ops.mean(keras.ops.square(difference), axis=(1, 2, 3))


def _encoder(images: Any) -> Any:
    x = layers.Rescaling(1 / 127.5, offset=-1)(images)
    x = layers.LeakyReLU(LEAK)(layers.Conv2D(64, 4, strides=2, padding="same")(x))
    for filters in (128, 256):
        x = layers.Conv2D(filters, 4, strides=2, padding="same", use_bias=False)(x)
        x = layers.LeakyReLU(LEAK)(layers.BatchNormalization()(x))
    x = layers.Dense(128, use_bias=False)(layers.Flatten()(x))
    return layers.LeakyReLU(LEAK)(layers.BatchNormalization()(x))


def _decoder(code: Any, channels: int) -> Any:
    x = layers.Dense(2 * 2 * 448, use_bias=False)(code)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Reshape((2, 2, 448))(x)
    x = layers.Conv2DTranspose(256, 4, strides=2, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    for filters in (128, 64):
        x = layers.Conv2DTranspose(filters, 4, strides=2, padding="same", activation="relu")(x)
    return layers.Conv2DTranspose(
        channels, 4, strides=2, padding="same", activation="tanh", name="pixels"
    )(x)
