"""What `advise` itself predicts, from its own short run, against the swept critical batch sizes.

    python benchmarks/calibration_advise.py --folder calibration   # in which calibration.py ran

For every task `advise(..., target_loss=goal)` at the base batch size and the sweep's best learning
rate there. The budget is a share of the examples of the run to the goal where that is long enough
(tasks named "long"), else one pass over the data, which is 5 % of a run of 20: the trial run ends
when it has seen enough, and what is beyond is forecast.
Then, with trial runs of 5 % of the run to the last goal of the long tasks, what takes their own
noise scales to the critical batch sizes of runs of two passes and more. Then the growth of the
critical batch size with the length of runs that see every example once (tasks named "fresh"), from
5 % of them: `advise(..., run_examples=...)`, and the exponent of the law.
"""

import argparse
import functools
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from calibration_predictors import truth
from calibration_tasks import TASKS, Task

from gns_keras import SweepResult, advise
from gns_keras.core.advice import Advice
from gns_keras.core.calibrated import GROWTH, MOMENTUM, SGD, between_weights
from gns_keras.core.calibration import (
    MIN_TASKS,
    Calibration,
    CalibrationPoint,
    fit_calibration,
    leave_one_task_out,
    score_calibration,
)
from gns_keras.core.critical_batch_size import CriticalBatchSize, predicted_critical_batch_size
from gns_keras.core.evidence import Evidence
from gns_keras.core.run_forecast import forecast_run
from gns_keras.core.sweep_result import SweepRecord
from gns_keras.core.tradeoff_result import Tradeoff

EPOCHS = 20
SHARE = 0.05


def ask(task: Task, rate: float, seed: int, budget: int, goal: float | None = None) -> Advice:
    """One call of `advise` on a new model."""
    keras.utils.set_random_seed(seed)
    model = task.build_model()
    model.optimizer.learning_rate = rate
    return advise(
        model,
        task.examples(),
        batch_size=task.base_batch_size,
        budget=budget,
        target_loss=goal,
        learning_rate="keep",
        seed=seed,
        verbose=0,
    )


def asked(task: Task, rate: float, goal: float, seed: int, budget: int) -> dict:
    """What one call of `advise` says."""
    advice = ask(task, rate, seed, budget, goal)
    return {
        "value": advice.critical_batch_size,
        "interval": advice.interval,
        "examples": advice.examples_used,
        "reached": advice.forecast.reached_loss if advice.forecast else math.nan,
        "budget": budget,
    }


def main() -> None:
    """Prints one row for every task and goal; finished ones are kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("calibration"))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[SHARE], help="budgets of the long tasks"
    )
    parser.add_argument("--plot", type=Path, help="figure of the growth")
    parser.add_argument("--part", choices=list(PARTS), help="only this")
    args = parser.parse_args()
    for name, part in PARTS.items():
        if args.part in (None, name):
            part(args)


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
    store, points, inside, asked_for = Store(args.folder / "advise.json"), [], [], 0
    for task, fit, goal, budget, run in questions(args):
        rate = best_rate(swept_of(task.name, args.folder))
        for seed in range(args.seeds):
            call = functools.partial(asked, task, rate, goal, seed, budget)
            found = store.get(f"{task.name}/{goal}/{budget}/{seed}", call)
            asked_for += 1
            measured, (low, high) = fit.critical_batch_size, found["interval"]
            if found["value"] > 0 and measured > 0:
                inside.append(low <= measured <= high)
                points.append(point_of(task, found["value"], measured))
            print(
                f"| {task.name} | {goal:g} | {measured:.0f} ({fit.interval[0]:.0f} to "
                f"{fit.interval[1]:.0f}) | {found['value']:.0f} ({low:.0f} to {high:.0f}) | "
                f"{found['value'] / measured:.2f} | {found['reached']:.3g} | "
                f"{found['examples']:,} | {found['examples'] / run:.1%} | "
                f"{found['examples'] / (EPOCHS * task.num_examples):.1%} |",
                flush=True,
            )
    if points:
        print(
            f"{asked_for} asked, {score_of(points)}"
            f"{sum(inside)} of {len(inside)} inside of the interval"
        )


def questions(args: argparse.Namespace) -> Iterator[tuple[Task, Tradeoff, float, int, float]]:
    """Tasks with what was swept, goals, budgets, and the examples of the run to the goal."""
    for name in args.tasks:
        task, result = TASKS[name], swept_of(name, args.folder)
        if result is None:
            continue
        for goal in (task.goals[1], task.goals[-1]):
            fit, run = truth(result, goal), examples_to(result, task, goal)
            if math.isfinite(fit.critical_batch_size):
                shares = args.shares if name.endswith("_long") else ()
                for budget in [int(share * run) for share in shares] or [task.num_examples]:
                    yield task, fit, goal, budget, run


def examples_to(result: SweepRecord, task: Task, goal: float) -> float:
    """Examples of the best run at the base batch size to a goal: what a user would train."""
    steps = next(b.steps for b in result.best(goal) if b.batch_size == task.base_batch_size)
    return task.base_batch_size * steps


def trial(task: Task, rate: float, seed: int, budget: int) -> dict:
    """What lies between both noise scales of the trial run of `advise`."""
    advice = ask(task, rate, seed, budget)
    value, interval = between_weights(advice.noise_scale, advice.mean_noise_scale)
    return {"value": value, "interval": interval, "examples": advice.examples_used}


def long_runs(args: argparse.Namespace) -> None:
    """From the first twentieth of a run to the critical batch size of all of it."""
    store, points = Store(args.folder / "advise_long.json"), []
    for name in args.tasks:
        task, sweep = TASKS[name], args.folder / f"{name}_sweep.json"
        if not (name.endswith("_long") and sweep.exists()):
            continue
        result = SweepResult.from_json(sweep.read_text())
        rate = best_rate(result)
        fits = {goal: truth(result, goal) for goal in task.goals[1:]}
        known = [goal for goal, fit in fits.items() if fit.critical_batch_size > 0]
        budget = int(SHARE * examples_to(result, task, known[-1]))
        found = [
            store.get(f"{name}/{seed}", functools.partial(trial, task, rate, seed, budget))
            for seed in range(args.seeds)
        ]
        values = [one["value"] for one in found if one["value"] > 0]
        examples = max(one["examples"] for one in found)
        measured = ", ".join(f"{fits[goal].critical_batch_size:.0f} ({goal:g})" for goal in known)
        print(
            f"| {name} | {examples:,} | {examples / examples_to(result, task, known[-1]):.1%} | "
            f"{', '.join(f'{value:.0f}' for value in values)} | {measured} |",
            flush=True,
        )
        if values:
            middle = math.exp(sum(math.log(value) for value in values) / len(values))
            points += [point_of(task, middle, fits[goal].critical_batch_size) for goal in known]
    if len({point.task for point in points}) > MIN_TASKS:
        print(fit_calibration(points))
        print("one task left out:", leave_one_task_out(points))


def best_rate(result: SweepResult) -> float:
    """The sweep's best learning rate at the base batch size, for the last goal."""
    return result.best(result.goals[-1])[0].learning_rate


def growth(args: argparse.Namespace) -> None:
    """From a twentieth of a run to its critical batch size, with the length of the run given."""
    store, asked_for = Store(args.folder / "advise_growth.json"), 0
    trials: list[Trial] = []
    for name in args.tasks:
        task, sweep = TASKS[name], args.folder / f"{name}_sweep.json"
        if not (name.endswith("_fresh") and sweep.exists()):
            continue
        result = SweepResult.from_json(sweep.read_text())
        rate = best_rate(result)
        for goal in (task.goals[1], task.goals[-1]):
            run, fit = examples_to(result, task, goal), truth(result, goal)
            if not fit.resolved:
                print(f"| {name} | {goal:g} | {run / 1000:.0f} | unresolved |")
                continue
            for seed in range(args.seeds):
                call = functools.partial(of_length, task, rate, seed, int(run))
                advice = Advice.from_json(json.dumps(store.get(f"{name}/{goal}/{seed}", call)))
                trial = Trial(task, run, fit.critical_batch_size, advice)
                asked_for += 1
                said = trial.said
                if said.resolved:
                    trials.append(trial)
                print(
                    f"| {name} | {goal:g} | {run / 1000:.0f} | {advice.examples_used / run:.1%} | "
                    f"{trial.ratio:.0f} | {trial.measured:.0f} ({fit.interval[0]:.0f} to "
                    f"{fit.interval[1]:.0f}) | {said.value:.0f} ({said.interval[0]:.0f} to "
                    f"{said.interval[1]:.0f}) | {said.value / trial.measured:.2f} | "
                    f"{trial.exponent:.2f} |",
                    flush=True,
                )
    if args.plot is not None:
        draw_growth(args.folder, args.plot)
    if len({trial.task.name for trial in trials}) <= MIN_TASKS:
        return
    print(f"{asked_for} asked")
    print("as the package says it:", score_of([trial.point(trial.said.value) for trial in trials]))
    # Of exp(s), so that the mean and the spread of s are those of its logarithm.
    points = [point_of(t.task, 1.0, math.exp(t.exponent), "all") for t in trials]
    law = fit_calibration(points)["all"]
    logs = [math.log(trial.ratio) for trial in trials]
    level = float(np.mean([calibration_of(trial.task).log_spread for trial in trials]))
    of_factors = level / float(np.mean(logs))
    print(
        f"exponent {math.log(law.factor):.3f}, spread {law.log_spread:.3f}, degrees of freedom "
        f"{law.degrees_of_freedom:.1f}, {law.num_tasks} tasks, up to {math.exp(max(logs)):.0f} "
        f"times the trial run; the spread of the factors makes {of_factors:.3f} of it, which "
        f"leaves {law.log_spread**2 - of_factors**2:.4f} of the square"
    )
    left_out = []
    for trial in trials:
        others = [p for p in points if p.task != trial.task.name]
        left_out.append(trial.grown_by(math.log(fit_calibration(others)["all"].factor)))
    print("exponent from the other tasks:", score_of(left_out))
    print("no growth:", score_of([trial.grown_by(0.0) for trial in trials]))
    inside = [t.said.interval[0] <= t.measured <= t.said.interval[1] for t in trials]
    print(f"{sum(inside)} of {len(inside)} inside of the interval")


class Trial(NamedTuple):
    """One answer of `advise` about a run whose critical batch size is known.

    Attributes:
        task: The task.
        run: Examples of the run to the goal.
        measured: Critical batch size, by the sweep.
        advice: The answer, for its measurements.
    """

    task: Task
    run: float
    measured: float
    advice: Advice

    @property
    def said(self) -> CriticalBatchSize:
        """What the package says of these measurements, with the constants that it has now."""
        advice, size = self.advice, self.task.base_batch_size
        forecast = forecast_run(
            advice.points, size, run_examples=int(self.run), dataset_size=self.task.max_examples
        )
        evidence = Evidence(
            noise_scale=advice.noise_scale,
            mean_noise_scale=advice.mean_noise_scale,
            base_batch_size=size,
            base_learning_rate=advice.base_learning_rate,
            calibration=calibration_of(self.task),
            forecast=forecast,
        )
        return predicted_critical_batch_size(evidence)

    @property
    def ratio(self) -> float:
        """Length of the run over that of the trial run."""
        return self.run / self.advice.points[-1].examples_seen

    @property
    def exponent(self) -> float:
        """By which what holds for the trial run would have to grow to be right."""
        return math.log(self.measured / self._at_trial) / math.log(self.ratio)

    @property
    def _at_trial(self) -> float:
        both = between_weights(self.advice.noise_scale, self.advice.mean_noise_scale)[0]
        return calibration_of(self.task).factor * both

    def grown_by(self, exponent: float) -> CalibrationPoint:
        """The prediction with an exponent of one's own."""
        return self.point(self._at_trial * self.ratio**exponent)

    def point(self, value: float) -> CalibrationPoint:
        """A prediction beside what was measured."""
        return point_of(self.task, value, self.measured)


def draw_growth(folder: Path, path: Path) -> None:
    """Critical batch sizes against the length of the runs, with and without repetition."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    titles = {"fresh": "every example once", "long": "3 to 20 passes"}
    found = {(n.rpartition("_")[0], n.rpartition("_")[2]) for n in TASKS if swept_of(n, folder)}
    lines = {}
    for number, name in enumerate(sorted({name for name, kind in found if kind in titles})):
        for axis, kind in zip(axes, titles, strict=True):
            if (name, kind) not in found:
                continue
            task = TASKS[f"{name}_{kind}"]
            result = swept_of(task.name, folder)
            fits = {goal: truth(result, goal) for goal in task.goals}
            known = [goal for goal, fit in fits.items() if fit.critical_batch_size > 0]
            lengths = [examples_to(result, task, goal) for goal in known]
            values = np.array([fits[goal].critical_batch_size for goal in known])
            low, high = np.transpose([fits[goal].interval for goal in known])
            lines[name.replace("_", " ")] = axis.errorbar(
                lengths, values, [values - low, high - values], fmt="o-", capsize=2,
                markersize=4, linewidth=1, color=colormaps["tab20"](number),
            )  # fmt: skip
    lengths = np.array([5e4, 1e6])
    for axis, title in zip(axes, titles.values(), strict=True):
        law = 100 * (lengths / lengths[0]) ** GROWTH.exponent
        (lines[f"to the power {GROWTH.exponent:.2f}"],) = axis.plot(lengths, law, "k--")
        axis.set(xscale="log", yscale="log", ylim=(8, 6000), title=title)
        axis.set_xlabel("examples of the run at the smallest batch size")
    axes[0].set_ylabel("critical batch size, examples")
    figure.legend(list(lines.values()), list(lines), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=150)


def swept_of(name: str, folder: Path) -> SweepResult | None:
    """The sweep of a task, if it is there."""
    path = folder / f"{name}_sweep.json"
    return SweepResult.from_json(path.read_text()) if path.exists() else None


def of_length(task: Task, rate: float, seed: int, run: int) -> dict:
    """What `advise` says of a run of given length, all of it."""
    keras.utils.set_random_seed(seed)
    model = task.build_model()
    model.optimizer.learning_rate = rate
    advice = advise(
        model, task.examples(), batch_size=task.base_batch_size, run_examples=run,
        learning_rate="keep", seed=seed, verbose=0,
    )  # fmt: skip
    return json.loads(advice.to_json())


def point_of(task: Task, predicted: float, measured: float, family: str = "") -> CalibrationPoint:
    """One goal of one task."""
    return CalibrationPoint(
        task=task.name,
        optimizers=family or task.family,
        noise_scale=predicted,
        critical_batch_size=measured,
    )


def score_of(points: list[CalibrationPoint]) -> str:
    """How good predictions are as they stand."""
    one = Calibration(factor=1.0, log_spread=0.0, degrees_of_freedom=1.0)
    score = score_calibration(points, {point.optimizers: one for point in points})
    return (
        f"{score.num_points} resolved: {score.share_within:.0%} within a factor of 2, worst "
        f"{score.worst_ratio:.1f}, R² {score.r_squared:.2f} over {score.decades:.1f} decades; "
    )


def calibration_of(task: Task) -> Calibration:
    """Of the class of the task's optimizer."""
    return SGD if task.family == "sgd" else MOMENTUM


PARTS = {"predict": predict, "long": long_runs, "growth": growth}

if __name__ == "__main__":
    main()
