"""`gns-keras sweep`: a sweep from the command line. TensorFlow is imported when it runs."""

import argparse
import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gns_keras.tasks import Task, get_task
from gns_keras.tasks.custom import call_function, import_function, parse_target

BATCH_SIZES = tuple(2**power for power in range(3, 12))
GOALS = (0.5, 0.3, 0.2, 0.1)
_EPOCHS, _MIN_EXAMPLES = 20, 100_000

DESCRIPTION = """\
Trains at every batch size with several learning rates, counts the steps to each
goal, and fits the critical batch size. Finished runs are kept in FILE: stopped
at any moment, the same command goes on from there. Several processes may work
on one FILE at the same time."""

EXAMPLES = """\
examples:
  gns-keras sweep digits --store digits.sqlite --plot digits.png
  gns-keras sweep mnist --store mnist.sqlite --workers 2 --batch-sizes 8 32 128
  gns-keras sweep train:build --store mine.sqlite --goals 1.0 0.5 --seeds 3"""


def add_arguments(
    parser: argparse.ArgumentParser,
    positive: Callable[[str], int],
    output_file: Callable[[str], Path],
) -> None:
    """Declares the arguments of the command.

    Args:
        parser: Parser of the sub-command.
        positive: argparse type of a whole number of at least 1.
        output_file: argparse type of a file that can be written.
    """
    add = parser.add_argument
    add("target", metavar="TARGET", help="a task or package.module:function")
    add("--store", required=True, type=output_file, metavar="FILE", help="keeps finished runs")
    add(
        "--batch-sizes", type=positive, nargs="+", metavar="N", default=BATCH_SIZES,
        help="batch sizes to train at (default: powers of 2 from 8 to 2048)",
    )  # fmt: skip
    add(
        "--goals", type=float, nargs="+", metavar="L",
        help="training losses to reach, for games rewards of a step (default: the task's)",
    )  # fmt: skip
    add(
        "--max-examples", type=positive, metavar="N",
        help="examples after which a run ends (default: 20 epochs, at least 100,000)",
    )  # fmt: skip
    add("--seeds", type=positive, default=1, metavar="N", help="seeds a learning rate (default: 1)")
    add("--workers", type=positive, default=1, metavar="N", help="runs at a time (default: 1)")
    add("--csv", type=output_file, metavar="F", help="also write the runs to F as a table")
    add("--json", type=output_file, metavar="F", help="also write everything to F as JSON")
    add("--plot", type=output_file, metavar="F", help="also write the figure to F")
    add("--quiet", action="store_true", help="no progress bar; the result is still printed")


def run(args: argparse.Namespace, import_tensorflow: Callable[[], None]) -> None:
    """Runs or goes on with the sweep, prints its result, and writes what was asked for.

    Args:
        args: Parsed arguments.
        import_tensorflow: Imports TensorFlow; called once the target is known to exist.

    Raises:
        UnknownTargetError: There is no such task or function. It is a `ValueError`.
    """
    task = get_task(args.target) if args.target.isidentifier() else None
    if task is None:
        parse_target(args.target)
    import_tensorflow()
    from concurrent.futures import ThreadPoolExecutor

    from gns_keras.sweep.sweep import sweep

    build_model, data, size = _of_task(task) if task else _of_function(args.target)
    goals = _goals(task, args.goals)
    with contextlib.ExitStack() as stack:
        pool = None
        if args.workers > 1:
            pool = ThreadPoolExecutor(args.workers)
            # Ctrl-C must not wait for runs that were only queued.
            stack.callback(pool.shutdown, cancel_futures=True)
        result = sweep(
            build_model,
            data,
            batch_sizes=args.batch_sizes,
            goals=goals,
            max_examples=args.max_examples or max(_EPOCHS * _length(data), _MIN_EXAMPLES),
            seeds=args.seeds,
            store=args.store,
            executor=pool,
            workers_at_once=args.workers,
            base_batch_size=size,
            verbose=0 if args.quiet else 1,
        )
    print(result)  # noqa: T201  the command's output
    if args.csv:
        result.to_csv(args.csv)
    if args.json:
        args.json.write_text(result.to_json() + "\n", encoding="utf-8")
    if args.plot:
        result.plot(args.plot)


def _of_task(task: Task) -> tuple[Callable[[], Any], Any, int]:
    data = task.draw_data or task.load_data()
    return task.build_model, data, task.examples_per_batch


def _goals(task: Task | None, given: list[float] | None) -> list[Any]:
    """Training losses; where the model draws its data, rewards.

    Raises:
        ValueError: There are none.
    """
    if task is None or task.draw_data is None:
        return list(given or (task.goals if task else GOALS))
    from gns_keras.core.goals import Goal

    if not (rewards := given or task.goals):
        raise ValueError(
            f"{task.name} has no goals of its own. Give mean rewards of a step, such as "
            "--goals 0.01: more than chance gets, which is the `reward` of the first batches of "
            "get_task(...).training_data(model)."
        )
    return [Goal(metric="reward", threshold=reward, direction="above") for reward in rewards]


def _of_function(target: str) -> tuple[Callable[[], Any], Any, int | None]:
    """Model builder, data as single examples, and batch size of the user's own function."""
    import tensorflow as tf

    function = import_function(*parse_target(target))
    _, data, batch_size = call_function(function, target)
    if isinstance(data, tf.data.Dataset):
        data = data.unbatch()
    return functools.partial(_own_model, function, target), data, batch_size


def _own_model(function: Callable[[], Any], target: str) -> Any:
    return call_function(function, target)[0]


def _length(data: Any) -> int:
    """Number of examples; 0 where it is not known."""
    import keras
    import tensorflow as tf

    if callable(data):
        return 0
    if isinstance(data, tf.data.Dataset):
        return max(int(data.cardinality()), 0)
    return len(keras.tree.flatten(data)[0])
