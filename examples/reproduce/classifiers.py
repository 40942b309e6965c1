"""What figures 7, 14 and 19 have in common: classifiers, their fronts and their noise scales."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import benchmarks_path  # noqa: F401
import numpy as np
from scaling_curves import Front, crossing, curve, front, recorded
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
from scaling_tasks import SGD_TASK, TASKS, present, swept

from gns_keras.core.sweep_policy import RunKey
from gns_keras.core.sweep_result import SweepRecord

# In the place of the paper's SVHN with SGD, MNIST with SGD, SVHN with Adam, CIFAR-10 with momentum.
CLASSIFIERS = (SGD_TASK, "mnist_mlp_sgd", "fashion_cnn_adam", "cifar10_mlp_sgd")
ERRORS = {
    SGD_TASK: (0.35, 0.3, 0.25, 0.22, 0.2, 0.18, 0.165),
    "mnist_mlp_sgd": (0.15, 0.12, 0.1, 0.08, 0.06, 0.045),
    "fashion_cnn_adam": (0.35, 0.3, 0.26, 0.23, 0.2),
    "cifar10_mlp_sgd": (0.72, 0.69, 0.66, 0.63),
}
TITLES = {
    SGD_TASK: "Fashion-MNIST, CNN, SGD",
    "mnist_mlp_sgd": "MNIST, dense, SGD",
    "fashion_cnn_adam": "Fashion-MNIST, CNN, Adam",
    "cifar10_mlp_sgd": "CIFAR-10, dense, SGD",
}


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """All that is known of a task.

    Attributes:
        name: Of the task.
        result: Its sweep.
        runs: Recorded runs.
        noise: Runs along which the noise scale was measured.
    """

    name: str
    result: SweepRecord
    runs: dict[RunKey, dict[str, list]]
    noise: list[dict[str, Any]]

    @classmethod
    def read(cls, name: str, folder: Path, seeds: int) -> "Classifier":
        """From the folder; what is missing is run."""
        result = swept(TASKS[name], folder, seeds=seeds)
        return cls(
            name=name,
            result=result,
            runs=recorded(name, result, folder),
            noise=noise_runs(name, result, folder),
        )

    def fronts(self, split: str) -> list[Front]:
        """Fits for the error goals that three batch sizes or more have reached."""
        found = [front(self.runs, split, "error", error) for error in ERRORS[self.name]]
        return [one for one in found if one is not None]

    def points(self, split: str) -> tuple[np.ndarray, list[NoisePoint]]:
        """Noise scales along the runs, and the errors there, by way of the training loss."""
        points = noise_points(self.noise)
        losses, errors = self._along_base(split)
        order = np.argsort(losses)
        at = np.interp([p.loss for p in points], losses[order], errors[order])
        return at, points

    def average(self, split: str, error: float) -> dict[str, Any]:
        """Noise scales averaged up to an error."""
        losses, errors = self._along_base(split)
        below = np.flatnonzero(errors <= error)
        loss = float(losses[below[0]]) if below.size else math.nan
        return average_to(self.noise, self.name, loss)

    def _along_base(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Training loss and error of a split along the run that learns most at the base size."""
        size = min(key.batch_size for key in self.runs)
        last = ERRORS[self.name][-1]
        own = {k: crossing(r, "train", "error", last) for k, r in self.runs.items()
               if k.batch_size == size}  # fmt: skip
        key = min(own, key=lambda k: np.nan_to_num(own[k], nan=np.inf))
        return curve(self.runs[key], "train", "loss")[1], curve(self.runs[key], split, "error")[1]


def draw_row(axes: Sequence[Any], one: Classifier, split: str, *, hessian: bool) -> list[Front]:
    """Fronts on the left, critical batch sizes and noise scales on the right."""
    what = "training error" if split == "train" else "test error"
    fronts = one.fronts(split)
    draw_fronts(axes[0], fronts, "examples", TITLES[one.name], what)
    draw_critical(axes[1], fronts, "examples", what)
    draw_noise(axes[1], *one.points(split), hessian=hessian)
    averages = [one.average(split, front.goal)["frozen"] for front in fronts]
    draw_averages(axes[1], [front.goal for front in fronts], averages)
    limits(axes[1], fronts)
    axes[1].legend(fontsize=7)
    return fronts


def report(one: Classifier, split: str, *, hessian: bool) -> None:
    """Prints a table: a row for every goal."""
    print(f"\n{TITLES[one.name]}, {split} error")
    head = "goal | sizes | critical batch size | rms | exponent | B_simple, averaged"
    print(head + (" | B_noise, averaged" if hessian else ""))
    for found in one.fronts(split):
        fit, average = found.fit, one.average(split, found.goal)
        cells = [f"{found.goal:g}", f"{len(found.rates)}"]
        cells += [interval(fit.critical_batch_size, fit.interval), f"{fit.residual_rms:.3f}"]
        cells.append(interval(fit.exponent, fit.exponent_interval))
        for name in ("frozen", "hessian") if hessian else ("frozen",):
            cells.append(interval(average[name].value, average[name].interval))
        print(" | ".join(cells), flush=True)


def figure(args: argparse.Namespace, split: str, *, hessian: tuple[str, ...] = ()) -> None:
    """Prints the tables of all tasks, and draws a row of panels for each."""
    names = present(args)
    drawing, axes = new_figure(len(names))
    for row, name in zip(axes, names, strict=True):
        one = Classifier.read(name, args.folder, args.seeds)
        report(one, split, hessian=name in hessian)
        draw_row(row, one, split, hessian=name in hessian)
    if args.plot:
        save(drawing, args.plot)
