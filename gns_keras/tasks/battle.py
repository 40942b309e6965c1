"""Many games at once of two teams that fight on a grid: MAgent2's `battle`, in small.

The rules are those of `magent2.environments.battle_v4` (Zheng et al. 2018, arXiv 1712.00600; Farama
Foundation), which configures the engine here too: in every step an agent moves to one of the
squares within reach or hits one of the eight around it; a hit takes 2 of 10 points of health, 0.1
of which come back in every step. What is set here: how many agents, where they start (anywhere, at
random), that a game ends when one team has nobody left or its steps are over, that an agent also
sees how much of the game is over, and that hitting at nobody costs nothing: the game's own price of
0.1 teaches small teams nothing but peace. Importing this module needs the extra `rl`.
"""

from dataclasses import dataclass

import numpy as np

try:
    from magent2 import GridWorld
    from magent2.environments.battle.battle import default_reward_args, get_config
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "Self-play needs magent2, which brings the game. Install it with "
        "`pip install 'gns-keras[rl]'`, in a clone `pip install '.[rl]'`."
    ) from error

VIEW_SIZE = 13 * 13 * 5  # Walls, own team, its health, the others, their health; 6 squares around.
OBSERVATION_SIZE = VIEW_SIZE + 1
NUM_ACTIONS = 21  # 13 moves, one of them to stay, and 8 directions to hit.
KILL_REWARD = 5.0
REWARDS = {**default_reward_args, "attack_penalty": 0.0}


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What one game is.

    Attributes:
        team_size: Agents on each side.
        map_size: Squares along each side of the map, the walls around it included.
        max_steps: Steps after which the game is over.
        team_spirit: Share of the team's mean in the reward of each agent, the rest being its own.
    """

    team_size: int = 1
    map_size: int = 10
    max_steps: int = 64
    team_spirit: float = 0.3


class Games:
    """Several games side by side; one that ends is followed by a new one.

    Agents are numbered 0 to `2 * team_size - 1`, the red team first.

    Args:
        num_games: Games.
        rules: Of each of them.
        seed: Seed of all chance in them.
        random_start: Whether the games begin at different points of their time, so that they do not
            end together.

    Attributes:
        num_agents: Agents in each game, both teams.
        observations: What the agents see now, shape `(games, agents, OBSERVATION_SIZE)`; zeros for
            the dead.
        alive: Who lives, bool, shape `(games, agents)`.
        reward: Mean reward of the agents in the last step, before the teams share it.
    """

    def __init__(
        self, num_games: int, rules: Rules, *, seed: int = 0, random_start: bool = True
    ) -> None:
        self.rules = rules
        self.num_agents = 2 * rules.team_size
        self._rng = np.random.default_rng(seed)
        self._worlds = [
            _world(rules.map_size, int(number))
            for number in self._rng.integers(2**31, size=num_games)
        ]
        # The living of both teams, in the engine's order.
        self._living: list[list[np.ndarray]] = [[] for _ in range(num_games)]
        self._steps = np.zeros(num_games, dtype=np.int64)
        shape = (num_games, self.num_agents)
        self.observations = np.zeros((*shape, OBSERVATION_SIZE), dtype=np.float32)
        self.alive = np.ones(shape, dtype=bool)
        self.reward = 0.0
        for game in range(num_games):
            self._begin(game)
        if random_start:
            self._steps = self._rng.integers(rules.max_steps, size=num_games)
        self._look()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Plays one step of every game.

        Args:
            actions: 0 to 20, shape `(games, agents)`; those of the dead are not used.

        Returns:
            Rewards, float32, shape `(games, agents)`; whose part in the game ended with this step,
            bool, same shape, the dead being done all the time; and the results of the games, int,
            shape `(games,)`: 1 won by red, -1 by blue, 0 a draw, 2 not over.
        """
        rewards = np.zeros(self.alive.shape, dtype=np.float32)
        results = np.full(len(self._worlds), 2)
        for game, world in enumerate(self._worlds):
            self._play(game, world, actions[game].astype(np.int32), rewards[game])
        self.reward = float(rewards.mean())
        self._steps += 1
        done = ~self.alive
        size = self.rules.team_size
        left = np.stack(
            [self.alive[:, :size].sum(axis=1), self.alive[:, size:].sum(axis=1)], axis=1
        )
        for game in np.flatnonzero((left.min(axis=1) == 0) | (self._steps >= self.rules.max_steps)):
            results[game] = np.sign(left[game, 0] - left[game, 1])
            done[game] = True
            self._begin(game)
        self._look()
        return shared_rewards(rewards, size, self.rules.team_spirit), done, results

    def _begin(self, game: int) -> None:
        world, size = self._worlds[game], self.rules.team_size
        world.reset()
        inner = self.rules.map_size - 2
        squares = self._rng.choice(inner * inner, self.num_agents, replace=False)
        places = np.stack(np.divmod(squares, inner), axis=1) + 1
        red, blue = world.get_handles()
        world.add_agents(red, "custom", pos=places[:size])
        world.add_agents(blue, "custom", pos=places[size:])
        self._living[game] = [world.get_agent_id(handle) for handle in world.get_handles()]
        self._steps[game] = 0
        self.alive[game] = True

    def _play(self, game: int, world: GridWorld, actions: np.ndarray, rewards: np.ndarray) -> None:
        teams = list(zip(world.get_handles(), self._living[game], strict=True))
        for handle, agents in teams:
            world.set_action(handle, actions[agents])
        world.step()
        for handle, agents in teams:
            rewards[agents] = world.get_reward(handle)
            self.alive[game, agents] = world.get_alive(handle)
        world.clear_dead()  # Also sets the rewards back.
        if not all(self.alive[game, agents].all() for agents in self._living[game]):
            self._living[game] = [world.get_agent_id(handle) for handle in world.get_handles()]

    def _look(self) -> None:
        self.observations[:] = 0
        for game, world in enumerate(self._worlds):
            for handle, agents in zip(world.get_handles(), self._living[game], strict=True):
                if len(agents):
                    view, _ = world.get_observation(handle)
                    self.observations[game, agents, :VIEW_SIZE] = view.reshape(len(agents), -1)
        self.observations[..., -1] = self.alive * (self._steps / self.rules.max_steps)[:, None]


def shared_rewards(rewards: np.ndarray, team_size: int, team_spirit: float) -> np.ndarray:
    """Rewards as OpenAI Five shares them: with the own team, and against the other one.

    `(1 - spirit) r_i + spirit * mean of the team - mean of the other team`, in units of a kill, so
    that all rewards of a game add up to zero.

    Args:
        rewards: The game's, shape `(games, agents)`.
        team_size: Agents on each side, the first ones being one of them.
        team_spirit: 0: everybody for himself; 1: all for one.
    """
    teams = rewards.reshape(len(rewards), 2, team_size)
    means = teams.mean(axis=2, keepdims=True)
    mixed = (1 - team_spirit) * teams + team_spirit * means - means[:, ::-1]
    return (mixed / KILL_REWARD).reshape(rewards.shape).astype(np.float32)


def _world(map_size: int, seed: int) -> GridWorld:
    world = GridWorld(get_config(map_size, False, seed, **REWARDS))
    world.reset()
    return world
