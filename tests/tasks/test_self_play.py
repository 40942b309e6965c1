"""Self-play: what rollouts hold, where the noise scale is measured, and threads that end."""

import threading
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

pytest.importorskip("magent2")

from gns_keras import NoiseScaleMonitor
from gns_keras.tasks import get_task
from gns_keras.tasks.battle import Rules
from gns_keras.tasks.self_play import SelfPlay, build_model, rules
from gns_keras.tasks.self_play_learner import Learner
from gns_keras.tasks.self_play_rollouts import Collector, Policy, Rollout, play_match
from gns_keras.tasks.self_play_workers import RolloutWorkers

GAMES, STEPS = 8, 8


def new_model(seed: int = 0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return build_model()


def collect(model: keras.Model, game: Rules | None = None, **kwargs: object) -> Rollout:
    game = game or Rules(max_steps=6)
    collector = Collector(model, game, num_games=GAMES, num_steps=STEPS, **kwargs)
    return collector.collect()


def gradient(model: keras.Model, observations: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Mean gradient over the frames of weight 1, flat, in float64."""
    with tf.GradientTape() as tape:
        losses = model.loss.of_frames(targets, model(observations))
        loss = tf.reduce_sum(losses) / targets[..., 4].sum()
    parts = tape.gradient(loss, model.trainable_variables)
    return np.concatenate([part.numpy().ravel() for part in parts]).astype(np.float64)


@pytest.fixture
def observed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, float, np.ndarray]]:
    """What the learner's tracker is given, step by step."""
    seen = []
    original = Learner.__init__

    def watched(self: Learner, *args: object, **kwargs: object) -> None:
        original(self, *args, **kwargs)
        observe = self.tracker.observe

        def record(norms: np.ndarray, mean: float, sizes: np.ndarray) -> None:
            seen.append((norms, mean, sizes))
            observe(norms, mean, sizes)

        self.tracker.observe = record

    monkeypatch.setattr(Learner, "__init__", watched)
    return seen


def test_a_rollout_holds_what_was_played() -> None:
    model = new_model()
    rollout = collect(model)
    assert rollout.observations.shape == (GAMES, 2 * STEPS, 846)
    assert rollout.targets.shape == (GAMES, 2 * STEPS, 5)
    assert rollout.num_frames == GAMES * 2 * STEPS
    log_policy, values = Policy(model)(rollout.observations)
    actions = rollout.targets[..., 0].astype(int)
    expected = np.take_along_axis(log_policy, actions[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(rollout.targets[..., 1], expected, rtol=1e-5)
    # Normalized over the whole rollout; the returns are not.
    assert rollout.targets[..., 2].mean() == pytest.approx(0, abs=1e-5)
    assert rollout.targets[..., 2].std() == pytest.approx(1, abs=1e-4)
    assert rollout.targets[..., 2].mean(axis=1).std() > 0.01
    # The advantage is an affine function of return minus value, the same one for all games.
    raw = rollout.targets[..., 3] - values
    slope, offset = np.polyfit(raw.ravel(), rollout.targets[..., 2].ravel(), 1)
    np.testing.assert_allclose(rollout.targets[..., 2], slope * raw + offset, atol=1e-4)


def test_the_dead_and_past_selves_are_not_trained_on() -> None:
    model = new_model()
    model.get_layer("policy").bias.assign([0.0] * 13 + [3.0] * 8)  # Many fights.
    collector = Collector(
        model, Rules(team_size=2, map_size=4), num_games=8, num_steps=64, past_share=0.5, seed=1
    )
    rollout = collector.collect()
    weights = rollout.targets[..., 4].reshape(8, 64, 4)
    dead = (rollout.observations == 0).all(axis=-1).reshape(8, 64, 4)
    assert dead.any()
    assert (weights[dead] == 0).all()
    assert (weights[:4][~dead[:4]] == 1).all()
    for game in range(4, 8):  # One side of the last four, in turn.
        past = slice(0, 2) if game % 2 == 0 else slice(2, 4)
        assert (weights[game, :, past] == 0).all()
        assert weights[game].sum() > 0
    assert (rollout.targets[..., 2][weights.reshape(8, -1) == 0] == 0).all()


def test_a_past_self_plays_with_the_weights_it_had() -> None:
    model = new_model()
    collector = Collector(model, Rules(), num_games=4, num_steps=4, past_share=1.0, past_every=10)
    collector.collect()
    first = [weight.copy() for weight in model.get_weights()]
    model.set_weights([weight + 1.0 for weight in first])
    collector.collect()
    for kept, weight in zip(collector._past._player.get_weights(), first, strict=True):
        np.testing.assert_array_equal(kept, weight)


def test_groups_are_whole_games(observed: list) -> None:
    model = new_model()
    rollout = collect(model, Rules(team_size=2, map_size=6, max_steps=64), past_share=0.25, seed=3)
    per_game = np.stack(
        [
            gradient(model, rollout.observations[g : g + 1], rollout.targets[g : g + 1])
            for g in range(GAMES)
        ]
    )
    whole = gradient(model, rollout.observations, rollout.targets)
    Learner(model, epochs=1, minibatches=1, groups=GAMES).train(rollout)
    ((norms, mean, sizes),) = observed
    frames = rollout.targets[..., 4].sum(axis=1)
    assert len(set(frames)) > 1
    np.testing.assert_allclose(np.sort(norms), np.sort((per_game**2).sum(axis=1)), rtol=1e-3)
    np.testing.assert_allclose(mean, (whole**2).sum(), rtol=1e-3)
    np.testing.assert_array_equal(np.sort(sizes), np.sort(frames))


def test_only_the_first_epoch_is_measured(observed: list) -> None:
    model = new_model()
    rollout = collect(model)
    learner = Learner(model, epochs=3, minibatches=2, groups=2)
    learner.train(rollout)
    assert int(model.optimizer.iterations) == 6
    assert len(observed) == 2
    assert sum(sizes.sum() for _, _, sizes in observed) == rollout.num_frames == learner.frames
    assert learner.noise_scale().unit == "frames"


def test_the_norm_is_that_before_clipping(observed: list) -> None:
    keras.utils.set_random_seed(0)
    model = build_model()
    model.optimizer.global_clipnorm = 1e-6
    rollout = collect(model)
    whole = gradient(model, rollout.observations, rollout.targets)
    Learner(model, epochs=1, minibatches=1, groups=2).train(rollout)
    assert observed[0][1] == pytest.approx((whole**2).sum(), rel=1e-3)
    assert observed[0][1] > 1e-6


@pytest.mark.parametrize("team", [False, True], ids=["1v1", "team"])
def test_fifty_updates_run(team: bool) -> None:
    training = SelfPlay(
        new_model(), rules(team), num_games=8, num_steps=8, minibatches=2, groups=2, epochs=1
    )
    before = training.learner.model.get_weights()
    training.run(25)
    model = training.learner.model
    assert int(model.optimizer.iterations) == 50
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))
    assert training.learner.noise_scale().num_steps == 50
    assert training.staleness == [0] * 25


def final_weights(**kwargs: object) -> tuple[list[np.ndarray], SelfPlay]:
    training = SelfPlay(
        new_model(), Rules(max_steps=8), num_games=8, num_steps=8, minibatches=2, groups=2, **kwargs
    )
    training.run(6)
    return training.learner.model.get_weights(), training


@pytest.mark.slow
def test_threads_without_staleness_give_the_same_as_none() -> None:
    in_turn, _ = final_weights()
    threaded, training = final_weights(workers=1, max_staleness=0)
    assert training.staleness == [0] * 6
    for a, b in zip(in_turn, threaded, strict=True):
        np.testing.assert_array_equal(a, b)


def test_staleness_is_recorded_and_bounded() -> None:
    _, training = final_weights(workers=2, max_staleness=2)
    assert len(training.staleness) == 6
    assert 0 <= min(training.staleness) <= max(training.staleness) <= 2
    assert training.learner.rollouts == 6
    assert rollout_threads() == []


def test_an_old_policy_can_be_waited_for() -> None:
    """A learner that never publishes gets only as many rollouts as may be stale."""
    model = new_model()
    collector = Collector(model, Rules(max_steps=8), num_games=2, num_steps=2)
    with RolloutWorkers([(collector, model)], model.get_weights(), max_staleness=2) as workers:
        assert [workers.fetch().version for _ in range(3)] == [0, 0, 0]
        workers.publish(model.get_weights())
        assert workers.fetch().version == 1
    assert workers.staleness == [0, 0, 0, 0]


def rollout_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("rollouts-")]


def failing(error: BaseException) -> Callable[..., Rollout]:
    def collect(self: Collector, version: int = 0) -> Rollout:
        raise error

    return collect


def test_an_error_in_a_thread_reaches_the_learner_and_ends_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Collector, "collect", failing(OSError("no game")))
    with pytest.raises(RuntimeError, match="plays games failed: OSError: no game"):
        final_weights(workers=2)
    assert rollout_threads() == []


def test_an_interrupted_learner_ends_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Learner, rollout: Rollout) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Learner, "train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        final_weights(workers=2)
    assert rollout_threads() == []


def test_a_match_counts_every_game_once_and_from_both_sides() -> None:
    model = new_model()

    class Hunter:
        """Hits wherever somebody is, and stays else: it knows nothing and beats a pacifist."""

        def __call__(self, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            view = observations[..., :845].reshape(-1, 13, 13, 5)[..., 3]
            logs = np.full((len(view), 21), -1e9)
            around = [(5, 5), (5, 6), (5, 7), (6, 5), (6, 7), (7, 5), (7, 6), (7, 7)]
            for row, seen in enumerate(view):
                hits = [13 + k for k, place in enumerate(around) if seen[place]]
                logs[row, hits or [6]] = 0
            return logs, np.zeros(len(view))

    class Pacifist:
        def __call__(self, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            logs = np.full((len(observations), 21), -1e9)
            logs[:, 6] = 0
            return logs, np.zeros(len(observations))

    game = Rules(map_size=4, max_steps=200)  # Four squares: everybody is next to everybody.
    assert play_match(Hunter(), Pacifist(), game, num_games=20) == (20, 0, 0)
    assert play_match(Pacifist(), Hunter(), game, num_games=20) == (0, 0, 20)
    won, drawn, lost = play_match(Policy(model), None, Rules(), num_games=20)
    assert won + drawn + lost == 20


def test_what_cannot_be_split_is_refused() -> None:
    model = new_model()
    with pytest.raises(ValueError, match="at least two groups"):
        Learner(model, groups=1)
    with pytest.raises(ValueError, match=r"multiple of minibatches x groups = 3 x 2 = 6\. Rec"):
        Learner(model, minibatches=3, groups=2).train(collect(model))
    with pytest.raises(ValueError, match="at least one player"):
        RolloutWorkers([], [], max_staleness=0)


def test_the_model_is_saved_and_loaded(tmp_path: object) -> None:
    model = new_model()
    model.save(tmp_path / "policy.keras")
    loaded = keras.models.load_model(tmp_path / "policy.keras")
    x = np.random.default_rng(0).random((2, 3, 846)).astype(np.float32)
    np.testing.assert_array_equal(model(x), loaded(x))
    assert loaded.loss.get_config() == model.loss.get_config()


@pytest.mark.parametrize("name", ["self_play_1v1", "self_play_team"])
def test_the_first_steps_of_a_task_inside_fit(name: str) -> None:
    task = get_task(name)
    keras.utils.set_random_seed(0)
    model = task.build_model()
    assert float(model.optimizer.learning_rate) == pytest.approx(task.learning_rate)
    rollouts = task.training_data(model)
    assert rollouts.batch_size == task.examples_per_batch
    monitor = NoiseScaleMonitor(every=1, microbatches=2)
    history = model.fit(
        rollouts.batches(2, seed=0), steps_per_epoch=10, verbose=0, callbacks=[monitor]
    )
    assert np.isfinite(history.history["loss"]).all()
    assert int(model.optimizer.iterations) == 10
    assert monitor.result().num_examples == 20


def test_batches_are_played_by_the_present_weights() -> None:
    task = get_task("self_play_1v1")
    model = task.build_model()
    batches = iter(task.training_data(model).with_batch_size(4).batches(4, seed=0))
    observations, targets = next(batches)
    assert observations.shape == (4, task.units_per_example, 846)
    assert set(np.unique(targets[..., 0])) == set(range(21))
    model.get_layer("policy").bias.assign([0.0] * 20 + [50.0])
    _, targets = next(batches)
    assert set(np.unique(targets[..., 0])) == {20}


def test_batches_in_a_row_come_from_other_games() -> None:
    rollouts = get_task("self_play_1v1").training_data(new_model())
    first, second = (iter(rollouts.batches(2, seed=0, independent=n)) for n in (2, 1))
    a, b, c = (next(first)[0].numpy() for _ in range(3))
    d, e = (next(second)[0].numpy() for _ in range(2))
    np.testing.assert_array_equal(a, d)
    assert (b != e).any()
    time = slice(-1, None)  # The last number of an observation: how much of the game is over.
    np.testing.assert_array_equal(c[..., time], e[..., time])  # The first games go on.


def test_there_are_no_data_without_a_model() -> None:
    with pytest.raises(NotImplementedError, match="self_play_team has no data without a model"):
        get_task("self_play_team").load_data()
