"""How many replicas are worth paying for.

With `N` replicas a step at global batch size `B` takes `t = a + c B/N` (`c`: seconds per example on
one replica, `a`: what every step costs), so that a run takes

    T(N) ~ (1 + B_c/B)(a + c B/N)

and costs `N T(N)`. Twice the replicas are worth it while they make the run at least sqrt(2) times
shorter: the time saved then outweighs, in ratio, what the run costs more. Communication between
replicas is not in `t`; it makes fewer of them worth it, never more.
"""

import itertools
import math

from gns_keras.core.advice_parts import ReplicaRow
from gns_keras.core.step_time import StepTime

MOST_REPLICAS = 1024
WORTHWHILE = math.sqrt(2)  # Times shorter with twice the replicas.
WIDEST = 16.0  # From 16 B_c on, a bigger batch saves at most 6 % of the steps.
GONE = 1.05  # Where twice the replicas save less than this, the table ends.


def replica_rows(
    step_time: StepTime | None, critical: float, measured_on: int = 1, most: float = math.inf
) -> tuple[ReplicaRow, ...]:
    """The fastest run on 1, 2, 4 and so on replicas.

    Args:
        step_time: Step times on `measured_on` replicas; None: no rows.
        critical: Critical batch size, in examples; without one there are no rows.
        measured_on: Number of replicas of the step times.
        most: Largest batch size that fits in the data.

    Returns:
        Rows until more replicas gain nothing; empty without a resolved fit of the step times.
    """
    if step_time is None or not step_time.per_example_resolved or not critical > 0:
        return ()
    overhead, per_example = step_time.overhead_s, step_time.per_example_s * measured_on
    rows: list[ReplicaRow] = []
    unit = math.nan
    count = 1
    while count <= MOST_REPLICAS:
        size = _fastest(overhead, per_example / count, critical, count, most)
        if size is None:
            break
        seconds = overhead + per_example * size / count
        time = (1 + critical / size) * seconds
        unit = time if count == 1 else unit
        row = ReplicaRow(
            num_replicas=count,
            batch_size=size,
            step_time_s=seconds,
            relative_time=time / unit,
            relative_cost=count * time / unit,
        )
        if rows and rows[-1].relative_time < GONE * row.relative_time:
            break
        rows.append(row)
        count *= 2
    return tuple(rows)


def _fastest(
    overhead: float, per_example: float, critical: float, least: int, most: float
) -> int | None:
    """The power of two with the shortest run, at least one example per replica; None: no step."""
    times = {}
    size = least
    while size <= min(most, max(WIDEST * critical, least)):
        seconds = overhead + per_example * size
        if seconds > 0:
            times[size] = (1 + critical / size) * seconds
        size *= 2
    return min(times, key=times.__getitem__) if times else None


def worthwhile_replicas(rows: tuple[ReplicaRow, ...]) -> int:
    """The most replicas of which every doubling is worth it; 1 without rows."""
    number = 1
    for row, more in itertools.pairwise(rows):
        if row.relative_time < WORTHWHILE * more.relative_time:
            break
        number = more.num_replicas
    return number
