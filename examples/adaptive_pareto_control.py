"""Where does the saving of adaptive_pareto.py come from? Two controls at constant batch sizes.

    python examples/adaptive_pareto_control.py --folder DIR   # in which adaptive_pareto.py ran
    python examples/adaptive_pareto_control.py --folder DIR --control temperature

The constant batch sizes of that sweep have a constant learning rate, as is usual. An adaptive run
differs in more than its batch size:

- warm-up: its learning rate rises with the batch, after the first steps, which are the least
  stable. Here a constant batch gets a learning rate that rises from 0 over --warm-up examples, to a
  height that is tuned.
- temperature: the ratio of learning rate to batch size falls as the batch grows. Here a constant
  batch gets that ratio of the adaptive run of the same seed after as many examples, times a factor
  that is tuned.

What these runs save over a constant learning rate is not owed to the batch size.
"""

import argparse
import json
import math
import os
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import adaptive_pareto as pareto
import keras
import numpy as np
from pareto_gain import GoalWatch, MeasuredFront, mean_cost, mean_interval
from pareto_report import front_of_seed

from gns_keras.core.sweep_result import SweepRecord
from gns_keras.tasks.datasets import load_arrays


class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Rises in a straight line from 0 to `top`, and stays there."""

    def __init__(self, top: float, steps: float) -> None:
        self.top, self.steps = top, steps

    def __call__(self, step: Any) -> Any:
        return self.top * keras.ops.minimum((keras.ops.cast(step, "float32") + 1) / self.steps, 1.0)


def falling(history: dict, batch_size: int, factor: float) -> Any:
    """Learning rate at a constant batch size with the temperatures of an adaptive run."""
    seen = np.asarray(history["examples_seen"])
    sizes, rates = (np.asarray(history[k]) for k in ("global_batch_size", "learning_rate"))
    changed = np.flatnonzero(np.diff(sizes)) + 1
    ends = np.maximum.accumulate(np.maximum(seen[changed] // batch_size, 1))
    first = np.concatenate([[0], changed])
    values = factor * batch_size * rates[first] / sizes[first]
    return keras.optimizers.schedules.PiecewiseConstantDecay(
        [int(end) for end in ends + np.arange(len(ends))], [float(value) for value in values]
    )


def train(
    args: argparse.Namespace, images: np.ndarray, examples: tuple, run: dict, schedule: Any
) -> dict:
    """One run at a constant batch size."""
    keras.utils.set_random_seed(run["seed"])
    model, size = pareto.build_model(), run["batch_size"]
    model.compile(keras.optimizers.SGD(schedule), model.loss)
    watch = pareto.Watch(
        GoalWatch(args.goals, pareto.HALF_LIFE), SimpleNamespace(batch_size=size), args.max_examples
    )
    model.fit(
        pareto.granules(images, examples, size, run["seed"]),
        steps_per_epoch=args.max_examples // size,
        verbose=0,
        callbacks=[watch],
    )
    return {"steps_to": watch.goals.steps_to, "examples_to": watch.goals.examples_to}


def control(
    args: argparse.Namespace, size: int, power: int, history: dict
) -> tuple[dict[str, Any], Any]:
    """What tells the run from others, and its learning rate."""
    if args.control == "warm-up":
        top = pareto.CENTRE_RATE * pareto.CENTRE.scale(size, pareto.CENTRE_BATCH)
        factor = pareto.FACTOR**power
        run = {"warm_up": args.warm_up, "factor": factor}
        return run, WarmUp(top * factor, args.warm_up / size)
    run = {"like": [args.exchange_rate, args.learning_rate], "factor": 2.0**power}
    return run, falling(history, size, run["factor"])


def tuned(
    args: argparse.Namespace, images: np.ndarray, examples: tuple, size: int, adaptive: dict
) -> dict[int, list[dict]]:
    """Runs of one batch size by power of the factor, wider while the best is at the edge."""
    shelf = pareto.Shelf(args.folder / "control.sqlite")
    done: dict[int, list[dict]] = {}
    powers = [-1, 0, 1]
    while missing := [power for power in powers if power not in done]:
        for power in missing:
            done[power] = []
            for seed in range(args.seeds):
                run, schedule = control(args, size, power, adaptive[seed]["history"])
                run |= {
                    "batch_size": size,
                    "seed": seed,
                    "goals": args.goals,
                    "max_examples": args.max_examples,
                }
                found = shelf.get(run)
                if found is None:
                    found = train(args, images, examples, run, schedule)
                    shelf.put(run, found)
                    print(
                        size,
                        run["factor"],
                        seed,
                        [round(s, 1) for s in found["steps_to"]],
                        flush=True,
                    )
                done[power].append(found)
        powers = pareto.wider(done, len(args.goals), args.max_factors)
    return done


def main() -> None:
    """Runs what is missing and prints what the falling learning rate saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--folder", type=Path, default=Path("adaptive_pareto"))
    add("--goals", type=float, nargs="+", default=[0.2, 0.1, 0.05, 0.03])
    add("--batch-sizes", type=int, nargs="+", default=[64, 256])
    add("--control", choices=["warm-up", "temperature"], default="warm-up")
    add("--warm-up", type=int, default=20_000, help="examples")
    add("--exchange-rate", type=float, default=256.0, help="of the adaptive runs to follow")
    add("--learning-rate", type=float, default=0.4, help="of those runs, at their granule")
    add("--seeds", type=int, default=3)
    add("--max-factors", type=int, default=5)
    add("--max-examples", type=int, default=1_800_000)
    args = parser.parse_args()
    images, labels = load_arrays("mnist")
    images = images.reshape(len(images), -1)
    rows = pareto.draw_rows(len(images), args.max_examples)
    examples = (rows, labels[rows].astype(np.int32))
    fixed = SweepRecord.from_json((args.folder / "constant.json").read_text())
    adaptive = adaptive_runs(args.folder, args.exchange_rate, args.learning_rate)
    print("| Goal | batch size | factor | steps | saved over a constant learning rate |")
    print("|---|---|---|---|---|")
    for size in args.batch_sizes:
        done = tuned(args, images, examples, size, adaptive)
        for index, goal in enumerate(fixed.goals):
            costs = {power: mean_cost(runs, index) for power, runs in done.items()}
            reached = {power: cost for power, cost in costs.items() if math.isfinite(cost)}
            best = min(reached, key=reached.__getitem__)
            steps = [run["steps_to"][index] for run in done[best]]
            fronts = [MeasuredFront(*front_of_seed(fixed, index, s)) for s in range(args.seeds)]
            saved = mean_interval(
                [1 - n / front.steps(size) for n, front in zip(steps, fronts, strict=True)]
            )
            mean, low, high = (100 * value for value in saved)
            factor = control(args, size, best, adaptive[0]["history"])[0]["factor"]
            print(
                f"| {goal.threshold:g} | {size} | {factor:.3g} | "
                f"{np.exp(np.mean(np.log(steps))):,.0f} | {mean:.0f} % ({low:.0f} to {high:.0f}) |",
                flush=True,
            )


def adaptive_runs(folder: Path, exchange_rate: float, learning_rate: float) -> dict[int, dict]:
    """Adaptive runs with Eq. A.3 by seed, from the shelf of adaptive_pareto.py."""
    with sqlite3.connect(folder / "adaptive.sqlite") as file:
        rows = file.execute("SELECT run, found FROM runs").fetchall()
    runs = [{**json.loads(run), **json.loads(found)} for run, found in rows]
    return {
        run["seed"]: run
        for run in runs
        if run["exchange_rate"] == exchange_rate
        and run["learning_rate"] == learning_rate
        and isinstance(run["rule"], float)
    }


if __name__ == "__main__":
    main()
