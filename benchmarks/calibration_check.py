"""The check of the learning rate, against the best rates of the sweeps.

    python benchmarks/calibration_check.py --folder calibration   # in which calibration.py ran

For every task the check of `advise` at an eighth, once and eight times the tuned rate of its base
batch size: the vertex of a parabola through the sweep's steps to the last goal, over the logarithm
of the learning rate. Then what the best rate of a short run is above the tuned one, in octaves: a
constant for every kind of optimizer and a fall with the length of the run, fitted to all tasks, and
the verdicts when a task's constants come from the others.
"""

import argparse
import functools
import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from calibration_advise import Store, examples_to, swept_of
from calibration_tasks import TASKS, Task

from gns_keras import SweepResult
from gns_keras.core.json_records import record_from_json, record_to_json
from gns_keras.core.learning_rate_check import LearningRateCheck
from gns_keras.core.short_run_bias import WHOLE_RUN, ShortRunBias, short_run_bias
from gns_keras.training.example_source import ExampleSource
from gns_keras.training.learning_rate_check import (
    check_learning_rate,
    plan_check,
    scaled_learning_rate,
)
from gns_keras.training.preserve import preserved

STARTS = (1 / 8, 1.0, 8.0)
KINDS = {"sgd": "sgd", "momentum": "momentum"}  # All others: "adaptive".


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """A task with its tuned rate, and what checks from several starts say.

    Attributes:
        task: The task.
        rate: Tuned rate at the base batch size.
        examples: Of the run to the last goal at that batch size.
        checks: By start, over the tuned rate.
    """

    task: Task
    rate: float
    examples: float
    checks: dict[float, LearningRateCheck]

    @property
    def kind(self) -> str:
        """Optimizers that share a constant."""
        return KINDS.get(self.task.optimizer, "adaptive")

    @property
    def octaves(self) -> float:
        """Of length, beyond the runs that the constants are for."""
        return math.log2(max(1.0, self.examples / WHOLE_RUN))

    @property
    def excess(self) -> float:
        """Best rate of a short run over the tuned one, in octaves: the mean over the starts."""
        found = [check.best_learning_rate for check in self.checks.values()]
        taken = [check.bias.log2_bias for check in self.checks.values()]
        return float(np.mean(np.log2(found) + taken)) - math.log2(self.rate)


def main() -> None:
    """Prints a row for every task, the constants, and the verdicts without its own task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("calibration"))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    args = parser.parse_args()
    store = Store(args.folder / "learning_rates.json")
    all_tuned = [found for name in args.tasks if (found := tuned_of(name, args.folder, store))]
    print("| Task | Examples | Tuned rate | Short run over it | At an eighth, once, 8 times |")
    for tuned in all_tuned:
        print(f"{row_of(tuned)} {verdicts(tuned, None)} |")
    steps, constants, spread = fit(all_tuned)
    print(f"at {steps} steps, in octaves: {constants}; spread {spread:.2f}, {len(all_tuned)} tasks")
    print("constants from the other tasks:")
    for tuned in all_tuned:
        print(f"{row_of(tuned)} {verdicts(tuned, fit([t for t in all_tuned if t is not tuned]))} |")


def tuned_of(name: str, folder: Path, store: Store) -> Tuned | None:
    """Checks of one task, now or before; None without its sweep, or of runs of several passes."""
    task, result = TASKS[name], swept_of(name, folder)
    if result is None or name.endswith("_long"):
        return None
    rate, examples = tuned_rate(task, result), examples_to(result, task, task.goals[-1])
    checks = {}
    for start in STARTS:
        call = functools.partial(checked, task, rate * start, int(examples))
        text = json.dumps(store.get(f"{name}/{start:g}", call))
        checks[start] = record_from_json(LearningRateCheck, text, 1)
    return Tuned(task=task, rate=rate, examples=examples, checks=checks)


def tuned_rate(task: Task, result: SweepResult) -> float:
    """Vertex of the parabola through the sweep's steps; its best rate where a neighbour failed."""
    steps: dict[float, list[float]] = {}
    for record in result.records:
        if record.batch_size == task.base_batch_size:
            steps.setdefault(record.learning_rate, []).append(record.steps_to[-1])
    logs = {rate: float(np.mean(np.log(found))) for rate, found in sorted(steps.items())}
    rates, values = list(logs), list(logs.values())
    best = int(np.nanargmin(values))
    if not 0 < best < len(rates) - 1 or not np.all(np.isfinite(values[best - 1 : best + 2])):
        return rates[best]
    bend, slope, _ = np.polyfit(np.log(rates[best - 1 : best + 2]), values[best - 1 : best + 2], 2)
    return math.exp(-slope / (2 * bend))


def checked(task: Task, rate: float, whole_run: int, seed: int = 0) -> dict:
    """The check of one learning rate for a run of some length."""
    keras.utils.set_random_seed(seed)
    model = task.build_model()
    model.optimizer.learning_rate = rate
    source = ExampleSource(task.examples(), task.base_batch_size)
    model(next(iter(source.batches(task.base_batch_size, seed=seed)))[0])
    plan = plan_check(task.base_batch_size, task.num_examples, whole_run=whole_run)
    with preserved(model), scaled_learning_rate(model) as scale:
        found = check_learning_rate(
            model, source, plan, scale, seed=seed, advance=lambda examples: None
        )
    return json.loads(record_to_json(found, 1))


Fit = tuple[int, dict[str, float], float]


def fit(all_tuned: list[Tuned]) -> Fit:
    """Steps of a run, constants and fall, and the standard deviation of what is left."""
    kinds = ["sgd", "momentum", "adaptive"]
    steps = max(check.steps for tuned in all_tuned for check in tuned.checks.values())
    columns = [[float(t.kind == kind) for t in all_tuned] for kind in kinds]
    design = np.transpose([*columns, [t.octaves for t in all_tuned]])
    excess = np.array([t.excess for t in all_tuned])
    found = np.linalg.lstsq(design, excess, rcond=None)[0]
    left = excess - design @ found
    spread = math.sqrt(float(np.sum(left**2)) / (len(excess) - len(found)))
    names = [*kinds, "fall"]
    return steps, {n: round(float(v), 2) for n, v in zip(names, found, strict=True)}, spread


def verdicts(tuned: Tuned, fitted: Fit | None) -> str:
    """What the checks say with the package's constants, or those that are given."""
    found = []
    for check in tuned.checks.values():
        bias = package_bias(tuned, check)
        if fitted is not None:
            _, constants, spread = fitted
            shift = constants[tuned.kind] + constants["fall"] * tuned.octaves
            bias = replace(bias, log2_bias=shift, log2_spread=spread)
        found.append(replace(check, bias=bias).verdict)
    return ", ".join(found)


def package_bias(tuned: Tuned, check: LearningRateCheck) -> ShortRunBias:
    """What the package takes off now."""
    optimizer = tuned.task.build_model().optimizer
    momentum = float(getattr(optimizer, "momentum", 0.0) or 0.0)
    return short_run_bias(
        type(optimizer).__name__, momentum, steps=check.steps, is_trained=False,
        run_examples=int(tuned.examples),
    )  # fmt: skip


def row_of(tuned: Tuned) -> str:
    """Beginning of a row."""
    return (
        f"| {tuned.task.name} | {tuned.examples:,.0f} | {tuned.rate:.2g} | "
        f"{tuned.excess:+.2f} octaves |"
    )


if __name__ == "__main__":
    main()
