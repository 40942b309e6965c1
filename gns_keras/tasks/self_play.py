"""Self-play of two teams, in the place of Dota (McCandlish et al. 2018, appendix A.4.2).

"for Dota an asynchronous version of PPO was used": the game is closed, so a policy learns the open
game `battle` of MAgent2 here, one against one and five against five, by PPO against itself. Why
this game: docs/decisions/0009-stand-in-for-dota.md. The paper's numbers are about another game.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gns_keras.tasks import Task

if TYPE_CHECKING:
    import keras

    from gns_keras.tasks.battle import Rules
    from gns_keras.tasks.self_play_data import DrawnGames
    from gns_keras.tasks.self_play_rollouts import Rollout

LEARNING_RATE = 0.002
NUM_GAMES = 64
NUM_STEPS = 32
TEAM_SIZES = {"self_play_1v1": 1, "self_play_team": 5}
BATCH_GAMES = {"self_play_1v1": 16, "self_play_team": 8}
MAX_GRADIENT_NORM = 0.5


def build_model(learning_rate: float = LEARNING_RATE) -> "keras.Model":
    """Returns a new policy and value network, Dense 128-64, compiled with Adam and PPO's loss.

    It takes observations of shape `(batch, frames, 846)`, each frame by itself, and returns 21
    logits and a value, shape `(batch, frames, 22)`.
    """
    import keras

    from gns_keras.tasks.battle import NUM_ACTIONS, OBSERVATION_SIZE
    from gns_keras.tasks.ppo import PpoLoss

    observations = keras.Input((None, OBSERVATION_SIZE))
    hidden = keras.layers.Dense(128, activation="tanh")(observations)
    hidden = keras.layers.Dense(64, activation="tanh")(hidden)
    # Small weights: at first all actions are about equally likely, and no side is ahead. Other
    # first values are wrong in the same way everywhere, and so hide how noisy the rest is.
    small = keras.initializers.VarianceScaling(0.0001)
    logits = keras.layers.Dense(NUM_ACTIONS, kernel_initializer=small, name="policy")(hidden)
    value = keras.layers.Dense(1, kernel_initializer=small, name="value")(hidden)
    model = keras.Model(observations, keras.layers.Concatenate()([logits, value]))
    model.compile(
        keras.optimizers.Adam(learning_rate, global_clipnorm=MAX_GRADIENT_NORM), PpoLoss()
    )
    return model


def rules(team: bool) -> "Rules":
    """Returns the rules of the game: one against one, or five against five."""
    from gns_keras.tasks.battle import Rules

    return Rules(team_size=5, map_size=16) if team else Rules()


def draw_data(model: "keras.Model", name: str = "self_play_1v1") -> "DrawnGames":
    """Returns rollouts that `model` plays against itself when they are asked for.

    Args:
        model: As `build_model` returns it.
        name: Of the task.
    """
    from gns_keras.tasks.self_play_data import DrawnGames

    game = rules(TEAM_SIZES[name] > 1)
    return DrawnGames(model, game, batch_size=BATCH_GAMES[name], num_steps=NUM_STEPS)


def load_data(split: str = "train", *, name: str = "self_play_1v1") -> Any:
    """Always refuses: the data depend on the model.

    Raises:
        NotImplementedError: With what to do instead.
    """
    raise NotImplementedError(
        f"{name} has no data without a model: its policy plays against itself, so that batches "
        "change with the weights. Use get_task(...).training_data(model), or `gns-keras advise "
        f"{name}`; a sweep takes get_task(...).training_data itself."
    )


def _task(name: str) -> Task:
    size = TEAM_SIZES[name]
    frames = NUM_STEPS * 2 * size
    return Task(
        name=name,
        description=f"Dense 128-64 policy and value in MAgent2's battle, {size} against {size}, "
        "PPO against itself",
        unit="frames",
        data_needed="played while training; magent2 (the extra `rl`)",
        build_model=build_model,
        load_data=functools.partial(load_data, name=name),
        draw_data=functools.partial(draw_data, name=name),
        batch_size=BATCH_GAMES[name] * frames,
        learning_rate=LEARNING_RATE,
        optimizer="adam",
        goals=(0.01, 0.03) if size == 1 else (),  # By chance below 0.
        status="learning rate chosen from five in short runs of 1v1; learns to win",
        units_per_example=frames,
    )


TASK, VARIANTS = _task("self_play_1v1"), {"self_play_team": _task("self_play_team")}


class SelfPlay:
    """Trains a policy by playing against itself.

    Args:
        model: As `build_model` returns it.
        game: As `rules` returns it.
        num_games: Games side by side.
        num_steps: Steps of each game in a rollout.
        workers: 0: play and update in turn. Else so many threads play, each `num_games` games,
            while the learner updates.
        max_staleness: Rollouts that the weights of the players may be behind, with workers.
        past_share: Share of the games in which a past self plays one side.
        seed: Seed of all chance.
        **learner: What `Learner` takes.

    Attributes:
        learner: It has the model, the noise scale and the number of frames.
        staleness: How many rollouts the policy of each rollout was behind.
    """

    def __init__(
        self,
        model: "keras.Model",
        game: "Rules",
        *,
        num_games: int = NUM_GAMES,
        num_steps: int = NUM_STEPS,
        workers: int = 0,
        max_staleness: int = 1,
        past_share: float = 0.2,
        seed: int = 0,
        **learner: Any,
    ) -> None:
        import keras

        from gns_keras.tasks.self_play_learner import Learner
        from gns_keras.tasks.self_play_rollouts import Collector

        self.learner: Learner = Learner(model, seed=seed, **learner)
        self.staleness: list[int] = []
        self._max_staleness = max_staleness
        models = [keras.models.clone_model(model) for _ in range(workers)] or [model]
        sizes = {"num_games": num_games, "num_steps": num_steps, "past_share": past_share}
        self._players = [
            (Collector(own, game, seed=seed + k, **sizes), own) for k, own in enumerate(models)
        ]
        self._in_turn = workers == 0

    def run(self, num_rollouts: int, after: "Callable[[Rollout], None] | None" = None) -> None:
        """Plays and trains.

        Args:
            num_rollouts: Rollouts to train on.
            after: Called with each of them when it has been.
        """
        from gns_keras.tasks.self_play_workers import InTurn, RolloutWorkers

        learner = self.learner
        weights = learner.model.get_weights()
        source = (
            InTurn(self._players[0][0])
            if self._in_turn
            else RolloutWorkers(self._players, weights, max_staleness=self._max_staleness)
        )
        with source:
            for _ in range(num_rollouts):
                rollout = source.fetch()
                learner.train(rollout)
                source.publish(learner.model.get_weights())
                if after is not None:
                    after(rollout)
        self.staleness += source.staleness
