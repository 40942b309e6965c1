"""A run and its branches say together what a sweep would."""

import math
from dataclasses import replace

import numpy as np
import pytest

from gns_keras.core.branched_run import BranchedRun, pace_of, paces_from_start, pool_runs

LEAST, EXAMPLES = 5.0, 600.0  # S(B) to a loss L: (LEAST + EXAMPLES/B) / L^2, from a loss of 2.


def branched(seed=0, factor=1.0, goal=0.1):
    """Branches at 512 at seven losses, with a learning rate of half the pace beside the best."""
    losses = tuple(np.geomspace(1.9, 0.11, 7).tolist())
    at_large = (LEAST + EXAMPLES / 512) * factor
    best = tuple(2 * at_large / loss**2 for loss in losses)  # -dS/d ln L
    return BranchedRun(
        base_batch_size=8,
        branch_batch_size=512,
        seed=seed,
        start_loss=2.0,
        goals=(0.5, goal),
        base_steps=tuple((LEAST + EXAMPLES / 8) * factor * (g**-2 - 0.25) for g in (0.5, goal)),
        learning_rates=(0.2, 0.4, 0.8),
        losses=(losses,) * 3,
        paces=(tuple(2 * pace for pace in best), best, (math.nan, *best[1:])),
        run_examples=1000,
        branch_examples=2000,
    )


@pytest.mark.parametrize("goal", [0.5, 0.1])
def test_power_laws_give_their_critical_batch_size(goal):
    run = branched()
    steps, rate = run.branch_steps(goal)
    assert steps == pytest.approx((LEAST + EXAMPLES / 512) * (goal**-2 - 0.25), rel=1e-3)
    assert rate == 0.4  # The third one diverged in a branch.
    assert run.total(goal).critical_batch_size == pytest.approx(EXAMPLES / LEAST, rel=0.002)


def test_runs_of_several_seeds_are_paired():
    runs = [branched(seed, factor) for seed, factor in enumerate((1.0, 1.5, 0.8))]
    whole = pool_runs(runs, 0.1)
    assert whole.seeds == (0, 1, 2)
    assert whole.interval == pytest.approx((whole.critical_batch_size,) * 2)
    with pytest.raises(ValueError, match="same batch sizes"):
        pool_runs([runs[0], replace(runs[1], branch_batch_size=256)], 0.1)


def test_what_was_not_reached_is_refused():
    run = branched()
    with pytest.raises(ValueError, match="one of the goals"):
        run.total(0.2)
    with pytest.raises(ValueError, match=r"reach 0\.1"):
        replace(run, base_steps=(1.0, math.nan)).total(0.1)
    with pytest.raises(ValueError, match="lower the loss"):
        replace(run, paces=((math.nan,) * 7,) * 3).total(0.1)


def test_the_pace_is_that_of_an_exponential():
    loss, pace = pace_of(np.exp(-np.arange(31) / 50))
    assert loss == pytest.approx(math.exp(-15 / 50))
    assert pace == pytest.approx(50)
    assert math.isnan(pace_of([1.0, 1.1, 1.2])[1])
    assert math.isnan(pace_of([1.0, math.inf, 0.5])[1])


def test_a_run_that_rises_first_counts_from_the_start():
    losses = [2.0, 3.0, 2.5, *(2.0 * np.exp(-np.arange(41) / 20))]
    found, paces = zip(*paces_from_start(losses), strict=True)
    assert found[0] == pytest.approx(2 / math.sqrt(1.25))
    assert paces[0] == pytest.approx(20 + 3 / math.log(1.25))
    assert paces[1:] == pytest.approx([20] * (len(paces) - 1))
    assert math.isnan(paces_from_start([2.0, 14.0, 4.0])[0][1])
    assert math.isnan(paces_from_start([2.0, math.nan, 1.0])[0][1])


def test_json():
    run = branched()
    back = BranchedRun.from_json(run.to_json())
    assert repr(back.total(0.1)) == repr(run.total(0.1))  # NaN equals NaN.
