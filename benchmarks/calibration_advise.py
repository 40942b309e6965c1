"""What `advise` itself predicts, from its own short run, against the swept critical batch sizes.

    python benchmarks/calibration_advise.py --folder calibration   # in which calibration.py ran

For every task `advise(..., target_loss=goal)` at the base batch size and the sweep's best learning
rate there, with a budget of one pass over the data, which is 5 % of a run of 20: the trial run ends
when it has seen enough, and what is beyond is forecast.
Then the check of the learning rate alone, at an eighth and at eight times of it.
"""

import argparse
import functools
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from calibration_predictors import truth
from calibration_tasks import TASKS, Task

from gns_keras import SweepResult, advise
from gns_keras.training.example_source import ExampleSource
from gns_keras.training.learning_rate_check import (
    check_learning_rate,
    plan_check,
    scaled_learning_rate,
)
from gns_keras.training.preserve import preserved

EPOCHS = 20


def asked(task: Task, rate: float, goal: float, seed: int, learning_rate: str) -> dict:
    """What one call of `advise` says."""
    keras.utils.set_random_seed(seed)
    model = task.build_model()
    model.optimizer.learning_rate = rate
    advice = advise(
        model,
        task.examples(),
        batch_size=task.base_batch_size,
        budget=task.num_examples,
        target_loss=goal,
        learning_rate=learning_rate,
        seed=seed,
        verbose=0,
    )
    check = advice.learning_rate_check
    return {
        "value": advice.critical_batch_size,
        "interval": advice.interval,
        "examples": advice.examples_used,
        "reached": advice.forecast.reached_loss if advice.forecast else math.nan,
        "verdict": check.verdict if check else "",
    }


def main() -> None:
    """Prints one row for every task and goal; finished ones are kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("calibration"))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--part", choices=["predict", "check"], help="only this")
    args = parser.parse_args()
    if args.part != "check":
        predict(args)
    if args.part != "predict":
        check(args)


class Store:
    """Finished calls in a JSON file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found = json.loads(path.read_text()) if path.exists() else {}

    def get(self, key: str, call: Callable[[], dict]) -> dict:
        """What was found, now or before."""
        if key not in self.found:
            self.found[key] = call()
            self.path.write_text(json.dumps(self.found))
        return self.found[key]


def predict(args: argparse.Namespace) -> None:
    """Predicted against measured."""
    store, ratios = Store(args.folder / "advise.json"), []
    for name in args.tasks:
        task, sweep = TASKS[name], args.folder / f"{name}_sweep.json"
        if not sweep.exists():
            continue
        result, rate = SweepResult.from_json(sweep.read_text()), best_rate(task, args.folder)
        for index in (1, len(task.goals) - 1):
            goal, fit = task.goals[index], truth(result, task.goals[index])
            for seed in range(args.seeds):
                call = functools.partial(asked, task, rate, goal, seed, "keep")
                found = store.get(f"{name}/{goal}/{seed}", call)
                ratio = found["value"] / fit.critical_batch_size
                ratios.append(ratio)
                low, high = found["interval"]
                share = found["examples"] / (EPOCHS * task.num_examples)
                print(
                    f"| {name} | {goal:g} | {fit.critical_batch_size:.0f} | {found['value']:.0f} "
                    f"({low:.0f} to {high:.0f}) | {ratio:.2f} | {found['reached']:.3g} | "
                    f"{found['examples']:,} | {share:.1%} |",
                    flush=True,
                )
    known = np.array([ratio for ratio in ratios if ratio > 0])
    within = np.mean((known >= 0.5) & (known <= 2)) if known.size else math.nan
    worst = np.exp(np.abs(np.log(known)).max()) if known.size else math.nan
    print(f"{len(ratios)} asked, {len(known)} resolved, {within:.0%} within 2, worst {worst:.1f}")


def check(args: argparse.Namespace) -> None:
    """The verdicts on the best learning rate, and on an eighth and eight times of it."""
    store = Store(args.folder / "advise_check.json")
    for name in args.tasks:
        task, rate = TASKS[name], best_rate(TASKS[name], args.folder)
        found = [
            store.get(f"{name}/{factor:g}", functools.partial(checked, task, rate * factor))
            for factor in (1 / 8, 1.0, 8.0)
        ]
        cells = " | ".join(f"{one['verdict']}, {one['best'] / rate:.2g}" for one in found)
        share = max(one["examples"] for one in found) / (EPOCHS * task.num_examples)
        print(f"| {name} | {cells} | {share:.1%} |", flush=True)


def best_rate(task: Task, folder: Path) -> float:
    """The sweep's best learning rate at the base batch size; without a sweep, its grid's centre."""
    sweep = folder / f"{task.name}_sweep.json"
    if not sweep.exists():
        return task.learning_rate
    result = SweepResult.from_json(sweep.read_text())
    return result.best(result.goals[-1])[0].learning_rate


def checked(task: Task, rate: float, seed: int = 0) -> dict:
    """What the check says of a learning rate, and the best one by its estimate."""
    keras.utils.set_random_seed(seed)
    model = task.build_model()
    model.optimizer.learning_rate = rate
    source = ExampleSource(task.examples(), task.base_batch_size)
    model(next(iter(source.batches(task.base_batch_size, seed=seed)))[0])
    plan = plan_check(task.base_batch_size, task.num_examples)
    with preserved(model), scaled_learning_rate(model) as scale:
        found = check_learning_rate(
            model, source, plan, scale, seed=seed, advance=lambda examples: None
        )
    return {
        "verdict": found.verdict,
        "best": found.best_learning_rate,
        "interval": found.best_learning_rate_interval,
        "bias": found.bias.log2_bias,
        "runs": {factor: found.loss_at(factor) for factor in found.factors},
        "examples": found.examples_used,
    }


if __name__ == "__main__":
    main()
