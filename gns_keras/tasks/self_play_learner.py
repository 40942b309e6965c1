"""Trains on rollouts by PPO, and measures the noise scale on the way. This module imports Keras.

Every rollout is trained on for several epochs. The noise scale is that of the first one alone: its
minibatches are frames that no update has seen yet, later ones are the same frames again, whose
noise the weights already know. A minibatch is a set of games, never of single frames, and so are
the groups that it is split into.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gns_keras.core.noise_scale import NoiseScale
from gns_keras.core.tracker import NoiseScaleTracker
from gns_keras.ops.sq_norms import dense, sq_norms
from gns_keras.tasks.self_play_rollouts import Rollout


class Learner:
    """Trains a model on rollouts.

    Args:
        model: Compiled with `PpoLoss`.
        epochs: Passes over each rollout.
        minibatches: Updates in each pass.
        groups: Parts of a minibatch whose gradients are compared, at least 2.
        half_life: Of the noise scale, in frames; "auto", or None: forget nothing.
        seed: Seed of the order.

    Attributes:
        tracker: Follows the noise scale, in frames.
        rollouts: Rollouts trained on so far: the version of the weights.
        frames: Frames of these.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        epochs: int = 3,
        minibatches: int = 4,
        groups: int = 4,
        half_life: float | str | None = "auto",
        seed: int = 0,
    ) -> None:
        if groups < 2:
            raise ValueError(
                "The noise scale needs at least two groups of games in a minibatch. Received: "
                f"groups={groups}."
            )
        self.model = model
        self.epochs, self.minibatches, self.groups = epochs, minibatches, groups
        self.tracker = NoiseScaleTracker(half_life=half_life, unit="frames")
        self.rollouts = 0
        self.frames = 0
        self._rng = np.random.default_rng((seed, 3))
        self._gradients = tf.function(self._group_gradients, reduce_retracing=True)
        self._apply = tf.function(self._apply_gradients, reduce_retracing=True)
        model.optimizer.build(model.trainable_variables)

    def train(self, rollout: Rollout) -> None:
        """Makes all updates that belong to one rollout.

        Raises:
            ValueError: Its games cannot be split evenly into minibatches and groups.
        """
        num_games = len(rollout.targets)
        parts = self.minibatches * self.groups
        if num_games % parts:
            raise ValueError(
                f"The number of games should be a multiple of minibatches x groups = "
                f"{self.minibatches} x {self.groups} = {parts}. Received: {num_games} games."
            )
        for epoch in range(self.epochs):
            order = self._rng.permutation(num_games)
            for games in np.split(order, self.minibatches):
                self._update(rollout.observations[games], rollout.targets[games], epoch == 0)
        self.rollouts += 1
        self.frames += rollout.num_frames

    def noise_scale(self) -> NoiseScale:
        """Returns the noise scale so far, in frames."""
        return self.tracker.result()

    def _update(self, observations: np.ndarray, targets: np.ndarray, first: bool) -> None:
        groups = self.groups if first else 1
        x, y = (tf.split(tf.constant(part), groups) for part in (observations, targets))
        found = [self._gradients(*pair) for pair in zip(x, y, strict=True)]
        sizes = np.array([float(size) for _, _, size in found])
        shares = sizes / sizes.sum()
        mean = [
            tf.add_n([share * part for share, part in zip(shares, parts, strict=True)])
            for parts in zip(*(gradients for gradients, _, _ in found), strict=True)
        ]
        mean_sq_norm = self._apply(mean)
        if first:
            norms = np.array([float(norm) for _, norm, _ in found])
            self.tracker.observe(norms, float(mean_sq_norm), sizes)

    def _group_gradients(self, x: tf.Tensor, y: tf.Tensor) -> tuple[list[tf.Tensor], Any, Any]:
        """Returns the mean gradient over a group's frames, its squared norm, and their number."""
        size = tf.reduce_sum(y[..., -1])
        with tf.GradientTape() as tape:
            losses = self.model.loss.of_frames(y, self.model(x, training=True))
            loss = tf.reduce_sum(losses) / size
        variables = self.model.trainable_variables
        gradients = [dense(gradient) for gradient in tape.gradient(loss, variables)]
        return gradients, sq_norms(gradients, [0] * len(gradients), 1)[0], size

    def _apply_gradients(self, gradients: list[tf.Tensor]) -> tf.Tensor:
        """Applies them, and returns their squared norm before the optimizer clips it."""
        norm = sq_norms(gradients, [0] * len(gradients), 1)[0]
        self.model.optimizer.apply(gradients, self.model.trainable_variables)
        return norm
