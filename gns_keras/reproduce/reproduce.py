"""`reproduce`: train a task of the paper, and measure its noise scale along the way."""

import math
import os
from dataclasses import dataclass

import keras

from gns_keras.core.advice_parts import NoisePoint
from gns_keras.core.reproduction import PointsOfRun
from gns_keras.report.reproduction import Reproduction
from gns_keras.reproduce.store import RunStore, State
from gns_keras.tasks import Task, get_task
from gns_keras.tasks.paper import published_row
from gns_keras.training import checks
from gns_keras.training.example_source import DrawnExamples, Source, source_of
from gns_keras.training.measured_run import MeasuredRun, RunPlan, plan_run
from gns_keras.training.progress import Stage, progress_bars

MAX_MEASURED = 4096
MAX_DRAWN = 512  # Of examples that the model draws: each takes an environment of its own.
EARLY_SHARE, EARLY_UPDATES = 0.05, 20
UPDATES_WITHOUT_END = 1000  # Length of a run on data without end.


def reproduce(
    task: Task | str,
    *,
    examples: int | None = None,
    early: int | None = None,
    seeds: int = 1,
    max_measured: int | None = None,
    store: str | os.PathLike[str] | None = None,
    verbose: int = 1,
) -> Reproduction:
    """Trains a task as the paper has it, and measures its simple noise scale at frozen weights.

    Measured are the initial weights, eight evenly spaced points over the start, and log-spaced ones
    after it. "Start" and "average" of the result are averages over the points with the weights of
    the paper's appendix D. Every run begins with new weights; the global seed is left at the last.

    Args:
        task: The task, or its name.
        examples: Length of every run, in examples. Default: one pass over the data; 1,000 updates
            where they have no end.
        early: Examples that count as the start. Default: 5 % of a pass, at least 20 updates.
        seeds: How many runs. From three on, intervals come from the differences between them.
        max_measured: Most examples that one point is measured on. Default: 4,096; 512 where the
            model draws them itself.
        store: SQLite file that keeps points and models. A run that was stopped goes on from it, and
            one that is there is made longer where `examples` is larger.
        verbose: 0 for no progress bar.

    Returns:
        The noise scales, beside the paper's row where it has one.

    Raises:
        UnknownTargetError: There is no such task. It is a `ValueError`.
        ValueError: An argument is out of range, or the store belongs to other settings.
        RuntimeError: Training diverges.

    Example:
        result = reproduce("mnist", examples=30_000, store="mnist.sqlite")
        print(result.start, result.average, result.published)
    """
    task = get_task(task) if isinstance(task, str) else task
    _check(examples=examples, early=early, seeds=seeds, max_measured=max_measured)
    bench = _bench(task, 0)
    size, data = task.examples_per_batch, bench.source.num_examples
    most = max_measured or (MAX_DRAWN if isinstance(bench.source, DrawnExamples) else MAX_MEASURED)
    length = examples or data or UPDATES_WITHOUT_END * size
    stretch = early or max(math.ceil(EARLY_SHARE * (data or 0)), EARLY_UPDATES * size)
    plan = plan_run(
        bench.model, size, examples=length, early=stretch,
        max_measured=min(most, data or most),
    )  # fmt: skip
    configuration = {
        "task": task.name, "learning rate": task.learning_rate, "early": stretch,
        "batch size": size, "measured at most": most, "examples of data": data,
        "weights": bench.model.count_params(),
    }  # fmt: skip
    with RunStore(store, configuration) as shelf, progress_bars(verbose) as stage:
        runs = []
        for seed in range(seeds):
            bench = bench if seed == 0 else _bench(task, seed)
            runs.append(_run(task, bench, plan, shelf, stage))
    return Reproduction(
        task=task.name,
        description=task.description,
        status=task.status,
        optimizer=task.optimizer,
        learning_rate=task.learning_rate,
        unit=task.unit,
        units_per_example=task.units_per_example,
        batch_size=size,
        early=stretch,
        examples=length,
        dataset_size=data,
        normalized_group=size if checks.has_batch_normalization(bench.model) else None,
        published=published_row(task.name),
        runs=tuple(runs),
    )


@dataclass(frozen=True)
class _Bench:
    """A new model and its data."""

    seed: int
    model: keras.Model
    source: Source


def _bench(task: Task, seed: int) -> _Bench:
    keras.utils.set_random_seed(seed)  # The weights are drawn by the next line.
    model = task.build_model()
    return _Bench(seed, model, source_of(task.training_data(model), task.examples_per_batch))


def _run(task: Task, bench: _Bench, plan: RunPlan, shelf: RunStore, stage: Stage) -> PointsOfRun:
    """One run to its end, from where the store has it."""
    callbacks = task.build_callbacks()  # What they remember cannot be kept.
    found, state = shelf.points(bench.seed), shelf.state(bench.seed)
    points = list(found.points)
    goal = plan.steps[-1] * plan.batch_size
    if points and points[-1].examples_seen >= goal:
        return found
    if state is None:
        points = []
    advance = stage(f"{task.name}, seed {bench.seed}", goal)
    advance(points[-1].examples_seen if points else 0)

    def keep(point: NoisePoint, state: State) -> None:
        points.append(point)
        run = PointsOfRun(seed=bench.seed, points=tuple(points))
        shelf.keep(run, None if callbacks else state)

    run = MeasuredRun(bench.model, bench.source, plan, seed=bench.seed, keep=keep, advance=advance)
    run.run(list(points), state, tuple(callbacks))
    return PointsOfRun(seed=bench.seed, points=tuple(points))


def _check(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and (isinstance(value, bool) or value < 1):
            raise ValueError(f"Expected `{name}` of at least 1. Received: {value}.")
