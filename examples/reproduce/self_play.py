"""Self-play of two teams: the noise scale at the start and along training, and what is learned.

    python examples/reproduce/self_play.py --plot docs/reproduction/self_play.png

For one against one and for five against five, a policy learns MAgent2's `battle` by PPO against
itself. The noise scale of the running training is that of every span of rollouts, measured on the
first epoch; that of frozen weights is pooled over fresh rollouts from snapshots. Matches of whole
games against uniformly random actions, against the untrained policy and against the policy of half
the training say what was learned.

Stop it at any moment and start it again: what is finished is kept in the folder of the store, a
training goes on from its last span. It needs the extra `rl`.
"""

import argparse
import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from scipy import stats

from gns_keras import NoiseScale
from gns_keras.core.advice_parts import NoisePoint
from gns_keras.core.run_average import average_along_run
from gns_keras.tasks.ppo import PpoLoss
from gns_keras.tasks.self_play import SelfPlay, build_model, rules
from gns_keras.tasks.self_play_rollouts import Collector, Policy, play_match
from gns_keras.training.frozen import FrozenMeasurement


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A training, in spans of rollouts.

    Attributes:
        team: Five against five.
        num_games: Games side by side, and in a batch of the frozen measurement.
        span: Rollouts in a span.
        spans: Spans of a training.
        snapshots: Spans after which the weights are frozen and measured; 0: the start.
        measured: Rollouts in such a measurement.
        matches: Spans after which games against random actions are played.
        num_matches: Games in each match.
    """

    team: bool
    num_games: int
    span: int
    spans: int
    snapshots: tuple[int, ...]
    measured: int
    matches: tuple[int, ...]
    num_matches: int = 200


SETTINGS = {
    "1v1": Setting(
        team=False,
        num_games=64,
        span=25,
        spans=8,
        snapshots=(0, 2, 4, 8),
        measured=80,
        matches=(0, 2, 4, 6, 8),
    ),
    "5v5": Setting(
        team=True,
        num_games=32,
        span=12,
        spans=6,
        snapshots=(0, 2, 4, 6),
        measured=40,
        matches=(0, 2, 4, 6),
    ),
}


def stored(scale: NoiseScale) -> dict[str, Any]:
    """What is kept of a noise scale, in frames."""
    low, high = scale.interval
    return {
        "value": scale.value,
        "interval": [low, high],
        "frames": scale.num_examples,
        "trace_cov": scale.trace_cov,
        "grad_sq_norm": scale.grad_sq_norm,
    }


def in_frames(scale: NoiseScale, frames_per_example: float) -> NoiseScale:
    """A noise scale that was measured in games' parts of a rollout."""
    low, high = scale.interval
    return replace(
        scale,
        value=scale.value * frames_per_example,
        interval=(low * frames_per_example, high * frames_per_example),
        num_examples=scale.num_examples * frames_per_example,
        unit="frames",
    )


def frozen(model: keras.Model, setting: Setting, seed: int) -> dict[str, Any]:
    """Noise scales of the whole loss and of the policy's part of it, at the present weights."""
    policy_only = keras.models.clone_model(model)
    policy_only.set_weights(model.get_weights())
    policy_only.compile(keras.optimizers.SGD(), PpoLoss(value_cost=0.0))
    parts = {"all": FrozenMeasurement(model), "policy": FrozenMeasurement(policy_only)}
    games = {"num_games": setting.num_games, "num_steps": 32, "seed": seed}
    collector = Collector(model, rules(setting.team), **games)
    frames = 0
    for _ in range(setting.measured):
        rollout = collector.collect()
        frames += rollout.num_frames
        for part in parts.values():
            part.add_batch((rollout.observations, rollout.targets))
    per_example = frames / (setting.measured * setting.num_games)
    return {name: stored(in_frames(m.noise_scale(), per_example)) for name, m in parts.items()}


def match(
    policy: Any, other: Any, setting: Setting, where: dict[str, Any], seed: int
) -> dict[str, Any]:
    """One match, as it is kept."""
    won, drawn, lost = play_match(
        policy, other, rules(setting.team), num_games=setting.num_matches, seed=seed
    )
    return {**where, "won": won, "drawn": drawn, "lost": lost}


class Run:
    """One training, as far as it has come.

    Args:
        name: A key of `SETTINGS`.
        seed: Seed of all chance.
        folder: Where it is kept.
    """

    def __init__(self, name: str, seed: int, folder: Path) -> None:
        self.name, self.seed, self.setting = name, seed, SETTINGS[name]
        self._path = folder / f"{name}_{seed}.json"
        self._weights = folder / f"{name}_{seed}"
        empty = {"windows": [], "frozen": [], "matches": [], "frames": 0, "last": []}
        self.kept = json.loads(self._path.read_text()) if self._path.is_file() else empty

    def finish(self) -> None:
        """Trains on from the last finished span, plays, and measures frozen weights."""
        done = len(self.kept["windows"])
        if done < self.setting.spans:
            self._train_on(done)
        for name, span in (("untrained", 0), ("half-trained", self.setting.spans // 2)):
            if name not in [found["other"] for found in self.kept["last"]]:
                self._play_last(name, span)
        for span in self.setting.snapshots:
            if span not in [found["span"] for found in self.kept["frozen"]]:
                self._measure(span)

    def _train_on(self, done: int) -> None:
        keras.utils.set_random_seed(self.seed)
        model = build_model()
        if self._file(0).is_file():
            model = keras.models.load_model(self._file(done))
        else:
            model.optimizer.build(model.trainable_variables)
            self._keep(model, 0)
        training = SelfPlay(
            model,
            rules(self.setting.team),
            num_games=self.setting.num_games,
            seed=1000 * self.seed + done,  # New games after a stop.
            half_life=None,
        )
        for span in range(done + 1, self.setting.spans + 1):
            self._train(training)
            self._keep(model, span)

    def _train(self, training: SelfPlay) -> None:
        learner = training.learner
        learner.tracker.reset()
        before = learner.frames
        training.run(self.setting.span)
        self.kept["frames"] += learner.frames - before
        window = {**stored(learner.noise_scale()), "at": self.kept["frames"]}
        self.kept["windows"].append(window)
        value, (low, high) = window["value"], window["interval"]
        print(
            f"{self.name} seed {self.seed}: {self.kept['frames']:,} frames, noise scale "
            f"{value:,.0f} ({low:,.0f} to {high:,.0f})",
            flush=True,
        )

    def _keep(self, model: keras.Model, span: int) -> None:
        """Plays a match that is due after a span, and keeps all."""
        if span in self.setting.matches:
            where = {"span": span, "at": self.kept["frames"]}
            found = match(Policy(model), None, self.setting, where, 8000 + self.seed)
            self.kept["matches"].append(found)
            print(f"  against random: {found}", flush=True)
        model.save(self._file(span))
        self._write()

    def _play_last(self, name: str, span: int) -> None:
        last, other = (
            Policy(keras.models.load_model(self._file(number)))
            for number in (self.setting.spans, span)
        )
        found = match(last, other, self.setting, {"other": name}, 9000 + self.seed)
        self.kept["last"].append(found)
        print(f"  {found}", flush=True)
        self._write()

    def _measure(self, span: int) -> None:
        at = self.kept["windows"][span - 1]["at"] if span else 0
        model = keras.models.load_model(self._file(span))
        found = frozen(model, self.setting, 7000 + self.seed)
        self.kept["frozen"].append({"span": span, "at": at, **found})
        self.kept["frozen"].sort(key=lambda kept: kept["span"])
        print(f"  frozen after {at:,} frames: {shown(found['all'])}", flush=True)
        self._write()

    def _file(self, span: int) -> Path:
        return self._weights.with_name(f"{self._weights.name}_{span}.keras")

    def _write(self) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self.kept))
        new.replace(self._path)


def shown(scale: dict[str, Any]) -> str:
    """A noise scale with its interval."""
    low, high = scale["interval"]
    if not math.isfinite(high):
        return f"unresolved, at least {low:,.0f}"
    return f"{scale['value']:,.0f} ({low:,.0f} to {high:,.0f})"


def win_rate(found: dict[str, Any]) -> str:
    """Games won, with Wilson's 95 % interval."""
    total = found["won"] + found["drawn"] + found["lost"]
    low, high = stats.binomtest(found["won"], total).proportion_ci(method="wilson")
    return (
        f"{found['won'] / total:.1%} won ({low:.1%} to {high:.1%}), {found['drawn'] / total:.1%} "
        f"drawn, {found['lost'] / total:.1%} lost of {total}"
    )


def average(run: Run) -> NoiseScale:
    """The snapshots averaged over the run by progress (Appendix D), in frames."""
    updates = 4 * run.setting.span * len(run.kept["windows"])  # Of a first epoch.
    points = [
        NoisePoint(
            examples_seen=found["at"],
            noise_scale=NoiseScale(
                value=(kept := found["all"])["value"],
                interval=tuple(kept["interval"]),
                trace_cov=kept["value"] * kept["grad_sq_norm"],  # Of a frame.
                grad_sq_norm=kept["grad_sq_norm"],
                num_examples=round(kept["frames"]),
            ),
        )
        for found in run.kept["frozen"]
    ]
    return average_along_run(points, round(run.kept["frames"] / updates))


def report(runs: list[Run]) -> None:
    """Prints all of it."""
    for run in runs:
        print(f"\n{run.name}, seed {run.seed}, {run.kept['frames']:,} frames")
        if len(run.kept["frozen"]) > 2:
            print(f"  average of the frozen ones after the first: {shown(stored(average(run)))}")
        for found in run.kept["frozen"]:
            print(
                f"  frozen after {found['at']:,} frames: {shown(found['all'])}; policy alone "
                f"{shown(found['policy'])}"
            )
        for window in run.kept["windows"]:
            print(f"  running, up to {window['at']:,} frames: {shown(window)}")
        for found in run.kept["matches"]:
            print(f"  after {found['at']:,} frames against random: {win_rate(found)}")
        for found in run.kept["last"]:
            print(f"  at the end against {found['other']}: {win_rate(found)}")


def draw(runs: list[Run], path: Path) -> None:
    """Above the noise scale against frames, below the games won; a column a game."""
    import matplotlib.pyplot as plt

    names = [name for name in SETTINGS if any(run.name == name for run in runs)]
    size = (5.5 * len(names), 6.4)
    figure, axes = plt.subplots(
        2, len(names), figsize=size, squeeze=False, sharex="col", sharey="row"
    )
    for column, name in enumerate(names):
        above, below = axes[:, column]
        for run in (run for run in runs if run.name == name):
            draw_noise(above, run, f"C{run.seed}")
            draw_wins(below, run, f"C{run.seed}")
        above.set(yscale="log", ylim=(2e3, 3e6), title=name, ylabel="noise scale, frames")
        below.grid(alpha=0.3)
        above.grid(alpha=0.3)
        below.set(ylim=(-0.03, 1.03), xlabel="thousands of frames")
        below.set_ylabel("games won against random actions")
        above.legend(fontsize=8, loc="upper left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def draw_noise(axis: Any, run: Run, color: str) -> None:
    """The windows as points with intervals, those of frozen weights as diamonds."""
    for label, marker, rows in (
        ("running", "o", run.kept["windows"]),
        ("frozen", "D", [{**found["all"], "at": found["at"]} for found in run.kept["frozen"]]),
    ):
        solid = [row for row in rows if math.isfinite(row["interval"][1])]
        open_ = [row for row in rows if not math.isfinite(row["interval"][1])]
        values = np.array([row["value"] for row in solid])
        ends = np.array([row["interval"] for row in solid]).reshape(-1, 2).T
        axis.errorbar(
            [row["at"] / 1000 for row in solid],
            values,
            yerr=np.abs(ends - values),
            fmt=marker,
            ms=7 if label == "frozen" else 4,
            mfc="white" if label == "frozen" else color,
            color=color,
            lw=1,
            label=f"{label}, seed {run.seed}",
        )
        axis.plot(
            [row["at"] / 1000 for row in open_],
            [row["interval"][0] for row in open_],
            "^",
            color=color,
            ms=4,
            alpha=0.6,
            label=f"{label}, seed {run.seed}: unresolved, at least" if open_ else None,
        )


def draw_wins(axis: Any, run: Run, color: str) -> None:
    """Games won against random actions, with Wilson's intervals."""
    at = [found["at"] / 1000 for found in run.kept["matches"]]
    counts = [(f["won"], f["won"] + f["drawn"] + f["lost"]) for f in run.kept["matches"]]
    rates = np.array([won / total for won, total in counts])
    ends = np.array(
        [stats.binomtest(won, total).proportion_ci(method="wilson") for won, total in counts]
    ).T
    axis.errorbar(at, rates, yerr=np.abs(ends - rates), fmt="o-", ms=4, color=color, lw=1)


def main() -> None:
    """Finishes the runs that are not finished, prints the numbers, and draws."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--store", type=Path, default=Path("self_play"), help="folder of results")
    parser.add_argument("--games", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--plot", type=Path, help="PNG")
    parser.add_argument("--report", action="store_true", help="only report what is there")
    arguments = parser.parse_args()
    arguments.store.mkdir(parents=True, exist_ok=True)
    runs = [
        Run(name, seed, arguments.store) for seed in arguments.seeds for name in arguments.games
    ]
    for run in runs:
        if not arguments.report:
            run.finish()
    begun = [run for run in runs if run.kept["windows"]]
    report(begun)
    if arguments.plot and begun:
        draw(begun, arguments.plot)


if __name__ == "__main__":
    main()
