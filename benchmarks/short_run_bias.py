"""How far the best learning rate of a short run is above that of a whole one.

    python benchmarks/short_run_bias.py --folder short_runs          # minutes of one core a task
    python benchmarks/short_run_bias.py --folder short_runs --table  # the table of what is there

For the tasks of the calibration: runs of 256 steps at 2^-6 to 2^6 times the centre of the task's
grid, from new weights (three seeds) and from weights that have been trained for 1,000 steps at the
centre and at an eighth of it (one seed each). After 64, 128 and 256 steps each is judged in two
ways: the loss of 2,048 examples at the mean of the weights over its second half, and the training
loss over its last quarter. The best is the vertex that `core.learning_rate_check` draws, with every
second power of two. Finished tasks are kept.
"""

import argparse
import math
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from calibration_tasks import TASKS, Task

from gns_keras.sweep.loop import CompiledLoop, initial_state
from gns_keras.sweep.stream import open_source

STEPS = (64, 128, 256)
POWERS = np.arange(-6, 7)
SEEDS = 3
STARTS = ("new", "trained", "trained at an eighth")
JUDGES = ("mean weights", "last quarter")
CHUNK = 8  # Steps between two looks at the weights.
PRIOR_STEPS, PROBE = 1000, 2048
FEWEST_LAST = 8


class Bench:
    """One model of a task that goes back to any state."""

    def __init__(self, task: Task) -> None:
        keras.utils.set_random_seed(0)
        self.task, self.size = task, task.base_batch_size
        x, y = task.examples()
        self.source = open_source((x[:120_000], y[:120_000]))
        self.model = task.build_model()
        self.loop = CompiledLoop(self.model, self.source, self.size)
        self.variables, _ = initial_state(self.model, self.source.few)
        probe = self.source.pick(next(self.source.blocks(2**31 - 1, PROBE)), tf.constant(0))
        self._test = tf.function(lambda: self.model.test_step(probe), autograph=False)

    def state(self) -> list[np.ndarray]:
        """All that a step depends on."""
        return [variable.numpy() for variable in self.variables]

    def starts(self, seed: int) -> list[list[np.ndarray]]:
        """New weights; with seed 0 also trained ones."""
        keras.utils.set_random_seed(100 + seed)
        _, new = initial_state(self.task.build_model(), self.source.few)
        found, order = [new], next(self.source.blocks(500 + seed, self.size))
        for factor in (1.0, 1 / 8) if seed == 0 else ():
            self.loop.restart(new, self.task.learning_rate * factor)
            self.loop.advance(order, min(PRIOR_STEPS, self.source.block_steps(self.size)))
            found.append(self.state())
        return found

    def run(self, start: list[np.ndarray], rate: float, seed: int) -> list[tuple[float, float]]:
        """Both losses after every number of `STEPS`."""
        self.loop.restart(start, rate)
        order, losses, weights, found = next(self.source.blocks(100 + seed, self.size)), [], [], []
        for done in range(CHUNK, STEPS[-1] + 1, CHUNK):
            rest = keras.tree.map_structure(lambda a, by=CHUNK - done: tf.roll(a, by, 0), order)
            losses += self.loop.advance(rest, CHUNK)[:, 0].tolist()
            weights.append([variable.numpy() for variable in self.model.trainable_variables])
            if done in STEPS:
                last = losses[-max(FEWEST_LAST, done // 4) :]
                found.append((self._at_mean(weights[len(weights) // 2 :]), float(np.mean(last))))
        return found

    def _at_mean(self, weights: list[list[np.ndarray]]) -> float:
        before = self.state()
        for parts, variable in zip(zip(*weights, strict=True), self.model.trainable_variables,
                                   strict=True):  # fmt: skip
            variable.assign(np.mean(parts, axis=0))
        self.model.reset_metrics()
        loss = float(self._test()["loss"])
        for variable, value in zip(self.variables, before, strict=True):
            variable.assign(value)
        return loss


def measure(task: Task) -> np.ndarray:
    """Losses, shape (starts, seeds, powers, steps, judges); NaN where nothing was run."""
    bench = Bench(task)
    found = np.full((len(STARTS), SEEDS, len(POWERS), len(STEPS), len(JUDGES)), np.nan)
    for seed in range(SEEDS):
        for start, state in enumerate(bench.starts(seed)):
            for index, power in enumerate(POWERS):
                rate = task.learning_rate * 2.0**power
                found[start, seed, index] = bench.run(state, rate, seed)
    return found


def vertex(losses: np.ndarray, begin: int) -> float:
    """Power of two with the lowest loss: every second one from `begin` on, then a parabola.

    Args:
        losses: At `POWERS`; not finite where a run diverged.
        begin: The present rate; the runs go on until the best lies inside of those tried.
    """
    logs = {p: math.log(v) if v > 0 and math.isfinite(v) else math.inf
            for p, v in zip(POWERS.tolist(), losses, strict=True)}  # fmt: skip
    tried = [p for p in (begin - 2, begin, begin + 2) if p in logs]
    while True:
        best = min(tried, key=logs.__getitem__)
        further = {min(tried): best - 2, max(tried): best + 2}.get(best)
        if further not in logs:
            break
        tried.append(further)
    low, high = logs.get(best - 2, math.inf), logs.get(best + 2, math.inf)
    bend = low - 2 * logs[best] + high
    return best + (low - high) / bend if 0 < bend < math.inf else float(best)


def of_task(losses: np.ndarray) -> float:
    """Mean vertex over the seeds that were run, from an eighth of the rate and from itself."""
    run = losses[~np.isnan(losses).all(axis=1)]
    return float(np.mean([vertex(row, begin) for row in run for begin in (-3, 0)]))


def kind(name: str) -> str:
    """Kind of optimizer of a task."""
    return {"sgd": "sgd", "momentum": "momentum"}.get(TASKS[name].optimizer, "adaptive")


def table(folder: Path) -> None:
    """Mean and standard deviation of the vertex over the tasks of a kind."""
    found = {name: np.load(path) for name in TASKS if (path := folder / f"{name}.npy").exists()}
    for start, label in enumerate(STARTS):
        for step, steps in enumerate(STEPS):
            for judge, way in enumerate(JUDGES):
                cells = []
                for one in ("sgd", "momentum", "adaptive"):
                    of_tasks = [
                        of_task(losses[start, :, :, step, judge])
                        for name, losses in found.items()
                        if kind(name) == one
                    ]
                    spread = np.std(of_tasks, ddof=1) if len(of_tasks) > 1 else math.nan
                    mean = np.mean(of_tasks) if of_tasks else math.nan
                    cells.append(f"{mean:.2f} ± {spread:.2f} ({len(of_tasks)})")
                print(f"| {label} | {steps} | {way} | {' | '.join(cells)} |")


def main() -> None:
    """Runs what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("short_runs"))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--table", action="store_true", help="run nothing")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in () if args.table else args.tasks:
        path = args.folder / f"{name}.npy"
        if not path.exists():
            np.save(path, measure(TASKS[name]))
            print(name, flush=True)
    table(args.folder)


if __name__ == "__main__":
    main()
