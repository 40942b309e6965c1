"""One run: train at a batch size and a learning rate until the last goal is reached."""

import contextlib
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import keras
import numpy as np

from gns_keras.core.goals import Goal, GoalTracker, MovingAverage
from gns_keras.core.run_record import RunRecord
from gns_keras.core.sweep_policy import RunKey
from gns_keras.sweep.drawn import AnySource, DrawnLoop, DrawnSource
from gns_keras.sweep.loop import CompiledLoop, initial_state
from gns_keras.sweep.stream import SEEDING

_BUILDS = 10


class RunStopped(Exception):
    """The sweep was interrupted; the run has no result."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What all runs of a sweep have in common.

    Attributes:
        goals: What to reach.
        max_examples: Examples after which a run ends.
        half_life: Memory of the smoothing, in examples.
        divergence_factor: A run ends once its smoothed loss is above this multiple of the loss
            before training.
        jit_compile: Whether XLA compiles the loop; "auto" for the rule of `loop.wants_xla`.
        dtype_policy: Global policy that models are built under. Keras keeps it for every thread
            by itself, so it has to be handed on.
    """

    goals: tuple[Goal, ...]
    max_examples: int
    half_life: float
    divergence_factor: float
    jit_compile: bool | str
    dtype_policy: str = "float32"


class Workbench:
    """Models and compiled loops of one sweep in one process, used again from run to run.

    A reused loop gives the same bits as a new one. Several threads may use a workbench; each run
    has a loop of its own.

    Args:
        build_model: Returns a new compiled model.
        source: Where the examples come from.
        settings: What all runs have in common.
    """

    def __init__(
        self, build_model: Callable[[], keras.Model], source: AnySource, settings: RunSettings
    ) -> None:
        self._build_model = build_model
        self._source = source
        self._settings = settings
        self._idle: dict[int, list[CompiledLoop]] = {}
        self._initial_states: dict[int, list[np.ndarray]] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Makes runs under way raise `RunStopped` at their next block."""
        self._stopped.set()

    def run(self, key: RunKey) -> RunRecord:
        """Trains once.

        Raises:
            RunStopped: `stop` was called.
        """
        began = time.perf_counter()
        loop, state = self._take(key)
        tracker = self._train(loop, state, key)
        if loop.reusable:
            with self._lock:
                self._idle.setdefault(key.batch_size, []).append(loop)
        return RunRecord(
            batch_size=key.batch_size,
            learning_rate=key.learning_rate,
            seed=key.seed,
            status="diverged" if tracker.diverged else "reached" if tracker.reached else "ended",
            reason=tracker.diverged,
            steps=tracker.num_steps,
            examples=tracker.num_steps * key.batch_size,
            steps_to=tuple(tracker.steps_to),
            last_loss=tracker.last_values["loss"],
            seconds=time.perf_counter() - began,
        )

    def _take(self, key: RunKey) -> tuple[CompiledLoop | DrawnLoop, list[np.ndarray]]:
        """An idle or new loop for the batch size, and the initial state of the seed."""
        with self._lock:
            idle = self._idle.get(key.batch_size)
            loop = idle.pop() if idle else None
        state = self._initial_state(key.seed)
        if loop is not None:
            return loop, state
        for _ in range(_BUILDS):
            with SEEDING:
                loop = self._new_loop(key)
            # If it is not reusable, it has state beyond this one, drawn with the seed just now.
            if _equal(loop.initial_state, state):
                return loop, state
        raise self._unsteady(key.seed)

    def _new_loop(self, key: RunKey) -> CompiledLoop | DrawnLoop:
        model = self._new_model(key.seed)
        if isinstance(self._source, DrawnSource):
            return DrawnLoop(model, self._source, key.batch_size)
        jit_compile = self._settings.jit_compile
        return CompiledLoop(model, self._source, key.batch_size, jit_compile=jit_compile)

    def _initial_state(self, seed: int) -> list[np.ndarray]:
        """Weights, optimizer and seeds of a new model: what two builds in a row agree on."""
        with self._lock:
            if seed in self._initial_states:
                return self._initial_states[seed]
        last = None
        for _ in range(_BUILDS):
            with SEEDING:
                _, state = initial_state(self._new_model(seed), self._source.few)
            if last is not None and _equal(last, state):
                with self._lock:
                    return self._initial_states.setdefault(seed, state)
            last = state
        raise self._unsteady(seed)

    def _new_model(self, seed: int) -> keras.Model:
        keras.config.set_dtype_policy(self._settings.dtype_policy)
        keras.utils.set_random_seed(seed)
        with _own_random_numbers(seed):
            model = self._build_model()
            if not model.built:  # Some layers make others when they first see an input.
                model(self._source.few[0])
        return model

    def _unsteady(self, seed: int) -> RuntimeError:
        return RuntimeError(
            "Expected `build_model()` to give the same initial weights each time it is called "
            f"after keras.utils.set_random_seed({seed}). Received different ones. Draw random "
            "numbers from Keras, NumPy's global generator or with a fixed seed."
        )

    def _train(
        self, loop: CompiledLoop | DrawnLoop, state: list[np.ndarray], key: RunKey
    ) -> GoalTracker:
        settings = self._settings
        blocks = self._source.blocks(key.seed, key.batch_size)
        block = next(blocks)
        block_steps = self._source.block_steps(key.batch_size)
        look = min(block_steps, math.ceil(max(settings.half_life, 1) / key.batch_size))
        start_loss = loop.untrained_loss(block, state, look)
        loop.restart(state, key.learning_rate)
        tracker = GoalTracker(
            settings.goals,
            loop.metric_names,
            MovingAverage(key.batch_size, settings.half_life),
            divergence_factor=settings.divergence_factor,
            start_loss=start_loss,
        )
        max_steps = settings.max_examples // key.batch_size
        while True:
            if self._stopped.is_set():
                raise RunStopped
            tracker.update(loop.advance(block, min(block_steps, max_steps - tracker.num_steps)))
            if tracker.finished or tracker.num_steps >= max_steps:
                return tracker
            block = next(blocks)


@contextlib.contextmanager
def _own_random_numbers(seed: int) -> Iterator[None]:
    """Gives this thread the numbers of `random.seed(seed)`, whatever other threads draw.

    Keras takes the seeds of its layers from `random.randint`, whose state all threads share; those
    of a Dask worker draw from it all the time.
    """
    shared, own, thread = random.randint, random.Random(seed), threading.get_ident()

    def randint(low: int, high: int) -> int:
        return own.randint(low, high) if threading.get_ident() == thread else shared(low, high)

    random.randint = randint
    try:
        yield
    finally:
        random.randint = shared


def _equal(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        for a, b in zip(left, right, strict=True)
    )
