"""Batches of the data set as the units that updates are made of."""

import itertools
from typing import Any

import keras
import tensorflow as tf

from gns_keras.training import keras_private

Granule = Any  # A batch, with one value per replica in its leaves under a strategy.
Shape = tuple[tuple[int, ...], ...]


class GranuleSource:
    """Takes granules off Keras' iterator.

    Fetching is a program of its own: nothing else runs when the data end, and a part that fails can
    be tried again with the same data. Batches without examples are passed over.

    Args:
        strategy: Strategy under which the model trains.
        eager: Fetch without a graph.
    """

    def __init__(self, strategy: tf.distribute.Strategy, *, eager: bool) -> None:
        self._strategy = strategy
        self._eager = eager
        self._fetch: dict[int, Any] = {}
        self._peeked: tuple[Any, list[Granule]] = (None, [])

    def peek(self, iterator: Any) -> Granule | None:
        """Returns the next granule and leaves it there; None at the end of the data."""
        if self._peeked[0] is not iterator or not self._peeked[1]:
            self._peeked = (iterator, self._fetched(iterator, 1))
        return next(iter(self._peeked[1]), None)

    def take(self, iterator: Any, count: int) -> list[Granule]:
        """Returns up to `count` granules; fewer at the end of the data."""
        source, peeked = self._peeked
        self._peeked = (None, [])
        if source is not iterator or not peeked:
            return self._fetched(iterator, count)
        return peeked + [one for _ in range(count - 1) for one in self._fetched(iterator, 1)]

    def _fetched(self, iterator: Any, count: int) -> list[Granule]:
        """Returns `count` granules that hold examples; fewer at the end of the data."""
        found: list[Granule] = []
        while len(found) < count:
            wanted = count - len(found)
            more = self._next(iterator, wanted)
            found += [granule for granule in more if self._holds_examples(granule)]
            if len(more) < wanted:
                break
        return found

    def _holds_examples(self, granule: Granule) -> bool:
        # Workers have to skip alike, and none of them sees the rows of the others.
        return keras_private.has_several_workers(self._strategy) or any(self.rows(granule))

    def _next(self, iterator: Any, count: int) -> list[Granule]:
        if isinstance(iterator, tf.data.Iterator):  # A program would take twice as long to ask.
            found = list(itertools.islice(iterator, count))
        else:
            optionals = self._program(count)(iterator)
            found = [one.get_value() for one in optionals if bool(one.has_value())]
        return [_without_optionals(granule) for granule in found]

    def _program(self, count: int) -> Any:
        """Fetches for all replicas, and in step with other workers at the end of the data."""
        if count not in self._fetch:

            def fetch(source: Any) -> list[tf.experimental.Optional]:
                return [source.get_next_as_optional() for _ in range(count)]

            self._fetch[count] = fetch if self._eager else tf.function(fetch)
        return self._fetch[count]

    def shapes(self, granule: Granule) -> tuple[Shape, ...]:
        """Shapes of all leaves on all replicas of this process."""
        return tuple(
            tuple(tuple(value.shape) for value in self._local(leaf)) for leaf in _leaves(granule)
        )

    def one_replica(self, granule: Granule) -> Granule:
        """The part of a granule that belongs to the first replica of this process."""
        return keras.tree.map_structure(
            lambda leaf: None if leaf is None else self._local(leaf)[0], granule
        )

    def rows(self, granule: Granule) -> tuple[int, ...]:
        """Examples on each replica of this process."""
        return tuple(int(value.shape[0]) for value in self._local(_leaves(granule)[0]))

    def slices(self, granule: Granule, count: int) -> list[Granule]:
        """Cuts a granule into `count` parts of nearly equal size on every replica."""

        def part(index: int) -> Granule:
            return keras.tree.map_structure(
                lambda leaf: None if leaf is None else self._slice(leaf, index, count), granule
            )

        return [part(index) for index in range(count)]

    def _slice(self, leaf: Any, index: int, count: int) -> Any:
        pieces = []
        for value in self._local(leaf):
            size = value.shape[0]
            pieces.append(value[index * size // count : (index + 1) * size // count])
        if len(pieces) == 1:
            return pieces[0]
        return self._strategy.experimental_distribute_values_from_function(
            lambda context: pieces[context.replica_id_in_sync_group]
        )

    def _local(self, leaf: Any) -> tuple[Any, ...]:
        return self._strategy.experimental_local_results(leaf)


def concatenated(granules: tuple[Granule, ...]) -> Granule:
    """Joins granules along their first axis; call it within a replica."""
    if len(granules) == 1:
        return granules[0]
    return keras.tree.map_structure(
        lambda *leaves: None if leaves[0] is None else tf.concat(leaves, axis=0), *granules
    )


def _leaves(granule: Granule) -> list[Any]:
    return [leaf for leaf in keras.tree.flatten(granule) if leaf is not None]


def _without_optionals(granule: Granule) -> Granule:
    # tf.data hands on a None among the inputs as an Optional, as Keras' own loop knows.
    return keras.tree.map_structure(
        lambda leaf: None if isinstance(leaf, tf.experimental.Optional) else leaf, granule
    )
