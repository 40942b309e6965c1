"""What was measured, and how far it supports a batch size."""

from dataclasses import dataclass

from gns_keras.core.advice_parts import NoisePoint
from gns_keras.core.calibration import Calibration
from gns_keras.core.learning_rate import LearningRateRule
from gns_keras.core.learning_rate_check import LearningRateCheck
from gns_keras.core.noise_scale import NoiseScale
from gns_keras.core.run_forecast import RunForecast
from gns_keras.core.step_time import StepTime


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was measured, and what the user trains with now.

    Attributes:
        noise_scale: The noise scale of the trial run, in examples.
        base_batch_size: Present global batch size, in examples.
        base_learning_rate: Learning rate of the trial run; NaN if unknown.
        rule: Learning-rate rule of the optimizer; its critical batch size is set here. None where
            no rule is known.
        step_time: Step times of the devices in use.
        points: Snapshots along the trial run that it is the average of.
        dataset_size: Number of examples, or None if unknown.
        examples_used: Examples that were processed to find out.
        remarks: Warnings from the measurement itself.
        learning_rate_check: The check or search of the learning rate, or None.
        forecast: The noise scale of the run that is asked about, or None: that of the trial run.
        num_replicas: Replicas that the step times were measured on.
        is_watched: The evidence is a run that was only watched.
        mean_noise_scale: That at the mean weights of the trial run, or None.
        calibration: From both noise scales to the critical batch size, or None where none is known.
    """

    noise_scale: NoiseScale
    base_batch_size: int
    base_learning_rate: float
    rule: LearningRateRule | None = None
    step_time: StepTime | None = None
    points: tuple[NoisePoint, ...] = ()
    dataset_size: int | None = None
    examples_used: int = 0
    remarks: tuple[str, ...] = ()
    learning_rate_check: LearningRateCheck | None = None
    forecast: RunForecast | None = None
    num_replicas: int = 1
    is_watched: bool = False
    mean_noise_scale: NoiseScale | None = None
    calibration: Calibration | None = None
