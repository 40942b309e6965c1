"""Table 1 of the paper, against its numbers as printed."""

import math

import pytest

from gns_keras.tasks import list_tasks
from gns_keras.tasks.paper import TABLE_1, published_row

# McCandlish et al. 2018, table 1: critical batch size start, average; noise scale start, average.
PRINTED = """
MNIST                          20          200          50         900
SVHN                           50          500          300        4,000
CIFAR10                        300         900          400        2,000
ImageNet                       1,000       15,000       4,000      30,000
Autoencoder (SVHN)             10          40           2          2
Variational Autoencoder (SVHN) 10          200          10         10
Billion Word (per token)       700         100,000      1000       150,000
Atari (per frame)              100 - 1,000 400 - 8,000  100-1,000  1,000-20,000
Dota 1v1 (per frame)           50,000      3,000,000    100,000    300,000
Dota 5v5 (per frame)           -           >8,000,000   100,000    24,000,000
"""


def numbers(cell: str) -> tuple[float, float]:
    if cell == "-":
        return (math.nan, math.nan)
    if cell.startswith(">"):
        return (float(cell[1:]), math.inf)
    ends = [float(part) for part in cell.split("-")]
    return (ends[0], ends[-1])


def test_the_table_is_the_one_printed() -> None:
    lines = PRINTED.strip().replace(",", "").replace(" - ", "-").splitlines()
    rows = {row.system: row for row in TABLE_1.values()}
    assert len(lines) == len(rows) == 10
    for line in lines:
        *name, a, b, c, d = line.split()
        row = rows[" ".join(name)]
        found = (row.critical_start, row.critical_average, row.noise_start, row.noise_average)
        for ours, cell in zip(found, (a, b, c, d), strict=True):
            assert ours == pytest.approx(numbers(cell), nan_ok=True)


def test_units_are_images_tokens_and_observations() -> None:
    units = {name: row.unit for name, row in TABLE_1.items()}
    assert {name for name, unit in units.items() if unit == "tokens"} == {"lm"}
    assert {n for n, unit in units.items() if unit == "frames"} == {"atari", "dota_1v1", "dota_5v5"}


@pytest.mark.parametrize(
    ("task", "system"),
    [
        ("mnist", "MNIST"),
        ("svhn", "SVHN"),
        ("cnn_fashion_mnist_adam", "SVHN"),
        ("cifar10", "CIFAR10"),
        ("autoencoder_fashion_mnist", "Autoencoder (SVHN)"),
        ("vae_cifar10", "Variational Autoencoder (SVHN)"),
        ("lm_512_tinyshakespeare", "Billion Word (per token)"),
        ("atari_pong", "Atari (per frame)"),
        ("self_play_1v1", "Dota 1v1 (per frame)"),
        ("self_play_team", "Dota 5v5 (per frame)"),
    ],
)
def test_a_task_has_its_row(task: str, system: str) -> None:
    row = published_row(task)
    assert row is not None
    assert row.system == system


def test_tasks_that_are_not_in_the_table_have_no_row() -> None:
    without = {name for name in list_tasks() if published_row(name) is None}
    assert without >= {"digits", "limit_mnist", "limit_cifar10"}
    assert without < set(list_tasks())
