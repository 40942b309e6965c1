"""The games against MAgent2's own environment, and the rules that are set here."""

import numpy as np
import pytest

pytest.importorskip("magent2")
from magent2.environments import battle_v4

from gns_keras.tasks import battle
from gns_keras.tasks.battle import VIEW_SIZE, Games, Rules, shared_rewards


def as_in_magent2(games: Games, environment: object) -> None:
    """Puts the first game into the starting position of MAgent2's environment."""
    world = games._worlds[0]
    world.reset()
    for handle, other in zip(world.get_handles(), environment.handles, strict=True):
        world.add_agents(handle, "custom", pos=environment.env.get_pos(other))
    games._look()


def test_observations_rewards_and_deaths_are_those_of_battle_v4(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(battle, "shared_rewards", lambda rewards, *_: rewards)
    environment = battle_v4.parallel_env(
        map_size=16, seed=0, attack_penalty=0.0
    )  # Six on each side.
    seen, _ = environment.reset(seed=0)
    # MAgent2 0.3.4 counts the teams before it places them, and misreads the first actions.
    environment.team_sizes = [6, 6]
    games = Games(1, Rules(team_size=6, map_size=16, max_steps=2_000), random_start=False)
    games._worlds[0].set_seed(0)
    as_in_magent2(games, environment)
    rng = np.random.default_rng(0)
    deaths = 0
    for _ in range(995):  # Its own games end after 1,000 steps.
        names = environment.agents
        for number, name in enumerate(environment.possible_agents):
            if name in seen:
                np.testing.assert_array_equal(
                    games.observations[0, number, :VIEW_SIZE], seen[name].ravel()
                )
        actions = rng.integers(13, 21, size=12)
        actions = np.where(rng.random(12) < 0.3, rng.integers(13, size=12), actions)
        seen, rewards, ended, _, _ = environment.step(
            {name: int(actions[environment.possible_agents.index(name)]) for name in names}
        )
        own, done, results = games.step(actions[None])
        for number, name in enumerate(environment.possible_agents):
            if name in rewards:
                assert own[0, number] == pytest.approx(rewards[name], abs=1e-6)
                assert done[0, number] == ended[name]
                deaths += ended[name]
        if results[0] != 2:
            break
        seen = {name: view for name, view in seen.items() if not ended[name]}
    assert deaths > 0


def test_rewards_are_shared_within_a_team_and_taken_from_the_other() -> None:
    # By hand: red earned 5 and 1, blue -1 and 0, half of the spirit is the team's.
    shared = shared_rewards(np.array([[5.0, 1.0, -1.0, 0.0]]), 2, team_spirit=0.5)
    red = [0.5 * 5 + 0.5 * 3 + 0.5, 0.5 * 1 + 0.5 * 3 + 0.5]
    blue = [0.5 * -1 + 0.5 * -0.5 - 3, 0.5 * 0 + 0.5 * -0.5 - 3]
    np.testing.assert_allclose(shared[0], np.array([*red, *blue]) / 5, rtol=1e-6)


def test_rewards_of_a_game_add_up_to_zero() -> None:
    rewards = np.random.default_rng(0).normal(size=(3, 10))
    np.testing.assert_allclose(shared_rewards(rewards, 5, 0.3).sum(axis=1), 0, atol=1e-6)


def test_a_game_ends_with_its_time_and_a_new_one_begins() -> None:
    games = Games(2, Rules(max_steps=3), random_start=False)
    results = [games.step(np.full((2, 2), 6))[2] for _ in range(6)]  # 6: stay.
    assert [list(result) for result in results] == [[2, 2], [2, 2], [0, 0]] * 2


def test_the_team_that_kills_wins_and_its_victim_is_done() -> None:
    games = Games(1, Rules(), random_start=False)
    world = games._worlds[0]
    world.reset()
    red, blue = world.get_handles()
    world.add_agents(red, "custom", pos=[[5, 5]])
    world.add_agents(blue, "custom", pos=[[6, 5]])
    step, results = 0, [2]
    while results[0] == 2:
        rewards, done, results = games.step(np.array([[17, 6]]))  # Red hits, blue stays.
        step += 1
    # 10 points, 2 less each time and 0.1 back: the sixth hit kills (2 * 6 > 10 + 5 * 0.1).
    assert step == 6
    assert results[0] == 1
    assert done.all()
    # 5 for the kill, which is no hit that is paid for, -0.005 a step, against -0.1 for dying.
    assert rewards[0, 0] == pytest.approx((5 - 0.005 + 0.1) / 5, abs=1e-6)


def test_the_same_seed_plays_the_same_games() -> None:
    one, other = (Games(4, Rules(team_size=3), seed=7) for _ in range(2))
    rng = np.random.default_rng(0)
    for _ in range(20):
        actions = rng.integers(21, size=(4, 6))
        for a, b in zip(one.step(actions), other.step(actions), strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(one.observations, other.observations)
    assert not (Games(4, Rules(team_size=3), seed=8).observations == one.observations).all()
