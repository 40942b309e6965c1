"""Advantages and the clipped objective against independent computations."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gns_keras.tasks.ppo import PpoLoss, generalized_advantages, normalized

DISCOUNT, TRACE = 0.9, 0.8


def advantages_by_their_sum(
    rewards: np.ndarray, values: np.ndarray, ends: np.ndarray, last: float
) -> list[float]:
    """`sum_l (discount trace)^l delta` up to the end of the episode, for a single agent."""
    after = [*values[1:], last]
    found = []
    for start in range(len(rewards)):
        total = 0.0
        for step in range(start, len(rewards)):
            ahead = 0.0 if ends[step] else after[step]
            delta = rewards[step] + DISCOUNT * ahead - values[step]
            total += (DISCOUNT * TRACE) ** (step - start) * delta
            if ends[step]:
                break
        found.append(total)
    return found


def test_advantages_are_the_sum_of_the_paper_up_to_the_end_of_the_episode() -> None:
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 12, 3)).astype(np.float32)
    ends = rng.random((12, 3)) < 0.25
    last = rng.normal(size=3).astype(np.float32)
    found = generalized_advantages(rewards, values, ends, last, discount=DISCOUNT, trace=TRACE)
    assert 0 < ends.sum() < 20
    for agent in range(3):
        expected = advantages_by_their_sum(
            rewards[:, agent], values[:, agent], ends[:, agent], last[agent]
        )
        np.testing.assert_allclose(found[:, agent], expected, rtol=1e-5, atol=1e-6)


def test_two_steps_by_hand() -> None:
    # delta_1 = 2 + 0.9 * 4 - 3 = 2.6, delta_0 = 1 + 0.9 * 3 - 2 = 1.7; A_0 = 1.7 + 0.72 * 2.6.
    rewards, values, ends = np.array([1.0, 2.0]), np.array([2.0, 3.0]), np.array([False, False])
    found = generalized_advantages(
        rewards, values, ends, np.array(4.0), discount=DISCOUNT, trace=TRACE
    )
    np.testing.assert_allclose(found, [3.572, 2.6], rtol=1e-6)


def test_advantages_are_normalized_over_the_rollout_and_not_in_its_parts() -> None:
    rng = np.random.default_rng(0)
    advantages = rng.normal(size=(8, 6, 2)) + 5.0 * np.arange(6)[None, :, None]
    weights = (rng.random(advantages.shape) < 0.8).astype(np.float32)
    found = normalized(advantages, weights)
    used = found[weights == 1]
    assert used.mean() == pytest.approx(0, abs=1e-5)
    assert used.std() == pytest.approx(1, abs=1e-5)
    # The games keep their differences: 5 / std between neighbors.
    means = [found[:, game][weights[:, game] == 1].mean() for game in range(6)]
    expected = 5.0 / advantages[weights == 1].std()
    np.testing.assert_allclose(np.diff(means), expected, rtol=0.2)
    assert (found[weights == 0] == 0).all()


def frames(num_frames: int, seed: int = 0, spread: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Targets, and predictions that differ from the old policy by `spread`."""
    rng = np.random.default_rng(seed)
    predicted = rng.normal(size=(1, num_frames, 5)).astype(np.float32)
    actions = rng.integers(4, size=num_frames)
    old_logits = predicted[0, :, :4] + spread * rng.normal(size=(num_frames, 4))
    old = np.log(softmax(old_logits)[np.arange(num_frames), actions])
    targets = np.stack(
        [actions, old, *rng.normal(size=(2, num_frames)), rng.integers(2, size=num_frames)], axis=-1
    )
    return targets[None].astype(np.float32), predicted


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def gradient(loss: PpoLoss, targets: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    predicted = tf.constant(predicted)
    with tf.GradientTape() as tape:
        tape.watch(predicted)
        value = loss(targets, predicted)
    return tape.gradient(value, predicted).numpy()[0]


def gradient_by_hand(
    loss: PpoLoss, targets: np.ndarray, predicted: np.ndarray
) -> tuple[np.ndarray, int]:
    """Gradient of the mean over frames, and how many of them are clipped.

    `d r/dz = r (1_a - pi)`, zero where the clipped term is the smaller one;
    `d H/dz_k = -pi_k (log pi_k + H)`; `d/dV = c_v (V - R)`.
    """
    expected, num_clipped = np.zeros_like(predicted[0], dtype=np.float64), 0
    for row, (action, old, advantage, target, weight) in enumerate(targets[0].astype(np.float64)):
        policy = softmax(predicted[0, row, :4].astype(np.float64))
        ratio = policy[int(action)] / np.exp(old)
        clipped = ratio > 1 + loss.clip if advantage > 0 else ratio < 1 - loss.clip
        num_clipped += clipped
        gain = 0.0 if clipped else advantage * ratio * (np.eye(4)[int(action)] - policy)
        entropy = -(policy * np.log(policy)).sum()
        entropy_slope = -policy * (np.log(policy) + entropy)
        expected[row, :4] = weight * (-gain - loss.entropy_bonus * entropy_slope)
        expected[row, 4] = weight * loss.value_cost * (predicted[0, row, 4] - target)
    return expected / len(expected), num_clipped


def test_the_gradient_of_the_clipped_objective_is_that_by_hand() -> None:
    loss = PpoLoss(clip=0.2, value_cost=0.7, entropy_bonus=0.05)
    targets, predicted = frames(200)
    expected, num_clipped = gradient_by_hand(loss, targets, predicted)
    assert 20 < num_clipped < 180
    np.testing.assert_allclose(gradient(loss, targets, predicted), expected, rtol=1e-3, atol=1e-7)


def test_at_ratio_one_it_is_the_policy_gradient() -> None:
    targets, predicted = frames(50, spread=0.0)
    targets[..., 4] = 1
    found = gradient(PpoLoss(value_cost=0.0, entropy_bonus=0.0), targets, predicted)
    logits = tf.constant(predicted[0, :, :4])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=targets[0, :, 0].astype(int), logits=logits
        )
        value = tf.reduce_mean(losses * targets[0, :, 2])
    np.testing.assert_allclose(
        found[:, :4], tape.gradient(value, logits).numpy(), rtol=1e-3, atol=1e-7
    )


def test_the_loss_is_restored_from_its_configuration() -> None:
    loss = PpoLoss(clip=0.1, value_cost=0.3, entropy_bonus=0.02)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    targets, predicted = frames(20)
    assert float(again(targets, predicted)) == float(loss(targets, predicted))
