"""Batches of any size, from arrays and from datasets: every example once per pass."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from gns_keras.training.example_source import ExampleSource

X = np.arange(40, dtype=np.float32).reshape(20, 2)
Y = np.arange(20, dtype=np.int32)
SOURCES = {
    "arrays": lambda: ExampleSource((X, Y), 4),
    "dataset": lambda: ExampleSource(tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)),
    "ragged tail": lambda: ExampleSource(tf.data.Dataset.from_tensor_slices((X, Y)).batch(6)),
}


def labels(source: ExampleSource, size: int, number: int | None = None, **given) -> list[list[int]]:
    batches = source.batches(size, **given)
    return [list(y.numpy()) for _, y in (batches if number is None else batches.take(number))]


@pytest.mark.parametrize("kind", SOURCES)
def test_one_pass_has_every_example_once_in_full_batches(kind: str) -> None:
    batches = labels(SOURCES[kind](), 5, seed=0, repeat=False)
    assert [len(batch) for batch in batches] == [5] * 4
    assert sorted(itertools.chain(*batches)) == list(range(20))
    assert list(itertools.chain(*batches)) != list(range(20))


@pytest.mark.parametrize("kind", SOURCES)
def test_inputs_stay_with_their_targets(kind: str) -> None:
    for x, y in SOURCES[kind]().batches(7, seed=0, repeat=False):
        np.testing.assert_array_equal(x.numpy()[:, 0], 2 * y.numpy())


@pytest.mark.parametrize("kind", SOURCES)
def test_the_seed_fixes_the_order_and_passes_differ(kind: str) -> None:
    first = labels(SOURCES[kind](), 10, 4, seed=3)
    assert labels(SOURCES[kind](), 10, 4, seed=3) == first
    assert labels(SOURCES[kind](), 10, 4, seed=4) != first
    assert first[:2] != first[2:]
    assert sorted(first[0] + first[1]) == sorted(first[2] + first[3]) == list(range(20))


@pytest.mark.parametrize("kind", SOURCES)
def test_it_leaves_tensorflows_global_seed_alone(kind: str) -> None:
    tf.random.set_seed(1)
    expected = float(tf.random.uniform([]))
    tf.random.set_seed(1)
    labels(SOURCES[kind](), 5, seed=0, repeat=False)
    assert float(tf.random.uniform([])) == expected


def test_sizes_of_arrays_and_datasets() -> None:
    big = np.zeros((100, 3), np.float32)
    assert (ExampleSource((big, big)).batch_size, ExampleSource((big, big)).num_examples) == (
        32,
        100,
    )
    assert ExampleSource((big, big), 8).batch_size == 8
    data = tf.data.Dataset.from_tensor_slices((big, big))
    assert ExampleSource(data.batch(10)).num_examples == 100
    assert ExampleSource(data.repeat().batch(10)).num_examples is None
    assert ExampleSource(data.batch(10).filter(lambda x, y: True)).num_examples is None
    assert ExampleSource(data.batch(10, drop_remainder=True)).batch_size == 10


def test_nested_inputs_and_weights_keep_their_structure() -> None:
    inputs = {"a": X, "b": [X + 1, X + 2]}
    source = ExampleSource((inputs, Y, np.ones(20)), 4)
    x, y, weight = next(iter(source.batches(4, seed=0)))
    np.testing.assert_array_equal(x["b"][1], x["a"] + 2)
    assert y.shape == weight.shape == (4,)
    assert len(next(iter(ExampleSource((X, Y, None), 4).batches(4, seed=0)))) == 2


@pytest.mark.parametrize(
    ("data", "size", "error", "message"),
    [
        (X, None, TypeError, "ndarray"),
        ((X,), None, TypeError, "tuple of 1 parts"),
        ((X, Y[:-1]), 4, ValueError, "same number of examples"),
        ((X, np.float32(1)), 4, ValueError, "same number of examples"),
        ((X, Y), 21, ValueError, "more than the 20 examples"),
        ((X, Y), 0, ValueError, "`batch_size`"),
        (tf.data.Dataset.from_tensor_slices((X, Y)), None, ValueError, r"\.batch\(32\)"),
    ],
)
def test_bad_data_are_refused(data, size, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        ExampleSource(data, size)


def test_the_threads_of_arrays_are_not_tuned() -> None:
    # Dropping an iterator would now and then wait up to 20 s for the thread that tunes. What a user
    # has made keeps its own options.
    batches = ExampleSource((np.zeros((8, 2)), np.zeros(8)), 4).batches(4, seed=0)
    assert batches.options().autotune.enabled is False
    own = tf.data.Dataset.from_tensor_slices((np.zeros((8, 2)), np.zeros(8))).batch(2)
    assert ExampleSource(own).batches(4, seed=0).options().autotune.enabled is None
