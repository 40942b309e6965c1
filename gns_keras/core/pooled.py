"""The noise scale at frozen weights, with the mean gradient pooled over the whole measurement.

At frozen weights all `N` examples of a measurement share one true gradient, so the whole run is one
big batch: `Y = |g_run|^2 - S/N`. Its error falls like `1/N`, that of the mean over steps only like
`1/sqrt(steps)/B`: the same data give a standard deviation several times smaller.

One number has no empirical variance, so the run is cut into `M` blocks of equal size. The matrix of
inner products of the block means, `C_ab = |G|^2 + A_a + A_b + E_ab` off its diagonal, is a two-way
table with `Var A = G'Sigma G / n` and `Var E = tr(Sigma^2) / n^2` for blocks of `n` examples; its
analysis of variance gives the variance of `Y`,

    Var Y = 4 Var A / M + 2 Var E / (M (M-1)),

which the jackknife would overstate by up to a factor 2 where noise dominates.

Where the groups of a block resemble each other (an environment that plays on and on), `|g_run|^2`
holds more noise than `S/N`. The products between blocks hold none, as long as nothing connects one
block with another: their mean is `|G|^2`, with the same variance.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from gns_keras.core.groups import FloatArray
from gns_keras.core.intervals import fieller_interval, student_quantile
from gns_keras.core.noise_scale import NoiseScale

MIN_BLOCKS = 4


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A measurement at frozen weights, cut into blocks of equal size.

    Attributes:
        inner_products: Inner products of the blocks' mean gradients, shape `(M, M)`.
        weighted_sq_norms: Each block's sum of `b_j |g_j|^2` over its groups, shape `(M,)`.
        num_groups: Groups in each block, shape `(M,)`.
        block_size: Examples in each block.
    """

    inner_products: FloatArray
    weighted_sq_norms: FloatArray
    num_groups: FloatArray
    block_size: float


def pooled_noise_scale(
    blocks: Blocks,
    *,
    confidence: float = 0.95,
    unit: str = "examples",
    between_blocks: bool = False,
) -> NoiseScale:
    """Noise scale of one measurement at frozen weights.

    Args:
        blocks: At least four blocks, of two or more groups each.
        confidence: Coverage of the interval.
        unit: What the block size counts.
        between_blocks: Only blocks are independent of each other, not the groups in one of them;
            `tr(Sigma)` is that of a single group, of `b_j` independent examples.

    Returns:
        The noise scale, `num_steps` being the number of groups.

    Raises:
        ValueError: Too few blocks, or shapes that do not fit.
    """
    _check(blocks)
    products = np.asarray(blocks.inner_products, dtype=np.float64)
    count = products.shape[0]
    num_groups = float(np.sum(blocks.num_groups))
    num_examples = blocks.block_size * count
    weighted = float(np.sum(blocks.weighted_sq_norms))
    run_sq_norm = float(products.mean())
    if between_blocks:
        grad = _mean_off_diagonal(products)
        trace = (weighted - num_examples * grad) / num_groups  # E b_j|g_j|^2 = b_j|G|^2 + tr(Sigma)
    else:
        trace = (weighted - num_examples * run_sq_norm) / (num_groups - 1)
        grad = run_sq_norm - trace / num_examples
    trace_var, covariance, grad_var, freedom = _covariances(blocks, products)
    low, high = fieller_interval(
        trace, grad, trace_var, grad_var, covariance, student_quantile(confidence, freedom)
    )
    resolved = math.isfinite(high)
    ratio = trace / grad if resolved else math.nan
    variance = trace_var - 2 * ratio * covariance + ratio**2 * grad_var
    return NoiseScale(
        value=ratio,
        interval=(low, high),
        confidence=confidence,
        grad_sq_norm=grad,
        trace_cov=trace,
        num_steps=int(num_groups),
        num_examples=num_examples,
        unit=unit,
        relative_variance=variance / trace**2 if resolved and trace else math.nan,
        grad_sq_norm_error=math.sqrt(grad_var),
        trace_cov_error=math.sqrt(trace_var),
        effective_num_steps=num_groups,
    )


def _check(blocks: Blocks) -> None:
    shape, counts = np.shape(blocks.inner_products), np.asarray(blocks.num_groups)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < MIN_BLOCKS:
        raise ValueError(
            f"Expected inner products of at least {MIN_BLOCKS} blocks, shape (M, M). "
            f"Received shape {shape}."
        )
    if np.shape(blocks.weighted_sq_norms) != shape[:1] or counts.shape != shape[:1]:
        raise ValueError(
            f"Expected `weighted_sq_norms` and `num_groups` of shape {shape[:1]}. Received shapes "
            f"{np.shape(blocks.weighted_sq_norms)} and {counts.shape}."
        )
    if np.any(counts < 2):
        raise ValueError(
            f"Every block needs at least two groups. Received: {counts}. "
            "Take fewer blocks, or split the measurement into more groups."
        )


def _mean_off_diagonal(products: FloatArray) -> float:
    count = len(products)
    return float((products.sum() - np.trace(products)) / (count * (count - 1)))


def _covariances(blocks: Blocks, products: FloatArray) -> tuple[float, float, float, float]:
    """Returns Var S, Cov(S, Y), Var Y and the degrees of freedom of the last."""
    count = len(products)
    own = np.diag(products)
    block_trace = (np.asarray(blocks.weighted_sq_norms) - blocks.block_size * own) / (
        np.asarray(blocks.num_groups) - 1
    )
    off_diagonal = products - np.diag(own)
    mean = _mean_off_diagonal(products)
    # Least-squares row effects A_a of the two-way table without its diagonal.
    effects = (off_diagonal.sum(axis=1) - (count - 1) * mean) / (count - 2)
    residuals = products - mean - effects[:, None] - effects[None, :]
    pairs = residuals[np.triu_indices(count, 1)]
    residual_freedom = count * (count - 3) / 2
    residual_var = float(np.square(pairs).sum()) / residual_freedom
    effect_var = float(np.square(effects).sum()) / (count - 1)
    of_effects = 4 * effect_var / count
    correction = residual_var * (4 / (count * (count - 2)) - 2 / (count * (count - 1)))
    # Var A >= 0: the sum cannot be less than what the residuals alone contribute.
    grad_var = max(of_effects - correction, 2 * residual_var / (count * (count - 1)))
    error = of_effects**2 / (count - 1) + correction**2 / residual_freedom
    # Satterthwaite; a difference of variances has fewer degrees of freedom than either. How many is
    # itself estimated, badly where noise dominates: not below half those of the rows.
    fewest = (count - 1) / 2
    freedom = max(grad_var**2 / error, fewest) if error > 0 else fewest
    trace_var = float(np.var(block_trace, ddof=1)) / count
    covariance = 2 * float(np.cov(block_trace, effects, ddof=1)[0, 1]) / count
    limit = math.sqrt(trace_var * grad_var)
    return trace_var, float(np.clip(covariance, -limit, limit)), grad_var, freedom


def blocks_from_group_means(group_means: ArrayLike, group_size: float, num_blocks: int) -> Blocks:
    """Blocks of a measurement whose group mean gradients fit in memory.

    Args:
        group_means: Mean gradients of consecutive groups, shape `(groups, dimension)`.
        group_size: Examples in each group.
        num_blocks: `M`; groups left over at the end are not used. The interval covers best with 8
            to 16 blocks.

    Raises:
        ValueError: There are fewer than two groups for every block.
    """
    means = np.asarray(group_means, dtype=np.float64)
    if means.ndim != 2 or num_blocks < 1 or len(means) < 2 * num_blocks:
        raise ValueError(
            "Expected `group_means` of shape (groups, dimension) with at least two groups for "
            f"each of {num_blocks} blocks. Received shape {means.shape}."
        )
    per_block = len(means) // num_blocks
    cut = means[: per_block * num_blocks].reshape(num_blocks, per_block, -1)
    block_means = cut.mean(axis=1)
    return Blocks(
        inner_products=block_means @ block_means.T,
        weighted_sq_norms=group_size * np.square(cut).sum(axis=(1, 2)),
        num_groups=np.full(num_blocks, float(per_block)),
        block_size=group_size * per_block,
    )
