"""The pieces that an advice is made of."""

import math
from dataclasses import dataclass

from gns_keras.core.noise_scale import NoiseScale


@dataclass(frozen=True, kw_only=True)
class AdviceRow:
    """What one global batch size would mean for a whole run.

    Attributes:
        batch_size: Global batch size, in examples.
        relative_steps: Optimizer steps over the smallest possible number, `1 + B_c/B` (Eq. 2.11).
        relative_examples: Examples over the smallest possible number, `1 + B/B_c`.
        learning_rate: By the learning-rate rule, from the present one; NaN without a rule.
        step_time_s: Seconds per step on the devices of the measurement; NaN if unknown.
        step_time_measured: Whether that time was measured, and not predicted by the fit.
        relative_time: Duration of the run on those devices, over that at the present batch size.
        relative_cost: Examples to process, and with them the compute to pay for, over those at the
            present batch size.
    """

    batch_size: int
    relative_steps: float
    relative_examples: float
    learning_rate: float
    step_time_s: float = math.nan
    step_time_measured: bool = False
    relative_time: float = math.nan
    relative_cost: float = math.nan


@dataclass(frozen=True, kw_only=True)
class NoisePoint:
    """A noise scale measured at frozen weights, at one point of the trial run.

    Attributes:
        examples_seen: Examples that the run had trained on.
        noise_scale: The measurement.
        loss: Mean training loss since the measurement before; NaN if unknown.
    """

    examples_seen: int
    noise_scale: NoiseScale
    loss: float = math.nan


@dataclass(frozen=True, kw_only=True)
class ReplicaRow:
    """The fastest run on a number of replicas.

    Attributes:
        num_replicas: Number of replicas, such as GPUs.
        batch_size: Global batch size of the shortest run on them, in examples.
        step_time_s: Seconds per step there, communication left out.
        relative_time: Duration over that of the run advised for one replica.
        relative_cost: Replicas times duration, likewise.
    """

    num_replicas: int
    batch_size: int
    step_time_s: float
    relative_time: float
    relative_cost: float
