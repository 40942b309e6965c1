"""Rollouts played by threads while the learner updates: asynchronous PPO, as for Dota.

The rollout with number j (from 0) is trained on as the j-th. A worker may begin it when at least
`j - max_staleness` updates are there, so the policy that played it is at most so many rollouts old;
0 waits for each and gives what a loop without threads gives.
"""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

from gns_keras.tasks.self_play_rollouts import Collector, Rollout


class InTurn:
    """Plays when a rollout is fetched: the same interface without threads."""

    def __init__(self, collector: Collector) -> None:
        self.staleness: list[int] = []
        self._collector = collector

    def __enter__(self) -> "InTurn":
        return self

    def __exit__(self, *_: object) -> None: ...

    def publish(self, weights: list[Any]) -> None:
        """Does nothing: the collector plays with the learner's own model."""

    def fetch(self) -> Rollout:
        """Plays one rollout."""
        self.staleness.append(0)
        return self._collector.collect()


class RolloutWorkers:
    """Threads that play. Use it in a `with` statement: they end with it, after an error as well.

    Args:
        players: For each thread a collector and the model that it plays with, which belongs to
            that thread alone.
        weights: Those to start from, as `model.get_weights()` returns them.
        max_staleness: Rollouts that the weights of a player may be behind the learner's.

    Attributes:
        staleness: For each rollout that was fetched, how many it was behind.
    """

    def __init__(
        self, players: Sequence[tuple[Collector, Any]], weights: list[Any], *, max_staleness: int
    ) -> None:
        if not players or max_staleness < 0:
            raise ValueError(
                "Expected at least one player and max_staleness >= 0. Received: "
                f"{len(players)} players, max_staleness={max_staleness}."
            )
        self.staleness: list[int] = []
        self._max_staleness = max_staleness
        self._changed = threading.Condition()
        self._weights, self._version = weights, 0
        self._next_number = self._next_fetched = 0
        self._finished: dict[int, Rollout] = {}
        self._error: BaseException | None = None
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._run, args=player, daemon=True, name=f"rollouts-{number}")
            for number, player in enumerate(players)
        ]

    def __enter__(self) -> "RolloutWorkers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def publish(self, weights: list[Any]) -> None:
        """Hands the players the weights after one more rollout was trained on."""
        with self._changed:
            self._weights, self._version = weights, self._version + 1
            self._changed.notify_all()

    def fetch(self) -> Rollout:
        """Returns the next rollout; waits for it.

        Raises:
            RuntimeError: A thread failed; its error is the cause.
        """
        with self._changed:
            number = self._next_fetched
            self._changed.wait_for(lambda: self._error or number in self._finished)
            if self._error is not None:
                raise RuntimeError(
                    f"A thread that plays games failed: {type(self._error).__name__}: {self._error}"
                ) from self._error
            self._next_fetched += 1
            rollout = self._finished.pop(number)
            self.staleness.append(self._version - rollout.version)
            return rollout

    def _run(self, collector: Collector, model: Any) -> None:
        try:
            for number, weights, version in self._turns():
                model.set_weights(weights)
                rollout = collector.collect(version)
                with self._changed:
                    self._finished[number] = rollout
                    self._changed.notify_all()
        except BaseException as error:  # Handed to the learner, which would wait for ever.
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _turns(self) -> Iterator[tuple[int, list[Any], int]]:
        """Yields the number of the next rollout, with the newest weights, until it is stopped."""
        while True:
            with self._changed:
                number = self._next_number
                self._next_number += 1
                self._changed.wait_for(
                    lambda due=number - self._max_staleness: self._stopped or self._version >= due
                )
                if self._stopped:
                    return
                turn = number, self._weights, self._version
            yield turn
