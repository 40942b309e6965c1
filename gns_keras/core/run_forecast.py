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
from gns_keras.core.forecast import LossPowerLaw, fit_power_law
from gns_keras.core.noise_scale import NoiseScale
from gns_keras.core.run_average import average_along_run

NUM_BLOCKS = 8  # Snapshots swing from one to the next; blocks of them are what a line goes through.
REACH = 50.0  # Nothing given: no further than so many times the trial run's examples.
GRID = 256
BEYOND = 4.0  # By what ratio the law of growth is used beyond what it was measured up to.
NEAR = 2.0  # Laws carry on beyond a pass over the data only to twice the trial run's examples.
FIRST = 2  # Blocks at the beginning that the power law of the loss leaves out.
NO_LOSSES = "The trial run reports no training losses above 0 to relate the noise scale to."
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
    if run_examples is not None:
        return stretch.of_length(run_examples)
    if stretch.problem:
        return None if target_loss is None else stretch.unresolved(target_loss, stretch.problem)
    if target_loss is None:
        return stretch.heading()
    if target_loss >= stretch.reached_loss:
        return stretch.measured_to(target_loss)
    if not stretch.falls:
        return stretch.unresolved(target_loss, NOT_FALLING.format(loss=target_loss))
    return stretch.carried_on(stretch.examples_to(target_loss), target_loss)


class _Stretch:
    """The trial run, in blocks where there are losses, with two power laws."""

    def __init__(
        self, points: Sequence[NoisePoint], base_batch_size: int, dataset_size: int | None
    ) -> None:
        self._size, self._dataset_size = base_batch_size, dataset_size
        self._all = list(points)
        self._points = [p for p in points if 0 < p.loss < math.inf]
        self.problem = "" if len(self._points) >= 2 * NUM_BLOCKS else NO_LOSSES
        self.end = float(points[-1].examples_seen) if points else math.nan
        self.reached_loss, self.law = math.nan, LossPowerLaw()
        self._losses: list[float] = []
        self._seen: list[float] = []
        self._decay = LossPowerLaw()
        if not self.problem:
            self._fit()

    def _fit(self) -> None:
        blocks = [list(part) for part in np.array_split(np.array(self._points, object), NUM_BLOCKS)]
        self._losses = [math.exp(np.mean([math.log(p.loss) for p in part])) for part in blocks]
        self._seen = [float(np.mean([p.examples_seen for p in part])) for part in blocks]
        self.reached_loss = self._losses[-1]
        scales = [self._average_of_block(part) for part in blocks]
        # A block need not be resolved by itself: the scatter about the line says how good they are.
        # But to leave out those whose |G|^2 comes out negative would bend the line.
        known = all(scale.grad_sq_norm > 0 < scale.trace_cov for scale in scales)
        values = [scale.trace_cov / scale.grad_sq_norm for scale in scales] if known else []
        self.law = fit_power_law(self._losses[: len(values)], values)
        self._decay = fit_power_law(self._seen[FIRST:], self._losses[FIRST:])

    def _average_of_block(self, part: Sequence[NoisePoint]) -> NoiseScale:
        # A stretch in the middle: its snapshots stand for equal numbers of steps.
        first = part[0].examples_seen - (part[1].examples_seen - part[0].examples_seen)
        moved = [
            NoisePoint(examples_seen=p.examples_seen - first, noise_scale=p.noise_scale)
            for p in part
        ]
        return self._average(moved)

    def _average(self, points: Sequence[NoisePoint]) -> NoiseScale:
        return average_along_run(points, self._size, dataset_size=self._dataset_size)

    @property
    def falls(self) -> bool:
        """Whether the loss clearly falls along the trial run."""
        return self._decay.resolved and self._decay.exponent_interval[0] > 0

    def examples_to(self, loss: float) -> float:
        """Examples of the run to a loss below those of the trial, by the power law of the loss."""
        anchor = self._seen[-1]  # Where `reached_loss` is the loss.
        until = anchor * (self.reached_loss / loss) ** (1 / self._decay.exponent)
        return float(max(until, 1.01 * self.end))

    def _loss_at(self, examples: float) -> float:
        if not self.falls:
            return math.nan
        return float(self.reached_loss * (examples / self._seen[-1]) ** -self._decay.exponent)

    @property
    def _far(self) -> float:
        """Examples up to which the law of growth is taken to hold."""
        if self._dataset_size is None:
            return math.inf
        return max(float(self._dataset_size), NEAR * self.end)

    def heading(self) -> RunForecast:
        """Where the trial run is heading."""
        if self.falls:
            until = min(REACH * self.end, self._far)
            found = self.carried_on(until, self._loss_at(until), given=False)
            if found.resolved:
                return found
        return self._measured(self._points, self.reached_loss, self.end, given=False)

    def of_length(self, examples: int) -> RunForecast:
        """A run of so many examples."""
        if examples > self.end:
            return self.carried_on(float(examples), self._loss_at(examples))
        part = [point for point in self._all if point.examples_seen <= examples]
        return self._measured(part, math.nan, float(examples))

    def measured_to(self, loss: float) -> RunForecast:
        """The part of the trial run that it took to get to a loss."""
        smooth = np.convolve([p.loss for p in self._points], np.ones(5) / 5, mode="valid")
        below = np.flatnonzero(smooth <= loss)
        count = int(below[0]) + 3 if below.size else len(self._points)  # The middle of the five.
        return self._measured(self._points[:count], loss, self._points[count - 1].examples_seen)

    def _measured(
        self, part: Sequence[NoisePoint], loss: float, examples: float, *, given: bool = True
    ) -> RunForecast:
        scale = self._average(part)
        known = scale.resolved and scale.value > 0
        return RunForecast(
            target_loss=loss,
            is_given=given,
            reached_loss=self.reached_loss,
            examples=float(examples),
            value=scale.value if known else math.nan,
            interval=scale.interval,
            adaptive_gain=self._gain_of_trial(),
            law=self.law,
            reason="" if known else UNRESOLVED,
        )

    def unresolved(self, loss: float, reason: str, examples: float = math.nan) -> RunForecast:
        """The statement that nothing is known, but what the trial run bounds from below."""
        return RunForecast(
            target_loss=loss,
            is_given=True,
            reached_loss=self.reached_loss,
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
            reached_loss=self.reached_loss,
            examples=until,
            growth=ratio,
            is_long=is_long,
            value=value,
            interval=(value * math.exp(-below), value * math.exp(above)),
            adaptive_gain=math.nan if is_long else self._gain_of_growth(scale.value, ratio),
            law=self.law,
        )

    def _gain_of_trial(self) -> float:
        """`gamma` by the power law: the swings of the snapshots about it are no growth."""
        if not self.law.resolved:
            return math.nan
        scales = self.law.at(np.asarray(self._losses))
        spans = np.diff(self._seen, prepend=0.0)
        return adaptive_gain(list(scales), list(spans / (self._size + scales)))

    def _gain_of_growth(self, scale: float, ratio: float) -> float:
        """`gamma` of a noise scale that grows by the law from the first examples to the last."""
        edges = np.concatenate([[0.0], np.geomspace(1e-3, ratio, GRID)])
        scales = scale * ((edges[1:] + edges[:-1]) / 2) ** GROWTH.exponent
        return adaptive_gain(list(scales), list(np.diff(edges) / (self._size + scales)))
