"""ImageNet with ResNet-50 and momentum (McCandlish et al. 2018, appendix A.4.1).

Everything as in TensorFlow Models, but that the learning rate is divided by 10 "when the training
classification error (appropriately smoothed) reaches 0.487, 0.312, and 0.229". The compiled loss
contains the weight decay.
"""

from typing import TYPE_CHECKING, Any

from gns_keras.tasks import Task
from gns_keras.tasks.datasets import load_tfds

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

# TensorFlow Models: 0.1 at a batch of 256. Not tuned.
LEARNING_RATE = 0.1
BATCH_SIZE = 256
IMAGE_SIZE = 224
_RESIZED = 256  # The shorter side of a test image, whose middle is used.


def build_model(image_size: int = IMAGE_SIZE) -> "keras.Model":
    """Returns a new ResNet-50, compiled with SGD and momentum 0.9; 25,583,592 weights are trained.

    Args:
        image_size: Height and width of an image.
    """
    import keras

    from gns_keras.tasks.residual import imagenet_network

    model = imagenet_network(image_size)
    model.compile(
        optimizer=keras.optimizers.SGD(LEARNING_RATE, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def load_data(split: str = "train", *, image_size: int = IMAGE_SIZE) -> "tf.data.Dataset":
    """Returns single images with pixels 0 to 255, and labels 0 to 999.

    A training image is a part of 8 to 100 % of the picture, mirrored half of the time; a test image
    is the middle. They are decoded and cut as they are read: nothing is kept in memory.

    Args:
        split: "train" (1,281,167 images) or "test" (the 50,000 of the validation set).
        image_size: Height and width.

    Returns:
        `(x, y)`: float32, shape `(image_size, image_size, 3)`, and int32.

    Raises:
        ValueError: There is no such split.
        RuntimeError: tensorflow_datasets has not prepared imagenet2012.
    """
    if split not in ("train", "test"):
        raise ValueError(f'`split` should be "train" or "test". Received: split={split!r}.')
    import tensorflow as tf

    pictures = load_tfds("imagenet2012", "train" if split == "train" else "validation")
    cut = _random_part if split == "train" else _middle

    def example(picture: dict[str, Any]) -> tuple[Any, Any]:
        return cut(picture["image"], image_size), tf.cast(picture["label"], tf.int32)

    return pictures.map(example, num_parallel_calls=tf.data.AUTOTUNE)


def build_callbacks() -> list[Any]:
    """Returns the callback that divides the learning rate by 10 as the training error falls."""
    from gns_keras.tasks.error_decay import DecayAtTrainingError

    return [DecayAtTrainingError(batch_size=BATCH_SIZE)]


def _random_part(image: Any, size: int) -> Any:
    import tensorflow as tf

    begin, extent, _ = tf.image.sample_distorted_bounding_box(
        tf.shape(image),
        tf.zeros([1, 0, 4]),
        area_range=(0.08, 1.0),
        aspect_ratio_range=(0.75, 4 / 3),
        use_image_if_no_bounding_boxes=True,
    )
    image = tf.image.resize(tf.slice(image, begin, extent), (size, size))
    return tf.ensure_shape(tf.image.random_flip_left_right(image), (size, size, 3))


def _middle(image: Any, size: int) -> Any:
    import tensorflow as tf

    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    scale = size * _RESIZED / IMAGE_SIZE / tf.reduce_min(shape)
    image = tf.image.resize(image, tf.cast(tf.math.ceil(shape * scale), tf.int32))
    return tf.ensure_shape(tf.image.resize_with_crop_or_pad(image, size, size), (size, size, 3))


TASK = Task(
    name="imagenet",
    description="ResNet-50 on 1,281,167 images of 224 x 224 pixels",
    unit="examples",
    data_needed="imagenet2012, prepared by tensorflow_datasets from archives fetched by hand",
    build_model=build_model,
    load_data=load_data,
    batch_size=BATCH_SIZE,
    learning_rate=LEARNING_RATE,
    optimizer="sgd",
    goals=(6.0, 5.0, 4.0, 3.0, 2.5),
    status="learning rate of TensorFlow Models, not tuned; 50 steps on small mock images",
    build_callbacks=build_callbacks,
)
