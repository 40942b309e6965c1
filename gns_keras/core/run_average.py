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
from gns_keras.core.groups import StepObservations
from gns_keras.core.moments import Moments
from gns_keras.core.noise_scale import NoiseScale, noise_scale_from_moments


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
    known = [point for point in points if np.isfinite(point.noise_scale.trace_cov)]
    scales = [point.noise_scale for point in known]
    trace = np.array([scale.trace_cov for scale in scales])
    grad = np.array([scale.grad_sq_norm for scale in scales])
    seen = np.array([0, *(point.examples_seen for point in known)], dtype=np.float64)
    size = base_batch_size * grad + trace
    steps = StepObservations(
        trace_cov=trace,
        mean_sq_norm=grad,
        inverse_size=np.zeros_like(grad),  # The snapshots have taken S/N off already.
        num_examples=np.where(size > 0, np.diff(seen) / np.where(size > 0, size, 1.0), 0.0),
    )
    average = noise_scale_from_moments(
        Moments.of(steps),
        confidence=confidence,
        finite_population=1 / dataset_size if dataset_size else 0.0,
    )
    return replace(average, num_examples=float(sum(scale.num_examples for scale in scales)))
