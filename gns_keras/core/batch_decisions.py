"""From observed updates to the size of the next one: what an adaptive run has to remember."""

import math

import numpy as np
from numpy.typing import ArrayLike

from gns_keras.core.batch_policy import (
    BatchLimit,
    BatchPolicy,
    PresetBatchSizes,
    describe_refusal,
    next_batch_size,
    wanted_batch_size,
)
from gns_keras.core.exchange_rate import RunningExchangeRate
from gns_keras.core.forgetting import Forgetting
from gns_keras.core.groups import FloatArray, StepObservations
from gns_keras.core.noise_scale import NoiseScale
from gns_keras.core.temperature import at_temperature, at_unit_temperature
from gns_keras.core.tracker import NoiseScaleTracker
from gns_keras.core.warm_up import WarmUp

# A window for decisions. Where the noise scale is many times the batch it takes hundreds of steps
# to resolve it. That a longer window lags behind makes batches grow later, not too large, and a
# change of the learning rate is accounted for apart.
WINDOW_FRACTION = 0.2
WINDOW_STEPS = 200


class BatchDecisions:
    """Follows `noise * T` and the exchange rate, and chooses batch sizes by them.

    Args:
        exchange_rate: `r` of Eq. D.3, in examples per step; None: the natural one of the run so
            far.
        preset: A schedule that is followed instead.
        unit: What a batch size counts.
    """

    def __init__(
        self,
        *,
        exchange_rate: float | None = None,
        preset: PresetBatchSizes | None = None,
        unit: str = "examples",
    ) -> None:
        self._fixed_rate = exchange_rate
        self._preset = preset
        self._unit = unit
        self._running_rate = RunningExchangeRate()
        self._tracker = DecisionTracker(unit=unit)
        self._normalised = self._tracker.result()
        self._pending: list[tuple[float, float]] = []
        self._elapsed = 0.0
        self._warm_up = WarmUp()
        self.batch_size = 0
        self.examples_seen = 0
        self.updates = 0
        self.critical_batch_size: float | None = None

    @property
    def exchange_rate(self) -> float:
        """`r`; NaN before the first resolved noise scale, if it comes from the run."""
        return self._fixed_rate if self._fixed_rate is not None else self._running_rate.value

    @property
    def adaptive_gain(self) -> float:
        """`gamma` of Eq. D.5 over the run so far."""
        return self._running_rate.adaptive_gain

    @property
    def num_pending(self) -> int:
        """Updates that were recorded and not yet added."""
        return len(self._pending)

    def noise_scale(self, temperature: float) -> NoiseScale:
        """Forecast of the noise scale at a temperature."""
        return at_temperature(self._normalised, temperature, self._unit)

    def choose(self, temperature: float, policy: BatchPolicy) -> int:
        """Chooses the size of the next update.

        Args:
            temperature: Its temperature.
            policy: What may be chosen.
        """
        if not self.batch_size:
            self.batch_size = policy.smallest
        scale = self.noise_scale(temperature)
        self.critical_batch_size = self._critical_batch_size(scale)
        if self._preset is not None:
            self.batch_size = self._preset.at(self.examples_seen, self.batch_size)
        else:
            current = max(policy.smallest, min(self.batch_size, policy.largest))
            self.batch_size = next_batch_size(current, scale, self.exchange_rate, policy)
        return self.batch_size

    def _critical_batch_size(self, scale: NoiseScale) -> float | None:
        """`B_*` of Eq. A.3: `E_min/S_min` of the run so far, a lower bound until that is known.

        Not the present noise scale: late in a run that is many times larger, and the learning rate
        would follow the batch in proportion past where training is stable.
        """
        average = self._running_rate.value
        if math.isfinite(average):
            return average
        lower = scale.interval[0]
        return lower if lower > 0 else None

    def warmed_scale(self, scale: float, warm_up: float) -> float:
        """Factor on the learning rate of the next update, on its way to `scale`.

        Args:
            scale: Factor that the rule asks for at the batch size that was chosen.
            warm_up: Examples that it takes to get there; see `WarmUp`.
        """
        return self._warm_up.next(self.batch_size, scale, self.examples_seen, warm_up)

    def refusal(self, temperature: float, policy: BatchPolicy, limit: BatchLimit) -> str | None:
        """Says that the limit keeps the batch from growing; None if it does not."""
        if self._preset is not None or self.batch_size < policy.largest:
            return None
        wanted = wanted_batch_size(self.noise_scale(temperature), self.exchange_rate)
        if not wanted >= policy.hysteresis * policy.largest:
            return None
        return describe_refusal(wanted, limit, policy.largest)

    def record(
        self, num_examples: int, temperature: float, *, observed: bool, warmth: float = 1.0
    ) -> None:
        """Counts an update.

        Args:
            num_examples: Examples that it used.
            temperature: Its temperature, once it has warmed up.
            observed: Squared norms of it were recorded, and `add` will get them.
            warmth: Its learning rate over the one that the warm-up leads to.
        """
        self._running_rate.add(self.noise_scale(temperature).value, num_examples)
        self.updates += 1
        self.examples_seen += num_examples
        self._elapsed += num_examples
        if observed:
            self._pending.append((temperature * warmth, self._elapsed))
            self._elapsed = 0.0

    def add(self, steps: StepObservations) -> None:
        """Takes the observations of all updates that were recorded since the last call.

        Raises:
            ValueError: There are more or fewer of them.
        """
        if len(steps.num_examples) != len(self._pending):
            raise ValueError(
                f"Expected the observations of {len(self._pending)} updates, as many as were "
                f"recorded. Received: {len(steps.num_examples)}."
            )
        if not self._pending:
            return
        temperatures, elapsed = np.array(self._pending, dtype=np.float64).T
        self._pending = []
        self._tracker.add(at_unit_temperature(steps, temperatures), elapsed)
        self._normalised = self._tracker.result()

    def forget_pending(self) -> None:
        """Gives up the observations of updates that were recorded, and lost by an interruption."""
        self._pending = []

    def pack(self) -> dict[str, FloatArray]:
        """Returns the state as arrays by name, once everything recorded was added."""
        counts = [self.batch_size, self.examples_seen, self.updates, self._elapsed]
        return {
            **self._tracker.pack(),
            "counts": np.array(counts, dtype=np.float64),
            "exchange_rate": self._running_rate.pack(),
            "warm_up": self._warm_up.pack(),
        }

    def unpack(self, stored: dict[str, FloatArray]) -> None:
        """Takes back the state that `pack` returned."""
        self._tracker.unpack(stored)
        self._normalised = self._tracker.result()
        self._running_rate.unpack(stored["exchange_rate"])
        self._warm_up.unpack(stored["warm_up"])
        size, seen, updates, self._elapsed = (float(v) for v in stored["counts"])
        self.batch_size, self.examples_seen, self.updates = int(size), int(seen), int(updates)
        self._pending = []


class DecisionTracker(NoiseScaleTracker):
    """Follows the noise scale over a window that is wide enough to decide by."""

    def add(self, steps: StepObservations, elapsed: ArrayLike | None = None) -> None:
        """Adds a stretch of steps, see `NoiseScaleTracker`."""
        if self._forgetting is None and len(steps.num_examples):
            first = float(steps.num_examples[0])
            self._forgetting = Forgetting(half_life=WINDOW_STEPS * first, fraction=WINDOW_FRACTION)
        super().add(steps, elapsed)
