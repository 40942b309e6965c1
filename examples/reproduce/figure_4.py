"""Figure 4: the noise scale of a run against the critical batch size of a sweep, over tasks.

    python examples/reproduce/figure_4.py --folder table_1 --plot docs/reproduction/figure_4.png

Four kinds of points: tasks of the paper, from what table_1.py has left in its folder; the small
tasks of docs/validation.md and docs/reproduction/scaling.md, whose tables are read; and the paper's
own Table 1. The prediction is the simple noise scale at frozen weights, averaged with the weights
of appendix D up to the goal, in the unit of the batch sizes, and without any factor.
"""

import argparse
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import table_1

from gns_keras import SweepResult
from gns_keras.tasks.paper import TABLE_1

DOCS = Path(__file__).resolve().parents[2] / "docs"
VALIDATION, SCALING = DOCS / "validation.md", DOCS / "reproduction" / "scaling.md"
_INTERVAL = re.compile(r"^([\d.e+]+) \(([\d.e+]+) to ([\d.e+]+|inf)\)$")
KINDS = {
    "measured here": "C3",
    "small tasks (validation.md)": "0.6",
    "figures 7, 9, 14 in small (scaling.md)": "C1",
    "the paper's Table 1": "C0",
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One goal of one task.

    Attributes:
        kind: A key of `KINDS`.
        label: Task and goal.
        noise_scale: The prediction.
        critical: The measurement.
        noise_interval: 95 %; the value itself where there is none.
        critical_interval: Likewise.
    """

    kind: str
    label: str
    noise_scale: float
    critical: float
    noise_interval: tuple[float, float]
    critical_interval: tuple[float, float]


def of_paper() -> list[Point]:
    """Both columns of Table 1 wherever both numbers are there; of ranges the geometric middle."""
    found = []
    for row in TABLE_1.values():
        for label, noise, critical in (
            ("start", row.noise_start, row.critical_start),
            ("average", row.noise_average, row.critical_average),
        ):
            if all(map(math.isfinite, (*noise, *critical))):
                found.append(
                    Point(
                        kind="the paper's Table 1", label=f"{row.system}, {label}",
                        noise_scale=math.sqrt(math.prod(noise)), noise_interval=noise,
                        critical=math.sqrt(math.prod(critical)), critical_interval=critical,
                    )
                )  # fmt: skip
    return found


def of_validation(text: str) -> list[Point]:
    """Every resolved goal of the table "Every goal"; "frozen" there is a ratio to the measured."""
    section = text.split("## Every goal", 1)[1]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    names = cells(lines[0])
    found = []
    for line in lines[2:]:
        if cells(line)[0] == "Predictor":  # The next table.
            break
        row = dict(zip(names, cells(line), strict=True))
        measured, ratio = numbers(row["Measured"]), numbers(row["frozen"])
        if measured is not None and ratio is not None:
            critical, *ends = measured
            value, low, high = (critical * number for number in ratio)
            found.append(
                Point(
                    kind="small tasks (validation.md)", label=f"{row['Task']} {row['Goal']}",
                    noise_scale=value, noise_interval=(low, high),
                    critical=critical, critical_interval=(ends[0], ends[1]),
                )
            )  # fmt: skip
    return found


def of_scaling(text: str) -> list[Point]:
    """Rows with both numbers, of all tables of the page that have a column for either."""
    found, names = [], []
    for line in text.splitlines():
        row = cells(line) if line.startswith("|") else []
        if "critical batch size" in row and "over critical" in row:
            names = [name.partition(",")[0].strip("`") for name in row]
        if not row:
            names = []
        if not names:
            continue
        values = dict(zip(reversed(names), reversed(row), strict=True))  # The first B_simple.
        critical, noise = (numbers(values[n]) for n in ("critical batch size", "B_simple"))
        if critical is not None and noise is not None:
            found.append(
                Point(
                    kind="figures 7, 9, 14 in small (scaling.md)", label=" ".join(row[:2]),
                    noise_scale=noise[0], noise_interval=noise[1:],
                    critical=critical[0], critical_interval=critical[1:],
                )
            )  # fmt: skip
    return found


def cells(line: str) -> list[str]:
    """Cells of one line of a Markdown table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def numbers(cell: str) -> tuple[float, float, float] | None:
    """Value and interval of a cell like "101 (86.2 to 120)"; None for another one."""
    match = _INTERVAL.match(cell.replace(",", ""))
    return None if match is None else tuple(float(part) for part in match.groups())


def of_folder(folder: Path) -> list[Point]:
    """Every goal that a sweep of table_1.py resolved, with the noise scale of the run up to it."""
    runs, found = table_1.results(folder), []
    for stage in table_1.SWEEPS:
        path = table_1.path_of(stage, folder)
        if not path.exists():
            continue
        sweep = SweepResult.from_json(path.read_text("utf-8"))
        run = max(runs[stage.task], key=lambda result: result.examples)
        for goal in stage.goals:
            fit = table_1.truth(sweep, goal)
            noise = run.between(0, table_1.examples_to(goal, run))
            if fit.resolved and noise.resolved and not table_1.is_late(fit, stage):
                found.append(
                    Point(
                        kind="measured here", label=f"{stage.task} {goal}",
                        noise_scale=noise.value, noise_interval=noise.interval,
                        critical=fit.critical_batch_size * run.units_per_example,
                        critical_interval=tuple(e * run.units_per_example for e in fit.interval),
                    )
                )  # fmt: skip
    return found


def without_repetitions(points: list[Point]) -> list[Point]:
    """Leaves out points of later pages whose sweep is on an earlier one, to the digits there."""
    found: list[Point] = []
    for point in points:
        ours = (point.critical, *point.critical_interval)
        others = [p for p in found if p.kind != point.kind]
        if not any(np.allclose(ours, (p.critical, *p.critical_interval), 0.015) for p in others):
            found.append(point)
    return found


def agreement(points: list[Point]) -> dict[str, float]:
    """How well the noise scale says what was measured, in log space.

    Returns:
        "r_squared": of the critical batch size against the noise scale itself, which may be
        negative; "of_a_line": the squared correlation, R^2 of the best line; "bias": geometric mean
        of noise scale over critical batch size; "worst": largest factor between them; "decades" of
        the critical batch sizes.
    """
    predicted = np.log([point.noise_scale for point in points])
    measured = np.log([point.critical for point in points])
    missed = np.square(measured - predicted).sum()
    return {
        "points": len(points),
        "r_squared": 1 - missed / np.square(measured - measured.mean()).sum(),
        "of_a_line": np.corrcoef(predicted, measured)[0, 1] ** 2,
        "bias": math.exp((predicted - measured).mean()),
        "worst": math.exp(np.abs(predicted - measured).max()),
        "decades": np.ptp(measured) / math.log(10),
    }


def table(points: list[Point]) -> str:
    """`agreement` of every kind, and of those that were measured in this project together."""
    names = ["points", "r_squared", "of_a_line", "bias", "worst", "decades"]
    lines = [
        "| Points | Number | R² of the noise scale itself | R² of the best line | noise scale / "
        "critical, geometric mean | Largest factor | Decades |",
        "|---|---|---|---|---|---|---|",
    ]
    groups = {kind: [p for p in points if p.kind == kind] for kind in KINDS}
    groups["measured in this project"] = [p for p in points if "paper" not in p.kind]
    groups["all"] = points
    for name, group in groups.items():
        if len(group) > 2:
            found = agreement(group)
            values = [f"{found[key]:.2g}" for key in names[1:]]
            lines.append(f"| {name} | {len(group)} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def draw(points: list[Point], path: Path) -> None:
    """Noise scale against critical batch size, with the diagonal and a factor of 10 around it."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 6))
    low = min(min(p.noise_scale, p.critical) for p in points) / 2
    high = max(max(p.noise_scale, p.critical) for p in points) * 2
    axis.fill_between([low, high], [low / 10, high / 10], [low * 10, high * 10], color="0.95")
    axis.plot([low, high], [low, high], color="0.5", lw=0.8)
    for kind, color in KINDS.items():
        group = [p for p in points if p.kind == kind]
        if group:
            _draw_kind(axis, group, color, f"{kind}: {len(group)}")
    axis.set(
        xscale="log", yscale="log", xlim=(low, high), ylim=(low, high),
        xlabel="critical batch size of a sweep (images, sequences, tokens, frames)",
        ylabel="simple noise scale of a run, same unit",
    )  # fmt: skip
    axis.legend(fontsize=9, loc="upper left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _draw_kind(axis: Any, group: list[Point], color: str, label: str) -> None:
    x, y = ([getattr(p, name) for p in group] for name in ("critical", "noise_scale"))
    errors = []
    for name, middle in (("critical_interval", x), ("noise_interval", y)):
        ends = np.array([getattr(p, name) for p in group]).T
        errors.append(np.abs(np.minimum(ends, 1e9) - np.array(middle)))
    axis.errorbar(
        x, y, xerr=errors[0], yerr=errors[1], fmt="o", ms=5, color=color, lw=0.7, label=label,
        zorder=2 if color == "0.6" else 3,
    )  # fmt: skip


def main() -> None:
    """Prints the agreement, and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("table_1"))
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    ours = [
        *of_folder(args.folder), *of_validation(VALIDATION.read_text("utf-8")),
        *of_scaling(SCALING.read_text("utf-8")),
    ]  # fmt: skip
    points = [*without_repetitions(ours), *of_paper()]
    for point in points:
        if point.kind == "measured here":
            print(point)
    print(table(points))
    if args.plot:
        draw(points, args.plot)


if __name__ == "__main__":
    main()
