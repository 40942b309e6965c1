"""The law of growth: powers by hand, and what a new task may do."""

import math

import pytest

from gns_keras.core.calibrated import GROWTH
from gns_keras.core.growth import Growth
from gns_keras.core.intervals import student_quantile

LAW = Growth(exponent=0.5, spread=0.1, degrees_of_freedom=4.0, largest_ratio=50.0)


def test_powers_by_hand() -> None:
    value, (low, high) = LAW.over(100.0)
    assert value == pytest.approx(10.0)
    reach = student_quantile(0.95, 4.0) * 0.1  # 2.776 of the exponent's spread.
    assert (low, high) == pytest.approx((100 ** (0.5 - reach), 100 ** (0.5 + reach)))
    assert reach == pytest.approx(0.2776, abs=1e-4)


def test_a_run_no_longer_than_the_trial_does_not_grow() -> None:
    assert LAW.over(1.0) == (1.0, (1.0, 1.0))


def test_two_stretches_are_one() -> None:
    assert LAW.over(8.0)[0] * LAW.over(4.0)[0] == pytest.approx(LAW.over(32.0)[0])


@pytest.mark.parametrize("ratio", [0.99, 0.0, -1.0, math.nan, math.inf])
def test_a_shorter_run_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="finite `ratio` of at least 1"):
        LAW.over(ratio)


def test_json_gives_the_same_law_back() -> None:
    assert Growth.from_json(GROWTH.to_json()) == GROWTH


def test_the_law_of_the_package_has_the_exponent_of_its_kind() -> None:
    # Zhang et al. 2024, arXiv 2410.21676: 0.47 for language models.
    low, high = (math.log(end) / math.log(50) for end in GROWTH.over(50)[1])
    assert low < 0.47 < high
