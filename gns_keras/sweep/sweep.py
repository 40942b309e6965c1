"""`sweep`: learning-rate-tuned runs over batch sizes."""

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import Any

import keras

from gns_keras.core.goals import Goal
from gns_keras.core.learning_rate import LearningRateRule
from gns_keras.core.run_record import RunRecord
from gns_keras.core.sweep_policy import RunKey, next_run
from gns_keras.report.sweep_result import SweepResult
from gns_keras.sweep import workers
from gns_keras.sweep.configuration import (
    build_alone,
    constant_learning_rate,
    describe_configuration,
)
from gns_keras.sweep.drawn import AnySource, open_any_source
from gns_keras.sweep.plan import Plan, make_plan
from gns_keras.sweep.progress import SweepProgress
from gns_keras.sweep.run import RunSettings
from gns_keras.sweep.store import LEASE_S, Store

HALF_LIFE = 1024.0
DIVERGENCE_FACTOR = 4.0
_POLL_S = 0.5  # How often to look whether another process has finished a run.


def sweep(
    build_model: Callable[[], keras.Model],
    data: Any,
    *,
    batch_sizes: Sequence[int],
    goals: Sequence[Goal | float],
    learning_rates: Any = "auto",
    max_examples: int,
    seeds: int | Sequence[int] = 1,
    store: str | os.PathLike[str] | None = None,
    executor: Executor | None = None,
    verbose: int = 1,
    half_life: float = HALF_LIFE,
    divergence_factor: float = DIVERGENCE_FACTOR,
    jit_compile: bool | str = "auto",
    base_batch_size: int | None = None,
    workers_at_once: int | None = None,
    lease_s: float = LEASE_S,
) -> SweepResult:
    """Measures how many steps each batch size needs to each goal, at its best learning rate.

    A run trains from new weights at a constant learning rate until it has reached the last goal,
    seen `max_examples`, or diverged. Runs of one seed start from the same weights and see the same
    examples in the same order, whatever their batch size. `build_model` is called under
    `keras.utils.set_random_seed`, which is left at the last seed.

    Args:
        build_model: Returns a new compiled model; its learning rate is the one to begin with at
            `base_batch_size`. For a process pool a function at the top of a module.
        data: Arrays `(x, y)` or `(x, y, sample_weight)`, a `tf.data.Dataset` of single examples, or
            a function that returns one of them. Where a model makes its own data, as in
            reinforcement learning: a function of the model that returns its `DrawnExamples`, such
            as `get_task("atari_pong").training_data`.
        batch_sizes: Examples a step; from four on, spread over both regimes, there is an interval.
        goals: `Goal` objects; a number is a training loss to come below. Of data that the model
            makes there is also the metric "reward", the mean reward of a step.
        learning_rates: "auto": five for every batch size, a factor of 2 apart around Eq. A.3 of
            the paper, and more while the best for any goal is at the edge. A `LearningRateGrid`:
            the same with other numbers. Numbers, or a mapping from batch size to numbers: those.
        max_examples: Examples after which a run ends.
        seeds: How many seeds, from 0 on, or which.
        store: SQLite file that keeps finished runs. A sweep that was interrupted goes on from it;
            several processes may share it. None: nothing is kept.
        executor: Any `concurrent.futures.Executor`. None: one run after the other, here.
        verbose: 0 for no progress bar.
        half_life: Memory of the smoothing of losses and metrics, in examples.
        divergence_factor: A run has diverged once its smoothed loss is above this multiple of the
            loss of the new model, or a metric is not finite.
        jit_compile: Compile the training loop with XLA; "auto" for no convolutions.
        base_batch_size: Batch size that the model's learning rate is meant for; the smallest if not
            given.
        workers_at_once: Runs to hand to the executor at a time; one more than there are CPUs if not
            given. On a cluster, the number of its workers.
        lease_s: Seconds after which a process on another machine takes over runs of one that has
            stopped without a word.

    Returns:
        All runs, and the fits that follow from them.

    Raises:
        ValueError: An argument is out of range, or the store belongs to another sweep.
        NotImplementedError: The model lives under a strategy of several replicas.

    Example:
        result = sweep(build, (x, y), batch_sizes=[8, 32, 128, 512], goals=[0.5, 0.2],
                       max_examples=200_000, store="sweep.sqlite")
        print(result.tradeoff(0.2).critical_batch_size, result.tradeoff(0.2).interval)
    """
    settings = RunSettings(
        goals=_goals(goals),
        max_examples=_at_least(max_examples, max(batch_sizes, default=1)),
        half_life=float(half_life),
        divergence_factor=float(divergence_factor),
        jit_compile=jit_compile,
        dtype_policy=keras.config.dtype_policy().name,
    )
    source = open_any_source(data)
    model = build_alone(build_model, settings.dtype_policy, source.few[0])
    plan = make_plan(
        batch_sizes,
        seeds,
        learning_rates,
        base=(
            constant_learning_rate(model.optimizer),
            base_batch_size or min(batch_sizes, default=1),
        ),
        rule=_rule(model.optimizer),
    )
    shelf = Store(
        store, describe_configuration(model, settings, source.fingerprint()), lease_s=lease_s
    )
    runner = workers.InlineExecutor() if executor is None else executor
    # Inline, a run has ended when it has been submitted: one at a time is what gets stored.
    at_once = 1 if executor is None else workers_at_once or (os.cpu_count() or 1) + 1
    with shelf.heartbeat(), _job(build_model, data, source, settings, runner) as job:
        with SweepProgress(verbose) as progress:
            _Lead(plan, shelf, runner, at_once, progress).run(job)
        return _result(plan, shelf, settings, model)


class _Lead:
    """Hands runs to the executor until none is missing."""

    def __init__(
        self, plan: Plan, store: Store, executor: Executor, at_once: int, progress: SweepProgress
    ) -> None:
        self._plan = plan
        self._store = store
        self._executor = executor
        self._at_once = at_once
        self._progress = progress
        self._under_way: dict[Future, RunKey] = {}

    def run(self, job: workers.Job) -> None:
        last_batch_size = None
        try:
            while missing := self._missing():
                self._submit(job, missing, last_batch_size)
                if not self._under_way:
                    time.sleep(_POLL_S)  # Other processes have what is missing.
                    continue
                done, _ = wait(self._under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    last_batch_size = self._under_way.pop(future).batch_size
                    record = future.result()
                    self._store.finish(record)
                    self._progress.tell(record)
        finally:
            for future in self._under_way:
                future.cancel()

    def _missing(self) -> list[RunKey]:
        """Wanted runs that have not finished."""
        records = self._store.records()
        finished = {record.key for record in records}
        wanted = self._plan.wanted(record.outcome for record in records)
        missing = [key for key in wanted if key not in finished]
        self._progress.show(len(wanted) - len(missing), len(wanted))
        return missing

    def _submit(self, job: workers.Job, missing: list[RunKey], last: int | None) -> None:
        """Claims and submits runs until enough are under way."""
        left = set(missing) - set(self._under_way.values())
        while left and len(self._under_way) < self._at_once:
            key = next_run(left, [k.batch_size for k in self._under_way.values()], last)
            last = None  # Only the worker that has become free stays at its batch size.
            if key is None:
                return
            left.remove(key)
            if self._store.claim(key):
                self._under_way[self._executor.submit(workers.execute, job, key)] = key


@contextlib.contextmanager
def _job(
    build_model: Callable[[], keras.Model],
    data: Any,
    source: AnySource,
    settings: RunSettings,
    executor: Executor,
) -> Iterator[workers.Job]:
    """Prepares what the workers need; stops them and cleans up on leaving."""
    workers.check_portable(build_model, executor)
    with contextlib.ExitStack() as stack:
        job = workers.Job(
            sweep=uuid.uuid4().hex,
            build_model=build_model,
            data=workers.portable_data(data, executor, stack),
            settings=settings,
        )
        bench = workers.open_workbench(job.sweep, job, source)
        try:
            yield job
        finally:
            bench.stop()
            workers.close_workbench(job.sweep)


def _result(plan: Plan, store: Store, settings: RunSettings, model: keras.Model) -> SweepResult:
    """The runs of this plan; a store may hold others."""
    records: list[RunRecord] = store.records()
    wanted = set(plan.wanted(record.outcome for record in records))
    rule = _rule(model.optimizer)
    inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return SweepResult(
        goals=settings.goals,
        seeds=plan.seeds,
        records=tuple(record for record in records if record.key in wanted),
        base_learning_rate=plan.base[0],
        base_batch_size=plan.base[1],
        max_examples=settings.max_examples,
        half_life=settings.half_life,
        optimizer=type(inner).__name__,
        alpha=rule.alpha,
    )


def _rule(optimizer: keras.optimizers.Optimizer) -> LearningRateRule:
    """The optimizer's rule; that of SGD where the optimizer is not known."""
    try:
        return LearningRateRule.for_optimizer(optimizer)
    except ValueError:
        return LearningRateRule(alpha=1.0)


def _goals(goals: Sequence[Goal | float]) -> tuple[Goal, ...]:
    found = tuple(dict.fromkeys(Goal.of(goal) for goal in goals))
    if not found:
        raise ValueError("Expected at least one goal, such as goals=[0.5, 0.2]. Received: none.")
    return found


def _at_least(max_examples: int, batch_size: int) -> int:
    if max_examples < batch_size:
        raise ValueError(
            f"Expected `max_examples` to allow one step at the largest batch size, {batch_size}. "
            f"Received: {max_examples}."
        )
    return int(max_examples)
