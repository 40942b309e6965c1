"""Atari: does A2C learn here, and how large is its gradient noise scale at the start and later?

    python examples/reproduce/atari.py learn --game breakout
    python examples/reproduce/atari.py start --stage initial    (or after)
    python examples/reproduce/atari.py later --game breakout
    python examples/reproduce/atari.py heads --game pong
    python examples/reproduce/atari.py habit --game breakout
    python examples/reproduce/atari.py show --plot docs/reproduction/atari.png

`learn` trains one of the paper's seven games (McCandlish et al. 2018, appendix A.4.2) for some CPU
minutes, records the scores of the finished games and watches the noise scale, and saves weights on
the way. `start` measures the noise scale of all seven games with frozen weights: initial ones, or
those after 125 updates, 10,000 frames. `later` measures the saved weights of `learn` in the same
way. `heads` takes the two losses apart, `habit` asks what the trained policy does on average.
`show` prints the tables and draws the figure. Sizes count frames: steps of an environment.

With frozen weights an environment plays on and on, and what it sees resembles what it saw a moment
before. So the measurement is cut into 8 blocks of 4 environments each that have nothing in common,
and |G|^2 is taken from products between blocks alone.

Stop it at any moment and start it again: finished parts are kept in the folder atari_results.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from scipy import stats

from gns_keras import NoiseScaleMonitor
from gns_keras.core.noise_scale import NoiseScale
from gns_keras.tasks import atari, get_task
from gns_keras.tasks.actor_critic import PolicyLoss
from gns_keras.tasks.atari_rollouts import Games, Rollouts
from gns_keras.training.frozen import FrozenMeasurement

STEPS_PER_EPOCH = 125  # 10,000 frames at 16 environments.
SAVED_AT = (10_000, 30_000, 100_000, 200_000, 400_000, 600_000, 800_000, 1_000_000)
FRAMES = atari.NUM_STEPS
BLOCKS, PER_BLOCK = 8, 4  # Blocks, and environments in each.
# Batches of a block, a power of 2; with 4 environments and 5 frames, 8 blocks of 32 batches make
# 5,120 frames. The gradient of the initial weights stands out from its noise, later ones hardly do.
BATCHES = {"initial": 32, "after": 64, "later": 64}
PAPER = {"start": (100, 1_000), "average": (1_000, 20_000)}  # Table 1, noise scales.


def recorded(noise_scale: NoiseScale) -> dict[str, Any]:
    """A noise scale in frames, for a JSON file."""
    found = noise_scale.scaled(FRAMES, "frames")
    return {
        "value": found.value,
        "interval": list(found.interval),
        "grad_sq_norm": found.grad_sq_norm,
        "trace_cov": found.trace_cov,
        "frames": found.num_examples,
    }


class Diary(keras.callbacks.Callback):
    """Writes a line an epoch, and stops when the time is up."""

    def __init__(
        self, folder: Path, rollouts: Rollouts, monitor: NoiseScaleMonitor, minutes: float
    ) -> None:
        super().__init__()
        self.path = folder / "learn.jsonl"
        self.folder, self.rollouts, self.monitor = folder, rollouts, monitor
        self.known = self.path.read_text().splitlines() if self.path.exists() else []
        last = json.loads(self.known[-1]) if self.known else {"frames": 0, "cpu_s": 0.0}
        self.frames, self.cpu_before = last["frames"], last["cpu_s"]
        self.seconds = 60 * minutes
        self.began = time.process_time()

    @property
    def cpu_s(self) -> float:
        return self.cpu_before + time.process_time() - self.began

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        before = self.frames
        self.frames += STEPS_PER_EPOCH * atari.NUM_ENVIRONMENTS * FRAMES
        line = {
            "frames": self.frames,
            "scores": list(self.rollouts.scores),
            "noise_scale": recorded(self.monitor.result()),
            "loss": {name: float(logs[name]) for name in ("policy_loss", "value_loss")},
            "cpu_s": self.cpu_s,
            "wall": time.time(),
        }
        self.rollouts.scores.clear()
        self.model.save(self.folder / "learn.keras")
        for at in SAVED_AT:
            if before < at <= self.frames:
                self.model.save_weights(self.folder / f"at_{at:07d}.weights.h5")
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        mean = np.mean(line["scores"]) if line["scores"] else float("nan")
        print(f"{self.frames:,} frames, {self.cpu_s / 60:.1f} min: mean score {mean:.2f} of "
              f"{len(line['scores'])} games, {self.monitor.result().scaled(FRAMES, 'frames')}",
              flush=True)  # fmt: skip
        self.model.stop_training = self.cpu_s > self.seconds


def learn(folder: Path, game: str, minutes: float, seed: int, learning_rate: float) -> None:
    """Trains, from where the last run was stopped."""
    keras.utils.set_random_seed(seed)
    saved = folder / "learn.keras"
    task = get_task(f"atari_{game}")
    model = keras.models.load_model(saved) if saved.exists() else task.build_model()
    model.optimizer.learning_rate = learning_rate
    monitor = NoiseScaleMonitor(every=5)
    if saved.exists():
        monitor.load_state(str(saved))
    rollouts = Rollouts(model, game, num_threads=1)
    diary = Diary(folder, rollouts, monitor, minutes)
    if diary.cpu_s > diary.seconds:
        return
    model.fit(
        rollouts.batches(atari.NUM_ENVIRONMENTS, seed=seed + len(diary.known)),
        steps_per_epoch=STEPS_PER_EPOCH,
        epochs=100_000,
        shuffle=False,
        verbose=0,
        callbacks=[monitor, diary],
    )


class FrozenPlay:
    """Measures a game's noise scale at frozen weights, with the same environments every time."""

    def __init__(self, model: keras.Model, game: str, seed: int) -> None:
        rollouts = Rollouts(model, game, num_threads=1)
        batches = [
            rollouts.batches(PER_BLOCK, seed=1_000 * seed + block) for block in range(BLOCKS)
        ]
        self.blocks = [iter(each) for each in batches]
        self.measurement = FrozenMeasurement(model, num_groups=PER_BLOCK, num_blocks=BLOCKS)

    def measure(self, batches: int) -> NoiseScale:
        """`batches` a block, a power of 2: blocks stay whole then."""
        self.measurement.reset()
        for block in self.blocks:
            for _ in range(batches):
                self.measurement.add_batch(next(block))
        return self.measurement.noise_scale(between_blocks=True)


def start(folder: Path, game: str, seed: int, stage: str) -> None:
    """The noise scale at the initial weights of a game, or after an epoch of training."""
    path = folder / f"start_{game}_{seed}_{stage}.json"
    if path.exists():
        return
    keras.utils.set_random_seed(seed)
    model = get_task(f"atari_{game}").build_model()
    if stage == "after":
        batches = Rollouts(model, game, num_threads=1).batches(atari.NUM_ENVIRONMENTS, seed=seed)
        model.fit(batches, steps_per_epoch=STEPS_PER_EPOCH, shuffle=False, verbose=0)
    found = recorded(FrozenPlay(model, game, seed).measure(BATCHES[stage]))
    path.write_text(json.dumps(found))
    print(game, seed, stage, found, f"{time.process_time():.0f} CPU seconds", flush=True)


def later(folder: Path, game: str, seed: int) -> None:
    """Noise scales at the saved weights of `learn`, first and last ones first."""
    path = folder / "later.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    saved = sorted(folder.glob("at_*.weights.h5"))
    left = [weights for weights in saved if weights.name[3:10] not in found]
    if not left:
        return
    model = get_task(f"atari_{game}").build_model()
    play = FrozenPlay(model, game, seed + 77)
    for weights in left:
        model.load_weights(weights)
        found[weights.name[3:10]] = recorded(play.measure(BATCHES["later"]))
        path.write_text(json.dumps(found))
        print(weights.name, found[weights.name[3:10]], flush=True)


def random_scores(
    game: str,
    *,
    probabilities: list[float] | None = None,
    copies: int = 16,
    steps: int = 1_500,
    seed: int = 0,
) -> list[float]:
    """Scores of a policy that does not look: fixed probabilities of the actions, or equal ones."""
    games = Games(game, copies, seed=seed, max_first_steps=0, num_threads=1)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        games.step(rng.choice(games.num_actions, copies, p=probabilities))
    return games.scores


def heads(game: str, seed: int) -> None:
    """Noise scales of the policy's and of the value function's loss alone, at initial weights."""
    keras.utils.set_random_seed(seed)
    model = atari.build_model(game)
    rollouts = Rollouts(model, game, num_threads=1, max_first_steps=150)
    batches = list(rollouts.batches(8, seed=seed).take(48))
    losses = {"policy": PolicyLoss(0.01), "value": keras.losses.MeanSquaredError()}
    for policy, value in [(1.0, 0.5), (1.0, 0.0), (0.0, 0.5)]:
        weights = {"policy": policy, "value": value}
        model.compile(optimizer="sgd", loss=losses, loss_weights=weights)
        measurement = FrozenMeasurement(model, num_groups=8)
        for batch in batches:
            measurement.add_batch(batch)
        found = measurement.noise_scale()
        print(weights, found.scaled(FRAMES, "frames"), f"|G|^2 {found.grad_sq_norm:.3g}")


def habit(folder: Path, game: str) -> None:
    """What the trained policy does on average, and the score of doing that without looking."""
    model = keras.models.load_model(folder / "learn.keras")
    rollouts = Rollouts(model, game, num_threads=1, max_first_steps=50)
    policies, advantages, returns = [], [], []
    for frames, targets in rollouts.batches(4, seed=5).take(60):
        policies.append(keras.ops.softmax(model(frames)["policy"]).numpy().reshape(-1, 4))
        advantages.append(targets["policy"].numpy()[..., 1])
        returns.append(targets["value"].numpy())
    policy = np.concatenate(policies)
    mean = policy.mean(axis=0, dtype=np.float64)
    print("probabilities", mean.round(3), "standard deviation", policy.std(axis=0).round(3))
    print(f"explained variance {1 - np.var(advantages) / np.var(returns):.3f}")
    scores = random_scores(game, probabilities=list(mean / mean.sum()), seed=3)
    print("score without looking: {:.2f} +- {:.2f} in".format(*mean_interval(scores)), len(scores))


def random_policy(folder: Path, game: str) -> list[float]:
    """The scores of the random policy, played once."""
    path = folder / f"random_{game}.json"
    if not path.exists():
        path.write_text(json.dumps(random_scores(game)))
    return json.loads(path.read_text())


def mean_interval(scores: list[float]) -> tuple[float, float]:
    """Mean of independent games, and half of its 95 % interval."""
    scale = stats.t.ppf(0.975, len(scores) - 1) if len(scores) > 1 else math.nan
    error = np.std(scores, ddof=1) / math.sqrt(len(scores)) if len(scores) > 1 else math.nan
    return float(np.mean(scores)), float(scale * error)


def windows(lines: list[dict[str, Any]], num_games: int = 300) -> list[dict[str, float]]:
    """Consecutive stretches of the run of at least `num_games` finished games."""
    found, scores = [], []
    for line in lines:
        scores += line["scores"]
        if len(scores) >= num_games:
            mean, half = mean_interval(scores)
            found.append({"frames": line["frames"], "games": len(scores), "mean": mean,
                          "half": half})  # fmt: skip
            scores = []
    return found


def shown(found: dict[str, Any]) -> str:
    """A noise scale as text."""
    low, high = found["interval"]
    if not math.isfinite(high):
        return f"unresolved, at least {low:.0f}"
    return f"{found['value']:.0f} ({low:.0f} to {high:.0f})"


def show(folder: Path, game: str, plot: Path | None) -> None:
    """Prints the tables, and draws the learning curve and the noise scale along the run."""
    for path in sorted(folder.glob("start_*.json")):
        print(f"| {path.stem[6:]} | {shown(json.loads(path.read_text()))} |")
    scores = random_policy(folder, game)
    by_chance = mean_interval(scores)
    print(f"random policy: {by_chance[0]:.2f} +- {by_chance[1]:.2f} in {len(scores)} games")
    lines = [json.loads(line) for line in (folder / "learn.jsonl").read_text().splitlines()]
    for window in windows(lines):
        print(f"| {window['frames']:,} | {window['mean']:.2f} +- {window['half']:.2f} "
              f"| {window['games']} |")  # fmt: skip
    saved = folder / "later.json"
    later = json.loads(saved.read_text()) if saved.exists() else {}
    frozen = {int(at): found for at, found in sorted(later.items())}
    for at, found in frozen.items():
        print(f"| {at:,} | {shown(found)} |")
    for initial in folder.glob(f"start_{game}_*_initial.json"):
        frozen[0] = json.loads(initial.read_text())
    last = lines[-1]
    print(f"{last['frames']:,} frames in {last['cpu_s'] / 60:.1f} CPU minutes")
    if plot:
        draw(plot, game, lines, by_chance, frozen)


def draw(
    path: Path,
    game: str,
    lines: list[dict[str, Any]],
    by_chance: tuple[float, float],
    frozen: dict[int, Any],
) -> None:
    """The figure."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    found = windows(lines)
    thousand = [window["frames"] / 1e3 for window in found]
    left.errorbar(thousand, [w["mean"] for w in found], [w["half"] for w in found],
                  fmt="o-", ms=4, capsize=2, label="A2C, 300 games or more a point")  # fmt: skip
    mean, half = by_chance
    left.axhspan(mean - half, mean + half, color="C7", alpha=0.4, lw=0, label="random policy")
    left.set(xlabel="thousand frames", ylabel=f"score of a game of {game.title()}")
    left.set_ylim(0, 1.5 * max(w["mean"] for w in found))
    left.legend(loc="upper left", frameon=False)

    running = {line["frames"]: line["noise_scale"] for line in lines[2::3]}
    for points, color, name in ((running, "C0", "running, while training"),
                                (frozen, "C1", "frozen weights")):  # fmt: skip
        _draw_noise_scales(right, points, color, name)
    for name, color in (("start", "C2"), ("average", "C3")):
        right.axhspan(*PAPER[name], color=color, alpha=0.1, lw=0, label=f"paper, {name}")
    right.set(xlabel="thousand frames", ylabel="noise scale, frames", yscale="log", ylim=(10, 3e5))
    right.legend(loc="upper left", frameon=False, fontsize=8, ncols=2)
    for axes in (left, right):
        axes.set_xlim(-0.02 * lines[-1]["frames"] / 1e3, None)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def _draw_noise_scales(axes: Any, found: dict[int, Any], color: str, name: str) -> None:
    """Values with their intervals; arrows upwards from the lower bound of an unresolved one."""
    known = {at: v for at, v in found.items() if math.isfinite(v["interval"][1])}
    if known:
        values = np.array([v["value"] for v in known.values()])
        ends = np.array([v["interval"] for v in known.values()]).T
        axes.errorbar([at / 1e3 for at in known], values, np.abs(ends - values), fmt="o",
                      color=color, ms=4, lw=1, label=name)  # fmt: skip
    others = {at: v["interval"][0] for at, v in found.items() if at not in known}
    bounds = {at: low for at, low in others.items() if low > 0}
    if bounds:
        axes.errorbar([at / 1e3 for at in bounds], list(bounds.values()),
                      np.array(list(bounds.values())), lolims=True, fmt="none", color=color,
                      lw=0.8, alpha=0.5, label=f"{name}: at least")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("learn", "start", "later", "heads", "habit", "show"))
    parser.add_argument("--game", default="breakout", choices=atari.GAMES)
    parser.add_argument("--games", nargs="+", default=atari.GAMES, help="those of `start`")
    parser.add_argument("--stage", choices=("initial", "after"), default="initial")
    parser.add_argument("--minutes", type=float, default=45.0, help="CPU minutes of `learn`")
    parser.add_argument("--learning-rate", type=float, default=atari.LEARNING_RATE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("atari_results"))
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.part == "learn":
        learn(args.folder, args.game, args.minutes, args.seed, args.learning_rate)
    elif args.part == "start":
        for game in args.games:
            start(args.folder, game, args.seed, args.stage)
    elif args.part == "later":
        later(args.folder, args.game, args.seed)
    elif args.part == "heads":
        heads(args.game, args.seed)
    elif args.part == "habit":
        habit(args.folder, args.game)
    else:
        show(args.folder, args.game, args.plot)


if __name__ == "__main__":
    main()
