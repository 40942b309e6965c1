"""Residual networks as in TensorFlow Models. This module imports Keras: tasks import it late.

He et al. 2015 (arXiv 1512.03385). TensorFlow Models, which McCandlish et al. 2018 follow, adds
weight decay to the loss, over all weights but those of batch normalization, and normalizes with
momentum 0.997 and epsilon 1e-5.
"""

from typing import Any

import keras
from keras import layers

CIFAR_DECAY = 1e-4  # Of sum w^2: 2e-4 of TensorFlow's l2_loss, which halves it.
IMAGENET_DECAY = 5e-5


def cifar_network(depth: int = 32, *, augment: bool = True, name: str = "cifar10") -> keras.Model:
    """ResNet for images of 32 x 32 pixels, section 4.2 of He et al. 2015.

    Shortcuts between stages have no weights, as there: they skip pixels and pad channels with
    zeros. (TensorFlow Models has 1 x 1 convolutions in their place, 0.6 % more weights.)

    Args:
        depth: Layers with weights, `6 n + 2`: 20, 32, 44, 56 or 110 in the paper.
        augment: Shift by up to 4 pixels and mirror, at random and only in training.
        name: Name of the model.

    Returns:
        A new model from bytes to 10 logits, not compiled; 464,154 weights are trained at depth 32.

    Raises:
        ValueError: There is no network of that depth.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"Expected `depth` to be 6 n + 2, such as 20 or 32. Received: {depth}.")
    inputs = keras.Input((32, 32, 3))
    x = inputs
    if augment:
        # Keras' RandomCrop would cut all images of a batch at one place.
        x = layers.RandomTranslation(
            0.125, 0.125, fill_mode="constant", fill_value=0.0, interpolation="nearest"
        )(x)
        x = layers.RandomFlip("horizontal")(x)
    x = _PerImageStandardization()(x)
    x = _convolution(16, 3, 1)(x)
    x = layers.Activation("relu")(_normalization()(x))
    for stage, filters in enumerate((16, 32, 64)):
        for block in range(blocks):
            x = _block(x, filters, 2 if stage and not block else 1)
    x = layers.GlobalAveragePooling2D()(x)
    decay = keras.regularizers.L2(CIFAR_DECAY)
    x = layers.Dense(10, kernel_regularizer=decay, bias_regularizer=decay)(x)
    return keras.Model(inputs, x, name=name)


def imagenet_network(image_size: int = 224, *, name: str = "imagenet") -> keras.Model:
    """ResNet-50 of keras.applications with weight decay and the normalization of TensorFlow Models.

    Args:
        image_size: Height and width of an image.
        name: Name of the model.

    Returns:
        A new model from bytes to 1,000 logits, not compiled.
    """
    plain = keras.applications.ResNet50(
        weights=None, input_shape=(image_size, image_size, 3), classifier_activation=None
    )

    def changed(layer: layers.Layer) -> layers.Layer:
        config = layer.get_config()
        if isinstance(layer, (layers.Conv2D, layers.Dense)):
            decay = keras.regularizers.L2(IMAGENET_DECAY)
            config.update(kernel_regularizer=decay, bias_regularizer=decay)
        elif isinstance(layer, layers.BatchNormalization):
            config.update(momentum=0.997, epsilon=1e-5)
        return type(layer).from_config(config)

    inputs = keras.Input((image_size, image_size, 3))
    body = keras.models.clone_model(plain, clone_function=changed)
    # The means of the channels over ImageNet; TensorFlow Models does not divide by their spread.
    centred = layers.Normalization(
        mean=(123.68, 116.78, 103.94), variance=(1.0, 1.0, 1.0), axis=-1
    )(inputs)
    return keras.Model(inputs, body(centred), name=name)


@keras.saving.register_keras_serializable("gns_keras")
class _PerImageStandardization(layers.Layer):
    """Every image minus its mean, over its standard deviation, as tf.image does it."""

    def call(self, images: Any) -> Any:
        axes = (1, 2, 3)
        mean = keras.ops.mean(images, axis=axes, keepdims=True)
        spread = keras.ops.std(images, axis=axes, keepdims=True)
        pixels = images.shape[1] * images.shape[2] * images.shape[3]
        return (images - mean) / keras.ops.maximum(spread, pixels**-0.5)


def _convolution(filters: int, size: int, stride: int) -> layers.Layer:
    return layers.Conv2D(
        filters,
        size,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(2.0),
        kernel_regularizer=keras.regularizers.L2(CIFAR_DECAY),
    )


def _normalization() -> layers.Layer:
    return layers.BatchNormalization(momentum=0.997, epsilon=1e-5)


def _block(x: Any, filters: int, stride: int) -> Any:
    """Two 3 x 3 convolutions around a shortcut."""
    shortcut = x
    if stride > 1:
        shortcut = layers.AveragePooling2D(1, strides=stride)(x)  # Every second pixel.
        missing = filters - x.shape[-1]
        # Channels in the place of rows, which a layer can pad.
        shortcut = layers.Permute((3, 1, 2))(shortcut)
        shortcut = layers.ZeroPadding2D(((missing // 2, missing - missing // 2), (0, 0)))(shortcut)
        shortcut = layers.Permute((2, 3, 1))(shortcut)
    x = _convolution(filters, 3, stride)(x)
    x = layers.Activation("relu")(_normalization()(x))
    x = _normalization()(_convolution(filters, 3, 1)(x))
    return layers.Activation("relu")(layers.Add()([x, shortcut]))
