"""Table 1 of the paper (McCandlish et al. 2018, arXiv 1812.06162), appendix B.

"We report the simple noise scale, both early in training and averaged over a training run, as well
as the critical batch size, both early in the run and at the end of the run. [...] Batch sizes
reported in number of images, tokens (for language models), or observations (for games)." Where in a
run "early" is, the paper does not say. Noise scales are those of one run, without an interval.
"""

import math

from gns_keras.core.reproduction import PublishedRow

_NOT_MEASURED = (math.nan, math.nan)
_UNKNOWN = "the paper does not say how long it trained"


def _row(
    system: str, unit: str, critical: tuple[float, float], noise: tuple[float, float], length: str
) -> PublishedRow:
    """A row of single numbers: start and average."""
    starts, averages = zip(critical, noise, strict=True)
    return PublishedRow(
        system=system,
        unit=unit,
        critical_start=(starts[0], starts[0]),
        critical_average=(averages[0], averages[0]),
        noise_start=(starts[1], starts[1]),
        noise_average=(averages[1], averages[1]),
        length=length,
    )


_DECAYS = "the paper's run goes through decays of the learning rate at training errors of 0.487, "
_DECAYS += "0.312 and 0.229"
TABLE_1 = {
    "mnist": _row("MNIST", "images", (20, 200), (50, 900), _UNKNOWN),
    "svhn": _row(
        "SVHN", "images", (50, 500), (300, 4_000),
        "the paper's last goal is a training error of 0.004",
    ),
    "cifar10": _row("CIFAR10", "images", (300, 900), (400, 2_000), _DECAYS),
    "imagenet": _row("ImageNet", "images", (1_000, 15_000), (4_000, 30_000), _DECAYS),
    "autoencoder": _row("Autoencoder (SVHN)", "images", (10, 40), (2, 2), _UNKNOWN),
    "vae": _row("Variational Autoencoder (SVHN)", "images", (10, 200), (10, 10), _UNKNOWN),
    "lm": _row("Billion Word (per token)", "tokens", (700, 100_000), (1_000, 150_000), _UNKNOWN),
    "atari": PublishedRow(
        system="Atari (per frame)",
        unit="frames",
        critical_start=(100, 1_000),
        critical_average=(400, 8_000),
        noise_start=(100, 1_000),
        noise_average=(1_000, 20_000),
        length=_UNKNOWN,
    ),
    "dota_1v1": _row(
        "Dota 1v1 (per frame)", "frames", (50_000, 3_000_000), (100_000, 300_000), _UNKNOWN
    ),
    "dota_5v5": PublishedRow(
        system="Dota 5v5 (per frame)",
        unit="frames",
        critical_start=_NOT_MEASURED,
        critical_average=(8_000_000, math.inf),  # ">8,000,000 (est.)"
        noise_start=(100_000, 100_000),
        noise_average=(24_000_000, 24_000_000),
        length=_UNKNOWN,
    ),
}  # fmt: skip

# Tasks of other names, and the row that they stand for: the same network on other data; another
# game of one against one, and of two teams.
_STANDS_FOR = {"cnn": "svhn", "self_play_1v1": "dota_1v1", "self_play_team": "dota_5v5"}


def published_row(task_name: str) -> PublishedRow | None:
    """The row of Table 1 that a task stands for; None: the paper has no such task.

    Args:
        task_name: One of `gns_keras.tasks.list_tasks()`, or another name.
    """
    for name in (task_name, task_name.partition("_")[0]):
        row = TABLE_1.get(_STANDS_FOR.get(name, name))
        if row is not None:
            return row
    return None
