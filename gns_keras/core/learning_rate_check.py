"""Is the learning rate right for the batch size? A decision from short paired runs.

Runs of a few dozen steps start from the same weights and optimizer state and see the same examples
in the same order; only the learning rate differs, by known factors. Each is judged by the training
loss at the *mean* of its weights over its second half: the last weights of a run carry the noise of
its learning rate, so that a low one would seem good merely because it calms down what is there.
Adam and its relatives do best in short runs at several times the rate that is best for whole runs;
`bias` is that ratio, as measured on four tasks, and is taken off.
docs/decisions/0007-learning-rate-check.md has the experiments behind this.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gns_keras.core.groups import FloatArray
from gns_keras.core.intervals import student_quantile

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
STEP = 2.0  # Ratio of neighbouring factors.
BEYOND = 4.0  # Better at 4 times the rate: the best one is more than twice as high.
BIAS_OF_ADAM = 4.0
DOUBT = 1 / 16  # A check that finds no difference looks down to here.
FURTHEST = 2.0**10  # A search goes no further than this from the present rate, either way.


@dataclass(frozen=True, kw_only=True)
class LearningRateCheck:
    """The losses that short runs came to at several learning rates, and what follows from them.

    Attributes:
        learning_rate: The present learning rate.
        batch_size: Global batch size of the runs, in examples.
        steps: Length of a run.
        factors: Learning rates of the runs over the present one, increasing.
        losses: Training loss that each factor came to, one per seed; `inf` where it diverged.
            Losses of one seed are paired.
        start_loss: The same loss before the runs.
        bias: How many times the best rate of a whole run the best one of a short run is.
        confidence: Confidence of the comparisons.
        searched: The runs go on until the best factor lies inside of those tried, and the noise
            scale is measured at that one.
        examples_used: Examples that the runs took.
        reason: Why there are no runs; empty if there are.
    """

    learning_rate: float
    batch_size: int
    steps: int = 0
    factors: tuple[float, ...] = ()
    losses: tuple[tuple[float, ...], ...] = ()
    start_loss: float = math.nan
    bias: float = 1.0
    confidence: float = 0.95
    searched: bool = False
    examples_used: int = 0
    reason: str = ""

    @property
    def verdict(self) -> str:
        """Whether the best learning rate is within a factor of 2 of the present one.

        Compared with the run at `bias` times the present rate, the middle one: "good": it comes to
        a significantly lower loss than those at a quarter and at four times its rate. "too_low":
        than which four times the rate or more is better; on a curve that rises alike to both sides,
        the best rate is then more than twice as high. "too_high": than which a quarter or less is
        better; or the run at the present rate diverged. "unresolved": none of these.
        """
        middle = self.bias
        if not {middle / BEYOND, middle, middle * BEYOND} <= set(self.factors):
            return "unresolved"
        low = [factor for factor in self.factors if factor <= middle / BEYOND]
        high = [factor for factor in self.factors if factor >= middle * BEYOND]
        present_diverged = 1.0 in self.factors and self._diverged(1.0)
        if present_diverged or any(self._better(factor, middle) for factor in low):
            return "too_high"
        if any(self._better(factor, middle) for factor in high):
            return "too_low"
        inside = self._better(middle, low[-1]) and self._better(middle, high[0])
        return "good" if inside else "unresolved"

    @property
    def best_run(self) -> float:
        """The factor of the run with the lowest loss, the mean over the seeds; NaN if all diverged.

        Logarithms are averaged where no loss is below 0.
        """
        means = [self._mean(factor) for factor in self.factors]
        if not any(map(math.isfinite, means)):
            return math.nan
        return self.factors[int(np.argmin(means))]

    @property
    def best_factor(self) -> float:
        """The best factor for a whole run, `best_run` without its bias; NaN if all diverged.

        Where the run is the lowest or the highest that was tried, the best may lie beyond.
        """
        return self.best_run / self.bias

    @property
    def at_edge(self) -> str:
        """Where the best factor may lie beyond those tried: "low", "high", or "" if it does not."""
        if math.isnan(self.best_run) or self.best_run == self.factors[0]:
            return "low"
        return "high" if self.best_run == self.factors[-1] else ""

    @property
    def chosen_factor(self) -> float:
        """The factor that a search settles on: the best if significantly better than 1, else 1.

        NaN if all diverged.
        """
        best = self.best_run
        change = math.isnan(best) or self._better(best, self.bias) or self._diverged(self.bias)
        return self.best_factor if change else 1.0

    @property
    def factor_to_use(self) -> float:
        """The factor to measure the noise scale with: 1 for the present rate; NaN if none trains.

        Where the rate is too high and there was no search, it is the one to set instead.
        """
        if not self.factors:
            return 1.0
        return self.chosen_factor if self.searched or self.forbids_measuring else 1.0

    @property
    def is_wrong(self) -> bool:
        """Whether the present learning rate is more than a factor of 2 from the best."""
        return self.verdict in ("too_low", "too_high")

    @property
    def forbids_measuring(self) -> bool:
        """Whether a noise scale would mean little: the rate is too high, and none was found.

        Short runs favour high rates, and call one tuned rate in three too low: that is only said.
        """
        if self.searched:
            return self.is_wrong and math.isnan(self.best_factor)
        return self.verdict == "too_high"

    @property
    def best_factor_interval(self) -> tuple[float, float]:
        """Factors that may be best: those not significantly worse, and half a step beyond.

        The lower end is 0, the upper one infinite, where the runs do not go far enough to say.
        """
        if not self.factors:
            return 0.0, math.inf
        best = self.best_run
        if math.isnan(best):
            return 0.0, self.factors[0] / self.bias
        open_ = [factor for factor in self.factors if not self._better(best, factor)]
        low = 0.0 if open_[0] == self.factors[0] else open_[0] / math.sqrt(STEP)
        high = math.inf if open_[-1] == self.factors[-1] else open_[-1] * math.sqrt(STEP)
        return low / self.bias, high / self.bias

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
        """The factor to try next; None: that is enough.

        A search goes on until the best one lies inside of those tried. A check goes on below where
        nothing lets the present rate stand out: far too high a learning rate brings a network to a
        state that neither a quarter nor four times of it changes.
        """
        if not self.factors:
            return None
        if not self.searched:
            middle, least = self.bias, self.factors[0]
            doubtful = self.verdict == "unresolved" and not self._better(middle, least)
            return least / STEP if doubtful and least > DOUBT * middle else None
        if self.at_edge == "low":
            return self.factors[0] / STEP if self.factors[0] > 1 / FURTHEST else None
        if self.at_edge == "high":
            return self.factors[-1] * STEP if self.factors[-1] < FURTHEST else None
        return None

    def with_runs(self, factor: float, losses: Sequence[float]) -> "LearningRateCheck":
        """Returns the check with the runs at one more factor."""
        runs = dict(zip(self.factors, self.losses, strict=True))
        runs[factor] = tuple(losses)
        factors = tuple(sorted(runs))
        return replace(self, factors=factors, losses=tuple(runs[factor] for factor in factors))

    def loss_at(self, factor: float) -> float:
        """Mean loss that a factor came to; infinite if a run diverged."""
        return float(np.mean(self._losses(factor)))

    def _losses(self, factor: float) -> FloatArray:
        losses = np.asarray(self.losses[self.factors.index(factor)], dtype=np.float64)
        return np.where(np.isfinite(losses), losses, np.inf)

    def _scaled(self, factor: float) -> FloatArray:
        """Losses on a scale where they can be averaged: logarithms, unless some are not above 0.

        Close to divergence losses differ by orders of magnitude.
        """
        losses = self._losses(factor)
        return np.log(losses) if np.min(self.losses) > 0 else losses

    def _mean(self, factor: float) -> float:
        return float(np.mean(self._scaled(factor)))

    def _diverged(self, factor: float) -> bool:
        return not np.all(np.isfinite(self._losses(factor)))

    def _better(self, one: float, other: float) -> bool:
        """Whether a factor came to a significantly lower loss than another, seed by seed."""
        if one == other or self._diverged(one):
            return False
        if self._diverged(other):
            return True
        lower = self._scaled(other) - self._scaled(one)
        count = len(lower)
        if count < 2:
            return False
        error = float(np.std(lower, ddof=1)) / math.sqrt(count)
        # One-sided: the quantile that a two-sided interval of `2 c - 1` uses.
        reach = student_quantile(2 * self.confidence - 1, count - 1) * error
        return bool(np.mean(lower) > reach)
