"""One noise scale for a stretch of training, from snapshots along it.

A snapshot at frozen weights swings by factors from one point of a run to the next: SGD oscillates
in sharp directions, and with it `|G|^2`. For the critical batch size of the stretch, Appendix D of
McCandlish et al. 2018 (arXiv 1812.06162) weights by progress, `ds = dt/(1 + B_i/B)` for `dt_i`
steps at batch size `B`. With `B_i = S_i/Y_i` (`tr Sigma` over `|G|^2`),

    E_min/S_min = sum ds_i B_i / sum ds_i = sum c_i S_i / sum c_i Y_i,    c_i = dt_i/(B Y_i + S_i),

so the ratio is taken once, at the end, and a snapshot too short to resolve its own `Y_i` still
counts for what it is. `B Y + S`, the mean squared gradient of a batch times `B`, is well known.
The interval comes from the differences of successive snapshots: it holds their own errors and the
swings between them, but not a steady drift.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gns_keras.core.advice_parts import NoisePoint
from gns_keras.core.groups import FloatArray, StepObservations
from gns_keras.core.moments import Moments, PairEstimate, estimate_pair
from gns_keras.core.noise_scale import (
    NoiseScale,
    noise_scale_from_moments,
    noise_scale_from_pair,
)

RUNS_FOR_SPREAD = 3  # From so many on, the interval is that between runs.


def average_along_run(
    points: Sequence[NoisePoint],
    base_batch_size: int,
    *,
    dataset_size: int | None = None,
    confidence: float = 0.95,
) -> NoiseScale:
    """The noise scale of a stretch of training.

    Args:
        points: Snapshots along the run, in order, unresolved ones included. A snapshot stands for
            the steps since the one before it.
        base_batch_size: Batch size of the run.
        dataset_size: Number `D` of examples, all measurements being drawn from them without
            replacement. The answer is then about training on just these examples: their gradient is
            `|G_D|^2 = Y + S/D` (footnote 6 of the paper). None: unlimited data.
        confidence: Coverage of the interval.

    Returns:
        The noise scale, `num_steps` being the number of snapshots and `num_examples` what they took
        together; unresolved with fewer than two.
    """
    average = noise_scale_from_moments(
        _moments(points, base_batch_size),
        confidence=confidence,
        finite_population=1 / dataset_size if dataset_size else 0.0,
    )
    return replace(average, num_examples=_examples_measured([points]))


def average_over_runs(
    runs: Sequence[Sequence[NoisePoint]], base_batch_size: int, *, confidence: float = 0.95
) -> NoiseScale:
    """The noise scale of a stretch of training, from several runs of one kind: one ratio of sums.

    The value for one run is that of `average_along_run`. Early in training `|G|^2` changes by
    orders of magnitude from snapshot to snapshot, and with it the weights `c_i`, so the interval is
    taken from the two shares of a step instead, `S/(B Y + S) = B_i/(B + B_i)` and
    `Y/(B Y + S) = 1/(B + B_i)`, which stay within bounds: the value is the ratio of their sums over
    `dt`. With one run or two the interval holds the errors and swings within the runs; from three
    on it comes from the differences between runs, and holds what differs from seed to seed.

    Args:
        runs: Snapshots of every run, in order.
        base_batch_size: Batch size of the runs.
        confidence: Coverage of the interval.

    Returns:
        The noise scale; `trace_cov` and `grad_sq_norm` are those two shares, on average. Runs with
        fewer than two snapshots are left out.
    """
    sums = [_shares(points, base_batch_size) for points in runs]
    sums = [moments for moments in sums if moments.num_steps > 1]
    pair = _pair_within(sums) if len(sums) < RUNS_FOR_SPREAD else _pair_between(sums)
    return noise_scale_from_pair(
        pair,
        confidence=confidence,
        num_steps=sum(moments.num_steps for moments in sums),
        num_examples=_examples_measured(runs),
        effective_num_steps=sum(moments.every.effective_count for moments in sums),
    )


def _pair_between(sums: Sequence[Moments]) -> PairEstimate:
    """Every run is one observation of the two sums."""
    totals = np.array([moments.every.total for moments in sums])
    runs = StepObservations(
        trace_cov=totals[:, 0],
        mean_sq_norm=totals[:, 1],
        inverse_size=np.zeros(len(sums)),
        num_examples=np.ones(len(sums)),
    )
    return estimate_pair(Moments.of(runs))


def _pair_within(sums: Sequence[Moments]) -> PairEstimate:
    """Adds the sums of the runs, and the variances of these."""
    if not sums:
        return estimate_pair(Moments.empty())
    pairs = [estimate_pair(moments) for moments in sums]
    share = np.array([moments.every.total[-1] for moments in sums])
    share = share / share.sum()

    def added(name: str, power: int) -> FloatArray:
        values = np.array([getattr(pair, name) for pair in pairs])
        return np.asarray((share**power * values).sum())

    return PairEstimate(
        trace_cov=added("trace_cov", 1),
        grad_sq_norm=added("grad_sq_norm", 1),
        trace_var=added("trace_var", 2),
        grad_var=added("grad_var", 2),
        covariance=added("covariance", 2),
        split_share=np.ones(()),
        split_freedom=sum(pair.split_freedom for pair in pairs),
        every_freedom=sum(pair.every_freedom for pair in pairs),
    )


def _moments(points: Sequence[NoisePoint], base_batch_size: int) -> Moments:
    """Sums of `c_i S_i` and `c_i Y_i` over the snapshots that say anything."""
    trace, grad, size, seen = _snapshots(points, base_batch_size)
    return Moments.of(_observations(trace, grad, seen / size))


def _shares(points: Sequence[NoisePoint], base_batch_size: int) -> Moments:
    """The same sums, as those of `dt_i` times bounded shares."""
    trace, grad, size, seen = _snapshots(points, base_batch_size)
    return Moments.of(_observations(trace / size, grad / size, seen))


def _observations(trace: FloatArray, grad: FloatArray, weight: FloatArray) -> StepObservations:
    return StepObservations(
        trace_cov=trace,
        mean_sq_norm=grad,
        inverse_size=np.zeros_like(grad),  # The snapshots have taken S/N off already.
        num_examples=weight,
    )


def _snapshots(
    points: Sequence[NoisePoint], base_batch_size: int
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """`S_i`, `Y_i`, `B Y_i + S_i` and `dt_i` in examples; 0 where the last but one is no number."""
    known = [point for point in points if np.isfinite(point.noise_scale.trace_cov)]
    trace = np.array([point.noise_scale.trace_cov for point in known])
    grad = np.array([point.noise_scale.grad_sq_norm for point in known])
    seen = np.diff(np.array([0, *(point.examples_seen for point in known)], dtype=np.float64))
    size = base_batch_size * grad + trace
    return trace, grad, np.where(size > 0, size, 1.0), np.where(size > 0, seen, 0.0)


def _examples_measured(runs: Sequence[Sequence[NoisePoint]]) -> float:
    known = (p.noise_scale for points in runs for p in points)
    return float(sum(scale.num_examples for scale in known if np.isfinite(scale.trace_cov)))
