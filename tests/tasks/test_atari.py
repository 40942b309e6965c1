"""The Atari tasks: their algorithm against computations by hand, and first steps of every game."""

import importlib
import math
import re
import sys
import tomllib
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from gns_keras import NoiseScaleMonitor
from gns_keras.cli import main
from gns_keras.report.sweep_result import SweepResult
from gns_keras.tasks import actor_critic, atari, get_task
from gns_keras.tasks.atari_rollouts import Games, Rollouts
from gns_keras.training.frozen import FrozenMeasurement

NAMES = ["alien", "beam_rider", "breakout", "pong", "qbert", "seaquest", "space_invaders"]


@pytest.fixture(scope="module")
def player():
    """A model of Breakout whose weights stay as they are."""
    keras.utils.set_random_seed(0)
    return atari.build_model("breakout")


def rollouts(model, game="breakout", **options):
    return Rollouts(model, game, **{"max_first_steps": 3, "num_threads": 1, **options})


def drawn(model, batch_size=2, count=1, independent=1, seed=0, **options):
    batches = rollouts(model, **options).batches(batch_size, seed=seed, independent=independent)
    return list(batches.take(count).as_numpy_iterator())


def test_returns_by_hand():
    rewards = np.array([[1, 0, 2], [1, 0, 2], [1, 0, 2], [0, 0, 0]], np.float32)
    ended = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], bool)
    last_values = np.array([8, 8, 8, -4], np.float32)
    returns = actor_critic.n_step_returns(rewards, ended, last_values, 0.5)
    # Row 0: 2 + 8/2 = 6, 0 + 6/2 = 3, 1 + 3/2. Row 1: nothing after step 1. Row 2: no value.
    expected = [[2.5, 3, 6], [1, 0, 6], [1.5, 1, 2], [-0.5, -1, -2]]
    np.testing.assert_array_equal(returns, expected)


def test_the_gradient_of_the_loss_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    model = atari.build_model("breakout")
    shape = (3, 5)
    logits = rng.normal(size=(*shape, 4)).astype("float32")
    values = rng.normal(size=shape).astype("float32")
    actions = rng.integers(0, 4, shape)
    advantages, returns = rng.normal(size=(2, *shape)).astype("float32")
    predicted = {"policy": tf.constant(logits), "value": tf.constant(values)}
    targets = {"policy": np.stack([actions, advantages], -1).astype("float32"), "value": returns}
    with tf.GradientTape() as tape:
        tape.watch(predicted)
        loss = model.compute_loss(x=None, y=targets, y_pred=predicted)
    gradients = tape.gradient(loss, predicted)

    policy = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    entropy = -(policy * np.log(policy)).sum(-1, keepdims=True)
    taken = np.eye(4)[actions]
    of_logits = advantages[..., None] * (policy - taken)
    of_logits += 0.01 * policy * (np.log(policy) + entropy)  # -dH/dlogit
    log_taken = np.log((policy * taken).sum(-1))
    total = -advantages * log_taken - 0.01 * entropy[..., 0] + 0.5 * (returns - values) ** 2
    assert float(loss) == pytest.approx(total.mean(), rel=1e-5)
    np.testing.assert_allclose(gradients["policy"], of_logits / 15, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(gradients["value"], (values - returns) / 15, rtol=1e-5, atol=1e-7)


def test_the_update_is_clipped_rmsprop():
    model = atari.build_model("pong")
    optimizer = model.optimizer
    before = [v.numpy() for v in model.trainable_variables]
    gradients = [np.full(v.shape, 0.01, "float32") for v in model.trainable_variables]
    optimizer.apply([tf.constant(g) for g in gradients], model.trainable_variables)
    norm = 0.01 * np.sqrt(sum(v.size for v in before))  # 13: far above 0.5.
    gradient = 0.01 * 0.5 / norm
    step = 0.007 * gradient / np.sqrt(0.01 * gradient**2 + 1e-5)
    for old, new in zip(before, model.trainable_variables, strict=True):
        np.testing.assert_allclose(old - new.numpy(), step, rtol=0.02, atol=1e-7)  # float32


def test_the_network_is_that_of_mnih_2015():
    model = atari.build_model("pong")
    # Kernels and biases by hand: 8*8*4*32, 4*4*32*64, 3*3*64*64, 7*7*64*512; 6 actions and a value.
    trunk = 8_192 + 32 + 32_768 + 64 + 36_864 + 64 + 1_605_632 + 512
    assert model.count_params() == trunk + 513 * 7
    network = model.get_layer("network")
    frames = np.random.default_rng(0).integers(0, 256, (200, 4, 84, 84)).astype("uint8")
    logits = network(frames)["policy"].numpy()
    assert np.abs(logits).max() < 0.1  # All actions are nearly equally likely at the start.
    kernel = network.layers[3].kernel.numpy().reshape(-1, 32)
    np.testing.assert_allclose(kernel.T @ kernel, 2 * np.eye(32), atol=1e-5)


def test_frames_of_a_rollout_go_through_the_network_one_by_one():
    model = atari.build_model("pong")
    frames = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 84, 84)).astype("uint8")
    together = model(frames)
    for step in range(5):
        single = model.get_layer("network")(frames[:, step])
        for name in ("policy", "value"):
            np.testing.assert_allclose(together[name][:, step], single[name], atol=1e-5)


def test_every_copy_has_made_its_own_number_of_random_steps():
    games = Games("pong", 4, seed=3, max_first_steps=40, num_threads=1)
    assert len(set(games.first_steps.tolist())) == 4
    assert games.first_steps.max() <= 40
    info = games._env.step(np.zeros(4, np.int64))[-1]
    # Four pictures a step; a game of Pong starts with up to 30 pictures of doing nothing.
    idle = info["episode_frame_number"] - 4 * (games.first_steps + 1)
    assert idle.min() >= 0
    assert idle.max() <= 31


def test_lives_end_returns_and_games_end_scores():
    games = Games("breakout", 1, seed=0, max_first_steps=0, num_threads=1)
    rng = np.random.default_rng(0)
    ends, total, totals = 0, 0.0, []
    while len(totals) < 2:
        reward, ended = games.step(rng.integers(0, 4, 1))
        ends += int(ended[0])
        total += float(reward[0])  # Random players only reach the rows that are worth 1.
        if len(games.scores) > len(totals):
            totals.append(total)
            total = 0.0
    assert ends == 10  # Five lives a game.
    assert games.scores == totals


def test_a_new_life_starts_with_the_fire_button():
    games = Games("breakout", 2, seed=0, max_first_steps=0, num_threads=1)
    lives_lost = np.zeros(2)
    for _ in range(2_000):  # Nobody else presses it: without it the first ball would be the last.
        fires = games.fires
        _, ended = games.step(np.zeros(2, np.int64))
        assert not (ended & fires).any()
        lives_lost += ended
        if len(games.scores) >= 2:
            break
    assert len(games.scores) >= 2
    assert lives_lost.min() >= 5


def test_the_policy_learns_nothing_from_what_it_did_not_choose(player):
    source = rollouts(player, max_first_steps=0)
    fires, presses = [], 0
    games = Games("breakout", 4, seed=0, max_first_steps=0, num_threads=1)
    rng = np.random.default_rng(0)
    original = games.step

    def step(actions):
        fires.append(games.fires.copy())
        return original(actions)

    games.step = step
    for _ in range(40):
        fires.clear()
        frames, targets = source._rollout(games, rng)
        forced = np.stack(fires, 1)
        advantages = targets["policy"][..., 1]
        assert (advantages[forced] == 0).all()
        expected = targets["value"] - player(frames)["value"].numpy()
        np.testing.assert_allclose(advantages[~forced], expected[~forced], atol=1e-5)
        presses += int(forced.sum())
    assert presses >= 4


def test_a_game_of_pong_ends_at_21_and_is_lost_by_chance():
    games = Games("pong", 1, seed=1, max_first_steps=0, num_threads=1)
    rng = np.random.default_rng(0)
    won = lost = 0
    while not games.scores:
        reward, _ = games.step(rng.integers(0, 6, 1))
        won, lost = won + int(reward[0] > 0), lost + int(reward[0] < 0)
    assert lost == 21
    assert games.scores == [won - 21]


def test_rewards_are_cut_to_their_signs_and_scores_are_not():
    games = Games("qbert", 2, seed=0, max_first_steps=0, num_threads=1)
    rng = np.random.default_rng(0)
    rewards = [games.step(rng.integers(0, 6, 2))[0] for _ in range(200)]
    assert set(np.unique(rewards)) <= {-1.0, 0.0, 1.0}
    assert np.sum(rewards) > 0
    assert games._score.sum() + sum(games.scores) >= 25 * np.sum(np.array(rewards) > 0)


def test_an_example_is_what_the_present_policy_did(player):
    [(frames, targets)] = drawn(player, 3)
    assert frames.shape == (3, 5, 4, 84, 84)
    # Step t + 1 sees the last three pictures of step t again, one place further back.
    np.testing.assert_array_equal(frames[:, 1:, :3], frames[:, :-1, 1:])
    values = player(frames)["value"].numpy()
    advantages = targets["policy"][..., 1]
    np.testing.assert_allclose(advantages, targets["value"] - values, atol=1e-5)  # No life lost.
    assert set(targets["policy"][..., 0].flat) <= {0, 1, 2, 3}


def test_actions_follow_the_policy():
    model = atari.build_model("breakout")
    head = model.get_layer("network").get_layer("policy")
    head.bias.assign(np.log([0.7, 0.1, 0.1, 0.1]))
    actions = np.concatenate([t["policy"][..., 0].ravel() for _, t in drawn(model, 2, 30)])
    # 300 draws: standard error 0.026.
    assert np.mean(actions == 0) == pytest.approx(0.7, abs=0.1)


def test_a_seed_repeats_its_rollouts(player):
    first, again, other = (drawn(player, seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1]["policy"], again[1]["policy"])
    assert np.any(first[1]["policy"] != other[1]["policy"])


def test_batches_go_on_where_they_were(player):
    (first, _), (second, _) = drawn(player, 1, 2)
    np.testing.assert_array_equal(second[:, 0, :3], first[:, -1, 1:])


def test_independent_batches_come_from_different_environments(player):
    (first, _), (second, _), (third, _) = drawn(player, 1, 3, 2)
    assert np.any(second[:, 0, :3] != first[:, -1, 1:])
    np.testing.assert_array_equal(third[:, 0, :3], first[:, -1, 1:])


def test_no_rollout_is_older_than_the_last_update():
    model = atari.build_model("breakout")
    source = rollouts(model)
    bias = model.get_layer("network").get_layer("value").bias
    after_updates, at_rollouts = [float(bias.numpy()[0])], []
    original = source._policy

    def policy(frames):
        at_rollouts.append(float(bias.numpy()[0]))
        return original(frames)

    source._policy = policy
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: after_updates.append(float(bias.numpy()[0]))
    )
    monitor = NoiseScaleMonitor(every=2)
    model.fit(
        source.batches(2, seed=0), steps_per_epoch=4, epochs=2, shuffle=False, verbose=0,
        callbacks=[note, monitor],
    )  # fmt: skip
    assert len(set(after_updates)) == 9
    # Six calls a rollout: five steps, and the value of the state behind them.
    np.testing.assert_array_equal(at_rollouts[: 6 * 8], np.repeat(after_updates[:8], 6))


def test_a_frozen_measurement_draws_from_the_frozen_policy():
    model = atari.build_model("pong")
    before = [v.numpy() for v in model.trainable_variables]
    measurement = FrozenMeasurement(model, num_groups=2)
    batches = rollouts(model, "pong").batches(4, seed=0)
    for batch in batches.take(8):
        measurement.add_batch(batch)
    found = measurement.noise_scale(between_blocks=True).scaled(atari.NUM_STEPS, "frames")
    assert (found.unit, found.num_examples) == ("frames", 8 * 4 * 5)
    assert found.trace_cov > 0
    for old, new in zip(before, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


@pytest.mark.parametrize("game", NAMES)
def test_the_first_steps_of_a_game(game):
    task = get_task(f"atari_{game}")
    assert (task.unit, task.units_per_example, task.examples_per_batch) == ("frames", 5, 16)
    assert task.in_units(1_000) == (
        "An example of this task is 5 frames: batch size 1,000 is 5,000 frames."
    )
    model = task.build_model()
    before = model.get_weights()
    source = rollouts(model, game)
    history = model.fit(
        source.batches(1, seed=0), steps_per_epoch=50, shuffle=False, verbose=0
    ).history
    assert all(np.isfinite(history[name][0]) for name in ("loss", "policy_loss", "value_loss"))
    assert all(np.isfinite(w).all() for w in model.get_weights())
    changed = [np.any(a != b) for a, b in zip(before, model.get_weights(), strict=True)]
    assert all(changed)
    assert int(model.optimizer.iterations) == 50


def test_the_games_have_as_many_actions_as_the_table_says():
    assert list(atari.GAMES) == NAMES
    for game, actions in atari.GAMES.items():
        assert Games(game, 1, seed=0, max_first_steps=0, num_threads=1).num_actions == actions


@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")  # Not built yet.
def test_a_saved_model_comes_back(player, tmp_path):
    player.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    [(frames, targets)] = drawn(player, 1)
    losses = [float(m.compute_loss(y=targets, y_pred=m(frames))) for m in (player, again)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_there_are_no_data_without_a_model():
    with pytest.raises(NotImplementedError, match=r"training_data\(model\).*advise atari_pong"):
        get_task("atari_pong").load_data()


def test_a_sweep_over_a_game_without_goals_asks_for_rewards(tmp_path, capsys):
    assert main(["sweep", "atari_pong", "--store", str(tmp_path / "runs.sqlite")]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "atari_pong has no goals of its own" in line
    assert "--goals 0.01" in line


def test_a_sweep_over_a_game_counts_steps_to_a_reward(tmp_path):
    store, result = tmp_path / "runs.sqlite", tmp_path / "sweep.json"
    arguments = ["sweep", "atari_breakout", "--store", str(store), "--json", str(result)]
    assert main([*arguments, "--batch-sizes", "2", "--max-examples", "8", "--quiet"]) == 0
    found = SweepResult.from_json(result.read_text())
    assert [goal.label for goal in found.goals] == ["reward > 0.009", "reward > 0.015"]
    assert {(r.status, r.examples) for r in found.records} == {("ended", 8)}


def test_rewards_add_up_to_the_scores(player):
    source = rollouts(player, max_first_steps=0, num_threads=0)
    assert math.isnan(source.reward)
    batches = iter(source.batches(4, seed=0))
    rewards = []
    while len(source.scores) < 8:
        next(batches)
        rewards.append(source.reward * 4 * 5)
    # By chance only the front rows are hit, a point a brick; the last games are not over.
    assert sum(source.scores) <= sum(rewards) <= sum(source.scores) + 4 * 5
    assert any(rewards)


def test_without_the_extra_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py.vector_env", None)
    monkeypatch.delitem(sys.modules, "gns_keras.tasks.atari_rollouts")
    with pytest.raises(ModuleNotFoundError, match=r"gymnasium and ale-py.*gns-keras\[rl\]"):
        importlib.import_module("gns_keras.tasks.atari_rollouts")


def test_the_extra_of_the_tests_brings_the_games():
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    own = next(e for e in settings["project"]["optional-dependencies"]["test"] if "gns-keras[" in e)
    assert "rl" in re.split(r"[\[\],]", own)
