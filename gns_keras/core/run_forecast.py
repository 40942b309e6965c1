"""The noise scale of a run down to a training loss: what was measured, and a forecast of the rest.

The noise scale grows while the loss falls. Along the trial run a power law `B(L) = B_* / L^p` is
fitted to it, and another to the loss itself, `L(t) ~ t^-q` in examples. From the end of the trial
to the loss in question both go on; Appendix D of McCandlish et al. 2018 (arXiv 1812.06162) averages
by progress, `ds = dt/(1 + B/batch)`, so that the average is `E_min/S_min` of the whole run. Nothing
measured says that the power laws do go on: the interval is that of a prediction *if* they do.

Far beyond the first pass over the data they do not: sweeps of longer runs found critical batch
sizes that grow little after the second pass (docs/decisions/0012-long-runs.md). There the noise
scale of the trial run is left as it is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gns_keras.core.adaptive import adaptive_gain
from gns_keras.core.advice_parts import NoisePoint
from gns_keras.core.forecast import LossPowerLaw, fit_power_law
from gns_keras.core.groups import FloatArray
from gns_keras.core.noise_scale import NoiseScale
from gns_keras.core.run_average import average_along_run

NUM_BLOCKS = 8  # Snapshots swing from one to the next; blocks of them are what a line goes through.
REACH = 10.0  # Without a given loss: no further than ten times the trial run's examples.
NEAR = 2.0  # Laws carry on beyond a pass over the data only to twice the trial run's examples.
FIRST = 2  # Blocks at the beginning that the power law of the loss leaves out.
GRID = 64
WIDEST = 100.0  # A forecast whose ends are further apart in ratio says nothing.
NO_LOSSES = "The trial run reports no training losses above 0 to relate the noise scale to."
NOT_FALLING = (
    "The training loss does not clearly fall along the trial run, so that nothing can be said "
    "about when it gets to {loss:.3g}."
)
TOO_FEW = (
    "The trial run is too short, or too noisy, for a power law of the noise scale in the loss."
)
TOO_WIDE = "The forecast spans a factor of {factor:.0f}: a longer trial run is needed."
TOO_EARLY = "The loss was there at the beginning of the trial run already."


@dataclass(frozen=True, kw_only=True)
class RunForecast:
    """The noise scale of a run down to a loss.

    Attributes:
        target_loss: Training loss that the run goes down to.
        is_given: Whether it was asked for, and is not just where the run is heading.
        reached_loss: Training loss at the end of the trial run.
        examples: Examples to `target_loss` at the present batch size; NaN if not known.
        is_long: Whether that is beyond one pass over the data, and more than twice the trial run.
            The noise scale is then that of the trial run.
        value: Noise scale averaged over that run by progress; NaN while unresolved.
        interval: Its interval.
        at_target: Noise scale at `target_loss` itself; NaN without a power law.
        at_target_interval: Its prediction interval.
        adaptive_gain: `gamma` of Eq. D.5 over that run; NaN without a power law.
        law: Noise scale against the loss.
        reason: Why it is unresolved; empty if it is not.
    """

    target_loss: float
    is_given: bool
    reached_loss: float
    examples: float = math.nan
    is_long: bool = False
    value: float = math.nan
    interval: tuple[float, float] = (math.nan, math.nan)
    at_target: float = math.nan
    at_target_interval: tuple[float, float] = (math.nan, math.nan)
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
        return self.target_loss < self.reached_loss


def forecast_run(
    points: Sequence[NoisePoint],
    base_batch_size: int,
    *,
    target_loss: float | None = None,
    dataset_size: int | None = None,
) -> RunForecast | None:
    """Averages the noise scale over a run down to a training loss.

    Args:
        points: Snapshots along the trial run, with their training losses.
        base_batch_size: Its batch size.
        target_loss: The loss; None: where the run is heading, see `REACH` and `NEAR`.
        dataset_size: Number of examples, or None if unknown.

    Returns:
        The forecast; None if no loss is given and there is nothing to forecast from.
    """
    stretch = _Stretch(points, base_batch_size, dataset_size)
    if stretch.problem:
        return None if target_loss is None else stretch.unresolved(target_loss, stretch.problem)
    target = stretch.heading() if target_loss is None else target_loss
    given = target_loss is not None
    if target >= stretch.reached_loss:
        return stretch.measured(target, given)
    found = stretch.extrapolated(target, given)
    return found if given or found.resolved else stretch.measured(stretch.reached_loss, False)


class _Stretch:
    """The trial run in blocks, with the two power laws."""

    def __init__(
        self, points: Sequence[NoisePoint], base_batch_size: int, dataset_size: int | None
    ) -> None:
        self._size, self._dataset_size = base_batch_size, dataset_size
        self._points = [p for p in points if 0 < p.loss < math.inf]
        self.problem = "" if len(self._points) >= 2 * NUM_BLOCKS else NO_LOSSES
        if self.problem:
            self.reached_loss = math.nan
            return
        blocks = [list(part) for part in np.array_split(np.array(self._points, object), NUM_BLOCKS)]
        self._losses = [math.exp(np.mean([math.log(p.loss) for p in part])) for part in blocks]
        self._seen = [float(np.mean([p.examples_seen for p in part])) for part in blocks]
        self._scales = [self._average(part) for part in blocks]
        self.reached_loss = self._losses[-1]
        self.end = float(self._points[-1].examples_seen)
        # A block need not be resolved by itself: the scatter about the line says how good they are.
        # But to leave out those whose |G|^2 comes out negative would bend the line.
        known = all(scale.grad_sq_norm > 0 < scale.trace_cov for scale in self._scales)
        values = [scale.trace_cov / scale.grad_sq_norm for scale in self._scales] if known else []
        self.law = fit_power_law(self._losses[: len(values)], values)
        self.decay = fit_power_law(self._seen[FIRST:], self._losses[FIRST:])

    def _average(self, part: Sequence[NoisePoint]) -> NoiseScale:
        # A stretch in the middle: its snapshots stand for equal numbers of steps.
        first = part[0].examples_seen - (part[1].examples_seen - part[0].examples_seen)
        moved = [
            NoisePoint(examples_seen=p.examples_seen - first, noise_scale=p.noise_scale)
            for p in part
        ]
        return average_along_run(moved, self._size, dataset_size=self._dataset_size)

    def heading(self) -> float:
        """The loss that the run is heading for."""
        if not self._falls:
            return self.reached_loss
        until = min(REACH * self.end, self._far)
        return float(self.reached_loss * (until / self._seen[-1]) ** -self.decay.exponent)

    @property
    def _far(self) -> float:
        """Examples up to which the laws are taken to hold."""
        if self._dataset_size is None:
            return math.inf
        return max(float(self._dataset_size), NEAR * self.end)

    @property
    def _falls(self) -> bool:
        return self.decay.resolved and self.decay.exponent_interval[0] > 0

    def unresolved(self, target: float, reason: str) -> RunForecast:
        """The statement that nothing is known, but what the trial run bounds from below."""
        measured = average_along_run(self._points, self._size, dataset_size=self._dataset_size)
        return RunForecast(
            target_loss=target,
            is_given=True,
            reached_loss=self.reached_loss,
            interval=(measured.interval[0], math.inf),
            reason=reason,
        )

    def measured(self, target: float, given: bool) -> RunForecast:
        """The average over the part of the trial run that it took to get to the loss."""
        count = len(self._points)
        if given:
            smooth = np.convolve([p.loss for p in self._points], np.ones(5) / 5, mode="valid")
            below = np.flatnonzero(smooth <= target)
            count = int(below[0]) + 3 if below.size else count  # The middle of the five.
        part = self._points[:count]
        scale = average_along_run(part, self._size, dataset_size=self._dataset_size)
        known = scale.resolved and scale.value > 0
        return RunForecast(
            target_loss=target,
            is_given=given,
            reached_loss=self.reached_loss,
            examples=float(part[-1].examples_seen),
            value=scale.value if known else math.nan,
            interval=scale.interval,
            at_target=self._at(target)[0],
            at_target_interval=self._at(target)[1],
            adaptive_gain=self._gain(self._losses, np.diff(self._seen, prepend=0.0)),
            law=self.law,
            reason="" if known else "The noise scale along the trial run is unresolved.",
        )

    def extrapolated(self, target: float, given: bool) -> RunForecast:
        """The average over the trial run and its continuation."""
        measured = average_along_run(self._points, self._size, dataset_size=self._dataset_size)
        reason = self._obstacle(measured, target)
        if reason:
            return self.unresolved(target, reason)
        anchor = self._seen[-1]  # Where `reached_loss` is the loss.
        until = anchor * (self.reached_loss / target) ** (1 / self.decay.exponent)
        until = max(until, 1.01 * self.end)
        if given and until > self._far:
            return RunForecast(
                target_loss=target,
                is_given=given,
                reached_loss=self.reached_loss,
                examples=until,
                is_long=True,
                value=measured.value,
                interval=measured.interval,
                law=self.law,
            )
        times = np.geomspace(self.end, until, GRID + 1)
        middle = np.sqrt(times[1:] * times[:-1])
        losses = self.reached_loss * (middle / anchor) ** -self.decay.exponent
        low, high = self._interval_of_stretch(losses, until - self.end)
        value, lower, upper = (
            self._joined(scale, curve, np.diff(times))
            for scale, curve in (
                (measured.value, self.law.at(losses)),
                (measured.interval[0], low),
                (measured.interval[1], high),
            )
        )
        wide = upper / lower if lower > 0 else math.inf
        if wide > WIDEST:
            return self.unresolved(target, TOO_WIDE.format(factor=wide))
        spans = np.append(np.diff(self._seen, prepend=0.0), np.diff(times))
        return RunForecast(
            target_loss=target,
            is_given=given,
            reached_loss=self.reached_loss,
            examples=until,
            value=value,
            interval=(lower, upper),
            at_target=self._at(target)[0],
            at_target_interval=self._at(target)[1],
            adaptive_gain=self._gain([*self._losses, *losses], spans),
            law=self.law,
        )

    def _interval_of_stretch(
        self, losses: FloatArray, length: float
    ) -> tuple[FloatArray, FloatArray]:
        """Where the mean over a continuation may run: blocks that swing about the line average out.

        A prediction interval is for one block; of `m` in a row the swings' variance is one `m`-th.
        """
        middle = self.law.at(losses)
        line = np.log(self.law.confidence_interval(losses)[1] / middle)
        block = np.log(self.law.prediction_interval(losses)[1] / middle)
        blocks = max(1.0, length / (self.end / NUM_BLOCKS))
        reach = np.sqrt(line**2 + (block**2 - line**2) / blocks)
        return middle * np.exp(-reach), middle * np.exp(reach)

    def _obstacle(self, measured: NoiseScale, target: float) -> str:
        if not self._falls:
            return NOT_FALLING.format(loss=target)
        if not self.law.resolved:
            return TOO_FEW
        return "" if measured.resolved and measured.interval[0] > 0 else TOO_FEW

    def _joined(self, measured: float, curve: FloatArray, spans: FloatArray) -> float:
        """`E_min/S_min` of the trial run and its continuation."""
        steps = spans / (self._size + curve)
        before = self.end / (self._size + measured)
        examples = np.sum(spans / (1 + self._size / curve)) + before * measured
        return float(examples / (np.sum(steps) + before))

    def _at(self, loss: float) -> tuple[float, tuple[float, float]]:
        if not self.law.resolved:
            return math.nan, (math.nan, math.nan)
        low, high = self.law.prediction_interval(loss)
        return float(self.law.at(loss)), (float(low), float(high))

    def _gain(self, losses: Sequence[float], spans: FloatArray) -> float:
        """`gamma` by the power law: the swings of the snapshots about it are no growth."""
        if not self.law.resolved:
            return math.nan
        scales = self.law.at(np.asarray(losses))
        return adaptive_gain(list(scales), list(spans / (self._size + scales)))
