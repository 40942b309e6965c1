"""The critical batch size that the noise scale of a trial run predicts, with its interval."""

import math
from dataclasses import dataclass

from gns_keras.core.calibrated import between_weights
from gns_keras.core.evidence import Evidence
from gns_keras.core.noise_scale import NoiseScale

_Estimate = tuple[float, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class CriticalBatchSize:
    """The predicted critical batch size, in examples.

    Attributes:
        value: The prediction; NaN while unresolved.
        interval: Its confidence interval; the upper end is `inf` while unresolved.
    """

    value: float
    interval: tuple[float, float]

    @property
    def resolved(self) -> bool:
        """Whether there is a critical batch size to act on."""
        return self.value > 0

    @property
    def supported(self) -> float:
        """The size to act on: the prediction, or else its lower bound, at least 0."""
        if self.resolved:
            return self.value
        return max(0.0, self.interval[0]) if self.interval[0] > 0 else 0.0


def predicted_critical_batch_size(evidence: Evidence) -> CriticalBatchSize:
    """The critical batch size that the noise scale predicts: the one place where it is made.

    Args:
        evidence: What was measured.
    """
    scale, forecast, calibration = evidence.noise_scale, evidence.forecast, evidence.calibration
    value, interval = scale.value if scale.resolved else math.nan, scale.interval
    if forecast is not None:
        value, interval = forecast.value, forecast.interval
    if calibration is not None and evidence.is_watched:
        value, interval = calibration.predict(value, interval)
    elif calibration is not None and evidence.mean_noise_scale is not None:
        towards = between_weights(scale, evidence.mean_noise_scale)
        value, interval = calibration.predict(*_continued(towards, scale, (value, interval)))
    return CriticalBatchSize(value=value if value > 0 else math.nan, interval=interval)


def _continued(predictor: _Estimate, scale: NoiseScale, forecast: _Estimate) -> _Estimate:
    """The predictor, which is that of the trial run, for the run that is forecast.

    It grows as the noise scale at the weights does. The squares of the widths add up, in the
    logarithm; that of the noise scale itself counts twice.
    """
    (value, (low, high)), (aim, (aim_low, aim_high)) = predictor, forecast
    if not (value > 0 and aim > 0 and low > 0 and aim_low > 0):
        return math.nan, (max(0.0, low), math.inf)
    growth = aim / scale.value
    below = math.hypot(math.log(value / low), math.log(aim / aim_low))
    above = math.hypot(math.log(high / value), math.log(aim_high / aim))
    middle = value * growth
    return middle, (middle * math.exp(-below), middle * math.exp(above))
