"""The two charts of an advice's page: steps against examples, and the noise scale along the run."""

import math

import numpy as np

from gns_keras.core.advice import Advice
from gns_keras.core.advice_parts import AdviceRow
from gns_keras.core.numbers import format_number
from gns_keras.core.tradeoff import relative_examples, relative_steps
from gns_keras.report.svg import LogChart

GRID = 80


def pareto_chart(advice: Advice) -> str:
    """Steps against examples, as Figure 1 of McCandlish et al. 2018; "" without a trade-off."""
    rows = [row for row in advice.table if row.relative_steps > 0]
    if not rows:
        return ""
    steps = [row.relative_steps for row in rows]
    examples = [row.relative_examples for row in rows]
    chart = LogChart(
        (1.0, max(steps)),
        (1.0, max(examples)),
        "optimizer steps, over the fewest possible",
        "examples, over the fewest possible",
        "Steps against examples for every batch size",
    )
    curve = np.geomspace(min(steps), max(steps), GRID)
    chart.line([(s, 1 + 1 / (s - 1)) for s in curve], "curve")
    low, high = advice.interval
    if 0 < low <= high < math.inf:
        ends = np.geomspace(low, high, GRID)
        size = advice.batch_size
        span = [(float(relative_steps(size, b)), float(relative_examples(size, b))) for b in ends]
        chart.line(span, "range")
    for row in rows:
        advised = row.batch_size == advice.batch_size
        point = (row.relative_steps, row.relative_examples)
        chart.dot(point, 7 if advised else 4, "advised" if advised else "dot", _note(row))
        now = ", now" if row.batch_size == advice.base_batch_size else ""
        chart.text(point, f"{row.batch_size:,}{', advised' if advised else now}")
    return chart.render()


def _note(row: AdviceRow) -> str:
    return (
        f"batch size {row.batch_size:,}: {format_number(row.relative_steps)} times the fewest "
        f"steps, {format_number(row.relative_examples)} times the fewest examples"
    )


def noise_chart(advice: Advice) -> str:
    """The noise scale against the training loss, or the examples seen; "" without snapshots."""
    forecast = advice.forecast
    by_loss = forecast is not None and forecast.law.resolved
    # A ratio of the two parts also where it is not resolved: those that are would be a selection.
    known = [
        point
        for point in advice.points
        if point.noise_scale.grad_sq_norm > 0 < point.noise_scale.trace_cov
        and (not by_loss or point.loss > 0)
    ]
    pairs = [
        (
            point.loss if by_loss else float(point.examples_seen),
            point.noise_scale.trace_cov / point.noise_scale.grad_sq_norm,
        )
        for point in known
    ]
    if len(pairs) < 2:
        return ""
    xs, ys = [x for x, _ in pairs], [y for _, y in pairs]
    ends = [min(xs), max(xs)]
    if by_loss:
        middle = forecast.law.at(np.array(ends))
        ys = [*ys, *middle.tolist()]
    chart = LogChart(
        (ends[0], max(ends[1], 1.01 * ends[0])),
        (min(ys), max(ys)),
        "training loss, falling" if by_loss else "examples seen",
        "noise scale, in examples",
        "The noise scale along the run",
        falling=by_loss,
    )
    if by_loss:
        _draw_law(chart, advice, ends)
    for (x, y), point in zip(pairs, known, strict=True):
        note = f"noise scale {format_number(y)} after {point.examples_seen:,} examples"
        chart.dot((x, y), 3, "snapshot", note)
    return chart.render()


def _draw_law(chart: LogChart, advice: Advice, ends: list[float]) -> None:
    forecast = advice.forecast
    losses = np.geomspace(*ends, GRID)
    law = forecast.law
    lower, upper = law.prediction_interval(losses)
    chart.band(list(zip(losses, lower, strict=True)), list(zip(losses, upper, strict=True)), "band")
    chart.line(list(zip(losses, law.at(losses), strict=True)), "curve")
