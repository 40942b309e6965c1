"""From noise scales and measured critical batch sizes to factors with predictive intervals."""

import math
from dataclasses import replace

import keras
import numpy as np
import pytest
from scipy import stats

from gns_keras.core import calibrated
from gns_keras.core.calibration import (
    Calibration,
    CalibrationPoint,
    fit_calibration,
    leave_one_task_out,
    score_calibration,
)
from gns_keras.core.noise_scale import NoiseScale


def point(task: str, noise_scale: float, critical: float, kind: str = "sgd") -> CalibrationPoint:
    return CalibrationPoint(
        task=task, optimizers=kind, noise_scale=noise_scale, critical_batch_size=critical
    )


def simulated(
    rng: np.random.Generator, *, tasks: int, goals: int, between: float, within: float
) -> list[CalibrationPoint]:
    """Tasks of two classes with factors of 1 and 3."""
    found = []
    for task in range(2 * tasks):
        kind, factor = ("sgd", 1.0) if task < tasks else ("adam", 3.0)
        shift = rng.normal(scale=between)
        for _ in range(goals):
            noise_scale = math.exp(rng.uniform(2, 7))
            error = shift + rng.normal(scale=within)
            found.append(
                point(f"{kind}{task}", noise_scale, factor * noise_scale * math.exp(error), kind)
            )
    return found


def test_the_factor_is_the_mean_over_tasks_not_over_goals() -> None:
    # Task a has ratio 4 at three goals, b and c have ratio 1: ln c = ln(4)/3.
    points = [point("a", 10.0 * i, 40.0 * i) for i in (1, 2, 3)]
    points += [point("b", 7.0, 7.0), point("c", 30.0, 30.0)]
    found = fit_calibration(points)["sgd"]
    assert found.factor == pytest.approx(4 ** (1 / 3))
    # Variance of (ln 4, 0, 0) is ln(4)^2/3; within the tasks there is none.
    assert found.log_spread == pytest.approx(math.log(4) * math.sqrt((1 + 1 / 3) / 3))
    assert (found.degrees_of_freedom, found.num_tasks) == (2.0, 3)


def test_classes_have_their_own_factors_and_share_the_spread() -> None:
    points = [point("a", 10.0, 5.0), point("b", 20.0, 20.0)]
    points += [point("c", 10.0, 100.0, "adam"), point("d", 10.0, 100.0, "adam")]
    found = fit_calibration(points, source="by hand")
    assert found["sgd"].factor == pytest.approx(math.sqrt(0.5))
    assert found["adam"].factor == pytest.approx(10.0)
    assert found["adam"].log_spread == pytest.approx(found["sgd"].log_spread)
    assert found["sgd"].degrees_of_freedom == 2.0
    assert found["adam"].source == "by hand"


def test_a_fitted_slope_is_that_of_least_squares() -> None:
    rng = np.random.default_rng(0)
    noise_scales = np.exp(rng.uniform(2, 7, size=9))
    critical = 2 * noise_scales**0.8 * np.exp(rng.normal(scale=0.2, size=9))
    points = [
        point(str(i), *pair) for i, pair in enumerate(zip(noise_scales, critical, strict=True))
    ]
    line = stats.linregress(np.log(noise_scales), np.log(critical))
    found = fit_calibration(points, slope=None)["sgd"]
    assert found.slope == pytest.approx(line.slope)
    value, _ = found.predict(100.0)
    assert value == pytest.approx(math.exp(line.intercept + line.slope * math.log(100.0)))
    assert found.degrees_of_freedom == 7.0


@pytest.mark.parametrize(("between", "within"), [(0.4, 0.1), (0.1, 0.4), (0.3, 0.3)])
def test_intervals_cover_new_tasks(between: float, within: float) -> None:
    # 400 repeats of two: a standard error of 0.8 %, and the degrees of freedom are approximate.
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(400):
        known = simulated(rng, tasks=4, goals=3, between=between, within=within)
        calibrations = fit_calibration(known)
        new = simulated(rng, tasks=1, goals=1, between=between, within=within)
        for one in new:
            _, (low, high) = calibrations[one.optimizers].predict(one.noise_scale)
            covered.append(low <= one.critical_batch_size <= high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.025)


def test_measurement_and_spread_add_up_as_squares() -> None:
    calibration = Calibration(factor=2.0, log_spread=0.3, degrees_of_freedom=math.inf)
    value, (low, high) = calibration.predict(50.0, (40.0, 100.0))
    spread = 0.3 * stats.norm.ppf(0.975)
    assert value == pytest.approx(100.0)
    assert math.log(100.0 / low) == pytest.approx(math.hypot(math.log(50 / 40), spread))
    assert math.log(high / 100.0) == pytest.approx(math.hypot(math.log(2), spread))
    assert calibration.predict(50.0)[1][1] == pytest.approx(100.0 * math.exp(spread))


def test_open_ends_stay_open() -> None:
    calibration = Calibration(factor=2.0, log_spread=0.3, degrees_of_freedom=5.0)
    assert calibration.predict(50.0, (0.0, math.inf))[1] == (0.0, math.inf)
    value, (low, high) = calibration.predict(math.nan, (30.0, math.inf))
    assert math.isnan(value)
    assert (low, high) == (pytest.approx(calibration.predict(30.0)[1][0]), math.inf)
    value, ends = calibration.predict(math.nan, (math.nan, math.nan))
    assert math.isnan(value)
    assert all(map(math.isnan, ends))


def test_the_score_counts_every_error() -> None:
    points = [point("a", 10.0, 10.0), point("b", 100.0, 100.0), point("c", 1000.0, 3000.0)]
    calibrations = {"sgd": Calibration(factor=1.0, log_spread=0.1, degrees_of_freedom=5.0)}
    found = score_calibration(points, calibrations)
    assert found.share_within == pytest.approx(2 / 3)
    assert found.worst_ratio == pytest.approx(3.0)
    assert found.decades == pytest.approx(math.log10(300.0))
    measured = np.log([10.0, 100.0, 3000.0])
    squares = math.log(3.0) ** 2
    assert found.r_squared == pytest.approx(1 - squares / (3 * measured.var()))
    assert found.rms_log_error == pytest.approx(math.log(3.0) / math.sqrt(3))


def test_a_task_left_out_does_not_see_itself() -> None:
    points = [point("a", 10.0, 10.0), point("b", 10.0, 10.0), point("c", 10.0, 10.0)]
    points.append(point("odd", 10.0, 1000.0))
    found = leave_one_task_out(points)
    assert found.worst_ratio == pytest.approx(100.0)  # From a, b and c alone.
    assert found.num_tasks == 4


def test_a_calibration_goes_to_json_and_back() -> None:
    calibration = Calibration(
        factor=2.0, log_spread=0.3, degrees_of_freedom=5.0, num_tasks=7, source="today"
    )
    assert Calibration.from_json(calibration.to_json()) == calibration


def test_refusals() -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        point("a", math.nan, 10.0)
    points = [point("a", 1.0, 2.0), point("b", 1.0, 2.0), point("c", 1.0, 2.0, "adam")]
    with pytest.raises(ValueError, match="at least 3 tasks"):
        fit_calibration(points[:2])
    with pytest.raises(ValueError, match="two tasks or more of 'adam'"):
        leave_one_task_out([*points, point("d", 1.0, 2.0), point("e", 1.0, 2.0)])
    calibration = Calibration(factor=2.0, log_spread=0.3, degrees_of_freedom=5.0)
    with pytest.raises(ValueError, match="within its"):
        calibration.predict(50.0, (60.0, 70.0))
    with pytest.raises(ValueError, match="positive, finite"):
        replace(calibration).predict(0.0)


def test_every_measured_optimizer_has_a_calibration() -> None:
    optimizers = keras.optimizers
    assert calibrated.calibration_for(optimizers.SGD()) is calibrated.SGD
    momentum = optimizers.SGD(momentum=0.9)
    for one in (momentum, optimizers.Adam(), optimizers.Lamb(), optimizers.RMSprop()):
        assert calibrated.calibration_for(one) is calibrated.MOMENTUM
        wrapped = optimizers.LossScaleOptimizer(one)
        assert calibrated.calibration_for(wrapped) is calibrated.MOMENTUM
    assert calibrated.calibration_for(optimizers.Lion()) is None
    assert calibrated.for_long_runs(calibrated.SGD) is calibrated.LONG_SGD
    assert calibrated.for_long_runs(calibrated.MOMENTUM) is calibrated.LONG_MOMENTUM
    assert calibrated.for_watched_runs(calibrated.SGD) is calibrated.WATCHED_SGD
    assert calibrated.for_watched_runs(calibrated.MOMENTUM) is calibrated.WATCHED_MOMENTUM


def test_the_predictor_lies_between_the_two_noise_scales() -> None:
    last = NoiseScale(value=1.0, interval=(0.5, 2.0))
    mean = NoiseScale(value=32.0, interval=(16.0, 64.0))
    value, (low, high) = calibrated.between_weights(last, mean)
    assert value == pytest.approx(4.0)  # Two fifths of the five powers of 2.
    # Two factors of 2, independent: 0.6 and 0.4 of each.
    factor = 2**0.52**0.5
    assert (low, high) == (pytest.approx(4 / factor), pytest.approx(4 * factor))


def test_without_a_resolved_noise_scale_a_lower_bound_remains() -> None:
    last = NoiseScale(value=2.0, interval=(1.0, 3.0))
    open_ended = NoiseScale(value=math.nan, interval=(32.0, math.inf))
    value, ends = calibrated.between_weights(last, open_ended)
    assert math.isnan(value)
    assert ends == (pytest.approx(4.0), math.inf)
    nothing = NoiseScale(value=math.nan, interval=(math.nan, math.nan))
    assert calibrated.between_weights(last, nothing)[1] == (0.0, math.inf)
