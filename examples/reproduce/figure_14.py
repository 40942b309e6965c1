"""Figure 14: Pareto fronts and critical batch sizes of image classifiers.

    python examples/reproduce/figure_14.py --folder scaling --plot docs/reproduction/figure_14.png

In the place of the paper's SVHN with SGD and with Adam, MNIST with SGD, and CIFAR-10 with momentum.
"""

import benchmarks_path  # noqa: F401
from scaling_rows import figure
from scaling_tasks import SGD_TASK, arguments

TITLES = {
    SGD_TASK: "Fashion-MNIST, convolutional, SGD",
    "fashion_mlp_rmsprop": "Fashion-MNIST, dense, RMSProp",
    "mnist_mlp_sgd": "MNIST, dense, SGD",
    "cifar10_mlp_sgd": "CIFAR-10, dense, SGD",
    "fashion_bn_momentum": "Fashion-MNIST, batch normalization, momentum",
}


def main() -> None:
    """Runs what is missing, prints the tables, and draws."""
    figure(arguments(__doc__, tuple(TITLES)), TITLES)


if __name__ == "__main__":
    main()
