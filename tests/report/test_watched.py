"""Advice from a run that was only watched."""

import keras
import pytest

from gns_keras import NoiseScaleMonitor
from gns_keras.core.advice import explain
from gns_keras.core.calibrated import WATCHED_SGD
from gns_keras.report.advice import Advice
from tests.helpers.models import digits_dense


@pytest.fixture(scope="module")
def watched() -> NoiseScaleMonitor:
    model, x, y = digits_dense(num_examples=512, learning_rate=0.1)
    monitor = NoiseScaleMonitor(every=1)
    model.fit(x, y, batch_size=16, epochs=4, verbose=0, callbacks=[monitor])
    return monitor


def test_it_is_the_record_of_the_monitor(watched: NoiseScaleMonitor) -> None:
    advice = Advice.from_monitor(watched)
    assert advice.is_watched
    assert repr(advice.noise_scale) == repr(watched.result())
    assert (advice.base_batch_size, advice.base_learning_rate) == (16, pytest.approx(0.1))
    assert [point.examples_seen for point in advice.points] == [512, 1024, 1536, 2048]
    losses = watched.model.history.history["loss"]
    assert [point.loss for point in advice.points] == pytest.approx(losses)
    assert advice.examples_used == 0
    assert Advice.from_json(advice.to_json()).to_json() == advice.to_json()


def test_the_factor_is_that_of_running_noise_scales(watched: NoiseScaleMonitor) -> None:
    advice = Advice.from_monitor(watched)
    scale = watched.result()
    factor = WATCHED_SGD.factor
    assert advice.calibration == WATCHED_SGD
    assert advice.critical_batch_size == pytest.approx(factor * scale.value)
    assert advice.interval[0] < factor * scale.interval[0]
    assert advice.interval[1] > factor * scale.interval[1]
    assert f"{factor:.2g} times that" in explain(advice)


def test_without_a_factor_it_is_the_noise_scale_alone() -> None:
    model, x, y = digits_dense(num_examples=64)
    model.compile(keras.optimizers.Lion(1e-4), model.loss)
    monitor = NoiseScaleMonitor(every=1)
    model.fit(x, y, batch_size=16, epochs=8, verbose=0, callbacks=[monitor])
    advice = Advice.from_monitor(monitor)
    assert advice.calibration is None
    assert repr(advice.interval) == repr(monitor.result().interval)
    assert "nobody has compared" in advice.warnings[0]


def test_more_is_to_be_had_from_a_longer_run() -> None:
    model, x, y = digits_dense(num_examples=64)
    monitor = NoiseScaleMonitor(every=1)
    model.fit(x, y, batch_size=16, verbose=0, callbacks=[monitor])
    advice = Advice.from_monitor(monitor)
    assert not advice.noise_scale.resolved
    text = " ".join(str(advice).split())
    assert "unresolved; watch a longer run" in text
    assert "budget" not in text


def test_it_says_what_is_missing(watched: NoiseScaleMonitor) -> None:
    advice = Advice.from_monitor(watched, objective="cost", max_batch_size=64)
    assert "only watched" in advice.warnings[0]
    assert "learning rate" in advice.warnings[0]
    assert advice.batch_size <= 64
    assert "only watched" in " ".join(str(advice).split())


def test_a_monitor_that_watched_nothing_is_refused() -> None:
    monitor = NoiseScaleMonitor()
    with pytest.raises(ValueError, match="watched a run"):
        Advice.from_monitor(monitor)
    monitor.set_model(digits_dense(num_examples=64).model)
    with pytest.raises(ValueError, match="callbacks="):
        Advice.from_monitor(monitor)


def test_an_optimizer_without_rule_has_no_learning_rate(watched: NoiseScaleMonitor) -> None:
    model, x, y = digits_dense(num_examples=64)
    model.compile(keras.optimizers.Adadelta(1.0), model.loss)
    monitor = NoiseScaleMonitor(every=1)
    model.fit(x, y, batch_size=16, verbose=0, callbacks=[monitor])
    assert Advice.from_monitor(monitor).rule is None
