"""A row of panels for each task, and its table: figures 7, 9 and 14.

Left the Pareto fronts of a sweep, right the critical batch sizes and the noise scale. Goals are
those of the sweep: training errors or losses, where a moving average of the batches' values comes
below them, less the delay of the average. Goals that it delays by more than half of their least
examples are left out.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import benchmarks_path  # noqa: F401
import numpy as np
from calibration_predictors import delay, predict
from calibration_tasks import Task
from scaling_curves import Front, crossing, curve, recorded
from scaling_noise import NoisePoint, average_to, noise_points, noise_runs
from scaling_plots import (
    draw_averages,
    draw_critical,
    draw_fronts,
    draw_noise,
    interval,
    limits,
    new_figure,
    save,
)
from scaling_tasks import TASKS, ErrorTask, goals_of, present, swept

from gns_keras.core.sweep_policy import RunKey
from gns_keras.core.sweep_result import SweepRecord
from gns_keras.core.tradeoff_fit import fit_tradeoff

MIN_SIZES = 3


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All that is known of a task.

    Attributes:
        task: The task.
        result: Its sweep.
        noise: Runs along which the noise scale was measured; none where they are missing.
        curves: Recorded runs, which say what training loss goes with an error.
    """

    task: Task
    result: SweepRecord
    noise: list[dict[str, Any]]
    curves: dict[RunKey, dict[str, list]]

    @classmethod
    def read(cls, name: str, args: argparse.Namespace) -> "Measured":
        """From the folder; what is missing is run, unless that is not wanted."""
        task, folder = TASKS[name], args.folder
        result = swept(task, folder, seeds=args.seeds)
        errors = isinstance(task, ErrorTask)
        may_run = not args.only_from_folder
        return cls(
            task=task,
            result=result,
            noise=noise_runs(name, result, folder, may_run=may_run),
            curves=recorded(name, result, folder, may_run=may_run) if errors else {},
        )

    @property
    def metric(self) -> str:
        """What the goals are of."""
        return "training error" if isinstance(self.task, ErrorTask) else "training loss"

    def fronts(self) -> list[Front]:
        """Fits for every goal that three batch sizes or more have reached."""
        found = []
        for value, goal in zip(self.task.goals, goals_of(self.task), strict=True):
            best = self.result.best(goal)
            least = min((one.steps * one.batch_size for one in best), default=math.nan)
            if len(best) >= MIN_SIZES and delay(1, self.result.half_life) < least / 2:
                rates = {one.batch_size: one.learning_rate for one in best}
                index = self.result.goals.index(goal)
                sizes, steps = _without_delay(self.result, rates, index)
                found.append(Front(goal=value, rates=rates, fit=fit_tradeoff(sizes, steps)))
        return found

    def points(self) -> tuple[np.ndarray, list[NoisePoint]]:
        """Noise scales along the runs, and the losses or errors there."""
        points = noise_points(self.noise)
        losses = [point.loss for point in points]
        if not self.curves:
            return np.array(losses), points
        known, errors = self._along_base()
        order = np.argsort(known)
        return np.interp(losses, known[order], errors[order]), points

    def average(self, goal: float) -> dict[str, Any]:
        """Noise scales averaged up to a goal with the weights of appendix D."""
        task = self.task
        if not self.curves:
            index = task.goals.index(goal)
            return predict(self.noise, [], index, task.base_batch_size, task.half_life)
        losses, errors = self._along_base()
        below = np.flatnonzero(errors <= goal)
        loss = float(losses[below[0]]) if below.size else math.nan
        return average_to(self.noise, task.name, loss)

    def _along_base(self) -> tuple[np.ndarray, np.ndarray]:
        """Training losses and errors along the best run at the smallest batch size."""
        size = min(key.batch_size for key in self.curves)
        own = {k: run for k, run in self.curves.items() if k.batch_size == size}
        last = min(run["values"][-1][0][1] for run in own.values()) * 1.1
        steps = {k: crossing(run, "train", "error", last) for k, run in own.items()}
        run = own[min(own, key=lambda k: np.nan_to_num(steps[k], nan=np.inf))]
        return curve(run, "train", "loss")[1], curve(run, "train", "error")[1]


def _without_delay(
    result: SweepRecord, rates: Mapping[int, float], index: int
) -> tuple[list[int], list[float]]:
    sizes, steps = [], []
    for record in result.records:
        if rates.get(record.batch_size) == record.learning_rate and record.seed in result.seeds:
            sizes.append(record.batch_size)
            steps.append(record.steps_to[index] - delay(record.batch_size, result.half_life))
    return sizes, steps


def draw_row(axes: Sequence[Any], one: Measured, title: str, *, hessian: bool) -> None:
    """Fronts on the left, critical batch sizes and noise scales on the right."""
    fronts = one.fronts()
    draw_fronts(axes[0], fronts, one.task.unit, title, one.metric)
    draw_critical(axes[1], fronts, one.task.unit, one.metric)
    if one.noise:
        draw_noise(axes[1], *one.points(), hessian=hessian)
        averages = [one.average(front.goal)["frozen"] for front in fronts]
        draw_averages(axes[1], [front.goal for front in fronts], averages)
    limits(axes[1], fronts)
    axes[1].legend(fontsize=7)


def report(one: Measured, title: str, *, hessian: bool) -> None:
    """Prints a table: a row for every goal."""
    names = ["frozen", "hessian"] if hessian else ["frozen"]
    print(f"\n{title}, {one.metric}; {len(one.result.seeds)} seeds, {len(one.noise)} noise runs")
    print("goal | sizes | critical batch size | rms | exponent | B_simple, averaged | over critical"
          + (" | B_noise, averaged | over critical" if hessian else ""))  # fmt: skip
    for front in one.fronts():
        fit = front.fit
        cells = [f"{front.goal:g}", f"{len(front.rates)}"]
        cells += [interval(fit.critical_batch_size, fit.interval), f"{fit.residual_rms:.3f}"]
        cells.append(interval(fit.exponent, fit.exponent_interval))
        for name in names if one.noise else ():
            average = one.average(front.goal)[name]
            cells.append(interval(average.value, average.interval))
            cells.append(f"{average.value / fit.critical_batch_size:.2f}")
        print(" | ".join(cells), flush=True)


def figure(args: argparse.Namespace, titles: Mapping[str, str], *, hessian: bool = False) -> None:
    """Prints the tables of the tasks that are asked for, and draws a row of panels for each."""
    names = present(args)
    drawing, axes = new_figure(len(names))
    for row, name in zip(axes, names, strict=True):
        one = Measured.read(name, args)
        report(one, titles[name], hessian=hessian)
        draw_row(row, one, titles[name], hessian=hessian)
    if args.plot:
        save(drawing, Path(args.plot))
