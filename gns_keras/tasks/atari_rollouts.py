"""Atari games played by the policy that is being trained, a few steps at a time.

One example is one environment's rollout of five steps. Rollouts are drawn when the training asks
for them, with the weights of that moment, and every environment of a batch is another one: a batch
splits into independent groups along its first axis. This module imports TensorFlow and ale-py.
"""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gns_keras.tasks.actor_critic import n_step_returns
from gns_keras.training.example_source import DrawnExamples, drawn_dataset

try:
    from ale_py import Action
    from ale_py.vector_env import AtariVectorEnv
    from gymnasium.vector import AutoresetMode
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "The Atari tasks need gymnasium and ale-py, which bring the games. "
        "Install them with `pip install 'gns-keras[rl]'`, in a clone `pip install '.[rl]'`."
    ) from error

FRAME_SHAPE = (4, 84, 84)  # Four grey pictures, the last one newest: what a policy sees at a step.
MAX_FIRST_STEPS = 500
DISCOUNT = 0.99

Policy = Callable[[Any], dict[str, Any]]


class Games:
    """Many copies of one game, each at another point of it.

    A step repeats its action for 4 frames of the console. Losing a life counts as an end for the
    returns, while the game goes on; rewards are cut to their sign; a game starts with up to 30
    steps of doing nothing. A game and a new life start with the fire button, where there is one,
    whatever the action was to be. At the beginning every copy has made up to `max_first_steps`
    random steps, as in the paper's appendix A.4.2.

    Args:
        game: The name of its ROM.
        count: Copies.
        seed: Seed of the games and of the random steps.
        max_first_steps: Most random steps at the beginning.
        num_threads: Threads to play with; 0 for all cores.

    Attributes:
        frames: What is to be seen now, uint8, shape `(count, 4, 84, 84)`.
        scores: Scores of the finished games, in the order of their ends.
        fires: Which copies will press the fire button in the next step, shape `(count,)`.
        first_steps: Random steps that every copy has made, shape `(count,)`.
    """

    def __init__(
        self,
        game: str,
        count: int,
        *,
        seed: int,
        max_first_steps: int = MAX_FIRST_STEPS,
        num_threads: int = 0,
    ) -> None:
        self._env = AtariVectorEnv(
            game,
            num_envs=count,
            num_threads=num_threads,
            reward_clipping=False,  # Scores are sums of whole rewards.
            autoreset_mode=AutoresetMode.SAME_STEP,
        )
        self.num_actions = int(self._env.single_action_space.n)
        actions = self._env.ale.get_action_set()
        self._fire = actions.index(Action.FIRE) if Action.FIRE in actions else None
        self.fires = np.zeros(count, bool)
        self.frames, info = self._env.reset(seed=seed)
        self._lives = info["lives"]
        self._score = np.zeros(count)
        self.scores: list[float] = []
        self.first_steps = self._step_randomly(count, max_first_steps, np.random.default_rng(seed))

    def step(self, actions: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Makes one step in every copy.

        Args:
            actions: Indices of the game's own actions, shape `(count,)`.

        Returns:
            The signs of the rewards, and whether the step ended a life or a game.
        """
        if self.fires.any():
            actions = np.where(self.fires, self._fire, actions)
        self.frames, rewards, terminated, truncated, info = self._env.step(actions)
        over = terminated | truncated
        lost = info["lives"] < self._lives
        ended = over | lost
        self._lives = info["lives"]
        if self._fire is not None:
            self.fires = lost & ~over
        self._score += rewards
        self.scores.extend(self._score[over].tolist())
        self._score[over] = 0.0
        return np.sign(rewards).astype(np.float32), ended

    def _step_randomly(
        self, count: int, most: int, rng: np.random.Generator
    ) -> NDArray[np.integer[Any]]:
        """A copy that is to make `n` steps starts anew `n` steps before the end."""
        steps = rng.integers(0, most + 1, count)
        for left in range(int(steps.max()), 0, -1):
            starts = steps == left
            if starts.any() and left < steps.max():
                self._start_anew(starts)
            self.step(rng.integers(0, self.num_actions, count))
        if (starts := steps == 0).any():
            self._start_anew(starts)
        self.scores.clear()
        return steps

    def _start_anew(self, starts: NDArray[np.bool_]) -> None:
        self.frames, info = self._env.reset(options={"reset_mask": starts})
        self._lives = np.where(starts, info["lives"], self._lives)
        self._score[starts] = 0.0
        self.fires[starts] = False


class Rollouts(DrawnExamples):
    """Rollouts of an Atari game by the present policy of a model, in batches of environments.

    An example is `(frames, {"policy": (action, advantage), "value": return})` of shapes
    `(steps, 4, 84, 84)`, `(steps, 2)` and `(steps,)`. Where the game started a new life by itself,
    the policy chose nothing: the advantage is 0 there.

    Args:
        model: What `gns_keras.tasks.atari.build_model` returns; its weights are read when a
            rollout begins.
        game: The name of the ROM.
        batch_size: Environments in a batch.
        num_steps: Steps of a rollout, called frames in the paper.
        max_first_steps: Most random steps of an environment before its first rollout.
        num_threads: Threads to play with; 0 for all cores.

    Attributes:
        scores: Scores of all finished games, in the order of their ends.
        reward: Mean reward of a step in the batch drawn last, cut to its sign.
    """

    def __init__(
        self,
        model: keras.Model,
        game: str,
        *,
        batch_size: int = 16,
        num_steps: int = 5,
        max_first_steps: int = MAX_FIRST_STEPS,
        num_threads: int = 0,
    ) -> None:
        self.batch_size = batch_size
        self.scores: list[float] = []
        self.reward = math.nan
        self._game = game
        self._num_steps = num_steps
        self._options = {"max_first_steps": max_first_steps, "num_threads": num_threads}
        network = model.get_layer("network")
        self._policy: Policy = tf.function(
            lambda frames: network(frames, training=False), reduce_retracing=True
        )

    def with_batch_size(self, batch_size: int) -> "Rollouts":
        """Returns the same in batches of another number of environments."""
        other = copy.copy(self)
        other.batch_size = batch_size
        return other

    def batches(
        self, batch_size: int, *, seed: int, repeat: bool = True, independent: int = 1
    ) -> tf.data.Dataset:
        """Batches of rollouts without end, each drawn when it is asked for.

        Args:
            batch_size: Environments in a batch.
            seed: Seed of the games and of the actions.
            repeat: Without effect: there is no end.
            independent: So many batches in a row come from different environments.

        Returns:
            A dataset of what `model.fit` takes; it needs `steps_per_epoch`.
        """
        steps = self._num_steps
        images = tf.TensorSpec((batch_size, steps, *FRAME_SHAPE), tf.uint8)
        targets = {
            "policy": tf.TensorSpec((batch_size, steps, 2), tf.float32),
            "value": tf.TensorSpec((batch_size, steps), tf.float32),
        }
        return drawn_dataset(lambda: self._play(batch_size, seed, independent), (images, targets))

    def _play(self, batch_size: int, seed: int, independent: int) -> Iterator[Any]:
        sets = [
            Games(self._game, batch_size, seed=seed + 100_003 * index, **self._options)
            for index in range(independent)
        ]
        rng = np.random.default_rng([seed, 1])
        while True:
            for games in sets:
                yield self._rollout(games, rng)
                self.scores.extend(games.scores)
                games.scores.clear()

    def _rollout(self, games: Games, rng: np.random.Generator) -> Any:
        frames, actions, chosen, values, rewards, ended = [], [], [], [], [], []
        for _ in range(self._num_steps):
            seen = self._policy(tf.constant(games.frames))
            frames.append(games.frames)
            actions.append(_draw(seen["policy"].numpy(), rng))
            chosen.append(~games.fires)
            values.append(seen["value"].numpy())
            reward, end = games.step(actions[-1])
            rewards.append(reward)
            ended.append(end)
        self.reward = float(np.mean(rewards))
        last = self._policy(tf.constant(games.frames))["value"].numpy()
        returns = n_step_returns(np.stack(rewards, 1), np.stack(ended, 1), last, DISCOUNT)
        advantages = (returns - np.stack(values, 1)) * np.stack(chosen, 1)
        taken = np.stack(actions, 1).astype(np.float32)
        targets = {"policy": np.stack([taken, advantages], -1), "value": returns}
        return np.stack(frames, 1), targets


def _draw(logits: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int64]:
    """An action from every row's softmax: adding Gumbel noise and taking the largest does that."""
    return np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
