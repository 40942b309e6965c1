"""Atari: does A2C learn here, and how large is its gradient noise scale at the start and later?

    python examples/reproduce/atari.py learn --game breakout
    python examples/reproduce/atari.py start
    python examples/reproduce/atari.py later --game breakout
    python examples/reproduce/atari.py show --plot docs/reproduction/atari.png

`learn` trains one of the paper's seven games (McCandlish et al. 2018, appendix A.4.2) for some CPU
minutes, records the scores of the finished games and watches the noise scale, and saves weights on
the way. `start` measures the noise scale of all seven games with frozen weights: initial ones, and
those after 50 updates. `later` measures the saved weights of `learn` in the same way. `show` prints
the tables and draws the figure. Sizes count frames, which are steps of an environment.

With frozen weights an environment plays on and on, and what it sees resembles what it saw a moment
before. So the measurement is cut into blocks that have no environment in common, and |G|^2 is taken
from products between blocks alone.

Stop it at any moment and start it again: finished parts are kept in the folder atari_results.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from gns_keras import NoiseScaleMonitor
from gns_keras.core.noise_scale import NoiseScale
from gns_keras.tasks import atari, get_task
from gns_keras.tasks.atari_rollouts import Games, Rollouts

STEPS_PER_EPOCH = 125  # 10,000 frames at 16 environments.
SAVED_AT = (10_000, 30_000, 100_000, 200_000, 400_000, 600_000, 800_000, 1_000_000)
FRAMES = atari.NUM_STEPS


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


def learn(folder: Path, game: str, minutes: float, seed: int) -> None:
    """Trains, from where the last run was stopped."""
    keras.utils.set_random_seed(seed)
    saved = folder / "learn.keras"
    task = get_task(f"atari_{game}")
    model = keras.models.load_model(saved) if saved.exists() else task.build_model()
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


def random_scores(game: str, *, copies: int = 16, steps: int = 3_000, seed: int = 0) -> list[float]:
    """Scores of a policy that takes every action equally often."""
    games = Games(game, copies, seed=seed, max_first_steps=0, num_threads=1)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        games.step(rng.integers(0, games.num_actions, copies))
    return games.scores


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("learn",))
    parser.add_argument("--game", default="breakout", choices=atari.GAMES)
    parser.add_argument("--minutes", type=float, default=45.0, help="CPU minutes of `learn`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("atari_results"))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.part == "learn":
        learn(args.folder, args.game, args.minutes, args.seed)


if __name__ == "__main__":
    main()
