"""Rollouts of games that a policy plays against itself. This module imports TensorFlow and MAgent2.

One policy plays both sides, each agent by itself from what it sees. In a share of the games past
selves play one side (OpenAI et al. 2019, arXiv 1912.06680, section 3.1: a fifth); their frames
have weight 0. One rollout is a number of steps of all games; one example of training is one game's
part of it, as frames of one game are not independent.
"""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from scipy.special import log_softmax

from gns_keras.tasks.battle import Games, Rules
from gns_keras.tasks.ppo import generalized_advantages, normalized


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What a rollout gives to training.

    Attributes:
        observations: Shape `(games, frames, numbers)`; the frames are those of all agents at all
            steps.
        targets: What `PpoLoss` takes, shape `(games, frames, 5)`, advantages normalized.
        results: Of the games that ended in it: 1 won by red, -1 by blue, 0 drawn.
        version: Updates of the policy that played.
        reward: Mean reward of an agent in a step, before it is shared.
    """

    observations: np.ndarray
    targets: np.ndarray
    results: np.ndarray
    version: int = 0
    reward: float = 0.0

    @property
    def num_frames(self) -> int:
        """Frames to train on."""
        return int(self.targets[..., -1].sum())


class Policy:
    """A model's way to play, with its weights as they are at each call.

    Args:
        model: Maps `(n, numbers)` to logits and a value, also `(n, frames, numbers)`.
    """

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        self._call = tf.function(lambda x: model(x, training=False), reduce_retracing=True)

    def __call__(self, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns log probabilities, shape `(..., actions)`, and values `(...)`."""
        flat = observations.reshape(-1, observations.shape[-1])
        out = self._call(tf.constant(flat[:, None])).numpy()
        out = out.reshape(*observations.shape[:-1], -1)
        return log_softmax(out[..., :-1], axis=-1), out[..., -1]


def draw(log_policy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws one action for each distribution (by Gumbel's trick: the largest of the noisy logs)."""
    return np.argmax(log_policy + rng.gumbel(size=log_policy.shape), axis=-1)


class Collector:
    """Plays the games and makes rollouts of them.

    Args:
        model: Plays. Its weights may change between rollouts.
        rules: Of the games.
        num_games: Games side by side.
        num_steps: Steps of each game in a rollout.
        past_share: Share of the games in which a past self plays one side.
        past_every: Rollouts between two past selves that are kept.
        seed: Seed of all chance.
    """

    def __init__(
        self,
        model: keras.Model,
        rules: Rules,
        *,
        num_games: int,
        num_steps: int,
        past_share: float = 0.0,
        past_every: int = 10,
        seed: int = 0,
    ) -> None:
        self.games = Games(num_games, rules, seed=seed)
        self.num_steps = num_steps
        self._policy = Policy(model)
        self._rng = np.random.default_rng((seed, 1))
        self._past = _PastSelves(model, past_every)
        self._is_past = _past_places(self.games.alive.shape, past_share)

    def collect(self, version: int = 0) -> Rollout:
        """Plays on and returns the rollout.

        Args:
            version: What to call the policy's present weights.
        """
        if self._is_past.any():
            self._past.begin_rollout(self._rng)
        seen, played, ends, results, rewarded = [], [], [], [], []
        for _ in range(self.num_steps):
            alive = self.games.alive.copy()
            seen.append(self.games.observations.copy())
            actions, logs, values = self._choose()
            rewards, done, finished = self.games.step(actions)
            rewarded.append(self.games.reward)
            weights = (alive & ~self._is_past).astype(np.float32)
            played.append(np.stack([actions, logs, values, rewards, weights], axis=-1))
            ends.append(done)
            results.append(finished[finished < 2])
        _, last_values = self._policy(self.games.observations)
        targets = _targets(np.stack(played), np.stack(ends), last_values)
        return Rollout(
            observations=_by_game(np.stack(seen)),
            targets=_by_game(targets),
            results=np.concatenate(results),
            version=version,
            reward=float(np.mean(rewarded)),
        )

    def _choose(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        log_policy, values = self._policy(self.games.observations)
        if self._is_past.any():
            others, _ = self._past(self.games.observations[self._is_past])
            log_policy[self._is_past] = others
        actions = draw(log_policy, self._rng)
        logs = np.take_along_axis(log_policy, actions[..., None], axis=-1)[..., 0]
        return actions, logs, values


class _PastSelves:
    """Keeps weights of a model now and then, and plays with those of one such time."""

    def __init__(self, model: keras.Model, every: int) -> None:
        self._model, self._every = model, every
        self._kept: list[list[np.ndarray]] = []
        self._rollouts = 0
        self._player = keras.models.clone_model(model)
        self._policy = Policy(self._player)

    def begin_rollout(self, rng: np.random.Generator) -> None:
        if self._rollouts % self._every == 0:
            self._kept.append(self._model.get_weights())
        self._rollouts += 1
        self._player.set_weights(self._kept[rng.integers(len(self._kept))])

    def __call__(self, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._policy(observations)


def _past_places(shape: tuple[int, ...], share: float) -> np.ndarray:
    """Which agents are played by past selves: one side of the last games, in turn."""
    places = np.zeros(shape, dtype=bool)
    team = shape[1] // 2
    for game in range(shape[0] - round(share * shape[0]), shape[0]):
        start = team * (game % 2)
        places[game, start : start + team] = True
    return places


def _targets(played: np.ndarray, ends: np.ndarray, last_values: np.ndarray) -> np.ndarray:
    actions, logs, values, rewards, weights = np.moveaxis(played, -1, 0)
    advantages = generalized_advantages(rewards, values, ends, last_values)
    parts = [actions, logs, normalized(advantages, weights), advantages + values, weights]
    return np.stack(parts, axis=-1).astype(np.float32)


def _by_game(steps: np.ndarray) -> np.ndarray:
    """`(steps, games, agents, ...)` to `(games, steps * agents, ...)`."""
    by_game = np.swapaxes(steps, 0, 1)
    return by_game.reshape(by_game.shape[0], -1, by_game.shape[-1])


def play_match(
    red: Any, blue: Any, rules: Rules, *, num_games: int, seed: int = 0
) -> tuple[int, int, int]:
    """Lets two policies play complete games, each on either side in half of them.

    Args:
        red: A `Policy`, or None: all actions equally likely.
        blue: The other one.
        rules: Of the games.
        num_games: Games, an even number.
        seed: Seed of all chance.

    Returns:
        Games that `red` won, drew and lost.
    """
    games = Games(num_games, rules, seed=seed, random_start=False)
    rng = np.random.default_rng((seed, 2))
    team, half = rules.team_size, num_games // 2
    first = np.zeros(games.alive.shape, dtype=bool)  # Where the first policy plays.
    first[:half, :team] = first[half:, team:] = True
    outcome = np.full(num_games, 2)
    while (outcome == 2).any():
        actions = rng.integers(21, size=first.shape)
        for policy, places in ((red, first), (blue, ~first)):
            if policy is not None:
                actions[places] = draw(policy(games.observations[places])[0], rng)
        _, _, results = games.step(actions)
        outcome = np.where(outcome == 2, results, outcome)
    outcome[half:] *= -1
    return tuple(int((outcome == value).sum()) for value in (1, 0, -1))
