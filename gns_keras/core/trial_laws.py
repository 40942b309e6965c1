"""Two power laws along a trial run: its loss against examples, its noise scale against the loss.

Single snapshots swing; blocks of them are what the lines go through.
"""

import math
from collections.abc import Sequence

import numpy as np

from gns_keras.core.adaptive import adaptive_gain
from gns_keras.core.advice_parts import NoisePoint
from gns_keras.core.forecast import LossPowerLaw, fit_power_law
from gns_keras.core.noise_scale import NoiseScale
from gns_keras.core.run_average import average_along_run

NUM_BLOCKS = 8
FIRST = 2  # Blocks at the beginning that the power law of the loss leaves out.
NO_LOSSES = "The trial run reports no training losses above 0 to relate the noise scale to."


class TrialLaws:
    """The laws, as far as there are losses.

    Args:
        points: Snapshots along the trial run, with their training losses.
        base_batch_size: Its batch size.
        dataset_size: Number of examples, or None if unknown.

    Attributes:
        points: Those whose loss is above 0 and finite.
        problem: Why there are no laws; empty if there are.
        reached_loss: Training loss at the end of the trial run; NaN without laws.
        scale: Noise scale against the loss.
    """

    def __init__(
        self, points: Sequence[NoisePoint], base_batch_size: int, dataset_size: int | None
    ) -> None:
        self.points = [p for p in points if 0 < p.loss < math.inf]
        self.problem = "" if len(self.points) >= 2 * NUM_BLOCKS else NO_LOSSES
        self.reached_loss, self.scale = math.nan, LossPowerLaw()
        self._size, self._dataset_size = base_batch_size, dataset_size
        self._losses: list[float] = []
        self._seen: list[float] = []
        self._decay = LossPowerLaw()
        if not self.problem:
            self._fit()

    def _fit(self) -> None:
        blocks = [list(part) for part in np.array_split(np.array(self.points, object), NUM_BLOCKS)]
        self._losses = [math.exp(np.mean([math.log(p.loss) for p in part])) for part in blocks]
        self._seen = [float(np.mean([p.examples_seen for p in part])) for part in blocks]
        self.reached_loss = self._losses[-1]
        scales = [self._average_of_block(part) for part in blocks]
        # A block need not be resolved by itself: the scatter about the line says how good they are.
        # But to leave out those whose |G|^2 comes out negative would bend the line.
        known = all(scale.grad_sq_norm > 0 < scale.trace_cov for scale in scales)
        values = [scale.trace_cov / scale.grad_sq_norm for scale in scales] if known else []
        self.scale = fit_power_law(self._losses[: len(values)], values)
        self._decay = fit_power_law(self._seen[FIRST:], self._losses[FIRST:])

    def _average_of_block(self, part: Sequence[NoisePoint]) -> NoiseScale:
        # A stretch in the middle: its snapshots stand for equal numbers of steps.
        first = part[0].examples_seen - (part[1].examples_seen - part[0].examples_seen)
        moved = [
            NoisePoint(examples_seen=p.examples_seen - first, noise_scale=p.noise_scale)
            for p in part
        ]
        return average_along_run(moved, self._size, dataset_size=self._dataset_size)

    @property
    def falls(self) -> bool:
        """Whether the loss clearly falls along the trial run."""
        return self._decay.resolved and self._decay.exponent_interval[0] > 0

    def examples_to(self, loss: float) -> float:
        """Examples of the run to a loss below that of the trial, by the power law of the loss."""
        anchor = self._seen[-1]  # Where `reached_loss` is the loss.
        return float(anchor * (self.reached_loss / loss) ** (1 / self._decay.exponent))

    def loss_at(self, examples: float) -> float:
        """Training loss after so many examples; NaN where the loss does not clearly fall."""
        if not self.falls:
            return math.nan
        return float(self.reached_loss * (examples / self._seen[-1]) ** -self._decay.exponent)

    @property
    def adaptive_gain(self) -> float:
        """`gamma` of Eq. D.5 by the law: the swings of the snapshots about it are no growth."""
        if not self.scale.resolved:
            return math.nan
        scales = self.scale.at(np.asarray(self._losses))
        spans = np.diff(self._seen, prepend=0.0)
        return adaptive_gain(list(scales), list(spans / (self._size + scales)))
