"""Noise scales along runs: `B_simple` of frozen weights, and `B_noise` where it is defined.

Runs of three further seeds at the smallest batch size with its best learning rate, as
`benchmarks/calibration_run.py` measures them: at log-spaced steps three snapshots of `B_simple`,
and Hessian-vector products. Runs that a calibration folder holds are used as they are.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import benchmarks_path  # noqa: F401
import numpy as np
from calibration import RUN_SEEDS, base_run
from calibration_predictors import Predicted, predict
from calibration_run import MeasuredTraining, measure
from calibration_tasks import Task
from scaling_tasks import SGD_TASK, TASKS, write
from scipy import stats

from gns_keras.core.sweep_result import SweepRecord

NO_DELAY = 1e-9
LOSSES = {SGD_TASK: (1.2, 1.0, 0.9, 0.8, 0.7, 0.6, 0.55, 0.5, 0.46)}


def noise_runs(
    name: str, result: SweepRecord, folder: Path, *, may_run: bool = True
) -> list[dict[str, Any]]:
    """Measured runs of a task; makes those that are missing.

    Args:
        name: Of the task.
        result: Its sweep, which knows the learning rate.
        folder: Where `<task>_<seed>.json` are kept.
        may_run: Whether to make any.
    """
    paths = [folder / f"{name}_{seed}.json" for seed in RUN_SEEDS]
    if not may_run:
        return [json.loads(path.read_text()) for path in paths if path.exists()]
    rate, first = base_run(result)
    training = None
    for seed, path in zip(RUN_SEEDS, paths, strict=True):
        if not path.exists():
            training = training or MeasuredTraining(measured_task(name))
            found = measure(training, seed, rate, first)
            write(path, json.dumps(found))
            print(f"{name}, seed {seed}: measured to {found['steps_to']} steps", flush=True)
    return [json.loads(path.read_text()) for path in paths]


def measured_task(name: str) -> Task:
    """The task with goals of training loss."""
    return replace(TASKS[name], goals=LOSSES.get(name, TASKS[name].goals))


@dataclass(frozen=True, kw_only=True)
class NoisePoint:
    """Noise scales at one step of the runs.

    Attributes:
        loss: Training loss around it, over a factor of 1.5 in steps; mean of the runs.
        simple: Geometric mean over the runs of `B_simple`, and its Student-t interval.
        noise: `B_noise`: ratio of the sums over the runs; NaN where a sum is not positive, or where
            there are no Hessian-vector products.
        noise_runs: The same of every run.
    """

    loss: float
    simple: float
    interval: tuple[float, float]
    noise: float
    noise_runs: tuple[float, ...]


def noise_points(runs: list[dict[str, Any]]) -> list[NoisePoint]:
    """The points that all runs have."""
    found = []
    for points in zip(*(run["points"] for run in runs), strict=False):
        scales = [_simple(point) for point in points]
        curved = [(p["curvature"].get("trace"), p["curvature"].get("grad")) for p in points]
        pairs = np.array([pair for pair in curved if pair[0] is not None], dtype=float)
        losses = [_loss(run, point["steps"]) for run, point in zip(runs, points, strict=True)]
        value, ends = geometric_mean(scales)
        found.append(
            NoisePoint(
                loss=float(np.mean(losses)),
                simple=value,
                interval=ends,
                noise=_ratio(*pairs.sum(axis=0)) if len(pairs) else math.nan,
                noise_runs=tuple(_ratio(*pair) for pair in pairs),
            )
        )
    return found


def average_to(runs: list[dict[str, Any]], name: str, loss: float) -> dict[str, Predicted]:
    """Averages up to a training loss with the weights of appendix D, by predictor.

    Args:
        runs: Measured.
        name: Of the task.
        loss: The goal.
    """
    task = measured_task(name)
    reached = [_steps_to(run, loss, task) for run in runs]
    late = [run | {"steps_to": [steps]} for run, steps in zip(runs, reached, strict=True)]
    # No delay to take off: the steps are those of a centred mean.
    return predict(late, [], 0, task.base_batch_size, half_life=NO_DELAY)


def geometric_mean(values: list[float]) -> tuple[float, tuple[float, float]]:
    """Geometric mean and its 95 % Student-t interval; NaN with a value that has no logarithm."""
    if not all(math.isfinite(value) and value > 0 for value in values):
        return math.nan, (math.nan, math.nan)
    logs = np.log(values)
    if len(logs) < 2:
        return math.exp(logs.mean()), (math.nan, math.nan)
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    return math.exp(logs.mean()), (math.exp(logs.mean() - half), math.exp(logs.mean() + half))


def smooth_losses(run: dict[str, Any], steps: np.ndarray, factor: float = 1.5) -> np.ndarray:
    """Mean training loss of the batches from `steps/sqrt(factor)` to `steps sqrt(factor)`."""
    total = np.concatenate([[0.0], np.cumsum([row[0] for row in run["series"]])])
    low = np.floor(steps / math.sqrt(factor)).astype(int)
    high = np.minimum(np.ceil(steps * math.sqrt(factor)).astype(int), len(total) - 1)
    low = np.minimum(low, high - 1)
    return (total[high] - total[low]) / (high - low)


def _steps_to(run: dict[str, Any], loss: float, task: Task) -> float:
    steps = np.geomspace(1, len(run["series"]), 400)
    below = np.flatnonzero(smooth_losses(run, steps) <= loss)
    return float(steps[below[0]]) if below.size else math.nan


def _loss(run: dict[str, Any], steps: int) -> float:
    return float(smooth_losses(run, np.array([float(steps)]))[0])


def _simple(point: dict[str, Any]) -> float:
    """Geometric mean of the snapshots; the ratio of the sums where one is not positive."""
    trace, grad = np.array([snapshot["simple"][:2] for snapshot in point["snapshots"]]).T
    if np.all(grad > 0):
        return float(np.exp(np.log(trace / grad).mean()))
    return _ratio(trace.sum(), grad.sum())


def _ratio(trace: float, grad: float) -> float:
    return float(trace / grad) if trace > 0 and grad > 0 else math.nan
