"""Advice from a run that was only watched: what a `NoiseScaleMonitor` kept is the evidence."""

import math
from typing import Any

from gns_keras.core.advice_parts import NoisePoint
from gns_keras.core.calibrated import calibration_for, for_watched_runs
from gns_keras.core.evidence import Evidence
from gns_keras.core.learning_rate import LearningRateRule
from gns_keras.core.noise_scale import NoiseScale

MISSING = (
    "This comes from a run that was only watched. Its noise scale is a running one, which says "
    "less than measurements at frozen weights: {precision}. Neither was the learning rate checked, "
    "nor were steps timed, and there is no forecast. advise() measures all of that."
)
KNOWN = (
    "with a factor for optimizers of this kind it predicted two thirds of the critical batch sizes "
    "of 34 small tasks without batch normalization within a factor of 2, from runs at batch sizes "
    "far below them"
)
UNKNOWN = "nobody has compared it with critical batch sizes under this optimizer"


def evidence_from_monitor(monitor: Any, batch_size: int | None = None) -> Evidence:
    """Collects what a monitor and the model that it watched have to say.

    Args:
        monitor: A `NoiseScaleMonitor` that was in a `fit`.
        batch_size: Global batch size of the run; None: examples over steps of what was measured.

    Raises:
        ValueError: The monitor has watched no run yet.
    """
    model = getattr(monitor, "model", None)
    scale = monitor.result()
    if model is None or not scale.num_steps:
        raise ValueError(
            "Expected a monitor that has watched a run. Received one that has not: pass it to "
            "model.fit(..., callbacks=[monitor]) first."
        )
    if batch_size is None:
        batch_size = max(1, round(scale.num_examples / scale.num_steps))
    calibration = calibration_for(model.optimizer)
    if calibration is not None:
        calibration = for_watched_runs(calibration)
    return Evidence(
        noise_scale=scale,
        base_batch_size=batch_size,
        base_learning_rate=float(model.optimizer.learning_rate),
        rule=_rule(model.optimizer),
        points=_points(monitor.history, _losses(model)),
        examples_used=0,
        remarks=(MISSING.format(precision=UNKNOWN if calibration is None else KNOWN),),
        is_watched=True,
        calibration=calibration,
    )


def _rule(optimizer: Any) -> LearningRateRule | None:
    try:
        return LearningRateRule.for_optimizer(optimizer)
    except ValueError:
        return None


def _losses(model: Any) -> dict[int, float]:
    history = getattr(model, "history", None)
    if history is None:
        return {}
    return dict(zip(history.epoch, history.history.get("loss", []), strict=False))


def _points(history: dict[str, list[float]], losses: dict[int, float]) -> tuple[NoisePoint, ...]:
    names = ("epoch", "examples_seen", "noise_scale", "noise_scale_lower", "noise_scale_upper",
             "grad_sq_norm", "trace_cov", "num_steps")  # fmt: skip
    columns = zip(*(history.get(name, []) for name in names), strict=True)
    return tuple(
        NoisePoint(
            examples_seen=round(seen),
            noise_scale=NoiseScale(
                value=value,
                interval=(low, high),
                grad_sq_norm=grad,
                trace_cov=trace,
                num_steps=int(steps),
            ),
            loss=float(losses.get(int(epoch), math.nan)),
        )
        for epoch, seen, value, low, high, grad, trace, steps in columns
    )
