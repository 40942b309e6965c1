"""The noise scale of a run: what was measured, and a forecast of the rest.

The trial run is the beginning of a longer one, which is asked about by its length or by the
training loss that it goes down to. Along the trial a power law is fitted to the loss, `L(t) ~ t^-q`
in examples, which says how long that takes. How the critical batch size grows with the length was
measured on other tasks (`gns_keras.core.growth`), and carries the noise scale on: one trial run is
too short and too noisy to say so itself. Appendix D of McCandlish et al. 2018 (arXiv 1812.06162)
averages by progress, `ds = dt/(1 + B/batch)`.

Beyond the first pass over the data that law does not hold: sweeps of longer runs found critical
batch sizes that grow little after the second pass (docs/decisions/0012-long-runs.md). There the
noise scale of the trial run is left as it is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gns_keras.core.adaptive import adaptive_gain
from gns_keras.core.advice_parts import NoisePoint
from gns_keras.core.calibrated import GROWTH
from gns_keras.core.forecast import LossPowerLaw
from gns_keras.core.noise_scale import NoiseScale
from gns_keras.core.run_average import average_along_run
from gns_keras.core.trial_laws import TrialLaws

REACH = 50.0  # Nothing given: no further than so many times the trial run's examples.
GRID = 256
BEYOND = 4.0  # By what ratio the law of growth is used beyond what it was measured up to.
NEAR = 2.0  # Laws carry on beyond a pass over the data only to twice the trial run's examples.
NOT_FALLING = (
    "The training loss does not clearly fall along the trial run, so that nothing can be said "
    "about when it gets to {loss:.3g}."
)
TOO_FAR = (
    "The run is {ratio:.0f} times as long as the trial run; how the critical batch size grows was "
    "measured up to {largest:.0f} times. A longer trial run is needed."
)
UNRESOLVED = "The noise scale along the trial run is unresolved."
TOO_EARLY = "The loss was there at the beginning of the trial run already."


@dataclass(frozen=True, kw_only=True)
class RunForecast:
    """The noise scale of a run of a given length, or down to a loss.

    Attributes:
        target_loss: Training loss that the run goes down to; NaN if not known.
        is_given: Whether the run was asked for, and is not just where the trial is heading.
        reached_loss: Training loss at the end of the trial run.
        examples: Examples of the run at the present batch size; NaN if not known.
        growth: Examples of the run over those of the trial run; 1 where it is not carried on.
        is_long: Whether that is beyond one pass over the data, and more than twice the trial run.
            The noise scale is then that of the trial run.
        value: Noise scale of that run: the average over the trial run by progress, carried on by
            the law of growth; NaN while unresolved.
        interval: Its interval.
        adaptive_gain: `gamma` of Eq. D.5 over that run; NaN where nothing says how it grows.
        law: Noise scale of the trial run against the loss.
        reason: Why it is unresolved; empty if it is not.
    """

    target_loss: float
    is_given: bool
    reached_loss: float
    examples: float = math.nan
    growth: float = 1.0
    is_long: bool = False
    value: float = math.nan
    interval: tuple[float, float] = (math.nan, math.nan)
    adaptive_gain: float = math.nan
    law: LossPowerLaw = LossPowerLaw()  # noqa: RUF009  frozen
    reason: str = ""

    @property
    def resolved(self) -> bool:
        """Whether there is a value."""
        return self.value > 0

    @property
    def is_extrapolated(self) -> bool:
        """Whether the run goes on beyond what was measured."""
        return self.growth > 1 or self.is_long or self.target_loss < self.reached_loss


def forecast_run(
    points: Sequence[NoisePoint],
    base_batch_size: int,
    *,
    target_loss: float | None = None,
    run_examples: int | None = None,
    dataset_size: int | None = None,
) -> RunForecast | None:
    """The noise scale of a run, from that of the trial run at its beginning.

    Args:
        points: Snapshots along the trial run, with their training losses.
        base_batch_size: Its batch size.
        target_loss: The training loss that the run goes down to. Without both: where the trial is
            heading, see `REACH` and `NEAR`.
        run_examples: The length of the run instead.
        dataset_size: Number of examples, or None if unknown.

    Returns:
        The forecast; None if nothing is given and there is nothing to forecast from.
    """
    stretch = _Stretch(points, base_batch_size, dataset_size)
    laws = stretch.laws
    if run_examples is not None:
        return stretch.of_length(run_examples)
    if laws.problem:
        return None if target_loss is None else stretch.unresolved(target_loss, laws.problem)
    if target_loss is None:
        return stretch.heading()
    if target_loss >= laws.reached_loss:
        return stretch.measured_to(target_loss)
    if not laws.falls:
        return stretch.unresolved(target_loss, NOT_FALLING.format(loss=target_loss))
    return stretch.carried_on(stretch.examples_to(target_loss), target_loss)


class _Stretch:
    """The trial run and its laws."""

    def __init__(
        self, points: Sequence[NoisePoint], base_batch_size: int, dataset_size: int | None
    ) -> None:
        self._size, self._dataset_size = base_batch_size, dataset_size
        self._all = list(points)
        self.laws = TrialLaws(points, base_batch_size, dataset_size)
        self.end = float(points[-1].examples_seen) if points else math.nan

    def _average(self, points: Sequence[NoisePoint]) -> NoiseScale:
        return average_along_run(points, self._size, dataset_size=self._dataset_size)

    def examples_to(self, loss: float) -> float:
        """Examples of the run to a loss below that of the trial: more than the trial took."""
        return max(self.laws.examples_to(loss), 1.01 * self.end)

    @property
    def _far(self) -> float:
        """Examples up to which the law of growth is taken to hold."""
        if self._dataset_size is None:
            return math.inf
        return max(float(self._dataset_size), NEAR * self.end)

    def heading(self) -> RunForecast:
        """Where the trial run is heading."""
        if self.laws.falls:
            until = min(REACH * self.end, self._far)
            found = self.carried_on(until, self.laws.loss_at(until), given=False)
            if found.resolved:
                return found
        return self._measured(self.laws.points, self.laws.reached_loss, self.end, given=False)

    def of_length(self, examples: int) -> RunForecast:
        """A run of so many examples."""
        if examples > self.end:
            return self.carried_on(float(examples), self.laws.loss_at(examples))
        part = [point for point in self._all if point.examples_seen <= examples]
        return self._measured(part, math.nan, float(examples))

    def measured_to(self, loss: float) -> RunForecast:
        """The part of the trial run that it took to get to a loss."""
        points = self.laws.points
        smooth = np.convolve([p.loss for p in points], np.ones(5) / 5, mode="valid")
        below = np.flatnonzero(smooth <= loss)
        count = int(below[0]) + 3 if below.size else len(points)  # The middle of the five.
        return self._measured(points[:count], loss, points[count - 1].examples_seen)

    def _measured(
        self, part: Sequence[NoisePoint], loss: float, examples: float, *, given: bool = True
    ) -> RunForecast:
        scale = self._average(part)
        known = scale.resolved and scale.value > 0
        return RunForecast(
            target_loss=loss,
            is_given=given,
            reached_loss=self.laws.reached_loss,
            examples=float(examples),
            value=scale.value if known else math.nan,
            interval=scale.interval,
            adaptive_gain=self.laws.adaptive_gain,
            law=self.laws.scale,
            reason="" if known else UNRESOLVED,
        )

    def unresolved(self, loss: float, reason: str, examples: float = math.nan) -> RunForecast:
        """The statement that nothing is known, but what the trial run bounds from below."""
        return RunForecast(
            target_loss=loss,
            is_given=True,
            reached_loss=self.laws.reached_loss,
            examples=examples,
            interval=(self._average(self._all).interval[0], math.inf),
            reason=reason,
        )

    def carried_on(self, until: float, loss: float, *, given: bool = True) -> RunForecast:
        """A run that goes on beyond the trial.

        Args:
            until: Its examples.
            loss: Its training loss; NaN if unknown.
            given: Whether it was asked for.
        """
        scale = self._average(self._all)
        if not (scale.resolved and scale.value > 0 and scale.interval[0] > 0):
            return self.unresolved(loss, UNRESOLVED, until)
        is_long = given and until > self._far
        ratio = 1.0 if is_long else until / self.end
        if ratio > BEYOND * GROWTH.largest_ratio:
            reason = TOO_FAR.format(ratio=ratio, largest=GROWTH.largest_ratio)
            return self.unresolved(loss, reason, until)
        growth, ends = GROWTH.over(ratio)
        value = scale.value * growth
        below = math.hypot(math.log(scale.value / scale.interval[0]), math.log(growth / ends[0]))
        above = math.hypot(math.log(scale.interval[1] / scale.value), math.log(ends[1] / growth))
        return RunForecast(
            target_loss=loss,
            is_given=given,
            reached_loss=self.laws.reached_loss,
            examples=until,
            growth=ratio,
            is_long=is_long,
            value=value,
            interval=(value * math.exp(-below), value * math.exp(above)),
            adaptive_gain=math.nan if is_long else self._gain_of_growth(scale.value, ratio),
            law=self.laws.scale,
        )

    def _gain_of_growth(self, scale: float, ratio: float) -> float:
        """`gamma` of a noise scale that grows by the law from the first examples to the last."""
        edges = np.concatenate([[0.0], np.geomspace(1e-3, ratio, GRID)])
        scales = scale * ((edges[1:] + edges[:-1]) / 2) ** GROWTH.exponent
        return adaptive_gain(list(scales), list(np.diff(edges) / (self._size + scales)))
