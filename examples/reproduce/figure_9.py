"""Figure 9: Pareto fronts and critical batch sizes of generative models and a language model.

    python examples/reproduce/figure_9.py --folder scaling --plot docs/reproduction/figure_9.png

Autoencoders, plain and variational, and an LSTM on the letters of Shakespeare, in the place of the
paper's SVHN and One Billion Word corpus.
"""

import benchmarks_path  # noqa: F401
from scaling_rows import figure
from scaling_tasks import LSTM_TASK, arguments

TITLES = {
    "mnist_ae_sgd": "Autoencoder, MNIST, SGD",
    "fashion_ae_adam": "Autoencoder, Fashion-MNIST, Adam",
    "fashion_vae_adam": "Variational autoencoder, Fashion-MNIST, Adam",
    LSTM_TASK: "LSTM, letters of Shakespeare, Adam",
}


def main() -> None:
    """Runs what is missing, prints the tables, and draws."""
    figure(arguments(__doc__, tuple(TITLES)), TITLES)


if __name__ == "__main__":
    main()
