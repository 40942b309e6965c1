"""The tables and the figure of docs/validation.md, from what `calibration.py` keeps."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration_predictors import PREDICTORS, Predicted, predict, read_runs, truth
from calibration_tasks import TASKS, Task

from gns_keras.core.calibration import (
    Calibration,
    CalibrationPoint,
    CalibrationScore,
    fit_calibration,
    leave_one_task_out,
    score_calibration,
)
from gns_keras.core.intervals import student_quantile
from gns_keras.core.sweep_result import SweepRecord
from gns_keras.core.tradeoff_result import Tradeoff

EPOCHS = 20
BASIS = "both"  # The predictor that is calibrated.
SHARES_OF_MEAN = tuple(tenths / 10 for tenths in range(11))
# What one could say without measuring: a constant for every one of these kinds.
WITHOUT_MEASURING = {
    "a constant for the optimizer": lambda task: task.family,
    "and another for autoencoders": lambda task: (
        task.family + " autoencoder" * task.compares_pixels
    ),
}
COLOURS = {"sgd": "#0072b2", "momentum": "#d55e00", "adam": "#009e73", "rmsprop": "#cc79a7"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One goal of one task.

    Attributes:
        task: The task.
        goal: Training loss.
        measured: The sweep's fit.
        predicted: By predictor.
    """

    task: Task
    goal: float
    measured: Tradeoff
    predicted: dict[str, Predicted]

    def point(self, name: str) -> CalibrationPoint | None:
        """What is calibrated, or None where either side is unresolved."""
        value, critical = self.predicted[name].value, self.measured.critical_batch_size
        if not (math.isfinite(value) and math.isfinite(critical)):
            return None
        return CalibrationPoint(
            task=self.task.name,
            optimizers=self.task.family,
            noise_scale=value,
            critical_batch_size=critical,
        )


def gather(folder: Path) -> list[Row]:
    """Every goal of every task whose runs and sweep are there.

    Args:
        folder: What `calibration.py` keeps.
    """
    rows = []
    for task in TASKS.values():
        runs, branches = read_runs(folder, task.name)
        if len(runs) < 2:
            continue
        for goal, fit in measured_of_folder(task, folder).items():
            index = task.goals.index(goal)
            predicted = predict(runs, branches, index, task.base_batch_size, task.half_life)
            rows.append(Row(task=task, goal=goal, measured=fit, predicted=predicted))
    return rows


def measured_of_folder(task: Task, folder: Path) -> dict[float, Tradeoff]:
    """Goals that a sweep in the folder got to."""
    path = folder / f"{task.name}_sweep.json"
    if not path.exists():
        return {}
    result = SweepRecord.from_json(path.read_text())
    reached = [g for g in task.goals if any(best.steps > 0 for best in result.best(g))]
    return {goal: truth(result, goal) for goal in reached}


def points_of(rows: Sequence[Row], name: str, *roles: str) -> list[CalibrationPoint]:
    """Resolved points of one predictor; all of them or those of some roles."""
    found = [row.point(name) for row in rows if not roles or row.task.role in roles]
    return [point for point in found if point is not None]


def left_out(rows: Sequence[Row]) -> list[tuple[float, tuple[float, float]]]:
    """Prediction and interval of every row, calibrated on all other tasks."""
    points = points_of(rows, BASIS)
    others = {
        row.task.name: fit_calibration([p for p in points if p.task != row.task.name])
        for row in rows
    }
    return [
        others[row.task.name][row.task.family].predict(row.predicted[BASIS].value) for row in rows
    ]


def big_table(rows: Sequence[Row]) -> str:
    """Measured critical batch sizes, predicted over measured, and the calibrated prediction."""
    hidden = ("pairs", "longer", "mean_adam", "thin")
    names = [name for name in PREDICTORS if name not in hidden and points_of(rows, name)]
    lines = [
        "| Task | Goal | Measured | " + " | ".join(names) + " | Calibrated | Ratio |",
        "|---" * (len(names) + 5) + "|",
    ]
    for row, (value, ends) in zip(rows, left_out(rows), strict=True):
        fit = row.measured
        cells = [_cell(row.predicted[name], fit.critical_batch_size) for name in names]
        ratio = value / fit.critical_batch_size
        lines.append(
            f"| {row.task.name} ({row.task.role}) | {row.goal:g} | {_measured(fit)} | "
            + " | ".join(cells)
            + f" | {value:.3g} ({ends[0]:.3g} to {ends[1]:.3g}) | {_number(ratio)} |"
        )
    return "\n".join(lines)


def _measured(fit: Tradeoff) -> str:
    low, high = fit.interval
    if fit.resolved:
        return f"{fit.critical_batch_size:.3g} ({low:.3g} to {high:.3g})"
    return f"unresolved ({low:.3g} to {high:.3g})"


def _cell(found: Predicted, measured: float) -> str:
    if not math.isfinite(found.value / measured):
        return "–"
    low, high = (end / measured for end in found.interval)
    return f"{_number(found.value / measured)} ({_number(low)} to {_number(high)})"


def _number(value: float) -> str:
    return f"{value:.2g}" if not math.isnan(value) else "–"


def _coverage(rows: Sequence[Row]) -> str:
    inside = [
        ends[0] <= row.measured.critical_batch_size <= ends[1]
        for row, (_, ends) in zip(rows, left_out(rows), strict=True)
        if row.measured.resolved
    ]
    return (
        f"{sum(inside)} of {len(inside)} measured critical batch sizes are inside of the "
        "calibrated intervals, whose task was left out."
    )


def weight_left_out(rows: Sequence[Row]) -> str:
    """Factors and the weight of the mean weights from the other tasks alone."""
    found, weights = [], []
    tasks = list(dict.fromkeys(row.task.name for row in rows))
    for task in tasks:
        others = [row for row in rows if row.task.name != task]
        share = min(SHARES_OF_MEAN, key=lambda share: _rms(others, share))
        weights.append(share)
        factors = fit_calibration(_weighted_points(others, share))
        for point in _weighted_points([row for row in rows if row.task.name == task], share):
            value = factors[point.optimizers].predict(point.noise_scale)[0]
            found.append(dataclasses.replace(point, noise_scale=value))
    one = Calibration(factor=1.0, log_spread=0.0, degrees_of_freedom=1.0)
    score = score_calibration(found, {point.optimizers: one for point in found})
    return (
        f"With one task left out, whose factor and weight come from the others (weights "
        f"{min(weights):g} to {max(weights):g}): {score.num_points} goals of {score.num_tasks} "
        f"tasks, {_score(score)} over {score.decades:.1f} decades. By weight, root mean square of "
        "the error: " + ", ".join(f"{share:g}: {_rms(rows, share):.3f}" for share in SHARES_OF_MEAN)
    )


def _rms(rows: Sequence[Row], share: float) -> float:
    return leave_one_task_out(_weighted_points(rows, share)).rms_log_error


def _weighted_points(rows: Sequence[Row], share: float) -> list[CalibrationPoint]:
    """What a weight of the mean weights makes of the rows, unresolved ones left out."""
    found = []
    for row in rows:
        frozen, mean = row.point("frozen"), row.point("mean")
        if frozen is not None and mean is not None:
            value = frozen.noise_scale ** (1 - share) * mean.noise_scale**share
            found.append(dataclasses.replace(frozen, noise_scale=value))
    return found


def summary(rows: Sequence[Row]) -> str:
    """How good each predictor is, with and without factors, on which tasks."""
    lines = [
        "| Predictor | Points | As it is: within 2, worst, R² | Factors "
        "| Held-back tasks: points, within 2, worst, R², decades | One task left out: within 2, "
        "worst, R² |",
        "|---" * 6 + "|",
    ]
    for name in PREDICTORS:
        lines.append(f"| {name} | {_scores(functools.partial(points_of, rows, name))} |")
    for name, kind in WITHOUT_MEASURING.items():
        lines.append(f"| {name} | {_scores(functools.partial(constants_of, rows, kind))} |")
    return "\n".join(lines)


def constants_of(rows: Sequence[Row], kind: Callable[[Task], str], *roles: str) -> list[Any]:
    """What a constant for every kind of task would say: points without a measurement."""
    kinds = {task.name: kind(task) for task in TASKS.values()}
    return [
        dataclasses.replace(point, noise_scale=1.0, optimizers=kinds[point.task])
        for point in points_of(rows, BASIS, *roles)
    ]


def _scores(points_of_roles: Callable[..., list[CalibrationPoint]]) -> str:
    points = points_of_roles()
    kinds = {point.optimizers for point in points}
    if not points:
        return "0 | not measured | – | – | –"
    one = Calibration(factor=1.0, log_spread=0.0, degrees_of_freedom=1.0)
    cells = [f"{len(points)}", _score(score_calibration(points, dict.fromkeys(kinds, one)))]
    try:
        fitted = fit_calibration(points_of_roles("fit"))
        held = [p for p in points_of_roles("test", "new") if p.optimizers in fitted]
        factors = ", ".join(f"{kind} {c.factor:.2f}" for kind, c in fitted.items())
        score = score_calibration(held, fitted)
        cells += [factors, f"{score.num_points}: {_score(score)}, {score.decades:.1f}"]
    except ValueError:
        cells += ["–", "too few tasks"]
    try:
        cells.append(_score(leave_one_task_out(points)))
    except ValueError:
        cells.append("too few tasks")
    return " | ".join(cells)


def _score(score: CalibrationScore) -> str:
    return f"{score.share_within:.0%}, {score.worst_ratio:.1f}, {score.r_squared:.2f}"


def budget(rows: Sequence[Row]) -> str:
    """Examples of one run with its measurements, for the last goal of every task."""
    lines = [
        "| Task | Run to the last goal | and `both` | Share of that run "
        f"| Share of {EPOCHS} epochs | and `thin` | Share of {EPOCHS} epochs |",
        "|---" * 7 + "|",
    ]
    for task in dict.fromkeys(row.task for row in rows):
        last = [row for row in rows if row.task is task][-1]
        run, spent, thin = (last.predicted[name].examples for name in ("running", BASIS, "thin"))
        full = EPOCHS * task.num_examples
        lines.append(
            f"| {task.name} | {run:,.0f} | {spent:,.0f} | {spent / run:.0%} | {spent / full:.1%} "
            f"| {thin:,.0f} | {thin / full:.1%} |"
        )
    return "\n".join(lines)


def _constants(rows: Sequence[Row], name: str) -> str:
    return "\n".join(
        f"- `{name}`, {kind}: factor {c.factor:.4g}, log_spread {c.log_spread:.4g}, "
        f"degrees_of_freedom {c.degrees_of_freedom:.1f}, num_tasks {c.num_tasks}"
        for kind, c in fit_calibration(points_of(rows, name)).items()
    )


def _run_to_run(rows: Sequence[Row]) -> str:
    """Standard deviations between runs, from the intervals of their means."""
    found = [row.predicted[BASIS] for row in rows]
    deviations = sorted(
        math.log(one.interval[1] / one.value)
        * math.sqrt(one.runs)
        / student_quantile(0.95, one.runs - 1)
        for one in found
        if math.isfinite(one.value)
    )
    middle = deviations[len(deviations) // 2]
    return (
        f"From run to run ln `{BASIS}` has a standard deviation of {middle:.2f} (median over the "
        f"goals; largest {deviations[-1]:.2f})."
    )


def report(rows: Sequence[Row]) -> str:
    """All tables, and the constants."""
    unresolved = sum(not row.measured.resolved for row in rows)
    return "\n\n".join(
        [
            f"{len(rows)} goals of {len({row.task.name for row in rows})} tasks; the sweep of "
            f"{unresolved} of them gave a bound only.",
            big_table(rows),
            _coverage(rows),
            summary(rows),
            weight_left_out(rows),
            _run_to_run(rows),
            budget(rows),
            "\n".join(_constants(rows, name) for name in (BASIS, "thin", "running")),
        ]
    )


def draw(rows: Sequence[Row], path: Path) -> None:
    """Predicted against measured: as the noise scale comes, and calibrated on other tasks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(14, 5.2), sharex=True, sharey=True)
    columns = {
        "Noise scale at the weights": [(row.predicted["frozen"].value, None) for row in rows],
        "With that at the mean weights": [(row.predicted[BASIS].value, None) for row in rows],
        "The same, calibrated on the other tasks": left_out(rows),
    }
    for axis, (title, values) in zip(axes, columns.items(), strict=True):
        ends = [2, 5000]
        axis.plot(ends, ends, color="black", lw=1)
        axis.fill_between(ends, [e / 2 for e in ends], [2 * e for e in ends], color="0.9", zorder=0)
        for row, (value, interval) in zip(rows, values, strict=True):
            _draw_row(axis, row, value, interval)
        axis.set(title=title, xscale="log", yscale="log", xlabel="measured critical batch size")
        axis.set(xlim=ends, ylim=ends, aspect="equal")
    axes[0].set_ylabel("predicted")
    for name, colour in COLOURS.items():
        axes[0].plot([], [], "o", color=colour, label=name)
    axes[0].plot([], [], "o", color="black", mfc="white", label="open: fit, filled: held back")
    axes[0].legend(frameon=False, loc="upper left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _draw_row(axis: Any, row: Row, value: float, interval: tuple[float, float] | None) -> None:
    measured = row.measured.critical_batch_size
    if not math.isfinite(measured):
        return
    colour = COLOURS[row.task.optimizer.replace("adamw", "adam")]
    low, high = row.measured.interval
    axis.plot([low, high], [value, value], color=colour, lw=0.8, alpha=0.5)
    if interval is not None:
        axis.plot([measured, measured], interval, color=colour, lw=0.8, alpha=0.25)
    face = "white" if row.task.role == "fit" else colour
    axis.plot(measured, value, "o", ms=5.5, color=colour, mfc=face)
