"""`B_noise` from line searches: how much a single step can lower the loss, by batch size.

A step of length `eps` along the gradient of a batch of `B` examples lowers the loss, on average
over batches and to second order (McCandlish et al. 2018, arXiv 1812.06162, Eq. 2.5), by

    eps |G|^2 - (eps^2/2) (G'HG + tr(H Sigma)/B)

and at the best `eps`, one for all batches of this size, by (Eq. 2.7)

    dL(B) = dL_max/(1 + B_noise/B),    B_noise = tr(H Sigma)/(G'HG),

fitted in log space. The best `eps` must be shared. A line search along each gradient by itself, as
the paper has it, finds the `eps` that suits this gradient: that adds `G' Sigma G/B` to the square
in the numerator, which is more at small batches, so that the noise scale comes out too small.

The losses are those of one sample for all steps, of examples that are in no gradient.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from gns_keras.core.groups import FloatArray
from gns_keras.core.intervals import student_quantile
from gns_keras.core.saturation import Accepted, SaturationProblem

FACTOR = 1.5  # Between two lengths of a ladder.
MISFIT = 0.05
_MAX_SEARCHES = 60
_MIN_SIZES = 3


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The loss that one step saves at one batch size.

    Attributes:
        step: Length of the step, a learning rate of plain SGD.
        value: Mean drop of the loss over the gradients.
        error: Its standard error; NaN with a single gradient.
    """

    step: float
    value: float
    error: float


@dataclass(frozen=True, kw_only=True)
class ProgressFit:
    """Eq. 2.7 fitted to the progress at several batch sizes.

    Attributes:
        noise_scale: `B_noise`, in examples; NaN while unresolved.
        interval: Its confidence interval. While unresolved, one end is 0 or `inf`.
        max_progress: `dL_max`; NaN if the batch sizes do not tell it.
        residual_rms: Root mean square of `ln dL` minus the fit, weighted as in the fit.
        r_squared: Share of the variance of `ln dL` that the fit explains.
        confidence: Coverage of the interval.
        reason: Why it is unresolved and what would help; empty if resolved.
    """

    noise_scale: float
    interval: tuple[float, float]
    max_progress: float
    residual_rms: float
    r_squared: float
    confidence: float = 0.95
    reason: str = ""

    @property
    def resolved(self) -> bool:
        """Whether there is a value, with an interval of two ends."""
        return math.isfinite(self.noise_scale)

    def at(self, batch_size: ArrayLike) -> FloatArray:
        """Progress at a batch size by the fit, any shape; NaN while unresolved."""
        sizes = np.asarray(batch_size, dtype=np.float64)
        return np.asarray(self.max_progress / (1 + self.noise_scale / sizes))


def search_steps(
    drops_at: Callable[[float], ArrayLike], first_step: float
) -> tuple[FloatArray, FloatArray]:
    """Lengthens and shortens a step until the best one for the mean of all gradients is passed.

    Args:
        drops_at: From the length of a step to how much it lowers the loss along each gradient,
            shape `(gradients,)`; negative where the loss rises.
        first_step: Length to begin with.

    Returns:
        Increasing lengths, shape `(lengths,)`, and drops, shape `(gradients, lengths)`. The largest
        mean drop is neither the first nor the last one.

    Raises:
        ValueError: `first_step` is not positive, or no length that was tried lowers the mean loss.
    """
    if not (math.isfinite(first_step) and first_step > 0):
        raise ValueError(f"Expected a positive `first_step`. Received: {first_step}.")
    drops: dict[float, FloatArray] = {}  # Those lengths at which all losses are finite.
    too_long, best, largest = math.inf, first_step, -math.inf
    wanted: tuple[float, ...] = (first_step / FACTOR, first_step, first_step * FACTOR)
    for _ in range(_MAX_SEARCHES):
        for step in wanted:
            found = np.asarray(drops_at(step), dtype=np.float64)
            if np.all(np.isfinite(found)):
                drops[step] = found
            else:
                too_long = min(too_long, step)
        if drops:
            best = max(drops, key=lambda step: float(drops[step].mean()))
            largest = float(drops[best].mean())
            if largest > 0 and min(drops) < best < max(drops):
                steps = np.array(sorted(drops))
                return steps, np.stack([drops[step] for step in steps], axis=1)
        if largest > 0 and best == max(drops):
            wanted = (min(best * FACTOR, (best + too_long) / 2),)
        else:
            wanted = (min(drops, default=best) / FACTOR,)
            best = wanted[0]
    raise ValueError(
        "Expected some step to lower the loss on average over all gradients. Received drops of "
        f"{largest:.3g} at most, down to a length of {best:.3g}. Add gradients or examples."
    )


def shared_progress(steps: ArrayLike, drops: ArrayLike) -> Progress:
    """The progress with one length of step for all gradients of a batch size.

    The best length is the vertex of the parabola through the largest mean drop and its neighbours.
    It is chosen from the same gradients, which makes the value too large by about a quarter of the
    square of its relative error.

    Args:
        steps: Increasing lengths, shape `(lengths,)`.
        drops: How much each lowers the loss along each gradient, shape `(gradients, lengths)`.

    Raises:
        ValueError: The largest mean drop is at an end.

    Example:
        >>> steps = [1.0, 2.0, 3.0]
        >>> drops = [[step - step**2 / 4 for step in steps]]  # The best is 1, at 2.
        >>> shared_progress(steps, drops).value
        1.0
    """
    lengths, table = _checked(steps, drops)
    step, shares = _vertex(lengths, table.mean(axis=0))
    values = table @ shares
    count = len(values)
    error = float(values.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan
    return Progress(step=step, value=float(values.mean()), error=error)


def separate_progress(steps: ArrayLike, drops: ArrayLike) -> float:
    """Mean progress with the best length for each gradient: the paper's line search, biased.

    Args:
        steps: Increasing lengths, shape `(lengths,)`.
        drops: How much each lowers the loss along each gradient, shape `(gradients, lengths)`. A
            gradient whose best is the longest counts with that one; one that never lowers the loss
            with none.
    """
    lengths, table = _checked(steps, drops)
    found = []
    for row in table:
        index = int(np.argmax(row))
        inner = row[index] > 0 and index < len(row) - 1
        found.append(row @ _vertex(lengths, row)[1] if inner else max(row[index], 0.0))
    return float(np.mean(found))


def fit_progress(
    batch_sizes: ArrayLike,
    progress: ArrayLike,
    *,
    errors: ArrayLike | None = None,
    confidence: float = 0.95,
) -> ProgressFit:
    """Fits `dL = dL_max/(1 + B_noise/B)` (Eq. 2.7) in log space.

    Args:
        batch_sizes: `B`, shape `(sizes,)`, three different ones or more.
        progress: `dL` at each, shape `(sizes,)`.
        errors: Standard error of each. Points weigh by them and by what the curve itself is likely
            to be off, 5 %. None: equally.
        confidence: Coverage of the interval.

    Raises:
        ValueError: Shapes differ, a value is not positive and finite, or there are too few sizes.

    Example:
        >>> sizes = [1, 4, 16, 64, 256, 1024]
        >>> round(fit_progress(sizes, [0.5 / (1 + 20 / B) for B in sizes]).noise_scale, 3)
        20.0
    """
    sizes, values = (np.asarray(part, dtype=np.float64) for part in (batch_sizes, progress))
    spread = np.zeros_like(values) if errors is None else np.asarray(errors, dtype=np.float64)
    _check_points(sizes, values, spread)
    weights = 1 / (np.square(spread / values) + MISFIT**2)
    problem = SaturationProblem(sizes, np.log(values), weights=weights, slope=-1.0)
    best = problem.best
    quantile = student_quantile(confidence, best.degrees_of_freedom)
    accepted = problem.accepted(quantile**2 * best.variance)
    low, high = (math.exp(end) for end in accepted.turning_point)
    resolved = low > 0 and math.isfinite(high)
    centred = problem.y - np.average(problem.y, weights=problem.weights)
    missed = float(np.square(best.residuals) @ problem.weights)
    total = float(np.square(centred) @ problem.weights)
    return ProgressFit(
        noise_scale=math.exp(best.turning_point) if resolved else math.nan,
        interval=(low, high),
        max_progress=math.exp(best.level) if math.isfinite(high) else math.nan,
        residual_rms=math.sqrt(missed / len(values)),
        r_squared=1 - missed / total if total > 0 else math.nan,
        confidence=confidence,
        reason="" if resolved else _reason(sizes, accepted),
    )


def _vertex(lengths: FloatArray, means: FloatArray) -> tuple[float, FloatArray]:
    """Best length, and the share of each length in the interpolated value there.

    Without a step there is no drop, which is a point of every line.
    """
    index = int(np.argmax(means))
    if index == len(means) - 1:
        raise ValueError(
            f"Expected the largest drop inside of the lengths tried. Received: the longest, "
            f"{lengths[-1]:.3g}. Add longer ones."
        )
    x = np.concatenate([[0.0], lengths])[index : index + 3]
    y = np.concatenate([[0.0], means])[index : index + 3]
    left, right = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
    bend = (right - left) / (x[2] - x[0])
    step = float((x[0] + x[1]) / 2 - left / (2 * bend)) if bend < 0 else float(x[1])
    lagrange = [
        (step - x[(k + 1) % 3]) * (step - x[(k + 2) % 3])
        / ((x[k] - x[(k + 1) % 3]) * (x[k] - x[(k + 2) % 3]))
        for k in range(3)
    ]  # fmt: skip
    shares = np.zeros(len(lengths) + 1)
    shares[index : index + 3] = lagrange
    return step, shares[1:]


def _reason(sizes: FloatArray, accepted: Accepted) -> str:
    low, high = accepted.turning_point
    if math.isfinite(low):
        return (
            "The progress may go on growing in proportion to the batch size: B_noise is at least "
            f"{math.exp(low):.4g}. Add batch sizes above {sizes.max():g}."
        )
    if math.isfinite(high):
        return (
            "The progress may not depend on the batch size: B_noise is at most "
            f"{math.exp(high):.4g}. Add batch sizes below {sizes.min():g}."
        )
    return "The progress is too noisy to find B_noise. Add gradients at every batch size."


def _checked(steps: ArrayLike, drops: ArrayLike) -> tuple[FloatArray, FloatArray]:
    lengths, table = np.asarray(steps, dtype=np.float64), np.asarray(drops, dtype=np.float64)
    if lengths.ndim != 1 or table.ndim != 2 or table.shape[1] != len(lengths) or not table.size:
        raise ValueError(
            "Expected `steps` of shape (lengths,) and `drops` of shape (gradients, lengths). "
            f"Received: {lengths.shape} and {table.shape}."
        )
    if not (lengths[0] > 0 and np.all(np.diff(lengths) > 0)):
        raise ValueError(f"Expected positive increasing `steps`. Received: {lengths.tolist()}.")
    return lengths, table


def _check_points(sizes: FloatArray, values: FloatArray, spread: FloatArray) -> None:
    if sizes.ndim != 1 or not sizes.shape == values.shape == spread.shape:
        raise ValueError(
            "Expected batch sizes, progress and errors of one shape (sizes,). "
            f"Received: {sizes.shape}, {values.shape} and {spread.shape}."
        )
    good = (sizes > 0) & (values > 0) & np.isfinite(sizes * values) & (spread >= 0)
    if not np.all(good):
        raise ValueError(
            "Expected positive batch sizes and progress; where the mean drop is not positive, add "
            f"gradients. Received: {sizes.tolist()} and {values.tolist()}."
        )
    if len(np.unique(sizes)) < _MIN_SIZES:
        raise ValueError(
            f"Expected at least {_MIN_SIZES} different batch sizes. Received: {sizes.tolist()}."
        )
