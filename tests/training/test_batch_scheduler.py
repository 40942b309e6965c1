"""The callback around the update loop: decisions, logs, lag, resuming, memory, cleaning up."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from gns_keras.core.learning_rate import LearningRateRule
from gns_keras.training.batch_scheduler import BatchSizeScheduler
from gns_keras.training.monitor import NoiseScaleMonitor
from tests.helpers.models import digits_dense
from tests.training.runs import FLOAT32, flat_gradient, observed_steps
from tests.training.scheduled_runs import GRANULE, largest_difference, make_scheduler

Strategies = Callable[[int], tf.distribute.Strategy]
SHOWN = ("global_batch_size", "learning_rate", "noise_scale", "temperature")


def model_and_data(num_examples: int = 512, rate: float = 0.02, **compiled: Any) -> Any:
    model, x, y = digits_dense(num_examples=num_examples, learning_rate=rate)
    if compiled:
        model.compile(**{"optimizer": model.optimizer, "loss": model.loss, **compiled})
    return model, x, y


class EveryUpdate(keras.callbacks.Callback):
    """Keeps the logs of every update; `act(update, model)` runs before it."""

    def __init__(self, act: Callable[[int, keras.Model], None] | None = None) -> None:
        super().__init__()
        self.logs: list[dict[str, float]] = []
        self.act = act

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self.act is not None:
            self.act(len(self.logs), self.model)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.logs.append({name: float(value) for name, value in logs.items()})

    def __getitem__(self, name: str) -> list[float]:
        return [logs[name] for logs in self.logs]


def test_a_progress_bar_has_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    model, x, y = model_and_data(64)
    scheduler, every = BatchSizeScheduler(), EveryUpdate()
    history = model.fit(x, y, batch_size=16, verbose=1, callbacks=[scheduler, every]).history
    assert not set(SHOWN) & set(every.logs[0])
    assert set(SHOWN) <= set(history)
    *running, last = re.split("[\b\r]+", capsys.readouterr().out)
    assert "global_batch_size" in last
    assert not any("global_batch_size" in shown for shown in running)


def test_the_batch_follows_the_noise_scale_and_every_log_shows_it() -> None:
    model, x, y = model_and_data(1792)
    scheduler, every = BatchSizeScheduler(max_batch_size=128, update_every=4), EveryUpdate()
    history = model.fit(
        x, y, batch_size=16, epochs=3, verbose=0, callbacks=[scheduler, every]
    ).history
    assert set(SHOWN) <= set(history) & set(every.logs[0]) & set(scheduler.history)
    sizes = every["global_batch_size"]
    assert sizes[0] == 16
    assert max(sizes) > 16
    assert history["global_batch_size"][-1] == sizes[-1] == scheduler.batch_size
    # Every decision is sqrt(r * lower bound), but for the hysteresis.
    for line in zip(
        *(scheduler.history[n] for n in ("exchange_rate", "noise_scale", "noise_scale_lower")),
        scheduler.history["global_batch_size"],
        strict=True,
    ):
        rate, value, low, size = line
        if math.isfinite(value) and math.isfinite(rate):
            assert size / 4 < math.sqrt(rate * low) < size * 4
    # Fewer updates for the same data.
    assert model.optimizer.iterations.numpy() == len(sizes) < 3 * 1792 / 16
    assert 0 < scheduler.adaptive_gain <= 1


@pytest.mark.parametrize(
    ("replicas", "part"), [(1, 16), (2, 64), pytest.param(2, 16, marks=pytest.mark.slow)]
)
def test_the_noise_scale_is_that_of_the_updates_own_gradients(
    replicas: int, part: int, strategy: Strategies
) -> None:
    # Frozen weights; every update has 64 examples, in parts of `part` over all replicas.
    with strategy(replicas).scope():
        model, x, y = model_and_data(512)
        model.optimizer.learning_rate = 1e-30
    scheduler = BatchSizeScheduler(
        batch_sizes={0: 64}, max_microbatch_size=part, update_every=1, learning_rate_rule=None
    )
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    with observed_steps() as steps:
        history = model.fit(data, verbose=0, callbacks=[scheduler]).history

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    reference = model_and_data(512)[0]
    expected = []
    for start in range(0, 512, 64):
        # One device has four batches of 16; of two replicas each gets half of every part.
        halves = [
            flat_gradient(reference, lambda a=a: loss(y[a : a + 8], reference(x[a : a + 8])))
            for a in range(start, start + 64, 8)
        ]
        if replicas == 1:
            groups = np.reshape(halves, (4, 2, -1)).mean(axis=1)
        else:
            groups = halves if part == 16 else [np.mean(halves[i::2], axis=0) for i in (0, 1)]
        mean, size = np.mean(groups, axis=0), 64 / len(groups)
        spread = sum(size * np.sum((group - mean) ** 2) for group in groups)
        expected.append((spread / (len(groups) - 1), np.sum(mean**2)))
    temperature = history["temperature"][0]  # Observations are kept at temperature one.
    trace_cov, mean_sq_norm = np.transpose(expected)
    np.testing.assert_allclose(steps.trace_cov, trace_cov, rtol=FLOAT32)
    np.testing.assert_allclose(steps.mean_sq_norm * temperature, mean_sq_norm, rtol=FLOAT32)
    np.testing.assert_allclose(steps.inverse_size * temperature, 1 / 64, rtol=1e-6)
    np.testing.assert_array_equal(steps.num_examples, 64)


def test_batch_and_learning_rate_change_on_the_very_next_update() -> None:
    model, x, y = model_and_data(256, rate=0.01)

    def cut(update: int, model: keras.Model) -> None:
        model.optimizer.learning_rate = 0.01 if update < 3 else 0.001

    scheduler = BatchSizeScheduler(
        batch_sizes={0: 16, 64: 64, 128: 16},
        learning_rate_rule=LearningRateRule(alpha=1.0, critical_batch_size=48),
    )
    every = EveryUpdate()
    weights = []
    keep = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: weights.append(model.get_weights())
    )
    callbacks = [EveryUpdate(cut), scheduler, keep, every]
    model.fit(x, y, batch_size=16, shuffle=False, verbose=0, callbacks=callbacks)
    ratio = (64 / (48 + 64)) / (16 / (48 + 16))
    expected = [(16, 1.0)] * 3 + [(16, 0.1)] + [(64, 0.1 * ratio)] + [(16, 0.1)] * 8
    found = list(zip(every["global_batch_size"], every["learning_rate"], strict=True))
    assert [size for size, _ in found] == [size for size, _ in expected]
    np.testing.assert_allclose([rate / 0.01 for _, rate in found], [r for _, r in expected])
    # And the step that was taken is the one that the logs speak of.
    reference = model_and_data(256)[0]
    start = 0
    for (size, rate), after in zip(found, weights, strict=True):
        reference.optimizer.learning_rate = rate
        reference.train_on_batch(x[start : start + int(size)], y[start : start + int(size)])
        start += int(size)
        for own, other in zip(after, reference.get_weights(), strict=True):
            np.testing.assert_allclose(own, other, rtol=0, atol=1e-6)


def test_a_learning_rate_cut_moves_the_forecast_and_the_batch_on_that_update() -> None:
    model, x, y = model_and_data(1792, rate=0.05)

    def cut(update: int, model: keras.Model) -> None:
        if update == 60:
            model.optimizer.learning_rate = 0.05 / 16

    scheduler = BatchSizeScheduler(
        exchange_rate=10.0, update_every=4, learning_rate_rule=LearningRateRule()
    )
    every = EveryUpdate()
    callbacks = [EveryUpdate(cut), scheduler, every]
    model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=callbacks)
    before, after = every.logs[59], every.logs[60]
    assert math.isfinite(before["noise_scale"])
    assert before["temperature"] / after["temperature"] == pytest.approx(16)
    # Between the two the forecast itself did not change, unless it was read: 60 is a multiple of 4.
    assert 8 < after["noise_scale"] / before["noise_scale"] < 32
    assert after["global_batch_size"] >= 2 * before["global_batch_size"]


@pytest.mark.parametrize("kind", ["schedule", "LearningRateScheduler", "ReduceLROnPlateau"])
def test_it_works_on_top_of_whatever_sets_the_learning_rate(kind: str) -> None:
    model, x, y = model_and_data(256, rate=0.02)
    others: list[Any] = []
    if kind == "schedule":
        decay = keras.optimizers.schedules.PiecewiseConstantDecay([7], [0.02, 0.002])
        model.compile(keras.optimizers.SGD(decay), model.loss)
    elif kind == "LearningRateScheduler":
        others = [keras.callbacks.LearningRateScheduler(lambda epoch, _: [0.02, 0.002][epoch])]
    else:
        others = [keras.callbacks.ReduceLROnPlateau("loss", patience=0, min_delta=9.0, factor=0.1)]
    rule = LearningRateRule(alpha=1.0, critical_batch_size=32)
    scheduler = BatchSizeScheduler(batch_sizes={0: 32}, learning_rate_rule=rule)
    every = EveryUpdate()
    epochs = 3 if kind == "ReduceLROnPlateau" else 2
    model.fit(x, y, batch_size=16, epochs=epochs, verbose=0, callbacks=[*others, scheduler, every])
    scale = (32 / 64) / (16 / 48)
    rates = np.array(every["learning_rate"]) / scale
    assert rates[0] == pytest.approx(0.02)
    assert rates[-1] == pytest.approx(0.002)
    assert len(rates) == 8 * epochs
    # Users and callbacks keep seeing the base learning rate, which the plateau has cut once more.
    base = 0.0002 if kind == "ReduceLROnPlateau" else 0.002
    assert float(model.optimizer.learning_rate) == pytest.approx(base)


def test_a_schedule_can_be_timed_in_examples() -> None:
    model, x, y = model_and_data(256)
    decay = keras.optimizers.schedules.PiecewiseConstantDecay([7], [0.02, 0.002])
    model.compile(keras.optimizers.SGD(decay), model.loss)
    every = EveryUpdate()
    scheduler = BatchSizeScheduler(
        batch_sizes={0: 64}, learning_rate_rule=None, schedule_in_examples=True
    )
    model.fit(x, y, batch_size=16, verbose=0, callbacks=[scheduler, every])
    # Base batches 0, 4, 8, 12: the boundary lies at 7 of them.
    np.testing.assert_allclose(every["learning_rate"], [0.02, 0.02, 0.002, 0.002])


def test_the_half_life_of_second_moments_can_stay_in_examples() -> None:
    model, x, y = model_and_data(256)
    model.compile(keras.optimizers.Adam(0.01, beta_1=0.0, beta_2=0.9), model.loss)
    scheduler = BatchSizeScheduler(
        batch_sizes={0: 64}, learning_rate_rule=None, keep_half_life=True
    )
    model.fit(x, y, batch_size=16, shuffle=False, verbose=0, callbacks=[scheduler])
    reference = model_and_data(256)[0]
    reference.compile(keras.optimizers.Adam(0.01, beta_1=0.0, beta_2=0.9**4), reference.loss)
    reference.fit(x, y, batch_size=64, shuffle=False, verbose=0)
    assert largest_difference(model, reference) <= 1e-5  # Adam divides by small numbers.
    assert model.optimizer.beta_2 == 0.9


def test_a_learning_rate_warms_up_on_the_very_updates_after_the_batch_has_grown() -> None:
    model, x, y = model_and_data(480, rate=0.01)
    scheduler = BatchSizeScheduler(
        batch_sizes={0: 32, 96: 64, 352: 16, 384: 32},
        learning_rate_rule=LearningRateRule(critical_batch_size=48, warm_up=128),
    )
    every, weights = EveryUpdate(), []
    keep = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: weights.append(model.get_weights())
    )
    callbacks = [scheduler, keep, every]
    model.fit(x, y, batch_size=16, shuffle=False, verbose=0, callbacks=callbacks)
    # B/(48 + B) over its value at 16: 1, 1.6 and 16/7. Three updates of 32 from 1 towards 1.6 see
    # 64 of 128 examples; from there, 64 at a time; shrinking takes no time, growing again does.
    at_32, at_64 = (32 / 80) / (16 / 64), (64 / 112) / (16 / 64)
    halfway = 1 + (at_32 - 1) / 2
    expected = [
        *((32, 1 + (at_32 - 1) * share) for share in (0, 1 / 4, 1 / 2)),
        *((64, halfway + (at_64 - halfway) * share) for share in (0, 1 / 2, 1)),
        (64, at_64),
        *[(16, 1.0)] * 2,
        *((32, 1 + (at_32 - 1) * share) for share in (0, 1 / 4, 1 / 2)),
    ]
    assert every["global_batch_size"] == [size for size, _ in expected]
    np.testing.assert_allclose(every["learning_rate"], [0.01 * r for _, r in expected])
    reference, start = model_and_data(480)[0], 0
    for (size, ratio), after in zip(expected, weights, strict=True):
        reference.optimizer.learning_rate = 0.01 * ratio
        reference.train_on_batch(x[start : start + size], y[start : start + size])
        start += size
        for own, other in zip(after, reference.get_weights(), strict=True):
            np.testing.assert_allclose(own, other, rtol=0, atol=1e-6)


# -- Resuming ----------------------------------------------------------------------------------


class KilledError(Exception):
    pass


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_run_that_is_resumed_is_the_unbroken_one_bit_for_bit(
    seed: int, tmp_path: Path
) -> None:
    def build() -> Any:
        model, x, y = model_and_data(640)
        rate = keras.optimizers.schedules.CosineDecay(0.02, 60)
        model.compile(keras.optimizers.Adam(rate), model.loss)
        return model, x, y

    def fit(folder: str, die_at: int | None = None) -> Any:
        model, x, y = build()
        scheduler = BatchSizeScheduler(
            max_batch_size=128,
            max_microbatch_size=16,
            update_every=3,
            exchange_rate=60.0,
            learning_rate_rule=LearningRateRule(alpha=0.5, warm_up=1500),
        )

        def die(update: int, _: Any) -> None:
            if update == die_at:
                raise KilledError

        backup = keras.callbacks.BackupAndRestore(str(tmp_path / folder), delete_checkpoint=False)
        callbacks = [backup, scheduler, EveryUpdate(die)]
        model.fit(x, y, batch_size=16, epochs=4, shuffle=False, verbose=0, callbacks=callbacks)
        return model, scheduler

    expected, unbroken = fit("unbroken")
    assert unbroken.batch_size > 16
    total = int(expected.optimizer.iterations.numpy())
    killed_at = int(np.random.default_rng(seed).integers(total // 3, total))
    with pytest.raises(KilledError):
        fit("killed", die_at=killed_at)
    found, resumed = fit("killed")
    both = zip(
        [*found.variables, *found.optimizer.variables],
        [*expected.variables, *expected.optimizer.variables],
        strict=True,
    )
    for own, other in both:
        assert own.numpy().tobytes() == other.numpy().tobytes(), own.path
    for name, values in resumed.history.items():
        np.testing.assert_array_equal(values, unbroken.history[name][-len(values) :], name)
    assert resumed.exchange_rate == unbroken.exchange_rate == 60.0
    assert resumed.adaptive_gain == unbroken.adaptive_gain


def test_a_model_file_brings_the_state_along(tmp_path: Path) -> None:
    model, x, y = model_and_data(512)
    scheduler = BatchSizeScheduler(exchange_rate=100.0, update_every=2)
    model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=[scheduler])
    path = str(tmp_path / "model.keras")
    model.save(path)
    loaded, later = keras.models.load_model(path), BatchSizeScheduler(exchange_rate=100.0)
    later.load_state(path)
    loaded.fit(x, y, batch_size=16, verbose=0, callbacks=[later])
    assert later.history["examples_seen"][-1] == 1024 + 512
    assert later.history["global_batch_size"][0] >= scheduler.batch_size / 2 > 8
    plain = str(tmp_path / "plain.keras")
    model_and_data()[0].save(plain)
    with pytest.raises(ValueError, match="a BatchSizeScheduler watched"):
        later.load_state(plain)


# -- Memory ------------------------------------------------------------------------------------


class Fits(keras.Model):
    """Runs out of memory for more than `limit` examples at once, after its metrics were updated."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.dense = layers.Dense(10)
        self.dropped: list[int] = []

    def call(self, inputs: Any) -> Any:
        return self.dense(inputs)

    def train_step(self, data: Any) -> Any:
        logs = super().train_step(data)
        count = tf.shape(data[0])[0]

        def check(number: Any) -> Any:
            if int(number) > self.limit:
                self.dropped.append(int(number))
                raise MemoryError  # TensorFlow makes a ResourceExhaustedError of it.
            return number

        with tf.control_dependencies([tf.py_function(check, [count], tf.int32)]):
            return {name: tf.identity(value) for name, value in logs.items()}


@pytest.mark.parametrize("limit", [8, pytest.param(32, marks=pytest.mark.slow)])
def test_a_part_that_does_not_fit_is_tried_smaller_and_nothing_is_lost(limit: int) -> None:
    _, x, y = model_and_data(512)
    models = []
    for size in (limit, 10**6):
        keras.utils.set_random_seed(3)
        model = Fits(size)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss, metrics=["accuracy"])
        model(x[:2])
        # The measured noise scale depends on the parts, and through the rule the learning rate.
        scheduler = BatchSizeScheduler(
            batch_sizes={0: 16, 16: 128}, update_every=128, learning_rate_rule=None
        )
        history = model.fit(
            x, y, batch_size=16, epochs=2, shuffle=False, verbose=0, callbacks=[scheduler]
        ).history
        models.append((model, history))
    (small, found), (large, expected) = models
    assert not large.dropped
    # Each size is tried once, and never again. The first update is measured in parts of 2.
    assert small.dropped == [size for size in (128, 64, 32, 16) if size > limit]
    assert int(small.optimizer.iterations.numpy()) == int(large.optimizer.iterations.numpy())
    assert largest_difference(small, large) <= 1e-6
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)


# -- Limits and refusals -------------------------------------------------------------------------


def test_growth_past_the_data_set_is_refused_and_said_once() -> None:
    model, x, y = model_and_data(256)
    scheduler = BatchSizeScheduler(exchange_rate=1e6, update_every=1)
    with pytest.warns(UserWarning, match="number of examples in an epoch is 256") as caught:
        model.fit(x, y, batch_size=16, epochs=6, verbose=0, callbacks=[scheduler])
    assert max(scheduler.history["global_batch_size"]) == 256
    assert sum("asks for a global batch" in str(w.message) for w in caught) == 1
    assert not any("ran out of data" in str(w.message) for w in caught)


def test_a_data_set_of_unknown_size_is_refused() -> None:
    model, x, y = model_and_data(64)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16).filter(lambda *_: True)
    with pytest.raises(ValueError, match="assert_cardinality"):
        model.fit(data, verbose=0, callbacks=[BatchSizeScheduler()])


@pytest.mark.parametrize("first", [True, False])
def test_the_monitor_is_not_for_the_same_fit(first: bool) -> None:
    model, x, y = model_and_data(64)
    callbacks = [NoiseScaleMonitor(), BatchSizeScheduler()]
    stock = model.make_train_function() or model.train_function
    with pytest.raises(RuntimeError, match="Leave NoiseScaleMonitor out"):
        model.fit(x, y, verbose=0, callbacks=callbacks if first else callbacks[::-1])
    model.fit(x, y, verbose=0)
    assert model.train_function is stock


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exchange_rate": -1.0}, "`exchange_rate`.*Received: -1.0"),
        ({"exchange_rate": "natural"}, "`exchange_rate`.*'natural'"),
        ({"update_every": 0}, "`update_every`.*Received: 0"),
        ({"learning_rate_rule": "linear"}, "`learning_rate_rule`.*'linear'"),
        ({"batch_sizes": {}}, "examples_seen: global_batch_size"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchSizeScheduler(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hysteresis": 0.5}, "`hysteresis`.*Received: 0.5"),
        ({"max_batch_size": 8}, "at least 16.*Received: 8"),
        ({"min_batch_size": 1000}, "No batch size is left"),
        ({"batch_sizes": {0: 24}}, "multiples of 16.*Received: 24"),
        ({"batch_sizes": {0: 4096}}, "at most 64, the number of examples in an epoch"),
        ({"keep_half_life": True}, "second moments.*Received: SGD"),
    ],
)
def test_limits_that_do_not_suit_the_data_are_refused(arguments: Any, message: str) -> None:
    model, x, y = model_and_data(64)
    with pytest.raises(ValueError, match=message):
        model.fit(x, y, batch_size=16, verbose=0, callbacks=[BatchSizeScheduler(**arguments)])


def test_an_optimizer_that_accumulates_itself_is_refused() -> None:
    model, x, y = model_and_data(64)
    model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), model.loss)
    with pytest.raises(NotImplementedError, match="accumulates gradients itself"):
        model.fit(x, y, verbose=0, callbacks=[BatchSizeScheduler()])


# -- Nothing is left behind ----------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_nothing_is_left_patched(error: type[BaseException] | None) -> None:
    model, x, y = model_and_data(256)
    model.optimizer.build(model.trainable_variables)
    model.make_train_function()
    before = set(vars(model)), set(vars(model.optimizer)), list(warnings.filters)
    stock = model.train_function

    def fail(update: int, _: Any) -> None:
        if error is not None and update == 3:
            raise error

    scheduler = make_scheduler(0, batch_sizes={0: 3 * GRANULE}, max_microbatch_size=GRANULE)
    try:
        model.fit(x, y, batch_size=8, verbose=0, callbacks=[scheduler, EveryUpdate(fail)])
    except BaseException as raised:
        assert error is not None and isinstance(raised, error)  # noqa: PT017, PT018
    model.fit(x, y, batch_size=8, verbose=0)
    assert model.train_function is stock
    new = set(vars(model)) - before[0]
    assert new <= {"batch_size_state", "history", "stop_training", "_eval_epoch_iterator"}
    assert set(vars(model.optimizer)) == before[1]
    assert warnings.filters == before[2]


def test_a_second_fit_goes_on_where_the_first_one_stopped() -> None:
    model, x, y = model_and_data(256)
    scheduler = BatchSizeScheduler(batch_sizes={0: 16, 256: 64}, learning_rate_rule=None)
    first, second = EveryUpdate(), EveryUpdate()
    model.fit(x, y, batch_size=16, verbose=0, callbacks=[scheduler, first])
    model.fit(x, y, batch_size=16, verbose=0, callbacks=[scheduler, second])
    assert first["global_batch_size"] == [16] * 16
    assert second["global_batch_size"] == [64] * 4
