"""A sweep on the terminal."""

import io
import math
import sys

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from gns_keras.core.goals import Goal
from gns_keras.core.sweep_result import SweepRecord
from gns_keras.core.tradeoff_result import Tradeoff

WIDTH = 80
_NOTICEABLE_DELAY = 0.1  # Share of the least examples.


def render(result: SweepRecord, *, width: int = WIDTH) -> str:
    """Returns the sweep as text, without colours.

    Args:
        result: The sweep.
        width: Columns of the terminal; no line of the table is longer.
    """
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower()
    console = Console(
        file=io.StringIO(), width=width, no_color=True, highlight=False, force_jupyter=False
    )
    console.print(renderable(result, plain_lines=not encoding.startswith("utf")))
    lines = console.file.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def renderable(result: SweepRecord, *, plain_lines: bool = False) -> RenderableType:
    """Returns the sweep for a rich console.

    Args:
        result: The sweep.
        plain_lines: Draw the table with ASCII only.
    """
    parts: list[RenderableType] = [escape(_headline(result)), ""]
    parts.append(_goals_table(result, box.ASCII2 if plain_lines else box.SIMPLE_HEAD))
    parts.append(_rates_table(result, box.ASCII2 if plain_lines else box.SIMPLE_HEAD))
    parts += [escape(sentence) for sentence in _notes(result)]
    return Group(*parts)


def _headline(result: SweepRecord) -> str:
    counts = [sum(r.status == status for r in result.records) for status in ("reached", "ended")]
    diverged = len(result.records) - sum(counts)
    sizes = result.batch_sizes
    span = f"batch sizes {sizes[0]:,} to {sizes[-1]:,}" if sizes else "no batch sizes"
    return (
        f"{len(result.records)} runs, {span}: {counts[0]} reached all goals, {counts[1]} ended at "
        f"{result.max_examples:,} examples, {diverged} diverged."
    )


def _goals_table(result: SweepRecord, lines: box.Box) -> Table:
    table = Table(box=lines, title="Critical batch size", title_justify="left")
    table.add_column("goal")
    for heading in ("critical batch", "95 % interval", "steps, least", "examples, least", "rms"):
        table.add_column(heading, justify="right")
    for goal in result.goals:
        table.add_row(escape(goal.label), *_goal_cells(result, goal))
    return table


def _goal_cells(result: SweepRecord, goal: Goal) -> list[str]:
    if not result.best(goal):
        return ["not reached", "", "", "", ""]
    fit = result.tradeoff(goal)
    low, high = fit.interval
    return [
        f"{fit.critical_batch_size:,.0f}" if fit.resolved else "unresolved",
        _interval(low, high),
        _number(fit.min_steps),
        _number(fit.min_examples),
        "" if math.isnan(fit.residual_rms) else f"{fit.residual_rms:.3f}",
    ]


def _rates_table(result: SweepRecord, lines: box.Box) -> Table:
    """Best learning rates: a row for every batch size, a column for every goal."""
    table = Table(box=lines, title="Best learning rate", title_justify="left")
    table.add_column("batch size", justify="right")
    best = []
    for goal in result.goals:
        table.add_column(escape(goal.label), justify="right")
        best.append({point.batch_size: point for point in result.best(goal)})
    for size in result.batch_sizes:
        cells = []
        for points in best:
            point = points.get(size)
            mark = "" if point is None else {"": "", "lower": " v", "upper": " ^"}[point.edge]
            cells.append("-" if point is None else f"{point.learning_rate:.3g}{mark}")
        table.add_row(f"{size:,}", *cells)
    return table


def _notes(result: SweepRecord) -> list[str]:
    notes = []
    if result.edges():
        notes.append(
            "^ v: the largest or smallest learning rate tried; a better one may lie beyond it."
        )
    notes += _smoothing_notes(result)
    for goal in result.goals:
        fit: Tradeoff | None = result.tradeoff(goal) if result.best(goal) else None
        if fit is not None and fit.reason:
            notes.append(f"{goal.label}: {fit.reason}")
        elif fit is not None and fit.lacks_fit:
            notes.append(
                f"{goal.label}: steps fall like 1/B^{fit.exponent:.2f} instead of 1/B, so the "
                "critical batch size is a summary of a curve of another shape."
            )
    return notes


def _smoothing_notes(result: SweepRecord) -> list[str]:
    """Goals so early that the smoothing delays them noticeably at small batch sizes."""
    # Mean age of what the average holds: sum of t 2^(-t/h) over sum of 2^(-t/h) = h/ln 2.
    delay = result.half_life / math.log(2)
    late = []
    for goal in result.goals:
        examples = result.tradeoff(goal).min_examples if result.best(goal) else math.nan
        if delay > _NOTICEABLE_DELAY * examples:
            late.append(f"{goal.label} ({delay / examples:.0%})")
    if not late:
        return []
    return [
        f"The average over {result.half_life:,.0f} examples delays a goal by about {delay:,.0f} of "
        f"them at small batch sizes, a large share of the least examples for {', '.join(late)}: "
        "its critical batch size comes out too large. A smaller half_life is nearer to the truth."
    ]


def _interval(low: float, high: float) -> str:
    if low > 0 and math.isfinite(high):
        return f"{low:,.0f} to {high:,.0f}"
    if low > 0:
        return f"at least {low:,.0f}"
    return f"at most {high:,.0f}" if math.isfinite(high) else ""


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:,.0f}"
