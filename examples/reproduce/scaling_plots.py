"""Panels that figures 7, 9, 14 and 19 have in common."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import benchmarks_path  # noqa: F401
import matplotlib
import numpy as np
from scaling_curves import Front

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator

COLORS = plt.get_cmap("viridis_r")


def new_figure(rows: int, columns: int = 2) -> tuple[Any, np.ndarray]:
    """A figure and its axes, shape `(rows, columns)`."""
    return plt.subplots(
        rows, columns, figsize=(5.4 * columns, 4.1 * rows), squeeze=False, layout="constrained"
    )


def save(figure: Any, path: Path) -> None:
    """Writes the figure, as large as the pages of the documentation need."""
    figure.savefig(path, dpi=100)
    plt.close(figure)


def logarithmic(axes: Any, x: str, y: str) -> None:
    """Logarithmic axes with ticks that can be read."""
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    _ticks(axes.xaxis, axes.yaxis)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)


def _ticks(*those: Any) -> None:
    for axis in those:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=9))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(short)


def short(value: float, _: int = 0) -> str:
    """0.05, 20, 500, 2k, 5M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def draw_fronts(axes: Any, fronts: Sequence[Front], unit: str, title: str, what: str) -> None:
    """Examples against steps with the fits of Eq. 2.11; one front for every goal."""
    logarithmic(axes, "optimizer steps", unit)
    for front, color in zip(fronts, shades(fronts), strict=True):
        fit = front.fit
        steps, sizes = np.asarray(fit.steps), np.asarray(fit.batch_sizes)
        axes.scatter(steps, steps * sizes, s=14, color=color, label=f"{front.goal:g}", zorder=3)
        if fit.resolved:
            grid = np.geomspace(sizes.min() / 2, sizes.max() * 2, 200)
            axes.plot(fit.steps_at(grid), fit.examples_at(grid), color=color, lw=1.2)
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=7, title=what, title_fontsize=7)


def draw_critical(
    axes: Any, fronts: Sequence[Front], unit: str, what: str, name: str = "critical batch size"
) -> None:
    """Critical batch sizes with 95 % intervals against the goal; triangles are bounds."""
    axes.set(yscale="log", xlabel=what, ylabel=f"batch size, {unit}")
    _ticks(axes.yaxis)
    shown = list(zip(fronts, shades(fronts), strict=True))
    for index, (front, color) in enumerate(shown):
        value, (low, high) = front.fit.critical_batch_size, front.fit.interval
        label = name if index == len(shown) - 1 else None
        if front.fit.resolved:
            axes.errorbar(
                front.goal, value, yerr=[[value - low], [high - value]],
                fmt="o", ms=5, capsize=3, color=color, label=label,
            )  # fmt: skip
        elif low > 0:
            axes.plot(front.goal, low, marker="^", ms=7, mfc="none", color=color)
    axes.invert_xaxis()  # Training goes to the right.
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=8)


def draw_noise(axes: Any, goals: np.ndarray, points: Sequence[Any], *, hessian: bool) -> None:
    """Noise scales of `scaling_noise.noise_points` against the goals that they belong to."""
    values = np.array([point.simple for point in points])
    ends = np.array([point.interval for point in points])
    axes.plot(goals, values, color="#c4570c", lw=1.3, label="$B_{simple}$, along the runs")
    axes.fill_between(goals, ends[:, 0], ends[:, 1], color="#c4570c", alpha=0.2, lw=0)
    if hessian:
        noise = np.array([point.noise for point in points])
        axes.plot(goals, noise, color="#5b2c8a", lw=1.3, label="$B_{noise}$, along the runs")
        for goal, point in zip(goals, points, strict=True):
            axes.plot([goal] * len(point.noise_runs), point.noise_runs, ".", ms=3, color="#5b2c8a")


def draw_averages(axes: Any, goals: Sequence[float], found: Sequence[Any]) -> None:
    """Averages up to a goal with their intervals over the runs."""
    values = np.array([one.value for one in found])
    errors = np.array([[one.value - one.interval[0], one.interval[1] - one.value] for one in found])
    axes.errorbar(
        goals, values, yerr=errors.T, fmt="s", ms=4, mfc="none", capsize=2,
        lw=0.9, color="#c4570c", label="$B_{simple}$, averaged to the goal",
    )  # fmt: skip


def limits(axes: Any, fronts: Sequence[Front]) -> None:
    """Frames the goals, and the decades around the critical batch sizes."""
    goals = [front.goal for front in fronts]
    room = 0.15 * (max(goals) - min(goals))
    axes.set_xlim(max(goals) + room, min(goals) - room)
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, 0.5), min(top, 1e5))


def shades(fronts: Sequence[Any]) -> list[Any]:
    """From early goals, light, to late ones, dark."""
    return list(COLORS(np.linspace(0.1, 1, len(fronts))))


def interval(value: float, ends: Sequence[float]) -> str:
    """A number with its interval, three digits each."""
    name = f"{value:.3g}" if math.isfinite(value) else "unresolved"
    return f"{name} ({ends[0]:.3g} to {ends[1]:.3g})"
