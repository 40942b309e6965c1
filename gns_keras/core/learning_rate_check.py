"""Is the learning rate right for the batch size? A decision from short paired runs.

Runs of some dozen steps start from the same weights and optimizer state and see the same examples
in the same order; only the learning rate differs, by powers of 4. Each is judged by the training
loss over its last quarter. Runs are added until the best lies between two others; the vertex of the
parabola through the three, log loss against log rate, is the best rate of a *short* run. That of a
whole run is another, by a factor that sweeps of small tasks gave for each kind of optimizer, with a
spread (`core.short_run_bias`). docs/decisions/0010-learning-rate-vertex.md has the experiments.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gns_keras.core.groups import FloatArray
from gns_keras.core.intervals import student_quantile
from gns_keras.core.short_run_bias import ShortRunBias

SPACING = 4.0  # Ratio of neighbouring factors.
FACTORS = (1 / SPACING, 1.0, SPACING)
FURTHEST = SPACING**5  # No further than this from the present rate, either way.
CLOSE = 2.0  # A rate within this factor of the best is right.
SLIGHTLY_OFF = math.sqrt(2)  # A rate that is significantly further off is wrong.
OF_BEND = 0.99  # Two-sided confidence that the loss depends on the rate at all.
VAGUE = 4.0  # An interval that reaches further than this from its middle says nothing.
# Where a neighbour diverged there is no parabola: the best is anywhere within an octave either way.
_OCTAVE_EITHER_WAY = 1 / math.sqrt(3)


@dataclass(frozen=True, kw_only=True)
class LearningRateCheck:
    """The losses that short runs came to at several learning rates, and what follows from them.

    Attributes:
        learning_rate: The present learning rate.
        batch_size: Global batch size of the runs, in examples.
        steps: Length of a run.
        factors: Learning rates of the runs over the present one, increasing.
        losses: Training losses that each factor came to, on batches that are the same for all;
            `inf` or NaN where it diverged.
        bias: How far the best rate of a short run is above that of a whole one.
        confidence: Confidence of the interval.
        searched: The noise scale is measured at the best rate, if that is another.
        examples_used: Examples that the runs took.
        reason: Why there are no runs; empty if there are.
    """

    learning_rate: float
    batch_size: int
    steps: int = 0
    factors: tuple[float, ...] = ()
    losses: tuple[tuple[float, ...], ...] = ()
    bias: ShortRunBias = ShortRunBias()  # noqa: RUF009  frozen
    confidence: float = 0.95
    searched: bool = False
    examples_used: int = 0
    reason: str = ""

    @property
    def verdict(self) -> str:
        """Whether the learning rate is within a factor of 2 of the best.

        "too_low", "too_high": it is significantly more than a factor of 1.4 from the best, and by
        the best estimate more than 2; also if the run at the present rate diverged. "good": by the
        best estimate it is within, which is known to a factor of 4. "unresolved": none of these.
        """
        if 1.0 in self.factors and self._diverged(1.0):
            return "too_high"
        offset, reach = self._offset, self._reach
        if not math.isfinite(offset) or math.isnan(reach):
            return "unresolved"
        if abs(offset) > max(math.log2(CLOSE), math.log2(SLIGHTLY_OFF) + reach):
            return "too_low" if offset > 0 else "too_high"
        good = abs(offset) <= math.log2(CLOSE) and reach <= math.log2(VAGUE)
        return "good" if good and not self.at_edge else "unresolved"

    @property
    def best_run(self) -> float:
        """The factor of the run with the lowest mean loss; NaN if all diverged."""
        means = [self._mean(factor) for factor in self.factors]
        if not any(map(math.isfinite, means)):
            return math.nan
        return self.factors[int(np.argmin(means))]

    @property
    def best_factor(self) -> float:
        """The best factor for a whole run; NaN if all diverged, or nothing can be said.

        Where the best run is the lowest or the highest that was tried, it may lie beyond.
        """
        return float(2.0**self._offset)

    @property
    def at_edge(self) -> str:
        """Where the best factor may lie beyond those tried: "low", "high", or "" if it does not."""
        if not self.factors or math.isnan(self.best_run) or self.best_run == self.factors[0]:
            return "low"
        return "high" if self.best_run == self.factors[-1] else ""

    @property
    def factor_to_use(self) -> float:
        """The factor to measure the noise scale with: 1 for the present rate; NaN if none trains.

        Where the rate is wrong and there was no search, it is the one to set instead.
        """
        return self.best_factor if self.is_wrong else 1.0

    @property
    def is_wrong(self) -> bool:
        """Whether the present learning rate is more than a factor of 2 from the best."""
        return self.verdict in ("too_low", "too_high")

    @property
    def forbids_measuring(self) -> bool:
        """Whether a noise scale would mean little: the rate is wrong, and no other was found."""
        return self.is_wrong and not (self.searched and math.isfinite(self.best_factor))

    @property
    def best_factor_interval(self) -> tuple[float, float]:
        """Factors that may be best, at `confidence`, two-sided.

        The lower end is 0, the upper one infinite, where the runs do not go far enough to say.
        """
        if not self.factors:
            return 0.0, math.inf
        if math.isnan(self.best_run):
            return 0.0, self.factors[0]
        reach = student_quantile(self.confidence, self.bias.degrees_of_freedom) * self._deviation
        if not math.isfinite(reach):
            return 0.0, math.inf
        low = 0.0 if self.at_edge == "low" else 2.0 ** (self._offset - reach)
        return low, math.inf if self.at_edge == "high" else 2.0 ** (self._offset + reach)

    @property
    def best_learning_rate(self) -> float:
        """The learning rate with the lowest loss; NaN if all diverged."""
        return self.learning_rate * self.best_factor

    @property
    def best_learning_rate_interval(self) -> tuple[float, float]:
        """Learning rates that may be best."""
        low, high = self.best_factor_interval
        return self.learning_rate * low, self.learning_rate * high

    @property
    def next_factor(self) -> float | None:
        """The factor to try next, until the best run lies inside of those tried; None: enough."""
        if not self.factors:
            return None
        if self.at_edge == "low":
            return self.factors[0] / SPACING if self.factors[0] > 1 / FURTHEST else None
        if self.at_edge == "high":
            return self.factors[-1] * SPACING if self.factors[-1] < FURTHEST else None
        return None

    def with_runs(self, factor: float, losses: Sequence[float]) -> "LearningRateCheck":
        """Returns the check with the run at one more factor."""
        runs = dict(zip(self.factors, self.losses, strict=True))
        runs[factor] = tuple(losses)
        factors = tuple(sorted(runs))
        return replace(self, factors=factors, losses=tuple(runs[factor] for factor in factors))

    def loss_at(self, factor: float) -> float:
        """Mean loss that a factor came to; infinite if the run diverged."""
        return float(np.mean(self._losses(factor)))

    @property
    def _offset(self) -> float:
        """Base-2 logarithm of the best factor of a whole run."""
        return self._vertex() - self.bias.log2_bias

    @property
    def _reach(self) -> float:
        """Half the width of the one-sided interval, in octaves."""
        # The quantile that a two-sided interval of `2 c - 1` uses.
        quantile = student_quantile(2 * self.confidence - 1, self.bias.degrees_of_freedom)
        return quantile * self._deviation

    @property
    def _deviation(self) -> float:
        """Standard deviation of the best factor in octaves: tasks, losses and, if so, the grid."""
        best = self.best_run
        if math.isnan(best):
            return math.nan
        count = len(self.losses[self.factors.index(best)])
        if count < 2:
            return math.nan
        if not self._is_bent():
            return math.inf
        left_out = [self._vertex(leave_out=index) for index in range(count)]
        error = float(np.std(left_out)) * math.sqrt(count - 1)  # The jackknife.
        grid = 0.0 if self._neighbours_are_finite() else _OCTAVE_EITHER_WAY
        return math.hypot(self.bias.log2_spread, error, grid)

    def _is_bent(self) -> bool:
        """Whether the loss is significantly lower in the middle than at both sides together.

        Stricter than `confidence`, as the middle is chosen for being the lowest.
        """
        if not self._neighbours_are_finite():
            return True  # It is: one of them diverged, or the lowest run is at the edge.
        best = self.best_run
        sides = self._losses(best / SPACING) + self._losses(best * SPACING)
        bends = sides - 2 * self._losses(best)
        error = float(np.std(bends, ddof=1)) / math.sqrt(len(bends))
        return float(bends.mean()) > student_quantile(OF_BEND, len(bends) - 1) * error

    def _vertex(self, leave_out: int | None = None) -> float:
        """Base-2 logarithm of the factor at which short runs come to the lowest loss."""
        best = self.best_run if self.factors else math.nan
        if math.isnan(best):
            return math.nan
        if self.at_edge or not self._neighbours_are_finite():
            return math.log2(best)
        low, middle, high = (
            self._mean(factor, leave_out) for factor in (best / SPACING, best, best * SPACING)
        )
        bend = low - 2 * middle + high
        if bend == 0:
            return math.nan
        return math.log2(best) + math.log2(SPACING) * (low - high) / (2 * bend)

    def _neighbours_are_finite(self) -> bool:
        """Whether both neighbours of the best run were tried and did not diverge."""
        best = self.best_run
        pair = (best / SPACING, best * SPACING)
        return all(one in self.factors and not self._diverged(one) for one in pair)

    def _losses(self, factor: float) -> FloatArray:
        losses = np.asarray(self.losses[self.factors.index(factor)], dtype=np.float64)
        return np.where(np.isfinite(losses), losses, np.inf)

    def _mean(self, factor: float, leave_out: int | None = None) -> float:
        """Mean over the batches, as a logarithm unless some mean is not above 0.

        Close to divergence losses differ by orders of magnitude.
        """
        losses = self._losses(factor)
        kept = losses if leave_out is None else np.delete(losses, leave_out)
        positive = all(self.loss_at(other) > 0 for other in self.factors) and kept.mean() > 0
        return float(np.log(kept.mean())) if positive else float(kept.mean())

    def _diverged(self, factor: float) -> bool:
        return not np.all(np.isfinite(self._losses(factor)))
