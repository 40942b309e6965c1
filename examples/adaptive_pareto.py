"""Does a batch size that follows the noise scale beat every constant one? On MNIST, measured.

    python examples/adaptive_pareto.py            # 20 minutes on one core, the first time

Figure 16 of McCandlish et al. 2018 (arXiv 1812.06162) for 784-128-10 and plain SGD. First a sweep:
constant batch sizes, each with its own best learning rate. Then `model.fit` with a
BatchSizeScheduler at several exchange rates `r`, on the same examples in the same order, from the
same weights. Their learning rate follows the relation that the grids of the constant batch sizes
are centred on, times a factor that is tuned like theirs: on a grid of ratio sqrt(2) that widens
while the best is at its edge. For every goal the best mean over the seeds counts. Examples are
drawn with replacement.

Finished runs are kept in --folder: stop it at any moment and start it again.
"""

import argparse
import json
import math
import os
import sqlite3
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from pareto_gain import GoalWatch, mean_cost
from pareto_report import analyse, draw, table
from sweep_mnist import build_model

from gns_keras import BatchSizeScheduler, LearningRateRule, sweep
from gns_keras.core.sweep_policy import LearningRateGrid
from gns_keras.tasks.datasets import load_arrays

HALF_LIFE = 2048.0
MAX_BATCH_SIZE = 4096
# eps(B) = 0.825/(1 + 50/B), Eq. A.3 by a first look at a few batch sizes: where the grids of the
# constant batch sizes are centred, and what the adaptive runs follow.
CENTRE, CENTRE_RATE, CENTRE_BATCH = LearningRateRule(critical_batch_size=50.0), 0.2, 16
FACTOR = 2**0.5  # Between neighbours on all grids.


class Lookup(keras.layers.Layer):
    """From rows of MNIST to images, so that a stream of millions of examples is one of numbers."""

    def __init__(self, images: np.ndarray) -> None:
        super().__init__(trainable=False)
        self._images = images

    def build(self, _: Any) -> None:
        self.table = self.add_weight(shape=self._images.shape, initializer="zeros", dtype="uint8")
        self.table.assign(self._images)

    def call(self, rows: Any) -> Any:
        return keras.ops.cast(keras.ops.take(self.table, rows, axis=0), "float32") / 255


def build_with_lookup(images: np.ndarray) -> keras.Model:
    """The network of `sweep_mnist.py` behind a lookup; its initial weights are the same."""
    plain = build_model()
    model = keras.Sequential([keras.Input((), dtype="int32"), Lookup(images), *plain.layers])
    model.compile(
        optimizer=keras.optimizers.SGD(float(plain.optimizer.learning_rate)), loss=plain.loss
    )
    return model


def draw_rows(num_examples: int, length: int) -> np.ndarray:
    """Rows of MNIST, drawn with replacement.

    With epochs, the training loss falls in steps at their boundaries, where examples come again for
    the first time, and most batch sizes reach a goal at the same few places.
    """
    return np.random.default_rng(0).integers(num_examples, size=length).astype(np.int32)


def stream(num_rows: int, granule: int, seed: int) -> np.ndarray:
    """Places in the drawn rows, shape `(granules, granule)`: the order of a sweep's run."""
    order = np.random.default_rng((seed, 0)).permutation(num_rows)
    return order[: num_rows // granule * granule].reshape(-1, granule)


def granules(
    images: np.ndarray, examples: tuple[np.ndarray, np.ndarray], granule: int, seed: int
) -> tf.data.Dataset:
    """The batches of the stream."""
    rows, labels = (values[stream(len(examples[0]), granule, seed)] for values in examples)
    table = tf.constant(images)
    batches = tf.data.Dataset.from_tensor_slices((rows, labels))
    return batches.map(
        lambda at, label: (tf.cast(tf.gather(table, at), tf.float32) / 255, label)
    ).prefetch(64)


class Watch(keras.callbacks.Callback):
    """Hands every update's own loss to a `GoalWatch`, and ends the run."""

    def __init__(self, goals: GoalWatch, scheduler: BatchSizeScheduler, max_examples: int) -> None:
        super().__init__()
        self.goals, self.scheduler, self.max_examples = goals, scheduler, max_examples

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.model.reset_metrics()  # Else the logs hold the mean of the epoch so far.

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        goals = self.goals
        goals.add(float(logs["loss"]), self.scheduler.batch_size)
        bad = not goals.smooth < 10  # Four times the loss of a new model.
        if goals.reached or bad or goals.examples >= self.max_examples:
            self.model.stop_training = True


def train(args: argparse.Namespace, images: np.ndarray, examples: tuple, run: dict) -> dict:
    """One adaptive run; what to keep of it.

    Args:
        args: Command line.
        images: MNIST, uint8, shape `(images, 784)`.
        examples: Drawn rows and their labels.
        run: "exchange_rate", "learning_rate" at the granule, "seed"; "rule", the critical batch
            size of Eq. A.3, None for the measured noise scale, or "constant".
    """
    keras.utils.set_random_seed(run["seed"])
    model = build_model()
    model.optimizer.learning_rate = run["learning_rate"]
    rule = None if run["rule"] == "constant" else LearningRateRule(critical_batch_size=run["rule"])
    scheduler = BatchSizeScheduler(
        exchange_rate=run["exchange_rate"],
        max_batch_size=min(MAX_BATCH_SIZE, args.max_examples),
        learning_rate_rule=rule,
        hysteresis=run["hysteresis"],
    )
    watch = Watch(GoalWatch(args.goals, HALF_LIFE), scheduler, args.max_examples)
    model.fit(
        granules(images, examples, args.granule, run["seed"]),
        steps_per_epoch=args.max_examples // args.granule,
        verbose=0,
        callbacks=[scheduler, watch],
    )
    names = ("update", "examples_seen", "global_batch_size", "noise_scale", "learning_rate")
    return {
        "steps_to": watch.goals.steps_to,
        "examples_to": watch.goals.examples_to,
        "history": {name: scheduler.history.get(name, []) for name in names},
    }


class Shelf:
    """Finished adaptive runs in an SQLite file."""

    def __init__(self, path: Path) -> None:
        self._file = sqlite3.connect(path)
        self._file.execute("CREATE TABLE IF NOT EXISTS runs (run TEXT PRIMARY KEY, found TEXT)")

    def get(self, run: dict) -> dict | None:
        """What was found, or None."""
        key = (json.dumps(run, sort_keys=True),)
        row = self._file.execute("SELECT found FROM runs WHERE run = ?", key).fetchone()
        return row and json.loads(row[0])

    def put(self, run: dict, found: dict) -> None:
        """Keeps a run."""
        with self._file:
            row = (json.dumps(run, sort_keys=True), json.dumps(found))
            self._file.execute("INSERT OR REPLACE INTO runs VALUES (?, ?)", row)


def adaptive_runs(
    args: argparse.Namespace, images: np.ndarray, examples: tuple, rule: Any
) -> list[dict]:
    """Runs of every exchange rate, factor and seed; those that are on the shelf are not repeated.

    The grid of factors widens while the best of a goal is at its edge.
    """
    shelf = Shelf(args.folder / "adaptive.sqlite")
    rate = CENTRE_RATE * CENTRE.scale(args.granule, CENTRE_BATCH)
    finished = []
    for exchange_rate in args.exchange_rates:
        powers = list(range(-(args.factors // 2), args.factors // 2 + 1))
        done: dict[int, list[dict]] = {}
        while missing := [power for power in powers if power not in done]:
            for power in missing:
                done[power] = []
                for seed in range(args.seeds):
                    run = {
                        "exchange_rate": exchange_rate,
                        "learning_rate": float(f"{rate * FACTOR**power:.6g}"),
                        "seed": seed,
                        "rule": rule,
                        "hysteresis": args.hysteresis,
                        # What else the outcome depends on.
                        "goals": args.goals,
                        "granule": args.granule,
                        "max_examples": args.max_examples,
                        "num_images": len(images),
                    }
                    found = shelf.get(run)
                    if found is None:
                        found = train(args, images, examples, run)
                        shelf.put(run, found)
                        print(
                            "r {exchange_rate:g}, rate {learning_rate:g}, seed {seed}: ".format(
                                **run
                            ),
                            [round(steps) if steps > 0 else None for steps in found["steps_to"]],
                            flush=True,
                        )
                    done[power].append({**run, **found, "power": power})
            powers = wider(done, len(args.goals), args.max_factors)
        finished += [run for runs in done.values() for run in runs]
    return finished


def wider(done: dict[int, list[dict]], num_goals: int, most: int) -> list[int]:
    """The factors to have: one more beyond every edge that is the best for some goal."""
    powers = sorted(done)
    found = list(powers)
    for index in range(num_goals):
        cost = {power: mean_cost(done[power], index) for power in powers}
        reached = {power: value for power, value in cost.items() if math.isfinite(value)}
        best = min(reached, key=reached.get, default=None)
        if len(found) < most and best == powers[0]:
            found.append(powers[0] - 1)
        if len(found) < most and best == powers[-1]:
            found.append(powers[-1] + 1)
    return sorted(set(found))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--folder", type=Path, default=Path("adaptive_pareto"), help="where runs are kept")
    add("--goals", type=float, nargs="+", default=[0.2, 0.1, 0.05, 0.03])
    add("--batch-sizes", type=int, nargs="+", default=[2**k for k in range(3, 11)])
    add("--exchange-rates", type=float, nargs="+", default=[16.0, 64.0, 256.0, 1024.0])
    add("--seeds", type=int, default=3)
    add("--granule", type=int, default=16, help="smallest batch size of the adaptive runs")
    add("--factors", type=int, default=3, help="learning rates to begin with, odd")
    add("--max-factors", type=int, default=5)
    add(
        "--rule",
        choices=["given", "measured", "constant"],
        default="given",
        help="Eq. A.3 as below, or with the measured noise scale, or a constant learning rate",
    )
    add("--hysteresis", type=float, default=2.0)
    add("--max-examples", type=int, default=1_800_000)
    add("--examples", type=int, default=60_000, help="how much of MNIST to train on")
    add("--plot", type=Path, help="the figure; default: pareto.png in the folder")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Runs what is missing, prints the table and draws the figure."""
    args = parse(arguments)
    args.folder.mkdir(parents=True, exist_ok=True)
    images, labels = (values[: args.examples] for values in load_arrays("mnist"))
    images = images.reshape(len(images), -1)
    rows = draw_rows(len(images), args.max_examples)
    examples = (rows, labels[rows].astype(np.int32))
    fixed = sweep(
        lambda: build_with_lookup(images),
        examples,
        batch_sizes=args.batch_sizes,
        goals=args.goals,
        learning_rates=LearningRateGrid(
            base_learning_rate=CENTRE_RATE,
            base_batch_size=CENTRE_BATCH,
            rule=CENTRE,
            factor=FACTOR,
            num=args.factors,
        ),
        max_examples=args.max_examples,
        seeds=args.seeds,
        half_life=HALF_LIFE,
        store=args.folder / "constant.sqlite",
    )
    print(fixed)
    (args.folder / "constant.json").write_text(fixed.to_json())
    rule = {"given": CENTRE.critical_batch_size, "measured": None, "constant": "constant"}[
        args.rule
    ]
    runs = adaptive_runs(args, images, examples, rule)
    found = analyse(fixed, runs, args.seeds)
    print(table(found))
    (args.folder / f"rows_{args.rule}.json").write_text(json.dumps(found, indent=1))
    draw(fixed, runs, found, args.plot or args.folder / "pareto.png")


if __name__ == "__main__":
    main()
