"""Data that the model draws itself: a contextual bandit, played by the policy that is trained."""

import copy

import keras
import numpy as np
import pytest
import tensorflow as tf

from gns_keras import advise
from gns_keras.tasks.actor_critic import PolicyLoss
from gns_keras.training.example_source import DrawnExamples, ExampleSource, source_of
from gns_keras.training.step_timer import time_steps

ACTIONS = 3
CORRECT = np.random.default_rng(5).normal(size=(4, ACTIONS)).astype("float32")


class Bandit(DrawnExamples):
    """Pays 1 for the action that scores best in the context; its batches note what drew them."""

    def __init__(self, model, batch_size=16):
        self.model, self.batch_size = model, batch_size
        self.kernels = []
        self.asked = []

    def with_batch_size(self, batch_size):
        other = copy.copy(self)
        other.batch_size = batch_size
        return other

    def batches(self, batch_size, *, seed, repeat=True, independent=1):
        self.asked.append((batch_size, independent))

        def play():
            rng = np.random.default_rng(seed)
            while True:
                context = rng.normal(size=(batch_size, 4)).astype("float32")
                logits = self.model(context).numpy()
                self.kernels.append(float(self.model.layers[-1].kernel[0, 0]))
                action = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
                reward = action == np.argmax(context @ CORRECT, axis=1)
                yield context, np.stack([action, reward - 1 / 3], 1).astype("float32")

        signature = (
            tf.TensorSpec((batch_size, 4), tf.float32),
            tf.TensorSpec((batch_size, 2), tf.float32),
        )
        return tf.data.Dataset.from_generator(play, output_signature=signature)


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(ACTIONS)])
    model.compile(keras.optimizers.SGD(0.3), PolicyLoss(0.01))
    return model


@pytest.mark.slow
def test_advice_from_data_that_the_policy_draws(model):
    before = model.get_weights()
    bandit = Bandit(model)
    advice = advise(model, bandit, budget=20_000, verbose=0)
    assert advice.noise_scale.resolved
    assert any("learning rate was not checked" in warning for warning in advice.warnings)
    assert not any("did not fall" in warning for warning in advice.warnings)
    assert advice.learning_rate_check is None
    # A snapshot pools four batches, which must not repeat each other.
    assert (16, 1) in bandit.asked
    assert [size for size, independent in bandit.asked if independent == 4] == [32]
    assert len(set(bandit.kernels)) > 100  # The policy changed while it played.
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_batch_size_of_drawn_examples_can_be_set(model):
    bandit = Bandit(model)
    assert source_of(bandit) is bandit
    assert source_of(bandit, 64).batch_size == 64
    assert bandit.batch_size == 16
    assert isinstance(source_of((np.zeros((40, 2)), np.zeros(40)), 8), ExampleSource)


def test_drawing_is_part_of_a_timed_step(model):
    bandit = Bandit(model)
    time_steps(model, bandit, [16], seconds=1.0)
    assert len(bandit.kernels) >= 3  # One batch alone is what arrays are timed with.


@pytest.mark.parametrize("asked", [{"learning_rate": "search"}, {"target_loss": 0.1}])
def test_what_needs_comparable_losses_is_refused(model, asked):
    with pytest.raises(ValueError, match=r"draws its own data.*Leave both"):
        advise(model, Bandit(model), verbose=0, **asked)
