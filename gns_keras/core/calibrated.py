"""The calibrations that come with the package, and the noise scale that they are for.

The predictor is a weighted geometric mean of two noise scales of a run, both averaged along it up
to the goal with the weights of Appendix D (McCandlish et al. 2018, arXiv 1812.06162):

    at the weights           |G|^2 holds what the noise in the weights adds: too small
    at the mean weights      the weights averaged over the last third of the way: too large

docs/validation.md has the table, docs/decisions/0006-calibration.md the reasons for two of them,
docs/decisions/0014-weights-of-the-predictor.md those for their weights.
"""

import math
from typing import Any

from gns_keras.core.calibration import Calibration
from gns_keras.core.growth import Growth
from gns_keras.core.noise_scale import NoiseScale

# Of the noise scale at the mean weights, in the logarithm.
SHARE_OF_MEAN = 0.4
_SOURCE = "python benchmarks/calibration.py --folder calibration --table, 2026-11-27"

# Plain SGD: ten tasks, critical batch sizes from 4 to 770.
SGD = Calibration(
    factor=0.2971, log_spread=0.4661, degrees_of_freedom=43.1, num_tasks=10, source=_SOURCE
)
# Updates that average gradients over steps: momentum 0.9, Adam, AdamW, RMSprop; 16 to 3,400.
MOMENTUM = Calibration(
    factor=0.9479, log_spread=0.4554, degrees_of_freedom=43.7, num_tasks=24, source=_SOURCE
)
# The running noise scale of the batches that a run trains on, at its end, in place of both.
WATCHED_SGD = Calibration(
    factor=0.7958, log_spread=0.6118, degrees_of_freedom=44.0, num_tasks=10, source=_SOURCE
)
WATCHED_MOMENTUM = Calibration(
    factor=2.266, log_spread=0.5979, degrees_of_freedom=44.7, num_tasks=24, source=_SOURCE
)
# From the first twentieth of runs of 3 to 20 passes to their critical batch sizes
# (docs/decisions/0012-long-runs.md).
_LONG = "python benchmarks/calibration_advise.py --part long --seeds 3, 2026-11-27"
LONG_SGD = Calibration(
    factor=0.8455, log_spread=1.111, degrees_of_freedom=7.2, num_tasks=3, source=_LONG
)
LONG_MOMENTUM = Calibration(
    factor=3.217, log_spread=1.041, degrees_of_freedom=7.2, num_tasks=6, source=_LONG
)
# From a trial run of 2 % of a run that sees every example once to all of it
# (docs/decisions/0013-growth-with-the-run.md). The spread is what that of the factors leaves.
GROWTH = Growth(
    exponent=0.312,
    spread=0.17,
    degrees_of_freedom=18.6,
    largest_ratio=55.0,
    num_tasks=17,
    source="python benchmarks/calibration_advise.py --part growth --seeds 2, 2026-11-27",
)
MEASURED_OPTIMIZERS = ("SGD", "Adam", "AdamW", "RMSprop")
# They average gradients over steps as Adam does; no sweep was made with them.
SIMILAR_OPTIMIZERS = ("Adamax", "Lamb", "Nadam")


def calibration_for(optimizer: Any) -> Calibration | None:
    """The calibration of an optimizer's class; None where nothing is known.

    Args:
        optimizer: A Keras optimizer. A wrapper such as `LossScaleOptimizer` counts as its
            `inner_optimizer`. Of momenta only 0 and 0.9 were measured.

    Returns:
        The calibration. For those of `SIMILAR_OPTIMIZERS` it is an assumption.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    name = type(inner).__name__
    if name == "SGD":
        return MOMENTUM if float(inner.momentum) > 0 else SGD
    return MOMENTUM if name in (*MEASURED_OPTIMIZERS, *SIMILAR_OPTIMIZERS) else None


def for_long_runs(calibration: Calibration) -> Calibration:
    """From the beginning of a run to the critical batch size of several passes over the data.

    Args:
        calibration: Of the class of optimizers.
    """
    return LONG_SGD if calibration is SGD else LONG_MOMENTUM


def for_watched_runs(calibration: Calibration) -> Calibration:
    """From the running noise scale of a run to its critical batch size.

    Args:
        calibration: Of the class of optimizers.
    """
    return WATCHED_SGD if calibration is SGD else WATCHED_MOMENTUM


def between_weights(last: NoiseScale, mean: NoiseScale) -> tuple[float, tuple[float, float]]:
    """The predictor that the calibrations are for.

    Args:
        last: Noise scale at the weights of the run, averaged along it.
        mean: That at the mean weights, from other examples, at the same confidence.

    Returns:
        The geometric mean with `SHARE_OF_MEAN`, and its interval: independent errors, whose squares
        add up in the logarithm. NaN where one of them is unresolved, with the lower bound that
        remains.

    Example:
        >>> last = NoiseScale(value=100.0, interval=(80.0, 130.0))
        >>> mean = NoiseScale(value=400.0, interval=(300.0, 600.0))
        >>> value, interval = between_weights(last, mean)
        >>> round(value), [round(end) for end in interval]
        (174, [146, 218])
    """
    if not (last.resolved and mean.resolved):
        return math.nan, (_weighted(last.lower_bound, mean.lower_bound), math.inf)
    value = _weighted(last.value, mean.value)
    lows = [scale.interval[0] / scale.value for scale in (last, mean)]
    highs = [scale.interval[1] / scale.value for scale in (last, mean)]
    if min(lows) <= 0:
        return value, (0.0, value * math.exp(_half_width(highs)))
    return value, (value * math.exp(-_half_width(lows)), value * math.exp(_half_width(highs)))


def _weighted(last: float, mean: float) -> float:
    return float(last ** (1 - SHARE_OF_MEAN) * mean**SHARE_OF_MEAN)


def _half_width(ratios: list[float]) -> float:
    last, mean = (math.log(ratio) for ratio in ratios)
    return math.hypot((1 - SHARE_OF_MEAN) * last, SHARE_OF_MEAN * mean)
