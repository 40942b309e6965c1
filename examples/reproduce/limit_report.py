"""What the runs of `limit.py` say: tables in Markdown, and two figures. Nothing is trained here."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from gns_keras.core.diffusion import DiffusionFit, fit_diffusion
from gns_keras.core.tradeoff_fit import fit_tradeoff

Curve = dict[int, dict[str, Any]]  # Batch size: exponent of the learning rate, and runs.
NAMES = {"momentum": "momentum", "lars": "LARS", "lamb": "Lamb"}
MIN_BATCH_SIZES = 3  # For the fit of a critical batch size.


def mean_interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and its 95 % Student-t interval."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return mean, math.nan, math.nan
    half = stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count)
    return mean, mean - half, mean + half


def stated(values: list[float], digits: int = 1) -> str:
    """Mean and interval as text."""
    mean, low, high = (f"{value:.{digits}f}".replace("-", "−") for value in mean_interval(values))
    return f"{mean} ({low} to {high})"


def accuracies(curve: Curve, batch_size: int) -> list[float]:
    """Test accuracy of every seed, in percent."""
    return [100 * run["test"] for run in curve[batch_size]["runs"]]


def paired(one: Curve, other: Curve, batch_size: int, reference: int | None = None) -> list[float]:
    """Percentage points by which `one` is above `other`, seed by seed."""
    below = accuracies(other, reference or batch_size)
    return [a - b for a, b in zip(accuracies(one, batch_size), below, strict=True)]


def fall(curve: Curve, points: float = 1.0) -> tuple[int, int | None, list[float]]:
    """Where accuracy falls.

    Returns:
        The best batch size; the first above it whose mean accuracy is more than `points` lower,
        and from which on no mean is nearer than that, or None; the differences there by seed.
    """
    sizes = sorted(curve)
    best = max(sizes, key=lambda size: np.mean(accuracies(curve, size)))
    fallen = None
    for size in reversed([size for size in sizes if size > best]):
        if np.mean(paired(curve, curve, size, best)) >= -points:
            break
        fallen = size
    return best, fallen, [] if fallen is None else paired(curve, curve, fallen, best)


def accuracy_table(curves: dict[str, Curve]) -> list[str]:
    """A row a batch size, a column a curve: accuracy in percent, and the exponent of the rate."""
    sizes = sorted(next(iter(curves.values())))
    lines = ["| batch | updates | " + " | ".join(curves) + " |"]
    lines.append("|" + "---|" * (len(curves) + 2))
    for size in sizes:
        first = next(iter(curves.values()))[size]["runs"][0]
        cells = [
            f"{stated(accuracies(curve, size))}, 2^{curve[size]['exponent']}"
            for curve in curves.values()
        ]
        lines.append(f"| {size:,} | {first['updates']:,} | " + " | ".join(cells) + " |")
    return lines


def fall_lines(curves: dict[str, Curve]) -> list[str]:
    """Where every curve falls by more than one point."""
    lines = []
    for label, curve in curves.items():
        best, fallen, lost = fall(curve)
        where = "nowhere" if fallen is None else f"at {fallen:,}: {stated(lost)} points"
        lines.append(f"- {label}: best at {best:,}; more than one point below it: {where}")
    return lines


def gain_lines(found: dict[str, Curve], part: str, other: str, base: str) -> list[str]:
    """What a schedule gains over another, by optimizer and batch size."""
    lines = []
    for optimizer, name in NAMES.items():
        one, two = found.get(f"{part}/{optimizer}/{other}"), found.get(f"{part}/{optimizer}/{base}")
        if one and two:
            cells = [f"{size:,}: {stated(paired(one, two, size))}" for size in sorted(one)]
            lines.append(f"- {name}, {other} over {base}, points: " + "; ".join(cells))
    return lines


def updates_to(runs: dict[str, Any], part: str, optimizer: str) -> dict[int, dict[int, list]]:
    """Updates to the goals of the search at a constant rate, by batch size and exponent."""
    found: dict[int, dict[int, list]] = {}
    for name, run in runs.items():
        *key, size, exponent, seed = name.split("/")
        if (*key, seed) == (part, optimizer, "constant", "0"):
            found.setdefault(int(size), {})[int(exponent)] = run["updates_to"]
    return found


def critical_lines(
    runs: dict[str, Any], part: str, optimizer: str, goals: tuple[float, ...]
) -> list[str]:
    """The critical batch size of every goal, from the best constant rate of every batch size."""
    searched, lines = updates_to(runs, part, optimizer), []
    for index, goal in enumerate(goals):
        best = {}
        for size, at in searched.items():
            reached = {k: updates[index] for k, updates in at.items()}
            reached = {k: v for k, v in reached.items() if not math.isnan(v)}
            if reached:
                k = min(reached, key=reached.__getitem__)
                best[size] = reached[k], k in (min(at), max(at))
        if len(best) < MIN_BATCH_SIZES:
            continue
        sizes = sorted(best)
        fit = fit_tradeoff(sizes, [best[size][0] for size in sizes])
        low, high = fit.interval
        edges = sum(edge for _, edge in best.values())
        lines.append(
            f"- {NAMES[optimizer]}, training loss {goal:g}: {fit.critical_batch_size:,.0f} "
            f"({low:,.0f} to {high:,.0f}); batches {sizes[0]:,} to {sizes[-1]:,}, {edges} of "
            f"{len(sizes)} best rates at the edge of those searched"
        )
    return lines


def fitted(run: dict[str, Any], first_update: int) -> DiffusionFit:
    """The laws of one run, from an update on."""
    updates, values = (np.array(run["distance"][key]) for key in ("update", "weight_distance"))
    used = updates >= first_update
    return fit_diffusion(updates[used], values[used])


def exponents(runs: list[dict[str, Any]], first_update: int) -> list[str]:
    """Two cells: the exponent over the seeds, and how far the logarithm is behind in every run."""
    fits = [fitted(run, first_update) for run in runs]
    behind = [round(fit.law("logarithm").aic - fit.law("power").aic) for fit in fits]
    cell = ", ".join(str(value).replace("-", "−") for value in behind)
    return [stated([fit.exponent for fit in fits], 2), cell]


def diffusion_table(
    found: dict[str, Curve], first_updates: tuple[int, int] = (10, 30)
) -> list[str]:
    """Exponents of the distance over the seeds, at the best rate and at a fraction of it."""
    heads = "".join(f" `p` from {first} on | AIC of log − power |" for first in first_updates)
    lines = [f"| optimizer | batch | learning rate |{heads} distance at the end | training loss |"]
    lines.append("|---" * (5 + 2 * len(first_updates)) + "|")
    for optimizer, name in NAMES.items():
        for size, one in sorted(found.get(f"updates/{optimizer}/constant", {}).items()):
            for label, runs in (("best", one["runs"]), ("quarter", one.get("slower", []))):
                if not runs:
                    continue
                cells = [cell for first in first_updates for cell in exponents(runs, first)]
                last = stated([run["distance"]["weight_distance"][-1] for run in runs], 2)
                loss = np.mean([run["train_loss"] for run in runs])
                cells = [name, f"{size:,}", label, *cells, last, f"{loss:.2f}"]
                lines.append(f"| {' | '.join(cells)} |")
    return lines


def labelled(found: dict[str, Curve], part: str) -> dict[str, Curve]:
    """The curves of a part by readable names."""
    return {
        f"{NAMES[name.split('/')[1]]}, {name.split('/')[2]}": curve
        for name, curve in found.items()
        if name.startswith(f"{part}/")
    }


def report(found: dict[str, Curve], runs: dict[str, Any], goals: dict[str, Any]) -> None:
    """Prints everything. `goals`: of every setting."""
    for part in dict.fromkeys(name.split("/")[0] for name in found):
        curves = labelled(found, part)
        print(f"\n{part}: test accuracy in percent (95 % over seeds), learning rate\n")
        print("\n".join([*accuracy_table(curves), "", *fall_lines(curves)]))
        print("\n".join(gain_lines(found, part, "recipe", "constant")))
        if part in goals:
            for optimizer in NAMES:
                print("\n".join(critical_lines(runs, part, optimizer, goals[part])))
    if any(name.startswith("updates/") for name in found):
        print("\nDistance of the weights from their start\n")
        print("\n".join(diffusion_table(found)))


def draw(found: dict[str, Curve], folder: Path) -> None:
    """Draws limit_accuracy.png and limit_diffusion.png."""
    import matplotlib.pyplot as plt

    parts = [p for p in ("mnist", "cifar10", "updates") if labelled(found, p)]
    figure, axes = plt.subplots(
        1, len(parts), figsize=(4.6 * len(parts), 4.2), squeeze=False, layout="constrained"
    )
    for axis, part in zip(axes[0], parts, strict=True):
        draw_accuracy(axis, labelled(found, part), part)
    figure.savefig(folder / "limit_accuracy.png", dpi=110)
    if "updates" not in parts:
        return
    curves = labelled(found, "updates")
    figure, axes = plt.subplots(
        2, len(curves), figsize=(4.2 * len(curves), 6.4), squeeze=False, layout="constrained"
    )
    for column, (label, curve) in enumerate(curves.items()):
        draw_distance(axes[0][column], {size: one["runs"] for size, one in curve.items()})
        draw_distance(axes[1][column], {size: one.get("slower", []) for size, one in curve.items()})
        axes[0][column].set_title(f"{label.split(',')[0]}, best rate")
        axes[1][column].set(title=f"{label.split(',')[0]}, a quarter of it", xlabel="updates")
    for row in axes:
        row[0].set_ylabel("distance / distance at the end")
    axes[0][0].legend(fontsize=8)
    figure.savefig(folder / "limit_diffusion.png", dpi=110)


TITLES = {
    "mnist": "MNIST, 10 epochs",
    "cifar10": "CIFAR-10, 5 epochs",
    "updates": "15,000 of MNIST, 200 updates",
}


def draw_accuracy(axis: Any, curves: dict[str, Curve], part: str) -> None:
    """Test error, 100 % less the accuracy, against batch size, with intervals."""
    for label, curve in curves.items():
        sizes = sorted(curve)
        rows = 100 - np.array([mean_interval(accuracies(curve, size)) for size in sizes])
        color = f"C{[*NAMES.values()].index(label.split(',')[0])}"
        line = "o-" if "recipe" in label else "s--"
        axis.errorbar(
            sizes, rows[:, 0], (rows[:, 0] - rows[:, 2], rows[:, 1] - rows[:, 0]), fmt=line,
            color=color, ms=4, lw=1.3, capsize=2, label=label,
        )  # fmt: skip
    axis.set(xscale="log", yscale="log", xlabel="batch size", title=TITLES[part])
    axis.set_ylabel("test error, %")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")
    axis.tick_params(axis="y", which="both", labelsize=8)
    axis.legend(fontsize=8)


def draw_distance(axis: Any, curve: dict[int, list[dict[str, Any]]]) -> None:
    """All runs against log t, scaled to end at 1: a logarithm is a straight line."""
    axis.set_visible(any(curve.values()))
    for index, (size, runs) in enumerate(sorted(curve.items())):
        for number, run in enumerate(runs):
            values = np.array(run["distance"]["weight_distance"])
            axis.plot(
                run["distance"]["update"], values / values[-1], ".-", ms=3, lw=0.6,
                color=f"C{index}", label=None if number else f"batch {size:,}",
            )  # fmt: skip
    axis.set(xscale="log")
