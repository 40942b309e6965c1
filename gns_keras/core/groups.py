"""From the squared norms of gradient groups to one unbiased observation per step.

One step averages the gradients of `B` examples that were split into `k` groups of (effective) sizes
`b_j`, whose mean gradients are `g_j`. With `B = sum b_j` and `g = sum a_j g_j`, `sum a_j = 1`:

    E sum_j (b_j/B) |g_j|^2 = |G|^2 + tr(Sigma) k/B
    E |g|^2                 = |G|^2 + tr(Sigma) sum_j a_j^2/b_j

(Eq. A.1 of McCandlish et al. 2018, arXiv 1812.06162, for groups of any size.) Solved for both
unknowns this is Eq. A.2; with `a_j = b_j/B` it is `S = SS/(k-1)` and `Y = |g|^2 - S/B`, where
`SS = sum_j b_j |g_j - g|^2`. `Y` may be negative, and stays negative: its mean is `|G|^2`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def effective_size(weights: ArrayLike) -> float:
    """Number of equally weighted examples whose mean is as noisy as this weighted mean (Kish 1965).

    Use it for a loss that divides by the sum of its weights or valid elements: a mask then counts
    its valid examples. A loss that divides by the number of examples needs that number instead.

    Args:
        weights: Weights of the examples, shape `(batch,)`, not negative.

    Returns:
        `(sum w)^2 / sum w^2`, in examples; 0.0 if all weights are zero.

    Raises:
        ValueError: A weight is negative or not finite.

    Example:
        >>> effective_size([1.0, 1.0, 1.0, 0.0])
        3.0
    """
    values = np.asarray(weights, dtype=np.float64)
    if not np.all(np.isfinite(values)) or np.any(values < 0):
        raise ValueError(
            f"Expected weights that are finite and not negative. Received: {values}. "
            "A noise scale of signed weights is not defined; use 0 to leave an example out."
        )
    total = float(values.sum())
    return total * total / float(np.square(values).sum()) if total > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class StepObservations:
    """What a run of steps says about `tr(Sigma)` and `|G|^2`, one entry per step.

    Attributes:
        trace_cov: Unbiased estimates of `tr(Sigma)`, shape `(steps, ...)`; NaN on a step that was
            not split. Trailing axes are components whose norms add, such as layers.
        mean_sq_norm: Squared norm of the mean gradient, shape `(steps, ...)`.
        inverse_size: `sum_j a_j^2/b_j`, shape `(steps,)`: `1/B` when the mean is over examples.
        num_examples: Examples in each step, shape `(steps,)`. It is also the weight of the step.
    """

    trace_cov: FloatArray
    mean_sq_norm: FloatArray
    inverse_size: FloatArray
    num_examples: FloatArray


def observe_steps(
    weighted_sq_norms: ArrayLike,
    mean_sq_norms: ArrayLike,
    *,
    num_groups: ArrayLike,
    inverse_size: ArrayLike,
    group_size: ArrayLike,
    num_examples: ArrayLike,
) -> StepObservations:
    """Turns sums over groups into one observation per step (Eq. A.2).

    Args:
        weighted_sq_norms: `sum_j b_j |g_j|^2`, shape `(steps, ...)`; ignored where `num_groups` is
            less than 2.
        mean_sq_norms: `|g|^2`, shape `(steps, ...)`.
        num_groups: Number of groups that held examples, shape `(steps,)`.
        inverse_size: `sum_j a_j^2/b_j`, shape `(steps,)`.
        group_size: `sum_j b_j`, the effective size of all groups together, shape `(steps,)`.
        num_examples: Examples that the step consumed, shape `(steps,)`.

    Returns:
        The observations; `trace_cov` is NaN on the steps that were not split.
    """
    mean = np.asarray(mean_sq_norms, dtype=np.float64)
    weighted = np.asarray(weighted_sq_norms, dtype=np.float64)

    def per_step(values: ArrayLike) -> FloatArray:
        return np.broadcast_to(np.asarray(values, dtype=np.float64), mean.shape[:1])

    groups, inverse, size = per_step(num_groups), per_step(inverse_size), per_step(group_size)
    split = groups >= 2
    column = (slice(None),) + (None,) * (mean.ndim - 1)
    trace_cov = np.full(mean.shape, np.nan)
    safe_size = np.where(split, size, 1.0)
    gap = np.where(split, groups / safe_size - inverse, 1.0)
    # An overflow, inf - inf, ends as NaN: the step counts as not split. So does a mean that
    # consists of one group, whose noise the groups do not show.
    with np.errstate(invalid="ignore", divide="ignore"):
        solved = (weighted / safe_size[column] - mean) / gap[column]
    trace_cov[split] = solved[split]
    return StepObservations(
        trace_cov=trace_cov,
        mean_sq_norm=mean,
        inverse_size=inverse,
        num_examples=per_step(num_examples),
    )


def observe_groups(
    group_sq_norms: ArrayLike,
    mean_sq_norms: ArrayLike,
    group_sizes: ArrayLike,
    mean_weights: ArrayLike | None = None,
) -> StepObservations:
    """Turns the squared norms of individual groups into one observation per step.

    Args:
        group_sq_norms: `|g_j|^2`, shape `(steps, k)`.
        mean_sq_norms: `|g|^2`, shape `(steps,)`.
        group_sizes: `b_j`, shape `(k,)` or `(steps, k)`; a group of size 0 is left out.
        mean_weights: `a_j` of the mean gradient, shape `(k,)` or `(steps, k)`, summing to 1.
            Default: `b_j/B`, the mean over examples. A mean of replica means has equal weights.

    Returns:
        The observations.

    Raises:
        ValueError: The shapes do not fit each other, a size is negative or not finite, a squared
            norm is negative, or the weights of a step do not sum to 1.
    """
    norms = np.atleast_2d(np.asarray(group_sq_norms, dtype=np.float64))
    mean = np.atleast_1d(np.asarray(mean_sq_norms, dtype=np.float64))
    sizes = np.asarray(group_sizes, dtype=np.float64)
    _check_shapes(norms, mean, sizes)
    sizes = np.broadcast_to(sizes, norms.shape)
    used = sizes > 0
    total = sizes.sum(axis=1)
    overflown = (used & ~np.isfinite(norms)).any(axis=1)
    if mean_weights is None:
        weights = sizes / np.where(total > 0, total, 1.0)[:, None]
    else:
        weights = _checked_weights(np.asarray(mean_weights, dtype=np.float64), used)
    safe = np.where(used, sizes, 1.0)
    return observe_steps(
        (sizes * np.where(used, norms, 0.0)).sum(axis=1),
        np.where(overflown, np.nan, mean),  # The step is left out, as one of replicas is.
        num_groups=used.sum(axis=1),
        inverse_size=np.where(used, weights**2 / safe, 0.0).sum(axis=1),
        group_size=total,
        num_examples=total,
    )


def _checked_weights(weights: FloatArray, used: NDArray[np.bool_]) -> FloatArray:
    if weights.shape not in (used.shape, used.shape[1:]):
        raise ValueError(
            f"Expected `mean_weights` of shape {used.shape[1:]} or {used.shape}. "
            f"Received shape {weights.shape}."
        )
    weights = np.where(used, weights, 0.0)
    total = weights.sum(axis=1)[used.any(axis=1)]
    if not np.allclose(total, 1.0, rtol=1e-4):
        raise ValueError(
            "Expected `mean_weights` that sum to 1 over the groups with examples of every step. "
            f"Received sums: {total}. Divide them by their sum, or leave the argument out if the "
            "mean gradient is the mean over examples."
        )
    return weights


def _check_shapes(norms: FloatArray, mean: FloatArray, sizes: FloatArray) -> None:
    if norms.ndim != 2 or mean.shape != norms.shape[:1]:
        raise ValueError(
            "Expected `group_sq_norms` of shape (steps, k) and `mean_sq_norms` of shape (steps,). "
            f"Received shapes {norms.shape} and {mean.shape}."
        )
    if sizes.shape not in (norms.shape, norms.shape[1:], ()):
        raise ValueError(
            f"Expected `group_sizes` of shape {norms.shape[1:]} or {norms.shape}. "
            f"Received shape {sizes.shape}."
        )
    if not np.all(np.isfinite(sizes)) or np.any(sizes < 0):
        raise ValueError(
            f"Group sizes must be finite and not negative. Received: {sizes}. "
            "Give the number of examples behind each group's mean gradient."
        )
    if np.any(norms < 0) or np.any(mean < 0):
        raise ValueError(
            f"Squared norms cannot be negative. Received: {min(norms.min(), mean.min()):.4g}. "
            "Give |g|^2, the sum of the squares of all entries of a gradient."
        )
    if norms.shape[1] < 2:
        raise ValueError(
            "The noise scale needs at least two gradient groups per step. Received: "
            f"{norms.shape[1]}. Split the batch into microbatches, or use several replicas."
        )
