"""How much of a run must have been seen to tell its critical batch size?

    python benchmarks/calibration_shares.py --folder calibration [--plot docs/shares.png]

For the tasks named "fresh", whose runs `calibration.py` measured from early on: the predictor of
the package from a share of the run, against the critical batch size of all of it. Factors are those
of the package. What the critical batch size still grows by is the geometric mean of the *other*
tasks at that share. Shares count training; what measuring takes comes on top.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from calibration_advise import calibration_of, point_of, score_of, swept_of
from calibration_predictors import delay, of_run, read_runs, truth
from calibration_tasks import TASKS, Task

from gns_keras.core.calibration import CalibrationPoint

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
FACTORS = (2.0, 3.0)


class Seen(NamedTuple):
    """What one run says of one goal."""

    task: Task
    predicted: float
    measured: float


def main() -> None:
    """Prints a row for every share, and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("calibration"))
    parser.add_argument("--plot", type=Path, help="figure of the table")
    args = parser.parse_args()
    print("| Share of the run | Within 2 | Within 3 | all | growth |")
    found = {}
    for share in SHARES:
        seen = [one for name in TASKS for one in seen_of(name, args.folder, share)]
        points, growth = grown(seen)
        errors = np.array([abs(math.log(p.noise_scale / p.critical_batch_size)) for p in points])
        found[share] = [float(np.mean(errors <= math.log(factor))) for factor in FACTORS]
        cells = " | ".join(f"{within:.0%}" for within in found[share])
        print(f"| {share:.0%} | {cells} | {score_of(points)} | {growth:.2f} |", flush=True)
    if args.plot is not None:
        draw(found, args.plot)


def seen_of(name: str, folder: Path, share: float) -> list[Seen]:
    """What every run of a task says of every goal after a share of the way there."""
    task, result = TASKS[name], swept_of(name, folder)
    if not task.shift or result is None:
        return []
    late, size = delay(task.base_batch_size, task.half_life), task.base_batch_size
    found = []
    for index, goal in enumerate(task.goals):
        fit = truth(result, goal)
        for run in read_runs(folder, name)[0]:
            steps = run["steps_to"][index] - late
            if fit.resolved and steps > 0:
                predicted = calibration_of(task).factor * of_run("both", run, share * steps, size)
                found.append(Seen(task, predicted, fit.critical_batch_size))
    return found


def grown(seen: Sequence[Seen]) -> tuple[list[CalibrationPoint], float]:
    """Predictions, times what the other tasks grew by; and the mean of that over all tasks."""
    of_task: dict[str, list[float]] = {}
    for one in seen:
        of_task.setdefault(one.task.name, []).append(math.log(one.measured / one.predicted))
    means = {name: float(np.mean(logs)) for name, logs in of_task.items()}
    points = []
    for one in seen:
        others = [mean for name, mean in means.items() if name != one.task.name]
        value = one.predicted * math.exp(float(np.mean(others)))
        points.append(point_of(one.task, value, one.measured))
    return points, math.exp(float(np.mean(list(means.values()))))


def draw(found: dict[float, list[float]], path: Path) -> None:
    """Shares of goals within a factor, against the share of the run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axis = figure.subplots()
    shares = np.array(list(found))
    for index, factor in enumerate(FACTORS):
        within = [100 * row[index] for row in found.values()]
        axis.plot(100 * shares, within, "o-", label=f"within a factor of {factor:g}")
    axis.axhline(90, color="0.6", linestyle="--")
    axis.set(xscale="log", ylim=(0, 103), xlabel="share of the run that was seen, %")
    axis.set(ylabel="goals, %", xticks=100 * shares, xticklabels=[f"{100 * s:g}" for s in shares])
    axis.minorticks_off()
    axis.legend(loc="lower right")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
