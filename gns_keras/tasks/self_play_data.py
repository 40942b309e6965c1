"""Self-play as data that the model draws itself. This module imports TensorFlow and MAgent2."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from gns_keras.tasks.battle import OBSERVATION_SIZE, Rules
from gns_keras.tasks.ppo import TARGETS
from gns_keras.tasks.self_play_rollouts import Collector
from gns_keras.training.example_source import DrawnExamples, drawn_dataset


class DrawnGames(DrawnExamples):
    """Rollouts of games in which a model plays both sides with its present weights.

    One example is one game's part of a rollout, `(observations, targets)` of shapes
    `(frames, 846)` and `(frames, 5)`; a batch is a whole rollout, over which the advantages are
    normalized. Every example is drawn once: all of training is a first epoch.

    Args:
        model: What `gns_keras.tasks.self_play.build_model` returns.
        rules: Of the games.
        batch_size: Games side by side.
        num_steps: Steps of each game in a rollout.

    Attributes:
        reward: Mean reward of an agent in a step of the rollout drawn last, before it is shared.
    """

    def __init__(
        self, model: keras.Model, rules: Rules, *, batch_size: int, num_steps: int
    ) -> None:
        self.batch_size = batch_size
        self.reward = math.nan
        self._model, self._rules, self._num_steps = model, rules, num_steps

    def with_batch_size(self, batch_size: int) -> "DrawnGames":
        """Returns the same in batches of another number of games."""
        other = copy.copy(self)
        other.batch_size = batch_size
        return other

    def batches(
        self, batch_size: int, *, seed: int, repeat: bool = True, independent: int = 1
    ) -> tf.data.Dataset:
        """Rollouts without end, each played when it is asked for.

        Args:
            batch_size: Games in a batch.
            seed: Seed of all chance.
            repeat: Without effect: there is no end.
            independent: So many batches in a row come from different games.

        Returns:
            A dataset of what `model.fit` takes; it needs `steps_per_epoch`.
        """
        frames = self._num_steps * 2 * self._rules.team_size
        signature = (
            tf.TensorSpec((batch_size, frames, OBSERVATION_SIZE), tf.float32),
            tf.TensorSpec((batch_size, frames, TARGETS), tf.float32),
        )
        return drawn_dataset(lambda: self._play(batch_size, seed, independent), signature)

    def _play(self, batch_size: int, seed: int, independent: int) -> Iterator[Any]:
        collectors = [
            Collector(
                self._model,
                self._rules,
                num_games=batch_size,
                num_steps=self._num_steps,
                seed=seed + 100_003 * index,
            )
            for index in range(independent)
        ]
        while True:
            for collector in collectors:
                rollout = collector.collect()
                self.reward = rollout.reward
                yield rollout.observations, rollout.targets
