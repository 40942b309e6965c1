"""Figure 6: training curves at constant batch sizes, against steps and against examples.

    python examples/reproduce/figure_6.py --folder scaling --plot docs/reproduction/figure_6.png

Every batch size with its best learning rate for an error of 0.18, or the one that comes closest to
it; seed 0. Training errors of a fixed sample.
"""

import benchmarks_path  # noqa: F401
import matplotlib.pyplot as plt
import numpy as np
from scaling_curves import crossing, curve, recorded
from scaling_plots import logarithmic, new_figure, save
from scaling_tasks import SGD_TASK, TASKS, arguments, swept

GOAL = 0.18
SEED = 0


def main() -> None:
    """Draws the curves; prints steps and examples to the goal."""
    args = arguments(__doc__, (SGD_TASK,))
    result = swept(TASKS[SGD_TASK], args.folder)
    runs = recorded(SGD_TASK, result, args.folder, may_run=not args.only_from_folder)
    figure, (axes,) = new_figure(1)
    sizes = sorted({key.batch_size for key in runs})
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.95, len(sizes)))
    print("batch size, learning rate: steps, examples to a training error of", GOAL)
    for size, color in zip(sizes, colors, strict=True):
        own = {k: crossing(r, "train", "error", GOAL) for k, r in runs.items()
               if k.batch_size == size and k.seed == SEED}  # fmt: skip
        # Those that do not reach it by how far they come.
        key = min(
            own, key=lambda k: (np.nan_to_num(own[k], nan=np.inf), runs[k]["values"][-1][0][1])
        )
        steps, errors = curve(runs[key], "train", "error")
        print(f"{size}, {key.learning_rate:g}: {own[key]:.0f}, {own[key] * size:.0f}")
        axes[0].plot(steps, errors, color=color, lw=1.2, label=f"{size:,}")
        axes[1].plot(steps * size, errors, color=color, lw=1.2)
    for axis, name in zip(axes, ("optimizer steps", "examples"), strict=True):
        logarithmic(axis, name, "training error")
        axis.set_ylim(0.14, 0.9)
    axes[0].legend(fontsize=7, title="batch size", title_fontsize=7)
    if args.plot:
        save(figure, args.plot)


if __name__ == "__main__":
    main()
