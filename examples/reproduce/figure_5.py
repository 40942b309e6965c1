"""Figure 5: the best learning rate, and the progress of one step, against the batch size.

    python examples/reproduce/figure_5.py --folder scaling --plot docs/reproduction/figure_5.png

Left from the sweep of `fashion_cnn_sgd`; right from the line searches of `line_searches.py`.
"""

import argparse
from typing import Any

import benchmarks_path  # noqa: F401
import numpy as np
from line_searches import STAGES, fits_of, line_searches
from scaling_noise import geometric_mean
from scaling_plots import interval, logarithmic, new_figure, save
from scaling_tasks import SGD_TASK, TASKS, arguments, error_goal, swept

from gns_keras.core.sweep_result import SweepRecord

ERRORS = (0.3, 0.2, 0.165)
COLORS = ("C0", "C3")


def finer(result: SweepRecord, args: argparse.Namespace) -> SweepRecord | None:
    """Every second batch size with learning rates in between, next to the best for the last goal.

    The sweep's own are a factor of 2 apart about a centre that follows Eq. A.3 itself, with a
    guessed `B*` of 100: close to that, a fit might find its own guess again.
    """
    if args.only_from_folder and not (args.folder / f"{SGD_TASK}_finer.json").exists():
        return None
    rates = {}
    for best in result.best(result.goals[-1])[::2]:
        tried = {r.learning_rate for r in result.records if r.batch_size == best.batch_size}
        between = {float(f"{best.learning_rate * 2**k:.4g}") for k in (-0.5, 0.5)}
        rates[best.batch_size] = sorted(tried | between)
    return swept(TASKS[SGD_TASK], args.folder, learning_rates=rates, what="finer")


def draw_rates(axes: Any, result: SweepRecord) -> None:
    """Best learning rates with the fit of Eq. A.3 with alpha = 1, which is Eq. 2.6."""
    logarithmic(axes, "batch size", "learning rate")
    print("training error: B* of eps = eps_* B/(B* + B); alpha where it is free")
    for error, color in zip(ERRORS, ("C2", "C0", "C3"), strict=True):
        goal = error_goal(error)
        fit, free = result.learning_rate_fit(goal, alpha=1.0), result.learning_rate_fit(goal)
        points = result.best_learning_rates(goal)
        cells = [
            interval(fit.critical_batch_size, fit.interval),
            f"eps_* {interval(fit.max_learning_rate, fit.max_learning_rate_interval)}",
            f"alpha {interval(free.alpha, free.alpha_interval)}",
        ]
        print(f"{error:g}: " + "; ".join(cells))
        inside = {size: p for size, p in points.items() if not p.at_edge}
        axes.scatter(
            list(inside), [p.learning_rate for p in inside.values()], s=18, color=color, zorder=3
        )
        grid = np.geomspace(min(points), max(points), 100)
        axes.plot(grid, [fit.at(size) for size in grid], color=color, lw=1.2,
                  label=f"error {error:g}: B* = {fit.critical_batch_size:.0f}")  # fmt: skip
    axes.legend(fontsize=8)
    axes.set_title("Best learning rate", fontsize=10)


def draw_finer(axes: Any, result: SweepRecord) -> None:
    """The last goal's learning rates once more, from closer ones."""
    goal = result.goals[-1]
    fit = result.learning_rate_fit(goal, alpha=1.0)
    points = result.best_learning_rates(goal)
    axes.plot(
        list(points), [point.learning_rate for point in points.values()], "kx", ms=6, zorder=4
    )
    print(f"with closer learning rates, {goal.label}: "
          f"{interval(fit.critical_batch_size, fit.interval)}; "
          f"eps_* {interval(fit.max_learning_rate, fit.max_learning_rate_interval)}; "
          + ", ".join(f"{size}: {p.learning_rate:.3g}" for size, p in points.items()))  # fmt: skip


def draw_progress(axes: Any, found: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Progress over that at the largest batch size; every seed, and the fit of Eq. 2.7."""
    logarithmic(axes, "batch size", "progress of one step, over that at 2,048")
    for stage, color in zip(STAGES, COLORS, strict=True):
        fits = []
        for seed, stages in found.items():
            points, fit = np.array(stages[stage]["points"]), fits_of(stages[stage])
            fits.append(fit)
            top = float(fit.shared.at(points[-1, 0]))
            axes.errorbar(
                points[:, 0], points[:, 2] / top, yerr=1.96 * points[:, 3] / top,
                fmt=".", ms=5, lw=0.8, color=color, alpha=0.7,
            )  # fmt: skip
            grid = np.geomspace(points[0, 0], points[-1, 0], 100)
            label = f"{stage} (error {STAGES[stage]:g})" if seed == next(iter(found)) else None
            axes.plot(grid, fit.shared.at(grid) / top, color=color, lw=1, label=label)
        scales = [fit.noise[0] for fit in fits]
        axes.axvline(geometric_mean(scales)[0], color=color, ls="--", lw=0.9)
    axes.set_ylim(0.01, 1.3)
    axes.plot([], [], "k--", lw=0.9, label="$B_{noise}$ by Hessian-vector products")
    axes.legend(fontsize=8)
    axes.set_title("Progress of one step, every seed (lines: Eq. 2.7)", fontsize=10)


def report(found: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Prints the noise scales of every seed and stage, and their ratios over the seeds."""
    for stage in STAGES:
        rows = {seed: fits_of(stages[stage]) for seed, stages in found.items()}
        print(f"\n{stage}: line search | step for each gradient | fit of the steps (Eq. 2.6) | "
              "Hessian-vector products | B_simple")  # fmt: skip
        for seed, fit in rows.items():
            cells = [interval(f.noise_scale, f.interval) for f in (fit.shared, fit.separate)]
            cells.append(interval(fit.rates.critical_batch_size, fit.rates.interval))
            cells += [interval(part[0], part[1:]) for part in (fit.noise, fit.simple)]
            print(f"  seed {seed}, loss {found[seed][stage]['loss']:.3f}, rms "
                  f"{fit.shared.residual_rms:.3f}: " + " | ".join(cells))  # fmt: skip
        for name in ("shared", "separate"):
            scales = [getattr(f, name).noise_scale for f in rows.values()]
            ratios = [s / f.noise[0] for s, f in zip(scales, rows.values(), strict=True)]
            print(f"  {name}: {interval(*geometric_mean(scales))}, over Hessian-vector products "
                  f"{interval(*geometric_mean(ratios))}")  # fmt: skip
        for name in ("noise", "simple"):
            scales = [getattr(fit, name)[0] for fit in rows.values()]
            print(f"  {name}: {interval(*geometric_mean(scales))}")


def main() -> None:
    """Runs what is missing, prints the fits, and draws."""
    args = arguments(__doc__, (SGD_TASK,))
    result = swept(TASKS[SGD_TASK], args.folder)
    found = line_searches(result, args.folder, may_run=not args.only_from_folder)
    figure, (axes,) = new_figure(1)
    draw_rates(axes[0], result)
    if (closer := finer(result, args)) is not None:
        draw_finer(axes[0], closer)
    draw_progress(axes[1], found)
    report(found)
    if args.plot:
        save(figure, args.plot)


if __name__ == "__main__":
    main()
