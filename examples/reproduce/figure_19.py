"""Figure 19: Pareto fronts and critical batch sizes with goals of test error.

    python examples/reproduce/figure_19.py --folder scaling --plot docs/reproduction/figure_19.png

From runs of the sweep, trained again with test and training error evaluated along them on samples
of 5,000 images. Both are read off alike, so that they can be compared.
"""

import math
from typing import Any

import benchmarks_path  # noqa: F401
from scaling_curves import Front, front, recorded
from scaling_plots import draw_critical, draw_fronts, interval, limits, new_figure, save
from scaling_tasks import SGD_TASK, TASKS, arguments, present, swept

ERRORS = {
    SGD_TASK: (0.35, 0.3, 0.27, 0.25, 0.23, 0.22, 0.21, 0.2),
    "mnist_mlp_sgd": (0.12, 0.1, 0.08, 0.07, 0.06, 0.05),
}
TITLES = {SGD_TASK: "Fashion-MNIST, convolutional, SGD", "mnist_mlp_sgd": "MNIST, dense, SGD"}


def draw_both(axes: Any, test: list[Front], train: list[Front]) -> None:
    """Critical batch sizes: full for test goals, open for training goals beside them."""
    draw_critical(axes, test, "examples", "error", "critical batch size, test goals")
    for one in train:
        value, (low, high) = one.fit.critical_batch_size, one.fit.interval
        if one.fit.resolved:
            axes.errorbar(
                one.goal * 1.006, value, yerr=[[value - low], [high - value]],
                fmt="o", ms=5, mfc="none", color="0.5", capsize=3,
                label="the same, training goals" if one is train[-1] else None,
            )  # fmt: skip
    limits(axes, test)
    axes.legend(fontsize=7)


def report(test: list[Front], train: list[Front], title: str) -> None:
    """Prints a table: a row for every error that both kinds of goals have reached."""
    print(f"\n{title}\nerror | test: sizes | critical batch size | rms | training: sizes | "
          "critical batch size | rms | test over training")  # fmt: skip
    others = {one.goal: one for one in train}
    for one in test:
        other = others[one.goal]
        cells = [f"{one.goal:g}"]
        for fit, rates in ((one.fit, one.rates), (other.fit, other.rates)):
            cells += [f"{len(rates)}", interval(fit.critical_batch_size, fit.interval)]
            cells.append(f"{fit.residual_rms:.3f}")
        ratio = one.fit.critical_batch_size / other.fit.critical_batch_size
        error = math.hypot(one.fit.log_error, other.fit.log_error)
        cells.append(f"{ratio:.2f} (standard errors of both: a factor of {math.exp(error):.2f})")
        print(" | ".join(cells), flush=True)


def main() -> None:
    """Runs what is missing, prints the tables, and draws."""
    args = arguments(__doc__, tuple(TITLES))
    names = present(args)
    figure, axes = new_figure(len(names))
    for row, name in zip(axes, names, strict=True):
        result = swept(TASKS[name], args.folder, seeds=args.seeds)
        runs = recorded(name, result, args.folder, may_run=not args.only_from_folder)
        test, train = (
            [one for goal in ERRORS[name] if (one := front(runs, split, "error", goal)) is not None]
            for split in ("test", "train")
        )
        report(test, train, TITLES[name])
        draw_fronts(row[0], test, "examples", TITLES[name], "test error")
        draw_both(row[1], test, train)
    if args.plot:
        save(figure, args.plot)


if __name__ == "__main__":
    main()
