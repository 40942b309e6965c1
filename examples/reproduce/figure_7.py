"""Figure 7: Pareto fronts, critical batch size, `B_simple` and `B_noise` of a classifier with SGD.

python examples/reproduce/figure_7.py --folder scaling --plot docs/reproduction/figure_7.png
"""

import benchmarks_path  # noqa: F401
from scaling_rows import figure
from scaling_tasks import SGD_TASK, arguments

TITLES = {SGD_TASK: "Fashion-MNIST, convolutional, SGD"}


def main() -> None:
    """Runs what is missing, prints the table, and draws."""
    figure(arguments(__doc__, tuple(TITLES)), TITLES, hessian=True)


if __name__ == "__main__":
    main()
