"""Figure 9: Pareto fronts and critical batch sizes of generative models and a language model.

    python examples/reproduce/figure_9.py --folder scaling --plot docs/reproduction/figure_9.png

An autoencoder and a variational one on Fashion-MNIST, and an LSTM on the letters of Shakespeare, in
the place of the paper's SVHN and One Billion Word corpus; all with Adam. Goals are training losses,
where the moving average of the batches' losses comes below them, less its delay.
"""

from typing import Any

import benchmarks_path  # noqa: F401
import numpy as np
from calibration_predictors import predict, truth
from calibration_tasks import Task
from scaling_curves import Front
from scaling_noise import noise_points, noise_runs
from scaling_plots import (
    draw_averages,
    draw_critical,
    draw_fronts,
    draw_noise,
    interval,
    limits,
    new_figure,
    save,
)
from scaling_tasks import LSTM_TASK, TASKS, arguments, present, swept

from gns_keras.core.sweep_result import SweepRecord

GENERATIVE = {
    "fashion_ae_adam": "Autoencoder, Fashion-MNIST, Adam",
    "fashion_vae_adam": "Variational autoencoder, Fashion-MNIST, Adam",
    LSTM_TASK: "LSTM, letters of Shakespeare, Adam",
}


def fronts_of(task: Task, result: SweepRecord) -> list[Front]:
    """Fits for every goal that was reached."""
    found = []
    for goal in task.goals:
        rates = {best.batch_size: best.learning_rate for best in result.best(goal)}
        if len(rates) > 2:
            found.append(Front(goal=goal, rates=rates, fit=truth(result, goal)))
    return found


def averages(task: Task, runs: list[dict[str, Any]], fronts: list[Front]) -> list[Any]:
    """`B_simple` averaged up to every goal."""
    indices = [task.goals.index(front.goal) for front in fronts]
    return [
        predict(runs, [], index, task.base_batch_size, task.half_life)["frozen"]
        for index in indices
    ]


def main() -> None:
    """Runs what is missing, prints the tables, and draws."""
    args = arguments(__doc__, tuple(GENERATIVE))
    names = present(args)
    figure, axes = new_figure(len(names))
    for row, name in zip(axes, names, strict=True):
        task = TASKS[name]
        result = swept(task, args.folder, seeds=args.seeds)
        runs = noise_runs(name, result, args.folder)
        fronts = fronts_of(task, result)
        found = averages(task, runs, fronts)
        points = noise_points(runs)
        draw_fronts(row[0], fronts, task.unit, GENERATIVE[name], "training loss")
        draw_critical(row[1], fronts, task.unit, "training loss")
        draw_noise(row[1], np.array([point.loss for point in points]), points, hessian=False)
        draw_averages(row[1], [front.goal for front in fronts], found)
        limits(row[1], fronts)
        row[1].legend(fontsize=7)
        print(f"\n{GENERATIVE[name]}\ngoal | sizes | critical batch size | rms | exponent | "
              "B_simple, averaged | their ratio")  # fmt: skip
        for front, average in zip(fronts, found, strict=True):
            fit = front.fit
            cells = [f"{front.goal:g}", f"{len(front.rates)}"]
            cells += [interval(fit.critical_batch_size, fit.interval), f"{fit.residual_rms:.3f}"]
            cells.append(interval(fit.exponent, fit.exponent_interval))
            cells.append(interval(average.value, average.interval))
            cells.append(f"{average.value / fit.critical_batch_size:.2g}")
            print(" | ".join(cells), flush=True)
    if args.plot:
        save(figure, args.plot)


if __name__ == "__main__":
    main()
