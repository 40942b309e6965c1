"""Figure 19: Pareto fronts and critical batch sizes of image classifiers, goals of test error.

python examples/reproduce/figure_19.py --folder scaling --plot docs/reproduction/figure_19.png
"""

import benchmarks_path  # noqa: F401
from classifiers import CLASSIFIERS, figure
from scaling_tasks import arguments


def main() -> None:
    """Runs what is missing, prints the tables, and draws."""
    figure(arguments(__doc__, CLASSIFIERS), "test")


if __name__ == "__main__":
    main()
