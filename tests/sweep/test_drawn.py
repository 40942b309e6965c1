"""Sweeps on data that the model under training makes itself."""

import functools
import math
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf

from gns_keras import Goal, sweep
from gns_keras.sweep.drawn import DrawnSource
from gns_keras.training.example_source import DrawnExamples, drawn_dataset

RATE = 0.05


class OneAbove(DrawnExamples):
    """The target is always one above what the model says; the reward is what it says.

    The gradient is -2, so that the weight rises by twice the learning rate in every step.
    """

    reward = math.nan

    def __init__(self, model, start=0.0):
        self.batch_size, self._model, self._start = 4, model, start

    def with_batch_size(self, batch_size):
        raise NotImplementedError

    def batches(self, batch_size, *, seed, repeat=True, independent=1):
        def draw():
            while True:
                says = float(self._model.weights[0].numpy().item())
                self.reward = self._start + says
                yield np.ones((batch_size, 1), np.float32), np.full((batch_size, 1), says + 1, "f4")

        spec = tf.TensorSpec((batch_size, 1), tf.float32)
        return drawn_dataset(draw, (spec, spec))


def build():
    inputs = keras.Input((1,))
    outputs = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")(inputs)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(RATE), "mse")
    return model


def swept(draw=OneAbove, **arguments):
    given = {
        "batch_sizes": [2, 8],
        "goals": [Goal(metric="reward", threshold=0.35, direction="above")],
        "learning_rates": [RATE],
        "max_examples": 400,
        "half_life": 0,
        "verbose": 0,
    }
    return sweep(build, draw, **{**given, **arguments})


def test_steps_to_a_reward_by_hand():
    # Rewards 0, 0.1, 0.2, 0.3, 0.4: the straight line is at 0.35 half-way from step 4 to step 5.
    for record in swept().records:
        assert record.status == "reached"
        assert record.steps_to == pytest.approx((4.5,), abs=1e-5)
        assert record.last_loss == pytest.approx(1.0)


def test_runs_start_anew_whatever_ran_before():
    result = swept(learning_rates=[RATE, RATE / 2], seeds=2)
    steps = {record.key: record.steps_to[0] for record in result.records}
    assert len(steps) == 8
    for key, found in steps.items():
        assert found == pytest.approx(4.5 if key.learning_rate == RATE else 8.0, abs=1e-4)


def test_threads_find_the_same():
    alone = {r.key: r.steps_to for r in swept(seeds=2).records}
    with ThreadPoolExecutor(2) as pool:
        both = {r.key: r.steps_to for r in swept(seeds=2, executor=pool).records}
    assert both == alone


def test_a_store_of_other_games_is_refused(tmp_path):
    store = tmp_path / "runs.sqlite"
    draw = functools.partial(OneAbove, start=0.1)
    swept(draw, store=store)
    assert len(swept(draw, store=store).records) == 2
    with pytest.raises(ValueError, match="data"):
        swept(functools.partial(OneAbove, start=0.2), store=store)


def test_a_loss_can_be_a_goal_and_never_counts_as_too_high():
    result = swept(goals=[0.5], max_examples=40, learning_rates=[10.0])
    assert {record.status for record in result.records} == {"ended"}


def test_what_belongs_to_one_model_is_refused_with_what_to_give_instead():
    with pytest.raises(ValueError, match=r"function of the model.*Received: OneAbove of one model"):
        swept(OneAbove(build()))


def test_the_fingerprint_tells_functions_and_their_arguments_apart():
    draws = [OneAbove, functools.partial(OneAbove, start=0.1), functools.partial(OneAbove, start=1)]
    assert len({DrawnSource(draw).fingerprint() for draw in draws}) == 3


def test_without_a_reward_there_is_none_to_reach():
    class Silent(OneAbove):
        reward = property(lambda self: None, lambda self, value: None)

    with pytest.raises(
        ValueError, match=r"goals on what the model reports: loss\. Received: reward"
    ):
        swept(Silent)
    assert {record.status for record in swept(Silent, goals=[0.5], max_examples=40).records} == {
        "ended"
    }
