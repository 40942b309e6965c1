"""An advice as a figure: steps against examples, and the time of a run."""

import math
from os import PathLike
from typing import Any

import numpy as np

from gns_keras.core.advice import Advice
from gns_keras.core.advice_parts import AdviceRow
from gns_keras.core.tradeoff import relative_examples, relative_steps

BLUE, ORANGE, GREEN = "#0b5cad", "#c4570c", "#1a7f37"
NICE = [digit * 10**power for power in range(8) for digit in (1, 2, 5)]


def draw(advice: Advice, path: str | PathLike[str] | None = None) -> Any:
    """Draws steps and examples over batch size, and beside it the time where it was measured.

    Args:
        advice: The advice.
        path: Where to write the figure; the ending chooses the format. None: not written.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Advice.plot needs matplotlib, which is not installed. Install it with: "
            'pip install "gns-keras[plot]"',
            name=error.name,
        ) from error
    timed = [row for row in advice.table if not math.isnan(row.relative_time)]
    # Figure and not pyplot: no window, no global state.
    figure = Figure(figsize=(10 if timed else 5.5, 4.2), layout="constrained")
    axes = figure.subplots(1, 2 if timed else 1, squeeze=False)[0]
    _draw_tradeoff(axes[0], advice)
    if timed:
        _draw_time(axes[1], advice, timed)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _draw_tradeoff(axes: Any, advice: Advice) -> None:
    sizes = [row.batch_size for row in advice.table]
    grid = np.geomspace(min(sizes), max(sizes), 200)
    critical = advice.critical_batch_size
    unresolved = math.isnan(critical)
    bound = advice.interval[0] if unresolved else critical
    if bound > 0:
        axes.plot(grid, relative_steps(grid, bound), color=BLUE, label="steps / least")
        axes.plot(grid, relative_examples(grid, bound), color=ORANGE, label="examples / least")
    low, high = advice.interval
    if low > 0 and math.isfinite(high):
        axes.axvspan(low, high, color="0.5", alpha=0.2, lw=0, label="critical batch size")
        for curve, color in ((relative_steps, BLUE), (relative_examples, ORANGE)):
            axes.fill_between(grid, curve(grid, low), curve(grid, high), color=color, alpha=0.15)
    title = "Unresolved: curves at the lower bound" if unresolved else "Steps against examples"
    axes.set_title(title, fontsize=11)
    axes.set_yscale("log", subs=[])
    axes.set_yticks([value for value in NICE if value < 2 * axes.get_ylim()[1]])
    axes.set_ylim(bottom=0.9)
    _finish(axes, advice, "times the smallest number")


def _draw_time(axes: Any, advice: Advice, timed: list[AdviceRow]) -> None:
    sizes = [row.batch_size for row in timed]
    times = [row.relative_time for row in timed]
    axes.plot(sizes, times, color=GREEN, label="time of a run")
    for measured, fill in ((True, GREEN), (False, "white")):
        rows = [row for row in timed if row.step_time_measured is measured]
        axes.scatter(
            [row.batch_size for row in rows],
            [row.relative_time for row in rows],
            color=GREEN,
            facecolor=fill,
            zorder=3,
            label="step time measured" if measured else "step time predicted",
        )
    axes.set_title("Time on these devices", fontsize=11)
    axes.set_ylim(bottom=0)
    _finish(axes, advice, f"times that at batch size {advice.base_batch_size:,}")


def _finish(axes: Any, advice: Advice, label: str) -> None:
    axes.axvline(advice.batch_size, color="0.2", ls="--", lw=1, label="advised")
    axes.set_xscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("global batch size, in examples")
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
