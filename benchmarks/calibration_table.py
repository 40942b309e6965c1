"""The tables and the figure of docs/validation.md, from what `calibration.py` keeps."""

import math
from collections.abc import Sequence
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
from gns_keras.core.sweep_result import SweepRecord
from gns_keras.core.tradeoff_result import Tradeoff

EPOCHS = 20
BASIS = "frozen"  # The predictor that is calibrated.


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
    """Every goal of every task whose sweep and runs are there."""
    rows = []
    for task in TASKS.values():
        path = folder / f"{task.name}_sweep.json"
        runs, branches = read_runs(folder, task.name)
        if not path.exists() or len(runs) < 2:
            continue
        result = SweepRecord.from_json(path.read_text())
        for index, goal in enumerate(task.goals):
            if not any(best.steps > 0 for best in result.best(goal)):
                continue
            rows.append(
                Row(
                    task=task,
                    goal=goal,
                    measured=truth(result, goal),
                    predicted=predict(runs, branches, index, task.base_batch_size, task.half_life),
                )
            )
    return rows


def points_of(rows: Sequence[Row], name: str, role: str | None = None) -> list[CalibrationPoint]:
    """Resolved points of one predictor; all of them or those of one role."""
    found = [row.point(name) for row in rows if role in (None, row.task.role)]
    return [point for point in found if point is not None]


def big_table(rows: Sequence[Row], calibrations: dict[str, Calibration]) -> str:
    """Measured critical batch sizes, predicted over measured, and the calibrated prediction."""
    names = [name for name in PREDICTORS if name != "pairs"]
    lines = [
        "| Task | Goal | Measured | " + " | ".join(names) + " | Calibrated | Ratio |",
        "|---" * (len(names) + 5) + "|",
    ]
    for row in rows:
        fit = row.measured
        cells = [_cell(row.predicted[name], fit.critical_batch_size) for name in names]
        value, ends = calibrations[row.task.family].predict(row.predicted[BASIS].value)
        ratio = value / fit.critical_batch_size
        lines.append(
            f"| {row.task.name} ({row.task.role}) | {row.goal:g} | {_measured(fit)} | "
            + " | ".join(cells)
            + f" | {value:.0f} ({ends[0]:.0f} to {ends[1]:.0f}) | {_number(ratio)} |"
        )
    return "\n".join(lines)


def _measured(fit: Tradeoff) -> str:
    low, high = fit.interval
    if fit.resolved:
        return f"{fit.critical_batch_size:.0f} ({low:.0f} to {high:.0f})"
    return f"unresolved ({low:.0f} to {high:.0f})"


def _cell(found: Predicted, measured: float) -> str:
    if not math.isfinite(found.value / measured):
        return "–"
    low, high = (end / measured for end in found.interval)
    return f"{_number(found.value / measured)} ({_number(low)} to {_number(high)})"


def _number(value: float) -> str:
    return f"{value:.2g}" if math.isfinite(value) else "–"


def summary(rows: Sequence[Row]) -> str:
    """How good each predictor is, with and without factors, on which tasks."""
    lines = [
        "| Predictor | Points | As it is: within 2, worst, R² | Factors "
        "| Held-back tasks: points, within 2, worst, R², decades | One task left out: within 2, "
        "worst, R² |",
        "|---" * 6 + "|",
    ]
    for name in PREDICTORS:
        points = points_of(rows, name)
        lines.append(f"| {name} | {len(points)} | {_scores(rows, name, points)} |")
    return "\n".join(lines)


def _scores(rows: Sequence[Row], name: str, points: list[CalibrationPoint]) -> str:
    kinds = {point.optimizers for point in points}
    one = Calibration(factor=1.0, log_spread=0.0, degrees_of_freedom=1.0)
    plain = score_calibration(points, dict.fromkeys(kinds, one)) if points else None
    cells = [_score(plain)]
    try:
        fitted = fit_calibration(points_of(rows, name, "fit"))
        held = [p for p in points_of(rows, name, "test") if p.optimizers in fitted]
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


def _score(score: CalibrationScore | None) -> str:
    if score is None:
        return "–"
    return f"{score.share_within:.0%}, {score.worst_ratio:.1f}, {score.r_squared:.2f}"


def budget(rows: Sequence[Row]) -> str:
    """Examples of one run with its measurements, for the last goal of every task."""
    lines = [
        "| Task | Run to the last goal | With frozen snapshots | Share of that run "
        f"| Share of {EPOCHS} epochs |",
        "|---" * 5 + "|",
    ]
    for task in dict.fromkeys(row.task for row in rows):
        last = [row for row in rows if row.task is task][-1]
        run, frozen = (last.predicted[name].examples for name in ("running", BASIS))
        full = EPOCHS * task.num_examples
        lines.append(
            f"| {task.name} | {run:,.0f} | {frozen:,.0f} | {frozen / run:.0%} | "
            f"{frozen / full:.1%} |"
        )
    return "\n".join(lines)


def report(rows: Sequence[Row]) -> str:
    """All tables, and the constants."""
    final = fit_calibration(points_of(rows, BASIS))
    constants = [
        f"{kind}: factor {c.factor:.4g}, log_spread {c.log_spread:.4g}, degrees_of_freedom "
        f"{c.degrees_of_freedom:.1f}, num_tasks {c.num_tasks}"
        for kind, c in final.items()
    ]
    unresolved = sum(not row.measured.resolved for row in rows)
    return "\n\n".join(
        [
            f"{len(rows)} goals of {len({row.task.name for row in rows})} tasks; the sweep of "
            f"{unresolved} of them gave a bound only.",
            big_table(rows, final),
            summary(rows),
            budget(rows),
            "\n".join(constants),
        ]
    )


def draw(rows: Sequence[Row], path: Path) -> None:
    """Predicted against measured: the noise scale as it is, and calibrated on other tasks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 5.4), sharex=True, sharey=True)
    kinds = sorted({row.task.family for row in rows})
    for axis, title in zip(
        axes, ("Noise scale, as it is", "Calibrated, its task left out"), strict=True
    ):
        for kind, colour in zip(kinds, ("#0072b2", "#d55e00", "#009e73"), strict=False):
            _draw_kind(axis, rows, kind, colour, calibrated=title.startswith("Calibrated"))
        axis.set(title=title, xscale="log", yscale="log", xlabel="measured critical batch size")
        ends = [3, 3000]
        axis.plot(ends, ends, color="black", lw=1)
        axis.fill_between(ends, [e / 2 for e in ends], [2 * e for e in ends], color="0.9", zorder=0)
        axis.set_xlim(ends)
        axis.set_ylim(ends)
        axis.set_aspect("equal")
    axes[0].set_ylabel("predicted")
    axes[0].legend(frameon=False, title="open: fit, filled: held back")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def _draw_kind(axis: Any, rows: Sequence[Row], kind: str, colour: str, *, calibrated: bool) -> None:
    for role in ("fit", "test"):
        chosen = [
            r for r in rows if (r.task.family, r.task.role) == (kind, role) and r.point(BASIS)
        ]
        if not chosen:
            continue
        measured = [row.measured.critical_batch_size for row in chosen]
        predicted = [row.predicted[BASIS].value for row in chosen]
        if calibrated:
            others = {
                row.task.name: fit_calibration(
                    [p for p in points_of(rows, BASIS) if p.task != row.task.name]
                )[kind]
                for row in chosen
            }
            both = [others[r.task.name].predict(v) for r, v in zip(chosen, predicted, strict=True)]
            predicted = [value for value, _ in both]
            below = [v - ends[0] for v, ends in both]
            above = [ends[1] - v for v, ends in both]
            axis.errorbar(
                measured, predicted, [below, above], fmt="none", ecolor=colour, alpha=0.25, lw=1
            )
        low = [m - row.measured.interval[0] for m, row in zip(measured, chosen, strict=True)]
        high = [row.measured.interval[1] - m for m, row in zip(measured, chosen, strict=True)]
        axis.errorbar(
            measured, predicted, xerr=[low, high], fmt="o", ms=5, color=colour, lw=0.6, alpha=0.9,
            mfc="white" if role == "fit" else colour, label=kind if role == "test" else None,
        )  # fmt: skip
