"""The table and the figure of adaptive_pareto.py."""

import math
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any

import numpy as np
from pareto_gain import MeasuredFront, NoiseAlong, mean_cost, mean_interval, predicted_saving

from gns_keras.core.sweep_result import SweepRecord
from gns_keras.core.tradeoff import front_product
from gns_keras.core.tradeoff_fit import Tradeoff, fit_tradeoff

# Constant batch sizes are dots, exchange rates these, smallest first.
MARKERS = "v^sDP*Xh"


def analyse(fixed: SweepRecord, runs: Sequence[dict], seeds: int) -> list[dict]:
    """One row for every goal and exchange rate at which all seeds reached the goal.

    Savings are those of a seed's adaptive run over the front of the same seed's constant runs, and
    their mean with a 95 % interval over the seeds.
    """
    rows = []
    for index, goal in enumerate(fixed.goals):
        fronts = [front_of_seed(fixed, index, seed) for seed in range(seeds)]
        for exchange_rate in sorted({run["exchange_rate"] for run in runs}):
            chosen, edge = _best(runs, index, exchange_rate)
            if chosen:
                row = _row(fixed, index, fronts, chosen)
                rows.append(
                    {
                        "goal": goal.threshold,
                        "exchange_rate": exchange_rate,
                        "learning_rate": chosen[0]["learning_rate"],
                        "edge": edge,
                        **row,
                    }
                )
    return rows


def front_of_seed(fixed: SweepRecord, index: int, seed: int) -> tuple[list[int], list[float]]:
    """Batch sizes, and steps of one seed with the learning rates that are best over all seeds."""
    steps = {
        (r.batch_size, r.learning_rate): r.steps_to[index] for r in fixed.records if r.seed == seed
    }
    best = fixed.best(fixed.goals[index])
    return [b.batch_size for b in best], [steps[b.batch_size, b.learning_rate] for b in best]


def _best(runs: Sequence[dict], index: int, exchange_rate: float) -> tuple[list[dict], str]:
    """The runs with the best learning rate, and whether it is at an edge of those tried."""
    rates: dict[float, list[dict]] = {}
    for run in runs:
        if run["exchange_rate"] == exchange_rate:
            rates.setdefault(run["learning_rate"], []).append(run)
    costs = {rate: mean_cost(found, index) for rate, found in sorted(rates.items())}
    known = {rate: cost for rate, cost in costs.items() if math.isfinite(cost)}
    if not known:
        return [], ""
    best = min(known, key=known.__getitem__)
    edge = "lower" if best == min(costs) else "upper" if best == max(costs) else ""
    return sorted(rates[best], key=lambda run: run["seed"]), edge


def _row(fixed: SweepRecord, index: int, fronts: list, chosen: list[dict]) -> dict[str, Any]:
    fit = fixed.tradeoff(fixed.goals[index])
    product = _product(fit)
    steps = [run["steps_to"][index] for run in chosen]
    examples = [run["examples_to"][index] for run in chosen]
    pairs = list(zip(steps, examples, strict=True))
    curves = [MeasuredFront(*front) for front in fronts]
    fits = [fit_tradeoff(*front) for front in fronts]
    noise = [NoiseAlong.of(run["history"], until) for run, until in zip(chosen, steps, strict=True)]
    gamma = float(np.mean([along.gamma for along in noise]))
    mean_batch = float(np.exp(np.mean(np.log(examples) - np.log(steps))))
    constant = [curve.steps(mean_batch) for curve in curves]

    def over(method: str) -> tuple[float, float, float]:
        return mean_interval(
            [getattr(curve, method)(*pair) for curve, pair in zip(curves, pairs, strict=True)]
        )

    return {
        "steps": float(np.exp(np.mean(np.log(steps)))),
        "examples": float(np.exp(np.mean(np.log(examples)))),
        "mean_batch": mean_batch,
        "noise_scale": float(np.mean([_mean_noise(along) for along in noise])),
        "saved": over("saved"),
        "steps_saved": over("steps_saved"),
        "examples_saved": over("examples_saved"),
        "saved_over_fit": mean_interval(
            [1 - s / float(f.steps_at(e / s)) for f, (s, e) in zip(fits, pairs, strict=True)]
        ),
        "predicted_saved": predicted_saving(gamma, mean_batch / fit.critical_batch_size),
        # (1 - gamma) E_min/E at equal examples, (1 - gamma) S_min/S at equal steps.
        "predicted_steps_saved": (1 - gamma) * fit.min_examples / float(np.mean(examples)),
        "predicted_examples_saved": (1 - gamma) * fit.min_steps / float(np.mean(steps)),
        "product": mean_interval([product(s, e) for s, e in pairs]),
        "product_of_constant": mean_interval([product(s, s * mean_batch) for s in constant]),
        "gamma": gamma,
        "gamma_of_batches": float(np.mean([along.gamma_of_batches for along in noise])),
    }


def _product(fit: Tradeoff) -> Callable[[float, float], float]:
    """`(S/S_min - 1)(E/E_min - 1)`; NaN where the constant batch sizes do not tell the minima."""

    def product(steps: float, examples: float) -> float:
        if not fit.resolved:
            return math.nan
        minima = {"min_steps": fit.min_steps, "min_examples": fit.min_examples}
        return float(front_product(steps, examples, **minima))

    return product


def _mean_noise(along: NoiseAlong) -> float:
    """`E_min/S_min` as the noise scale predicts it."""
    total = along.progress.sum()
    return float((along.progress * along.scales).sum() / total) if total else math.nan


def table(rows: Sequence[dict]) -> str:
    """Two tables in Markdown: at equal `E/S` with the products, and at equal examples and steps."""
    lines = [
        "| Goal | r | learning rate | E/S | steps | examples | saved of both | predicted "
        "| product, constant | product, adaptive | gamma | gamma of batches |",
        "|---" * 12 + "|",
    ]
    lines += [
        f"| {row['goal']:g} | {row['exchange_rate']:g} | {row['learning_rate']:.3g}"
        f"{' ' + row['edge'] if row['edge'] else ''} | {row['mean_batch']:.0f} "
        f"| {row['steps']:,.0f} | {row['examples']:,.0f} | {_percent(row['saved'])} "
        f"| {100 * row['predicted_saved']:.1f} % | {_number(row['product_of_constant'])} "
        f"| {_number(row['product'])} | {row['gamma']:.2f} | {row['gamma_of_batches']:.2f} |"
        for row in rows
    ]
    lines += [
        "",
        "| Goal | r | steps saved at equal examples | predicted | examples saved at equal steps "
        "| predicted | saved of both, over the fit | noise scale, mean |",
        "|---" * 8 + "|",
    ]
    lines += [
        f"| {row['goal']:g} | {row['exchange_rate']:g} | {_percent(row['steps_saved'])} "
        f"| {100 * row['predicted_steps_saved']:.1f} % | {_percent(row['examples_saved'])} "
        f"| {100 * row['predicted_examples_saved']:.1f} % | {_percent(row['saved_over_fit'])} "
        f"| {row['noise_scale']:.0f} |"
        for row in rows
    ]
    return "\n".join(lines)


def _percent(found: Sequence[float]) -> str:
    mean, low, high = (100 * value for value in found)
    return "off the front" if math.isnan(mean) else f"{mean:.0f} % ({low:.0f} to {high:.0f})"


def _number(found: Sequence[float]) -> str:
    mean, low, high = found
    return "-" if math.isnan(mean) else f"{mean:.2f} ({low:.2f} to {high:.2f})"


def draw(
    fixed: SweepRecord, runs: Sequence[dict], rows: Sequence[dict], path: str | PathLike[str]
) -> None:
    """Draws fronts with the adaptive points, savings beside predictions, and batch sizes."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    rates = sorted({run["exchange_rate"] for run in runs})
    markers = dict(zip(rates, MARKERS, strict=False))
    shades = colormaps["viridis_r"](np.linspace(0.15, 1, len(fixed.goals)))
    colors = {goal.threshold: color for goal, color in zip(fixed.goals, shades, strict=True)}
    figure = Figure(figsize=(15, 4.8), layout="constrained")
    front, saved, sizes = figure.subplots(1, 3)
    _draw_fronts(front, fixed, rows, colors, markers)
    _draw_savings(saved, rows, colors, markers)
    _draw_batches(sizes, runs, rates)
    figure.savefig(path, dpi=130)


def _draw_fronts(axes: Any, fixed: SweepRecord, rows: Any, colors: dict, markers: dict) -> None:
    for goal in fixed.goals:
        color, fit, best = colors[goal.threshold], fixed.tradeoff(goal), fixed.best(goal)
        steps = np.array([b.steps for b in best])
        sizes = np.array([b.batch_size for b in best])
        axes.plot(steps, steps * sizes, "o", ms=4, color=color, label=goal.label)
        if fit.resolved:
            grid = np.geomspace(sizes.min(), sizes.max(), 200)
            axes.plot(fit.steps_at(grid), fit.examples_at(grid), color=color, lw=1.1)
    for row in rows:
        axes.plot(
            row["steps"], row["examples"], markers[row["exchange_rate"]], ms=8, mec="#c4570c",
            mew=1.4, mfc="none",
        )  # fmt: skip
    for rate, marker in markers.items():
        axes.plot([], [], marker, mec="#c4570c", mfc="none", ls="", label=f"adaptive, r = {rate:g}")
    axes.set(xscale="log", yscale="log", xlabel="optimizer steps", ylabel="examples")
    axes.set_title("Constant batch sizes (dots, fits) and adaptive ones", fontsize=11)
    axes.legend(fontsize=7)
    axes.grid(alpha=0.25)


def _draw_savings(axes: Any, rows: Sequence[dict], colors: dict, markers: dict) -> None:
    ends = [0.0]
    for row in rows:
        mean, low, high = (100 * value for value in row["saved"])
        predicted = 100 * row["predicted_saved"]
        if not (math.isfinite(predicted) and math.isfinite(mean)):
            continue
        if math.isfinite(low) and math.isfinite(high):
            axes.plot([predicted, predicted], [low, high], color=colors[row["goal"]], lw=0.9)
        axes.plot(predicted, mean, markers[row["exchange_rate"]], ms=7, color=colors[row["goal"]])
        ends.append(predicted)
    axes.axline((0, 0), slope=1, color="0.45", lw=0.9, ls="--", label="as predicted")
    axes.axhline(0, color="0.45", lw=0.8)
    axes.set(
        xlabel="predicted by gamma, %", ylabel="measured, %", xlim=(-0.5, max(ends) * 1.15 + 1)
    )
    axes.set_title("Steps and examples saved at equal E/S", fontsize=11)
    axes.legend(fontsize=7)
    axes.grid(alpha=0.25)


def _draw_batches(axes: Any, runs: Sequence[dict], rates: Sequence[float]) -> None:
    """Batch size (steps) and noise scale (thin) of the run of seed 0 at the middle factor."""
    for rate, color in zip(rates, ["#3b6ea8", "#4b9b6e", "#c4570c", "#7b4ea3"] * 2, strict=False):
        run = next(
            r for r in runs if (r["exchange_rate"], r["seed"], r["power"]) == (rate, 0, 0)
        )  # fmt: skip
        history = {name: np.asarray(values) for name, values in run["history"].items()}
        seen = np.maximum(history["examples_seen"], 1)
        axes.step(
            seen, history["global_batch_size"], where="post", color=color, label=f"r = {rate:g}"
        )
        axes.plot(seen, history["noise_scale"], color=color, lw=0.6, alpha=0.7)
    axes.set(xscale="log", yscale="log", xlabel="examples", ylabel="examples", xlim=(1e3, None))
    axes.set_title("Batch size, and measured noise scale (thin), one seed", fontsize=11)
    axes.legend(fontsize=7)
    axes.grid(alpha=0.25)
