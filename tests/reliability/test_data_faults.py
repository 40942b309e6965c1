"""Faults in data and losses: a clear error or a correct result at every door."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from gns_keras.core.tracker import NoiseScaleTracker
from gns_keras.sweep.sweep import sweep
from gns_keras.training.example_source import ExampleSource
from gns_keras.training.monitor import NoiseScaleMonitor
from tests.reliability import faults

pytestmark = pytest.mark.filterwarnings("ignore:.*shuffle=True.*:UserWarning")


def fit(model: keras.Model, data: tf.data.Dataset, *callbacks, **arguments) -> keras.Model:
    model.fit(data, verbose=0, callbacks=list(callbacks), **arguments)
    return model


# ------------------------------------------------------------------ values that are not finite


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_never_becomes_a_noise_scale(value: float) -> None:
    """From the bad batch on all weights are NaN, as without a callback: no step after it counts."""
    x, y = faults.arrays()
    x[100, 0] = value  # In batch 6 of 20: six updates were good.
    monitor, scheduler = faults.make_monitor(), faults.make_scheduler()
    for callback in (monitor, scheduler):
        model = faults.make_model()
        model.fit(x, y, batch_size=16, shuffle=False, verbose=0, callbacks=[callback])
        assert np.isnan(model.get_weights()[0]).all()
    assert monitor.result().num_steps == 6
    assert set(scheduler.history["global_batch_size"]) == {16}
    # What was resolved before the fault is what the good steps showed, and still finite or NaN.
    assert not np.isinf(scheduler.history["noise_scale"][-1])


def test_a_sweep_records_a_run_that_is_not_finite_as_diverged() -> None:
    x, y = faults.arrays()
    x[:] = np.nan
    result = sweep(faults.make_model, (x, y), **(faults.SWEEP | {"batch_sizes": [8]}))
    assert [(r.status, r.reason, r.steps) for r in result.records] == [
        ("diverged", "not finite", 1)
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_group_that_is_not_finite_leaves_the_step_out(value: float) -> None:
    clean, dirty = NoiseScaleTracker(), NoiseScaleTracker()
    rng = np.random.default_rng(0)
    for step in range(40):
        groups = rng.normal(1.0, 1.0, size=(2, 8))
        norms, mean = np.square(groups).sum(1), np.square(groups.mean(0)).sum()
        if step % 10 == 3:
            norms[1] = value
        else:
            clean.observe(norms, mean, [8, 8])
        dirty.observe(norms, mean, [8, 8])
    assert dirty.result().num_steps == 36
    assert dirty.result() == clean.result()


# ------------------------------------------------------------------ batches without examples


@pytest.mark.parametrize("empty", [0, 5, 19])
def test_the_scheduler_passes_over_an_empty_batch(empty: int) -> None:
    """The weights are those of the data without that batch: an empty batch has no gradient."""
    scheduler = faults.make_scheduler()
    data = faults.sized(faults.dataset_of(empty=empty), 20)
    found = fit(faults.make_model(), data, scheduler)
    assert scheduler.history["examples_seen"][-1] == 19 * 16
    full = faults.dataset_of(empty=empty).filter(lambda x, y: tf.shape(x)[0] > 0)
    expected = fit(faults.make_model(), full)
    for left, right in zip(found.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


def test_the_monitor_leaves_out_an_empty_batch_and_nothing_else() -> None:
    monitor, plain = faults.make_monitor(), faults.make_model()
    watched = fit(faults.make_model(), faults.dataset_of(empty=5), monitor)
    fit(plain, faults.dataset_of(empty=5))
    assert monitor.result().num_steps == 19
    assert faults.weights(watched) == faults.weights(plain)


def test_advise_takes_its_batch_size_from_the_first_batch_with_examples() -> None:
    assert ExampleSource(faults.dataset_of(empty=0)).batch_size == faults.BATCH
    with pytest.raises(ValueError, match="at least one batch"):
        ExampleSource(faults.dataset_of(batches=1, empty=0))


@pytest.mark.parametrize("name", faults.CALLBACKS)
@pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning")
def test_no_data_at_all_end_as_without_a_callback(name: str) -> None:
    callback = faults.CALLBACKS[name]()
    x, y = faults.arrays()
    nothing = tf.data.Dataset.from_tensor_slices((x, y)).batch(16).take(0)
    model = faults.make_model()
    before = faults.weights(model)
    assert model.fit(nothing, verbose=0, callbacks=[callback]).history.get("loss") is None
    assert faults.weights(model) == before
    with pytest.raises(ValueError, match="Received an empty one"):
        sweep(faults.make_model, nothing.unbatch(), **faults.SWEEP)


# ------------------------------------------------------------------ data sets of odd lengths


@pytest.mark.parametrize("name", faults.CALLBACKS)
def test_data_that_end_early_are_used_to_the_end(name: str) -> None:
    callback = faults.CALLBACKS[name]()
    x, y = faults.arrays()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    model, plain = faults.make_model(), faults.make_model()
    with pytest.warns(UserWarning, match="ran out of data"):
        fit(plain, data, steps_per_epoch=50)
    if name == "monitor":
        with pytest.warns(UserWarning, match="ran out of data"):
            fit(model, data, callback, steps_per_epoch=50)
        assert callback.result().num_steps == 20
    else:
        fit(model, data, callback, steps_per_epoch=50)
        assert callback.history["examples_seen"][-1] == 320
    for left, right in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


@pytest.mark.parametrize("name", faults.CALLBACKS)
def test_endless_data_stop_where_they_were_told_to(name: str) -> None:
    callback = faults.CALLBACKS[name]()
    x, y = faults.arrays()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16).repeat()
    fit(faults.make_model(), data, callback, steps_per_epoch=5, epochs=2)
    if name == "monitor":
        assert callback.result().num_steps == 10
    else:
        assert callback.history["examples_seen"][-1] == 160


def test_the_monitor_needs_no_size_of_the_data_set() -> None:
    monitor = faults.make_monitor()
    with pytest.warns(UserWarning, match="ran out of data"):  # From Keras: it learns the size.
        fit(faults.make_model(), faults.dataset_of(), monitor, epochs=2)
    assert monitor.result().num_steps == 40


def test_a_sweep_takes_endless_data_and_data_of_unknown_size() -> None:
    """One stream, read in blocks: neither its end nor its size is asked for."""
    endless = faults.dataset_of().unbatch().repeat()
    result = sweep(faults.make_model, endless, **(faults.SWEEP | {"batch_sizes": [16]}))
    assert [(record.status, record.steps) for record in result.records] == [("ended", 37)]


# ------------------------------------------------------------------ data that raise midway


@pytest.mark.parametrize("name", faults.CALLBACKS)
def test_an_error_in_the_data_is_the_error_that_is_seen(name: str) -> None:
    callback, model = faults.CALLBACKS[name](), faults.make_model()
    with pytest.raises(Exception, match="the disk is on fire"):
        fit(model, faults.sized(faults.dataset_of(fails=7), 20), callback)
    x, y = faults.arrays()
    twin = faults.make_model()
    twin.set_weights(model.get_weights())
    for one in (model, twin):
        one.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    assert faults.weights(model) == faults.weights(twin)  # The next fit is a plain one.


def test_an_error_in_the_data_of_a_sweep_keeps_the_runs_that_had_finished(tmp_path) -> None:
    arguments = faults.SWEEP | {"store": tmp_path / "sweep.sqlite"}
    calls = []

    def broken_later() -> keras.Model:
        calls.append(1)
        if len(calls) > 4:  # One for the settings, three for the first batch size.
            raise OSError("the disk is on fire")
        return faults.make_model()

    data = faults.arrays()
    with pytest.raises(OSError, match="the disk is on fire"):
        sweep(broken_later, data, **arguments)
    result = sweep(faults.make_model, data, **arguments)
    assert repr(result.without_times().records) == repr(
        sweep(faults.make_model, data, **faults.SWEEP).without_times().records
    )
    assert result.records[0].seconds > 0


def test_arrays_of_different_lengths_and_ragged_tensors_are_refused() -> None:
    x, y = faults.arrays()
    ragged = tf.RaggedTensor.from_row_lengths(x.reshape(-1), [6] * len(x))
    with pytest.raises(ValueError, match="same number of examples"):
        sweep(faults.make_model, (x, y[:-1]), **faults.SWEEP)
    for refuse in (ExampleSource, lambda data: sweep(faults.make_model, data, **faults.SWEEP)):
        with pytest.raises(TypeError, match="ragged"):
            refuse((ragged, y))


def test_batches_of_one_example_are_unresolved_and_no_division_by_zero() -> None:
    x = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    monitor = NoiseScaleMonitor(every=1)
    model.fit(x, x[:, :1], batch_size=1, verbose=0, callbacks=[monitor])
    assert not monitor.result().resolved
    assert np.isnan(monitor.result().value)
    assert np.isfinite(model.get_weights()[0]).all()
