"""What `advise` found out and recommends, as plain values that go to JSON and back."""

import math
from dataclasses import dataclass
from typing import Self

from gns_keras.core.advice_parts import AdviceRow, NoisePoint, ReplicaRow
from gns_keras.core.calibration import Calibration
from gns_keras.core.json_records import JsonRecord
from gns_keras.core.learning_rate import LearningRateRule
from gns_keras.core.learning_rate_check import LearningRateCheck
from gns_keras.core.noise_scale import NoiseScale
from gns_keras.core.numbers import format_number
from gns_keras.core.run_forecast import RunForecast
from gns_keras.core.step_time import StepTime


@dataclass(frozen=True, kw_only=True)
class Advice(JsonRecord):
    """A recommended batch size and learning rate, with the evidence for them.

    Attributes:
        noise_scale: Noise scale of the trial run: snapshots at frozen weights, averaged by progress
            (Appendix D).
        critical_batch_size: Batch size at which a run takes twice the smallest number of steps and
            of examples, as predicted by the noise scale; NaN while unresolved.
        interval: Its confidence interval; the upper end is `inf` while unresolved.
        batch_size: Recommended global batch size, in examples.
        batch_size_interval: The recommendation at both ends of `interval`.
        learning_rate: Recommended learning rate; NaN without a rule for the optimizer.
        limited_by: What keeps the batch size from being bigger: "noise_scale", "memory",
            "throughput" or "insufficient_data".
        exchange_rate: `r = E_min/S_min`, examples worth one step (Appendix D); NaN if unresolved.
        adaptive_gain: `gamma` of Eq. D.5 over the trial run; NaN with fewer than two points.
        table: One row per batch size, increasing. While the noise scale is unresolved the rows are
            for its lower bound.
        warnings: What to know before acting on this, one sentence or two each.
        examples_used: Examples that were processed to find out.
        objective: "balanced", "time" or "cost".
        base_batch_size: Present global batch size, that of the trial run.
        base_learning_rate: Learning rate at `base_batch_size` that the table starts from: the
            present one, or that of the search.
        rule: Learning-rate rule, or None where none is known for the optimizer.
        step_time: Measured step times and their fit, or None.
        points: The snapshots along the trial run.
        learning_rate_check: The check or search of the learning rate, or None.
        forecast: The run that the critical batch size is for, or None: the trial run itself.
        schedule: "adaptive" if a batch size that grows while training is worth it, else "fixed".
        replicas: One row per number of replicas, 1, 2, 4 and so on; empty without step times.
        num_replicas: How many are worth paying for, at both ends of `interval`.
        is_watched: The evidence is a run that was only watched.
        mean_noise_scale: That at the mean weights of the trial run, or None.
        calibration: What turned both into `critical_batch_size`; None: the noise scale as it is.
    """

    SCHEMA_VERSION = 4

    noise_scale: NoiseScale
    critical_batch_size: float
    interval: tuple[float, float]
    batch_size: int
    batch_size_interval: tuple[float, float]
    learning_rate: float
    limited_by: str
    exchange_rate: float
    adaptive_gain: float
    table: tuple[AdviceRow, ...]
    warnings: tuple[str, ...]
    examples_used: int
    objective: str
    base_batch_size: int
    base_learning_rate: float
    rule: LearningRateRule | None = None
    step_time: StepTime | None = None
    points: tuple[NoisePoint, ...] = ()
    learning_rate_check: LearningRateCheck | None = None
    forecast: RunForecast | None = None
    schedule: str = "fixed"
    replicas: tuple[ReplicaRow, ...] = ()
    num_replicas: int = 1
    is_watched: bool = False
    mean_noise_scale: NoiseScale | None = None
    calibration: Calibration | None = None

    @property
    def recommended_row(self) -> AdviceRow:
        """The row of the table that is recommended."""
        return next(row for row in self.table if row.batch_size == self.batch_size)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads the text that `to_json` returned.

        Raises:
            ValueError: The text is no JSON, of another schema version, or not an advice.
        """
        advice = super().from_json(text)
        if all(row.batch_size != advice.batch_size for row in advice.table):
            raise ValueError(
                "Expected a row of the table for the recommended batch size. Received: "
                f"batch_size={advice.batch_size} and rows for "
                f"{[row.batch_size for row in advice.table]}."
            )
        return advice

    def __str__(self) -> str:
        lines = [
            f"batch size {self.batch_size}, learning rate {format_number(self.learning_rate)} "
            f"(limited by {self.limited_by})",
            f"noise scale: {self.noise_scale}",
            " ".join(f"{name:>10}" for name in TABLE_HEADINGS),
            *(" ".join(f"{cell:>10}" for cell in row_cells(row)) for row in self.table),
            *(f"warning: {warning}" for warning in self.warnings),
        ]
        return "\n".join(lines)


TABLE_HEADINGS = ("batch size", "steps", "examples", "rate", "s/step", "time", "cost")


def row_cells(row: AdviceRow) -> tuple[str, ...]:
    """The cells of one row as text, under `TABLE_HEADINGS`. A predicted step time has a tilde."""
    predicted = "" if row.step_time_measured or math.isnan(row.step_time_s) else "~"
    return (
        f"{row.batch_size:,}",
        f"{format_number(row.relative_steps)}x",
        f"{format_number(row.relative_examples)}x",
        format_number(row.learning_rate),
        predicted + format_number(row.step_time_s),
        f"{format_number(row.relative_time)}x",
        f"{format_number(row.relative_cost)}x",
    )


def explain(advice: Advice) -> str:
    """How the numbers came about, in a paragraph for someone new to noise scales."""
    return " ".join([_measurement(advice), _prediction(advice), _learning_rates(advice)])


def _measurement(advice: Advice) -> str:
    says = "The noise scale says from which batch size on the gradient is more signal than noise."
    if advice.is_watched:
        return f"{says} It was measured while the model trained."
    check = advice.learning_rate_check
    if check is not None and check.forbids_measuring:
        return (
            f"{says} It was not measured, because the learning rate is wrong: short runs from the "
            f"same weights, {advice.examples_used:,} examples together, differed in it alone."
        )
    return (
        f"{says} It was measured at frozen weights, in {advice.noise_scale.num_steps} snapshots "
        f"along a short trial run at batch size {advice.base_batch_size:,}. All of this took "
        f"{advice.examples_used:,} examples."
    )


def _prediction(advice: Advice) -> str:
    further = ""
    long = advice.forecast is not None and advice.forecast.is_long
    if advice.forecast is not None and advice.forecast.is_extrapolated and not long:
        further = ", carried on by the growth that sweeps of small tasks found,"
    return (
        f"Its average along the run{further} predicts the critical batch size B_c: a run at batch "
        "size B takes 1 + B_c/B times the smallest number of steps and 1 + B/B_c times the "
        "smallest number of examples (McCandlish et al. 2018, Eq. 2.11 and Appendix D). "
    ) + _basis(advice, long)


def _basis(advice: Advice, long: bool) -> str:
    calibration = advice.calibration
    if calibration is None:
        return (
            "The prediction rests on the noise scale alone, which the paper found within a factor "
            "of 10 of the critical batch size measured by whole runs."
        )
    times, tasks = f"{calibration.factor:.2g}", calibration.num_tasks
    spread = "and the interval holds the spread between them."
    if advice.is_watched:
        return (
            f"B_c is {times} times that, a factor from sweeps of {tasks} small tasks with "
            f"optimizers of this kind, {spread}"
        )
    if long:
        return (
            "To it belongs the noise scale at the mean of the weights: B_c is the weighted "
            f"geometric mean of both at the beginning of the run times {times}, a factor from "
            f"sweeps of {tasks} small tasks with runs of 3 to 20 passes over the data, {spread}"
        )
    return (
        "To it belongs the noise scale at the mean of the weights: B_c is the weighted geometric "
        f"mean of both times {times}, a factor from sweeps of {tasks} small tasks with optimizers "
        f"of this kind, {spread}"
    )


def _learning_rates(advice: Advice) -> str:
    if advice.rule is None:
        return "No learning-rate rule is known for this optimizer."
    return (
        f"Learning rates follow eps(B) ~ 1/(1 + B_c/B)^{advice.rule.alpha:g} from "
        f"{format_number(advice.base_learning_rate)} at batch size {advice.base_batch_size:,}; "
        "take them as the first value to try."
    )
