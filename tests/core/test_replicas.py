"""How many replicas pay, by hand."""

import math

import pytest

from gns_keras.core.replicas import replica_rows, worthwhile_replicas
from gns_keras.core.step_time import fit_step_time


def line(overhead: float, per_example: float):
    sizes = (32, 64, 128, 256, 512)
    # A little off the line, so that there is an interval.
    return fit_step_time(
        sizes,
        [[(overhead + per_example * b) * (1 + 1e-4 * (-1) ** i)] for i, b in enumerate(sizes)],
    )


def test_rows_by_hand() -> None:
    """t = 1 ms + 10 us B/N at B_c = 1000: on one, (1 + 1000/B)(1 + 0.01 B) is least near 316."""
    rows = replica_rows(line(1e-3, 1e-5), 1000.0)
    assert rows[0].batch_size == 256
    assert rows[0].relative_time == rows[0].relative_cost == 1.0
    first = (1 + 1000 / 256) * (1 + 0.01 * 256)
    # On four, near sqrt(4 * 100 * 1000) = 632.
    second = (1 + 1000 / 512) * (1 + 0.01 * 512 / 4)
    assert rows[2].num_replicas == 4
    assert rows[2].batch_size == 512
    assert rows[2].relative_time == pytest.approx(second / first, rel=1e-3)
    assert rows[2].relative_cost == pytest.approx(4 * second / first, rel=1e-3)
    assert rows[2].step_time_s == pytest.approx(1e-3 + 1e-5 * 128, rel=1e-3)


def test_the_number_worth_paying_for_by_hand() -> None:
    """Without a limit on B: T(N) = (sqrt(a) + sqrt(c B_c/N))^2; doubling pays above sqrt(2).

    a = 1, c B_c = 10: T = 17.3, 10.5, 6.66, 4.49, 3.21 at N = 1, 2, 4, 8, 16, in ratio 1.65, 1.57,
    1.48, 1.40: eight replicas.
    """
    rows = replica_rows(line(1e-3, 1e-5), 1000.0)
    assert worthwhile_replicas(rows) == 8


def test_times_of_several_replicas_are_taken_apart() -> None:
    """A step of B on two replicas has B/2 on each: c per replica is twice the one seen."""
    one = replica_rows(line(1e-3, 1e-5), 1000.0)
    two = replica_rows(line(1e-3, 0.5e-5), 1000.0, measured_on=2)
    assert [row.batch_size for row in one] == [row.batch_size for row in two]
    assert one[1].relative_time == pytest.approx(two[1].relative_time, rel=1e-3)


def test_without_times_or_critical_batch_size_there_are_no_rows() -> None:
    assert replica_rows(None, 100.0) == ()
    assert replica_rows(line(1e-3, 1e-5), math.nan) == ()
    assert replica_rows(line(1e-3, 1e-5), 0.0) == ()
    assert replica_rows(fit_step_time([32, 64], [[1e-3], [2e-3]]), 100.0) == ()
    assert worthwhile_replicas(()) == 1


def test_a_small_data_set_limits_the_batch_size() -> None:
    assert max(row.batch_size for row in replica_rows(line(1e-3, 1e-5), 1e5, most=300)) == 256
