"""Training data as batches of any size, from arrays or from a batched `tf.data.Dataset`."""

import abc
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

SHUFFLE_BYTES = 256 * 1024 * 1024  # Memory for shuffling a dataset that is no array.
SHUFFLE_EXAMPLES = 10_000
DEFAULT_BATCH_SIZE = 32


class DrawnExamples(abc.ABC):
    """Examples that the model under training makes itself, when they are asked for.

    They stand in the place of `ExampleSource` where the data depend on the weights: on-policy
    reinforcement learning. Nothing is shuffled or fetched ahead, as an example that waits is one of
    an older model.

    Attributes:
        batch_size: Present global batch size, in examples.
        num_examples: None: there is no end.
        reward: What `sweep` can have goals on: mean reward of a step in the batch drawn last, as
            the environment gives it, NaN before the first one. None: nothing has a reward.
    """

    batch_size: int
    num_examples: int | None = None
    reward: float | None = None

    @abc.abstractmethod
    def with_batch_size(self, batch_size: int) -> "DrawnExamples":
        """Returns the same with another present batch size."""

    @abc.abstractmethod
    def batches(
        self, batch_size: int, *, seed: int, repeat: bool = True, independent: int = 1
    ) -> tf.data.Dataset:
        """Batches without end, each drawn with the present weights when it is asked for.

        Args:
            batch_size: Global batch size, in examples that are independent of each other.
            seed: Seed of everything that is random.
            repeat: Without effect.
            independent: Batches in a row that are independent of each other.

        Returns:
            A dataset of what `model.train_step` takes.
        """


def drawn_dataset(draw: Callable[[], Iterator[Any]], signature: Any) -> tf.data.Dataset:
    """A dataset whose batches are made when they are asked for, and none ahead of time.

    One that waits would be of an older policy.

    Args:
        draw: Begins to draw batches.
        signature: `tf.TensorSpec` of every tensor of a batch.
    """
    dataset = tf.data.Dataset.from_generator(draw, output_signature=signature)
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    options.experimental_optimization.inject_prefetch = False
    return dataset.with_options(options)


class ExampleSource:
    """Serves shuffled batches of whatever global size is asked for.

    Args:
        data: `(x, y)` or `(x, y, sample_weight)` of arrays (each an array or a nested structure of
            arrays, examples along the first axis), or a batched `tf.data.Dataset` that yields what
            `model.fit` takes.
        batch_size: Present global batch size. Default: that of the dataset; 32 for arrays.

    Attributes:
        batch_size: Present global batch size, in examples.
        num_examples: Examples in the data; None if unknown or unlimited.

    Raises:
        TypeError: The data are neither.
        ValueError: The arrays do not fit each other, or the dataset is not batched.
    """

    def __init__(self, data: Any, batch_size: int | None = None) -> None:
        if batch_size is not None and (isinstance(batch_size, bool) or batch_size < 1):
            raise ValueError(
                f"Expected `batch_size` of at least 1 example. Received: {batch_size}."
            )
        self.num_examples: int | None
        if isinstance(data, tf.data.Dataset):
            own_size = _batch_size_of(data)
            cardinality = int(data.cardinality().numpy())
            self.num_examples = cardinality * own_size if cardinality > 0 else None
            self._examples = data.unbatch()
            self._arrays = None
        else:
            own_size = DEFAULT_BATCH_SIZE
            self._arrays = _checked_arrays(data)
            self.num_examples = int(keras.tree.flatten(self._arrays)[0].shape[0])
        self.batch_size = int(batch_size or own_size)
        if self.num_examples is not None and self.batch_size > self.num_examples:
            raise ValueError(
                f"The batch size {self.batch_size} is more than the {self.num_examples} examples "
                "of the data. Set a smaller `batch_size`."
            )

    def batches(
        self, batch_size: int, *, seed: int, repeat: bool = True, independent: int = 1
    ) -> tf.data.Dataset:
        """Full batches in random order.

        Args:
            batch_size: Global batch size, in examples.
            seed: Seed of the order. Never None: an unseeded shuffle would advance TensorFlow's
                global seed.
            repeat: Go on for ever, in another order every time; else one pass.
            independent: Without effect: batches are independent of each other anyway.

        Returns:
            A dataset of what `model.train_step` takes.
        """
        if self._arrays is not None:
            order = tf.data.Dataset.range(self.num_examples).shuffle(self.num_examples, seed=seed)
            whole = self.num_examples >= batch_size
            order = order.repeat() if repeat and not whole else order
            rows = order.batch(batch_size, drop_remainder=True)
            # No batch holds an example twice: that would not be drawing without replacement.
            rows = rows.repeat() if repeat and whole else rows
            # There is nothing to tune, and an iterator that is dropped waits now and then for the
            # thread that tunes, up to 20 s.
            untuned = tf.data.Options()
            untuned.autotune.enabled = False
            return rows.map(self._gather).prefetch(2).with_options(untuned)
        buffer = _shuffle_buffer(self._examples.element_spec)
        examples = self._examples.shuffle(buffer, seed=seed)
        examples = examples.repeat() if repeat else examples
        return examples.batch(batch_size, drop_remainder=True).prefetch(2)

    def _gather(self, rows: tf.Tensor) -> Any:
        return keras.tree.map_structure(lambda array: tf.gather(array, rows), self._arrays)


Source = ExampleSource | DrawnExamples


def source_of(data: Any, batch_size: int | None = None) -> Source:
    """Returns where batches of `data` come from.

    Args:
        data: What `ExampleSource` takes, or examples that are drawn by the model.
        batch_size: Present global batch size. Default: that of the data.
    """
    if isinstance(data, DrawnExamples):
        return data if batch_size is None else data.with_batch_size(batch_size)
    return ExampleSource(data, batch_size)


def refuse_ragged(data: Any) -> None:
    """Raises where arrays are expected and ragged tensors are among them.

    Raises:
        TypeError: With what to do instead.
    """
    if any(isinstance(leaf, tf.RaggedTensor) for leaf in keras.tree.flatten(data)):
        raise TypeError(
            "Expected arrays with one shape for all examples. Received a ragged tensor. Pad it "
            "with `.to_tensor()` and mask the padding, or give a tf.data.Dataset."
        )


def _checked_arrays(data: Any) -> Any:
    if not isinstance(data, (tuple, list)) or len(data) not in (2, 3):
        raise TypeError(
            "Expected `data` to be arrays (x, y) or (x, y, sample_weight), or a batched "
            f"tf.data.Dataset. Received: {_describe(data)}. Wrap other sources with "
            "tf.data.Dataset.from_generator(...).batch(32)."
        )
    parts = tuple(part for part in data if part is not None)
    refuse_ragged(parts)
    with tf.device("CPU:0"):
        arrays = keras.tree.map_structure(tf.convert_to_tensor, parts)
    shapes = [tuple(array.shape) for array in keras.tree.flatten(arrays)]
    lengths = {shape[0] if shape else None for shape in shapes}
    if len(lengths) != 1 or None in lengths or lengths == {0}:
        raise ValueError(
            "Expected arrays with the same number of examples along their first axis, at least 1. "
            f"Received shapes: {shapes}."
        )
    return arrays


def _batch_size_of(data: tf.data.Dataset) -> int:
    """Returns the size of the batches: static, or that of the first one with examples."""
    spec = keras.tree.flatten(data.element_spec)
    shapes = [getattr(component, "shape", tf.TensorShape(None)) for component in spec]
    first = {shape[0] if shape.rank else "none" for shape in shapes if shape.rank is not None}
    if len(first) != 1 or "none" in first:
        raise ValueError(
            "Expected a batched tf.data.Dataset, whose elements share their first axis. Received "
            f"elements of shapes {[str(shape) for shape in shapes]}. Call .batch(32) on it."
        )
    (size,) = first
    if size is not None:
        return int(size)
    for element in data:
        size = int(keras.tree.flatten(element)[0].shape[0])
        if size:
            return size
    raise ValueError("Expected a tf.data.Dataset with at least one batch. Received an empty one.")


def _shuffle_buffer(spec: Any) -> int:
    sizes = [
        (component.shape.num_elements() or 1) * component.dtype.size
        for component in keras.tree.flatten(spec)
        if component.shape.rank is not None
    ]
    return max(1, min(SHUFFLE_EXAMPLES, SHUFFLE_BYTES // max(1, sum(sizes))))


def _describe(data: Any) -> str:
    if isinstance(data, (tuple, list)):
        return f"{type(data).__name__} of {len(data)} parts"
    return type(data).__name__
