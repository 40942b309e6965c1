"""`advise` on real digits: the answer, and that nothing of the way to it is left."""

import json
import math
import random

import keras
import numpy as np
import pytest
import tensorflow as tf

import gns_keras.training.trial_run as trial_run
from gns_keras.advise import advise, timed_batch_sizes
from gns_keras.core.advice import explain
from gns_keras.core.evidence import Evidence
from gns_keras.core.noise_scale import NoiseScale
from gns_keras.core.short_run_bias import WHOLE_RUN
from gns_keras.report.advice import Advice
from tests.helpers.models import digits_dense

QUICK = {"verbose": 0, "budget": 6000}


def state_of(model: keras.Model) -> list[bytes]:
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return [tf.convert_to_tensor(variable.value).numpy().tobytes() for variable in variables]


def random_states() -> tuple:
    return random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002


@pytest.fixture(scope="module")
def digits_advice() -> Advice:
    model, x, y = digits_dense(num_examples=1500, learning_rate=0.3)
    return advise(model, (x, y), verbose=0)


def test_it_gives_a_resolved_answer_on_digits(digits_advice: Advice) -> None:
    low, high = digits_advice.interval
    # The spread between tasks alone makes it a factor of 4.6 (core/calibrated.py).
    assert 0 < low < digits_advice.critical_batch_size < high < 8 * low
    assert digits_advice.limited_by == "noise_scale"
    assert digits_advice.batch_size in {row.batch_size for row in digits_advice.table}
    nearest = round(math.log2(digits_advice.critical_batch_size))
    assert digits_advice.batch_size == 2**nearest
    assert digits_advice.noise_scale.num_steps == len(digits_advice.points) >= 40
    # Every snapshot is 4 batches of 64 examples, and comes after 10 steps of 32. As many again are
    # measured at the mean weights.
    check = digits_advice.learning_rate_check
    trial = len(digits_advice.points) * (2 * 256 + 320)
    assert digits_advice.examples_used == trial + check.examples_used
    assert check.examples_used == len(check.factors) * 128 * 32
    assert check.verdict == "good"


def test_it_names_the_present_learning_rate_and_scales_it(digits_advice: Advice) -> None:
    now = next(row for row in digits_advice.table if row.batch_size == 32)
    assert now.learning_rate == pytest.approx(0.3)
    critical = digits_advice.critical_batch_size
    expected = 0.3 * (1 + critical / 32) / (1 + critical / digits_advice.batch_size)
    assert digits_advice.learning_rate == pytest.approx(expected)


def test_it_times_steps(digits_advice: Advice) -> None:
    measured = [row for row in digits_advice.table if row.step_time_measured]
    assert len(measured) >= 2
    assert all(0 < row.step_time_s < 1 for row in measured)


def test_it_prints_and_goes_to_json_and_back(digits_advice: Advice) -> None:
    assert str(digits_advice).startswith("Batch size")
    text = digits_advice.to_json()
    assert json.loads(text)["batch_size"] == digits_advice.batch_size
    assert Advice.from_json(text).to_json() == text


def test_the_noise_scale_is_that_of_the_exact_gradients() -> None:
    """With a learning rate of nearly 0 all snapshots see the same weights, and the answer is known.

    Exact, over all 300 examples: tau = sum |g_i - G|^2/(D - 1) and |G|^2 by per-example gradients.
    """
    model, x, y = digits_dense(num_examples=300, learning_rate=1e-12)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
    with tf.GradientTape() as tape:
        losses = loss(y, model(x))
    jacobians = tape.jacobian(losses, [v.value for v in model.trainable_variables])
    grads = np.concatenate([tf.reshape(j, (300, -1)).numpy() for j in jacobians], axis=1)
    mean = grads.mean(axis=0, dtype=np.float64)
    trace = np.square(grads - mean).sum() / 299
    exact = trace / np.square(mean).sum()
    advice = advise(model, (x, y), learning_rate="keep", verbose=0)
    low, high = advice.noise_scale.interval
    # Of the snapshots, 256/300 straddle two passes over the data, with a and b examples in each:
    # |G|^2 comes out too high by 2 a b/256^2 tr(Sigma)/300, on average a third of tr(Sigma)/300.
    expected = exact / (1 + 256 / 300 / 3 * exact / 300)
    assert low < expected < high < 1.5 * low


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_everything_is_restored(optimizer: str) -> None:
    model, x, y = digits_dense()
    model.compile(optimizer, model.loss, metrics=["accuracy"])
    model.fit(x, y, epochs=1, verbose=0)
    before, seeds, history = state_of(model), random_states(), model.history
    advise(model, (x, y), **QUICK)
    assert state_of(model) == before
    assert random_states() == seeds
    assert model.history is history


def test_training_goes_on_as_if_it_had_not_been_asked() -> None:
    def train(ask: bool) -> list[bytes]:
        keras.utils.set_random_seed(1)
        model = keras.Sequential(
            [
                keras.Input((64,)),
                keras.layers.Dense(16, activation="relu"),
                keras.layers.BatchNormalization(),
                keras.layers.Dropout(0.3),
                keras.layers.Dense(10),
            ]
        )
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        if ask:
            advise(model, (x, y), **QUICK)
        model.fit(x, y, epochs=2, verbose=0)
        return [weight.tobytes() for weight in model.get_weights()]

    _, x, y = digits_dense()
    assert train(ask=True) == train(ask=False)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("place", ["_take", "on_train_batch_end"])
def test_everything_is_restored_after_an_interruption(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException], place: str
) -> None:
    model, x, y = digits_dense()
    model.fit(x, y, epochs=1, verbose=0)
    before, seeds = state_of(model), random_states()
    original = getattr(trial_run._Snapshots, place)
    calls = []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise error
        return original(self, *args, **kwargs)

    monkeypatch.setattr(trial_run._Snapshots, place, interrupted)
    with pytest.raises(error):
        advise(model, (x, y), **QUICK)
    assert len(calls) == 4
    assert state_of(model) == before
    assert random_states() == seeds


def test_an_unbuilt_model_is_built_and_keeps_its_first_weights() -> None:
    _, x, y = digits_dense()
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.layers.Dense(16, activation="relu"), keras.layers.Dense(10)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    advise(model, (x, y), **QUICK)
    keras.utils.set_random_seed(2)
    fresh = keras.Sequential([keras.layers.Dense(16, activation="relu"), keras.layers.Dense(10)])
    fresh.build((None, 64))
    for weight, expected in zip(model.get_weights(), fresh.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_the_same_seed_gives_the_same_answer() -> None:
    model, x, y = digits_dense()
    first, second = (advise(model, (x, y), seed=5, **QUICK).noise_scale for _ in range(2))
    assert first.value == second.value
    assert advise(model, (x, y), seed=6, **QUICK).noise_scale.value != first.value


def test_a_dataset_brings_its_own_batch_size() -> None:
    model, x, y = digits_dense()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    advice = advise(model, data, **QUICK)
    assert advice.base_batch_size == 16
    weighted = tf.data.Dataset.from_tensor_slices((x, y, np.ones(len(x)))).repeat().batch(16)
    assert advise(model, weighted, **QUICK).base_batch_size == 16


def test_sample_weights_change_the_answer() -> None:
    model, x, y = digits_dense()
    plain = advise(model, (x, y), **QUICK).noise_scale.value
    weights = np.where(y < 2, 5.0, 0.1)
    assert advise(model, (x, y, weights), **QUICK).noise_scale.value != pytest.approx(
        plain, rel=0.01
    )


def test_under_mirrored_strategy(strategy) -> None:
    with strategy(2).scope():
        model, x, y = digits_dense()
    model.fit(x, y, epochs=1, verbose=0)
    before = state_of(model)
    advice = advise(model, (x, y), **QUICK)
    assert state_of(model) == before
    assert advice.noise_scale.num_examples > 0


def test_the_budget_is_kept() -> None:
    model, x, y = digits_dense()
    assert advise(model, (x, y), verbose=0, budget=7000).examples_used <= 7000


def test_a_given_length_takes_a_twentieth_of_itself_and_is_what_is_forecast() -> None:
    model, x, y = digits_dense()
    advice = advise(model, (x, y), run_examples=400_000, learning_rate="keep", verbose=0)
    assert 0.8 * 20_000 < advice.examples_used <= 20_000
    assert advice.forecast.examples == 400_000
    assert advice.forecast.is_long  # 512 examples.
    # 5 % of this is too little for anything: as little as an answer takes.
    short = advise(model, (x, y), run_examples=20_000, learning_rate="keep", verbose=0)
    assert short.examples_used <= 5440
    assert short.forecast.examples == 20_000


def test_too_little_budget_or_data_is_refused() -> None:
    model, x, y = digits_dense()
    # 10 snapshots of 256 examples, twice, each after at least one step of 32.
    with pytest.raises(ValueError, match="at least 5440 examples"):
        advise(model, (x, y), verbose=0, budget=5439)
    with pytest.raises(ValueError, match="at least 32 examples of data"):
        advise(model, (x[:31], y[:31]), verbose=0, batch_size=16)
    with pytest.raises(ValueError, match="number of examples"):
        advise(model, (x, y), verbose=0, budget=0)


def test_no_signal_is_unresolved_and_changes_nothing() -> None:
    """Labels that have nothing to do with the inputs, at the best constant answer: G = 0."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 8)).astype(np.float32)
    y = rng.normal(size=(4000, 1)).astype(np.float32)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile(keras.optimizers.SGD(1e-9), "mse")
    advice = advise(model, (x, y), verbose=0, budget=6000)
    assert math.isnan(advice.critical_batch_size)
    assert advice.limited_by == "insufficient_data"
    assert advice.batch_size <= max(32, advice.interval[0])
    assert any("unresolved" in warning for warning in advice.warnings)


def test_too_high_a_learning_rate_is_the_first_thing_to_change() -> None:
    model, x, y = digits_dense(num_examples=1500, learning_rate=4.0)
    model.fit(x[:32], y[:32], verbose=0)
    before, seeds = state_of(model), random_states()
    advice = advise(model, (x, y), verbose=0)
    assert advice.learning_rate_check.verdict == "too_high"
    assert math.isnan(advice.critical_batch_size)
    assert (advice.batch_size, advice.points) == (32, ())
    assert advice.learning_rate == advice.learning_rate_check.best_learning_rate != 4.0
    assert "too high" in advice.warnings[0]
    assert state_of(model) == before
    assert random_states() == seeds


def test_too_low_a_learning_rate_is_the_first_thing_to_change_too() -> None:
    model, x, y = digits_dense(num_examples=1500, learning_rate=0.04)
    advice = advise(model, (x, y), verbose=0)
    assert advice.learning_rate_check.verdict == "too_low"
    assert any("is too low" in warning for warning in advice.warnings)
    assert advice.points == ()
    # The task digits, whose network is twice as wide, has its best rate at 0.5 to 1.
    assert 0.2 < advice.learning_rate < 1.5


def test_a_search_measures_at_the_learning_rate_it_finds() -> None:
    model, x, y = digits_dense(num_examples=1500, learning_rate=0.02)
    before = state_of(model)[: len(model.variables)]
    advice = advise(model, (x, y), learning_rate="search", verbose=0)
    found = advice.learning_rate_check
    # The task digits, whose network is twice as wide, has its best rate at 0.5 to 1.
    assert 0.2 < found.best_learning_rate < 1.5
    assert found.factors[0] < found.best_factor < found.factors[-1]
    assert advice.base_learning_rate == pytest.approx(found.best_learning_rate)
    now = next(row for row in advice.table if row.batch_size == 32)
    assert now.learning_rate == pytest.approx(found.best_learning_rate)
    assert advice.critical_batch_size > 0
    assert model.optimizer.learning_rate.numpy() == np.float32(0.02)
    assert state_of(model)[: len(model.variables)] == before


def test_a_check_that_the_budget_does_not_allow_is_said() -> None:
    model, x, y = digits_dense()
    advice = advise(model, (x, y), **QUICK)
    # Three times four runs of 64 steps of 32 examples.
    assert any("`budget` of 24,576 examples" in warning for warning in advice.warnings)
    assert advise(model, (x, y), learning_rate="keep", **QUICK).learning_rate_check is None


def test_divergence_is_reported_and_restored() -> None:
    model, x, y = digits_dense(learning_rate=1e30)
    before = state_of(model)[: len(model.variables)]
    with pytest.raises(RuntimeError, match="Lower the learning rate"):
        advise(model, (x, y), **QUICK)
    assert state_of(model)[: len(model.variables)] == before


def test_a_loss_that_does_not_fall_is_said() -> None:
    uphill, x, y = digits_dense(learning_rate=-0.01)
    downhill, _, _ = digits_dense(learning_rate=0.05)
    said = [
        any("did not fall" in warning for warning in advise(model, (x, y), **QUICK).warnings)
        for model in (uphill, downhill)
    ]
    assert said == [True, False]


def test_a_schedule_is_said_to_be_scaled_as_a_whole() -> None:
    model, x, y = digits_dense()
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1000, 0.5)
    model.compile(keras.optimizers.SGD(schedule), model.loss)
    advice = advise(model, (x, y), **QUICK)
    assert any("whole schedule" in warning for warning in advice.warnings)
    assert 0.05 < advice.base_learning_rate < 0.1


def test_an_optimizer_without_rule_still_gets_a_batch_size() -> None:
    model, x, y = digits_dense()
    model.compile(keras.optimizers.Adadelta(1.0), model.loss)
    advice = advise(model, (x, y), **QUICK)
    assert math.isnan(advice.learning_rate)


def test_timed_batch_sizes() -> None:
    scale = NoiseScale(value=200.0, interval=(150.0, 260.0))
    given = Evidence(noise_scale=scale, base_batch_size=48, base_learning_rate=0.1)
    # Powers of two from 64 to 4 * 200 = 800, four of them besides the present size.
    assert timed_batch_sizes(given, None) == [48, 64, 128, 256, 512]
    assert timed_batch_sizes(given, 100) == [48, 64]
    assert timed_batch_sizes(given, 48) == [48]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target_loss": 0.0}, ValueError, "`target_loss` to be a training loss above 0"),
        ({"run_examples": 0}, ValueError, r"epochs \* len\(x\). Received: 0"),
        ({"run_examples": 9, "target_loss": 0.1}, ValueError, "either `target_loss` or `run_exam"),
        ({"learning_rate": 0.1}, ValueError, "'check', 'search', 'keep'"),
        ({"verify": True}, NotImplementedError, "verify='auto'"),
        ({"objective": "speed"}, ValueError, "`objective`"),
        ({"max_batch_size": 16}, ValueError, "at least the present batch size 32"),
        ({"batch_size": 0}, ValueError, "`batch_size`"),
        ({"batch_size": 1000}, ValueError, "more than the 512 examples"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, error: type, message: str) -> None:
    model, x, y = digits_dense()
    with pytest.raises(error, match=message):
        advise(model, (x, y), **{"verbose": 0, **arguments})


def test_bad_models_and_data_are_refused() -> None:
    model, x, y = digits_dense()
    with pytest.raises(TypeError, match=r"keras\.Model of Keras 3"):
        advise("model", (x, y))
    with pytest.raises(ValueError, match="compile"):
        advise(keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)]), (x, y))
    for data in (x, (x,), iter([(x, y)]), {"x": x}):
        with pytest.raises(TypeError, match="Expected `data`"):
            advise(model, data)
    with pytest.raises(ValueError, match="same number of examples"):
        advise(model, (x, y[:-1]))
    with pytest.raises(ValueError, match=r"batched tf\.data\.Dataset"):
        advise(model, tf.data.Dataset.from_tensor_slices((x, y)))
    with pytest.raises(ValueError, match="at least one batch"):
        advise(model, tf.data.Dataset.from_tensor_slices((x, y)).batch(8).take(0))


def test_no_factor_is_claimed_under_batch_normalization() -> None:
    _, x, y = digits_dense()
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(16),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(10),
        ]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    advice = advise(model, (x, y), **QUICK)
    assert advice.calibration is None
    assert advice.mean_noise_scale is None
    assert "the noise scale alone" in explain(advice)


def test_the_check_knows_how_long_the_run_is() -> None:
    model, x, y = digits_dense()
    biases = [
        advise(
            model, (x, y), budget=40_000, run_examples=examples, verbose=0
        ).learning_rate_check.bias
        for examples in (None, 480_000)
    ]
    assert [bias.run_examples for bias in biases] == [WHOLE_RUN, 480_000]
    assert biases[1].log2_bias > biases[0].log2_bias
