"""What the noise scale says, against critical batch sizes that sweeps measured.

    python benchmarks/calibration.py --folder calibration            # all of it; hours on one core
    python benchmarks/calibration.py --folder calibration --table    # from what is there

For every task a sweep over batch sizes and learning rates, then three runs of other seeds at the
smallest batch size, with every predictor measured along them. All that is finished stays in the
folder: stop it at any moment and start it again.
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from calibration_run import MeasuredTraining, measure
from calibration_table import draw, gather, report
from calibration_tasks import TASKS, Task

from gns_keras import SweepResult, sweep
from gns_keras.sweep.branch_run import branch_along_run

SWEEP_SEEDS = 2
RUN_SEEDS = (10, 11, 12)


def swept(task: Task, folder: Path) -> SweepResult:
    """The sweep of a task, from the folder as far as it is there."""
    return sweep(
        task.build_model,
        task.examples,
        batch_sizes=task.batch_sizes,
        goals=task.goals,
        learning_rates=task.grid,
        max_examples=task.max_examples,
        seeds=SWEEP_SEEDS,
        store=folder / f"{task.name}.sqlite",
        verbose=0,
        half_life=task.half_life,
        jit_compile=True,
        base_batch_size=task.base_batch_size,
    )


def base_run(result: SweepResult) -> tuple[float, float]:
    """Best learning rate at the base batch size for the last goal, and steps to the first goal."""
    first, last = (result.best(goal)[0] for goal in (result.goals[0], result.goals[-1]))
    return last.learning_rate, first.steps


def measured(task: Task, result: SweepResult, folder: Path) -> None:
    """Runs what is missing of the measured runs of a task."""
    rate, first = base_run(result)
    if task.shift:
        first = 1024 / task.base_batch_size  # Early as well: a part of the run is to tell the rest.
    training = None
    for seed in RUN_SEEDS:
        path = folder / f"{task.name}_{seed}.json"
        if not path.exists():
            training = training or MeasuredTraining(task)
            found = measure(training, seed, rate, first)
            _write(path, json.dumps(found))
            print(f"{task.name}, seed {seed}: {found['steps_to']}", flush=True)


def branched(task: Task, result: SweepResult, folder: Path) -> None:
    """Runs what is missing of the runs with branches."""
    rate = base_run(result)[0]
    for seed in RUN_SEEDS:
        path = folder / f"{task.name}_{seed}_branched.json"
        if not path.exists():
            keras.utils.set_random_seed(seed)
            model = task.build_model()
            model.optimizer.learning_rate = rate
            found = branch_along_run(
                model, task.examples(), goals=task.goals, base_batch_size=task.base_batch_size,
                branch_batch_size=task.branch_batch_size, max_examples=task.max_examples,
                rule=task.grid.rule, half_life=task.half_life, seed=seed,
            )  # fmt: skip
            _write(path, found.to_json())
            print(f"{task.name}, seed {seed}, branches: {found.base_steps}", flush=True)


def _write(path: Path, text: str) -> None:
    """Writes a whole file or none."""
    partial = path.with_suffix(".part")
    partial.write_text(text)
    partial.replace(path)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--folder", type=Path, default=Path("calibration"), help="where runs are kept")
    add("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    add("--table", action="store_true", help="print the tables from what is there, and draw")
    add("--plot", type=Path, help="the figure; default: validation.png in the folder")
    add("--only", choices=["sweep", "measure", "branch"], help="this part alone")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Runs what is missing; prints the tables and draws the figure."""
    args = parse(arguments)
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in () if args.table else args.tasks:
        task = TASKS[name]
        result = swept(task, args.folder)
        _write(args.folder / f"{name}_sweep.json", result.to_json())
        print(name, result, flush=True)
        if args.only in (None, "measure"):
            measured(task, result, args.folder)
        if args.only in (None, "branch") and task.branch_batch_size:
            branched(task, result, args.folder)
    rows = gather(args.folder)
    if not rows:
        return
    print(report(rows))
    draw(rows, args.plot or args.folder / "validation.png")


if __name__ == "__main__":
    main()
