"""Figure 7: Pareto fronts, critical batch size, `B_simple` and `B_noise` of a classifier with SGD.

    python examples/reproduce/figure_7.py --folder scaling --plot docs/reproduction/figure_7.png

Goals are training errors of a fixed sample. The table at the end has those of the sweep itself,
where the moving average of the batches' errors comes below a goal, less its delay.
"""

import benchmarks_path  # noqa: F401
from calibration_predictors import delay
from classifiers import figure
from scaling_plots import interval
from scaling_tasks import SGD_TASK, TASKS, arguments, goals_of, swept

from gns_keras.core.goals import Goal
from gns_keras.core.sweep_result import SweepRecord
from gns_keras.core.tradeoff_fit import Tradeoff, fit_tradeoff


def without_delay(result: SweepRecord, goal: Goal) -> Tradeoff:
    """The sweep's fit to steps less the delay of the moving average."""
    index = result.goals.index(goal)
    sizes, steps = [], []
    for best in result.best(goal):
        late = delay(best.batch_size, result.half_life)
        for record in result.records:
            if (record.batch_size, record.learning_rate) == (best.batch_size, best.learning_rate):
                sizes.append(record.batch_size)
                steps.append(record.steps_to[index] - late)
    return fit_tradeoff(sizes, steps)


def main() -> None:
    """Runs what is missing, prints the tables, and draws."""
    args = arguments(__doc__, (SGD_TASK,))
    figure(args, "train", hessian=(SGD_TASK,))
    task = TASKS[SGD_TASK]
    result = swept(task, args.folder)
    print("\ngoal | by the moving average: sizes | critical batch size | rms")
    for error, goal in zip(task.goals, goals_of(task), strict=True):
        late = delay(1, result.half_life)
        least = min(best.steps * best.batch_size for best in result.best(goal))
        if late > least / 2:
            print(f"{error:g} | the average delays the goal by more than half of its examples")
            continue
        fit = without_delay(result, goal)
        cells = [f"{error:g}", f"{len(result.best(goal))}"]
        cells += [interval(fit.critical_batch_size, fit.interval), f"{fit.residual_rms:.3f}"]
        print(" | ".join(cells))


if __name__ == "__main__":
    main()
