"""Training examples as blocks of batches, in an order that only the seed decides.

The stream of examples is the same for every batch size: a batch is the next `B` examples of it. So
two runs of one seed are paired, whatever their batch sizes.
"""

import hashlib
import threading
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gns_keras.training.example_source import refuse_ragged

BLOCK_EXAMPLES = 8192  # Examples between two looks at the goals.
BLOCK_BYTES = 64 * 2**20  # The same for a tf.data.Dataset, whose blocks are copied to memory.
SHUFFLE_BUFFER = 16_384
# TensorFlow's and Python's global seeds belong to all threads of a process.
SEEDING = threading.Lock()
_HASHED_EXAMPLES = 64  # Of a tf.data.Dataset; arrays are hashed whole.


class ArraySource:
    """Examples from arrays in memory, in a new random order in every epoch.

    Args:
        data: `(x, y)` or `(x, y, sample_weight)`, each a structure of arrays with the examples as
            first axis.

    Raises:
        ValueError: The arrays do not have the same number of examples, or none.
        TypeError: They are ragged.
    """

    def __init__(self, data: Any) -> None:
        refuse_ragged(data)
        lengths = {len(array) for array in keras.tree.flatten(data)}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                "Expected arrays with the same number of examples, at least one. Received: "
                f"{sorted(lengths)} examples."
            )
        self.num_examples = lengths.pop()
        self._data = keras.tree.map_structure(tf.convert_to_tensor, data)

    @property
    def few(self) -> Any:
        """Two examples, as a batch."""
        return keras.tree.map_structure(lambda array: array[:2], self._data)

    def block_steps(self, batch_size: int) -> int:
        """Steps in a block."""
        return max(1, BLOCK_EXAMPLES // batch_size)

    def blocks(self, seed: int, batch_size: int) -> Iterator[tf.Tensor]:
        """Yields rows of the arrays, shape `(steps, batch_size)`, without end."""
        shape = (self.block_steps(batch_size), batch_size)
        rest = np.empty(0, np.int32)
        epoch = 0
        while True:
            while len(rest) < shape[0] * shape[1]:
                order = np.random.default_rng((seed, epoch)).permutation(self.num_examples)
                rest = np.concatenate([rest, order.astype(np.int32)])
                epoch += 1
            rows, rest = np.split(rest, [shape[0] * shape[1]])
            yield tf.constant(rows.reshape(shape))

    def pick(self, block: tf.Tensor, step: tf.Tensor) -> Any:
        """Returns one batch of a block."""
        rows = tf.gather(block, step)
        return keras.tree.map_structure(lambda array: tf.gather(array, rows), self._data)

    def fingerprint(self) -> str:
        """Hash of every byte, shape and type."""
        arrays = [tensor.numpy() for tensor in keras.tree.flatten(self._data)]
        return _hash(arrays, f"arrays {_shape_of(self._data)}")


class DatasetSource:
    """Examples from a `tf.data.Dataset` of single examples, shuffled with the run's seed.

    Args:
        dataset: Yields `(x, y)` or `(x, y, sample_weight)` for one example at a time. It is
            shuffled with a buffer of 16,384 examples, repeated, and batched for every run.

    Raises:
        ValueError: It holds no examples.
    """

    def __init__(self, dataset: tf.data.Dataset) -> None:
        few = dataset.take(2).batch(2)
        self.few = next(iter(few), None)
        if self.few is None:
            raise ValueError("Expected a dataset of single examples. Received an empty one.")
        self._dataset = dataset
        leaves = keras.tree.flatten(self.few)
        self._example_bytes = sum(int(leaf[0].numpy().nbytes) for leaf in leaves)

    def block_steps(self, batch_size: int) -> int:
        """Steps in a block."""
        examples = min(BLOCK_EXAMPLES, BLOCK_BYTES // max(self._example_bytes, 1))
        return max(1, examples // batch_size)

    def blocks(self, seed: int, batch_size: int) -> Iterator[Any]:
        """Yields batches, stacked along a first axis of steps, without end."""
        with SEEDING:
            tf.random.set_seed(seed)  # It enters the order too, at the time of the next line.
            stream = self._dataset.shuffle(SHUFFLE_BUFFER, seed=seed, reshuffle_each_iteration=True)
        batches = stream.repeat().batch(batch_size, drop_remainder=True)
        yield from batches.batch(self.block_steps(batch_size), drop_remainder=True).prefetch(1)

    def pick(self, block: Any, step: tf.Tensor) -> Any:
        """Returns one batch of a block."""
        return keras.tree.map_structure(lambda array: tf.gather(array, step), block)

    def fingerprint(self) -> str:
        """Hash of the first examples, their shapes and types, and the number of examples."""
        first = next(iter(self._dataset.take(_HASHED_EXAMPLES).batch(_HASHED_EXAMPLES)))
        arrays = [tensor.numpy() for tensor in keras.tree.flatten(first)]
        size = int(self._dataset.cardinality())
        return _hash(arrays, f"dataset {self._dataset.element_spec} {size}")


Source = ArraySource | DatasetSource


def open_source(data: Any) -> Source:
    """Returns the source for arrays, a dataset of single examples, or a function of either.

    Raises:
        ValueError: The data are of another kind.
    """
    if callable(data):
        data = data()
    if isinstance(data, tf.data.Dataset):
        return DatasetSource(data)
    if isinstance(data, (tuple, list)) and 2 <= len(data) <= 3:
        return ArraySource(tuple(data))
    raise ValueError(
        "Expected `data` as arrays (x, y) or (x, y, sample_weight), a tf.data.Dataset of single "
        f"examples, or a function that returns one of them. Received: {type(data).__name__}."
    )


def _shape_of(data: Any) -> Any:
    return keras.tree.map_structure(lambda a: f"{a.dtype.name}{tuple(a.shape)}", data)


def _hash(arrays: list[np.ndarray], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for array in arrays:
        text_like = array.dtype == object  # Strings have no buffer to hash.
        digest.update(repr(array.tolist()).encode() if text_like else np.ascontiguousarray(array))
    return digest.hexdigest()
