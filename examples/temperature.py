"""Does the noise scale follow the learning rate? The forecast against a measurement, on MNIST.

    python examples/temperature.py                      # softmax regression, five seeds
    python examples/temperature.py --recipes all        # and where the relation is put to the test
    python examples/temperature.py --footnote-14        # the learning rate that keeps the noise

A run at a constant batch size is cut to a tenth of its learning rate. `BatchSizeScheduler` should
forecast the noise scale on that very update. Frozen weights from before the cut, and from after the
training has settled, are measured apart from it with `FrozenMeasurement`: the sum of tr(Sigma) over
the sum of |G|^2. MNIST comes from tensorflow_datasets, or from mnist.npz in the folder
GNS_KERAS_DATA. Stop it at any moment and start it again: it goes on from temperature.json.
"""

import argparse
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from scipy import stats

from gns_keras import LearningRateRule
from gns_keras.tasks import mnist
from gns_keras.training.batch_scheduler import BatchSizeScheduler
from gns_keras.training.frozen import FrozenMeasurement

CUT = 10.0
EVERY = 40  # Updates between two snapshots.
MEASURED_BATCH = 2_000
MEASURED_BATCHES = 4  # 8,000 examples for every snapshot.
SNAPSHOTS_PER_EPOCH = 15  # For footnote 14.


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A run: spans of training, in epochs.

    `warm_up` epochs are plain training. Then `BatchSizeScheduler` watches for `watched` epochs, up
    to the cut and a little beyond, and plain training goes on. After the cut, `settling` epochs
    are shown, and the `settled` ones that follow count.
    """

    hidden: int = 0
    momentum: float = 0.0
    learning_rate: float = 0.3
    batch_size: int = 16
    label_noise: float = 0.0
    num_examples: int = 60_000
    warm_up: float = 3.0
    watched: float = 1.5
    settling: float = 0.5
    settled: float = 1.5

    def updates(self, epochs: float) -> int:
        """Updates in a number of epochs."""
        return round(epochs * (self.num_examples // self.batch_size))


SOFTMAX = Recipe(
    batch_size=64, learning_rate=0.5, warm_up=6.0, watched=4.0, settling=2.0, settled=6.0
)
FEW_IMAGES = Recipe(num_examples=2_000, warm_up=60.0, watched=40.0, settling=20.0, settled=40.0)
RECIPES = {
    "softmax regression": SOFTMAX,
    "softmax regression, half the learning rate": replace(SOFTMAX, learning_rate=0.25),
    "softmax regression, twice the learning rate": replace(SOFTMAX, learning_rate=1.0),
    "softmax regression, momentum 0.9": replace(SOFTMAX, momentum=0.9, learning_rate=0.05),
    "softmax regression, momentum 0.9, twice": replace(SOFTMAX, momentum=0.9, learning_rate=0.1),
    "784-32-10": Recipe(hidden=32, learning_rate=0.1),
    "784-32-10, half the labels random": Recipe(hidden=32, learning_rate=0.1, label_noise=0.5),
    "784-128-10 on 2,000 images": replace(FEW_IMAGES, hidden=128, learning_rate=0.1),
}
# Learning rates for larger batches, as multiples of that of the small batch.
GRID = {64: (2.0, 2.8, 4.0, 5.6), 256: (4.0, 5.6, 8.0, 11.3, 16.0)}
EPOCHS = 4.0  # Longest run at a larger batch.


def load(recipe: Recipe, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images as rows, and labels of which some may be random."""
    rng = np.random.default_rng(seed)
    x, y = (values[: recipe.num_examples] for values in mnist.load_data())
    random = rng.random(len(y)) < recipe.label_noise
    return x.reshape(len(x), -1), np.where(random, rng.integers(0, 10, len(y)), y)


def build(recipe: Recipe, schedule: keras.optimizers.schedules.LearningRateSchedule | float):
    """Softmax regression, or a network with one hidden layer."""
    hidden = [keras.layers.Dense(recipe.hidden, activation="relu")] if recipe.hidden else []
    model = keras.Sequential([keras.Input((784,)), *hidden, keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(schedule, momentum=recipe.momentum), loss)
    return model


class Watch(keras.callbacks.Callback):
    """Keeps weights every so many updates and the logs of some updates, and ends the training."""

    def __init__(self, end: int, every: int = EVERY, logged: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.end, self.every, self.logged = end, every, logged
        self.weights: dict[int, list[np.ndarray]] = {}
        self.logs: dict[int, dict[str, float]] = {}

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        self.start = int(self.model.optimizer.iterations.numpy())

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        done = int(self.model.optimizer.iterations.numpy())
        if done - 1 in self.logged:
            self.logs[done - 1] = dict(logs)
        if (done - self.start) % self.every == 0:
            self.weights[done] = self.model.get_weights()
        self.model.stop_training = done >= self.end


def fit(
    model: keras.Model,
    data: tuple[np.ndarray, np.ndarray],
    recipe: Recipe,
    watch: Watch,
    scheduler: BatchSizeScheduler | None = None,
) -> None:
    """Trains until `watch` ends it: one update at a time for the scheduler, else many at once."""
    model.steps_per_execution = 1 if scheduler else watch.every
    model.make_train_function(force=True)
    left = watch.end - int(model.optimizer.iterations.numpy())
    whole = recipe.updates(1.0) // watch.every * watch.every
    used = tuple(values[: whole * recipe.batch_size] for values in data)
    callbacks = [scheduler, watch] if scheduler else [watch]
    options = {"batch_size": recipe.batch_size, "epochs": -(-left // whole), "verbose": 0}
    model.fit(*used, **options, callbacks=callbacks)


def measure(
    model: keras.Model, snapshots: dict[int, list[np.ndarray]], data: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Rows of update, tr(Sigma), |G|^2 and loss, one for every snapshot.

    The examples are drawn with replacement: what is meant is the gradient over the training data.
    """
    rng = np.random.default_rng(0)
    frozen, rows = FrozenMeasurement(model), []
    for update, weights in sorted(snapshots.items()):
        model.set_weights(weights)
        frozen.reset()
        losses = []
        for _ in range(MEASURED_BATCHES):
            index = rng.integers(0, len(data[0]), MEASURED_BATCH)
            x, y = (values[index] for values in data)
            frozen.add_batch((x, y))
            losses.append(float(model.loss(y, model(x))))
        scale = frozen.noise_scale()
        rows.append((update, scale.trace_cov, scale.grad_sq_norm, np.mean(losses)))
    return np.array(rows)


def pooled(rows: np.ndarray) -> float:
    """Noise scale of several snapshots: one ratio of sums."""
    return float(rows[:, 1].sum() / rows[:, 2].sum())


def cut_run(recipe: Recipe, seed: int) -> dict[str, object]:
    """One run with a cut: what was forecast, and what was measured."""
    keras.utils.set_random_seed(seed)
    cut = recipe.updates(recipe.warm_up) + recipe.updates(recipe.watched) + 1
    # A schedule keeps its value up to and including a boundary.
    rates = [recipe.learning_rate, recipe.learning_rate / CUT]
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([cut - 1], rates)
    model, data = build(recipe, schedule), load(recipe, seed)
    settled = cut + recipe.updates(recipe.settling)
    end = settled + recipe.updates(recipe.settled)
    fit(model, data, recipe, Watch(recipe.updates(recipe.warm_up)))
    scheduler = BatchSizeScheduler(batch_sizes={0: recipe.batch_size}, update_every=1)
    watched, after = Watch(cut + 20, logged=(cut - 1, cut)), Watch(end)
    fit(model, data, recipe, watched, scheduler)
    fit(model, data, recipe, after)
    rows = measure(model, {**watched.weights, **after.weights}, data)
    last, first = watched.logs[cut - 1], watched.logs[cut]
    return {
        "seed": seed,
        "cut": cut,
        "settled_at": settled,
        "batch_sizes": sorted(set(scheduler.history["global_batch_size"])),
        "forecast_before": last["noise_scale"],
        "forecast": first["noise_scale"],
        "interval": [first["noise_scale_lower"], first["noise_scale_upper"]],
        "measured_before": pooled(rows[rows[:, 0] < cut]),
        "measured": pooled(rows[rows[:, 0] >= settled]),
        "loss_before": float(rows[rows[:, 0] < cut][:, 3].mean()),
        "loss": float(rows[rows[:, 0] >= settled][:, 3].mean()),
        "rows": rows.tolist(),
        "history": {
            name: scheduler.history[name][:: max(1, len(scheduler.history["update"]) // 400)]
            for name in ("update", "noise_scale", "noise_scale_lower", "noise_scale_upper")
        },
    }


def over_seeds(values: list[float]) -> tuple[float, float, float]:
    """Geometric mean and its 95 % Student-t interval."""
    logs = np.log(values)
    if len(logs) < 2:
        return math.exp(logs.mean()), math.nan, math.nan
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    return tuple(math.exp(logs.mean() + sign * half) for sign in (0, -1, 1))


def report(name: str, runs: list[dict[str, object]]) -> None:
    """Prints the runs of one recipe."""
    print(f"\n{name}")
    print("seed  before: forecast measured   at the cut: moved by  forecast (95 % interval)")
    print("      measured once settled   measured moved by   forecast/measured")
    for run in runs:
        low, high = run["interval"]
        print(
            f"{run['seed']:4d}  {run['forecast_before']:8.0f} {run['measured_before']:8.0f}   "
            f"x{run['forecast'] / run['forecast_before']:.2f}  {run['forecast']:.0f} "
            f"({low:.0f} to {high:.0f})  {run['measured']:.0f}  "
            f"x{run['measured'] / run['measured_before']:.1f}  "
            f"{run['forecast'] / run['measured']:.2f}   loss {run['loss_before']:.3f} "
            f"{run['loss']:.3f}"
        )
    for label, values in (
        ("forecast/measured before the cut", ("forecast_before", "measured_before")),
        ("measured after/before", ("measured", "measured_before")),
        ("forecast/measured once settled", ("forecast", "measured")),
    ):
        middle, low, high = over_seeds([run[values[0]] / run[values[1]] for run in runs])
        print(f"  {label}: {middle:.2f} (95 % interval {low:.2f} to {high:.2f})", flush=True)


def steady_runs(batch_size: int, factors: tuple[float, ...], seed: int, epochs: float) -> Any:
    """Runs without a cut, at several learning rates: for each the rows of `measure` along it."""
    recipe = Recipe(batch_size=batch_size)
    keras.utils.set_random_seed(seed)
    model, data = build(recipe, recipe.learning_rate), load(recipe, seed)
    start, found = model.get_weights(), []
    for factor in factors:
        model.set_weights(start)
        model.optimizer.iterations.assign(0)
        model.optimizer.learning_rate = recipe.learning_rate * factor
        every = recipe.updates(1.0) // SNAPSHOTS_PER_EPOCH
        watch = Watch(round(epochs * SNAPSHOTS_PER_EPOCH) * every, every)
        fit(model, data, recipe, watch)
        found.append(measure(model, watch.weights, data).tolist())
    return found


def at_loss(rows: np.ndarray, loss: float) -> tuple[float, float]:
    """Noise scale over the first epoch whose mean loss is `loss` or less, and when its middle is.

    Both are NaN if there is no such epoch.
    """
    width = SNAPSHOTS_PER_EPOCH
    means = np.convolve(rows[:, 3], np.ones(width) / width, "valid")
    reached = np.flatnonzero(means <= loss)
    if not reached.size:
        return math.nan, math.nan
    window = rows[reached[0] : reached[0] + width]
    return pooled(window), (reached[0] + width / 2) / width


def keeping_rate(rates: np.ndarray, noise: np.ndarray, wanted: float) -> float:
    """Learning rate at which a straight line through the logarithms has the wanted noise scale."""
    known = np.isfinite(noise)
    slope, height = np.polyfit(np.log(rates[known]), np.log(noise[known]), 1)
    return math.exp((math.log(wanted) - height) / slope)


def footnote_14(store: "Store", seeds: int) -> None:
    """Prints the learning rates that keep the noise scale at equal loss, beside the rules."""
    small, wanted, losses = Recipe(), [], []
    for seed in range(seeds):
        (rows,) = store.get(f"steady/16/{seed}", steady_runs, small.batch_size, (1.0,), seed, 3.0)
        last = np.array(rows)[-SNAPSHOTS_PER_EPOCH:]
        wanted.append(pooled(last))
        losses.append(last[:, 3].mean())
    middle, low, high = over_seeds(wanted)
    print(f"\nBatch {small.batch_size}, learning rate {small.learning_rate}, third epoch:")
    print(f"noise scale {middle:.0f} ({low:.0f} to {high:.0f}), loss {np.mean(losses):.4f}")
    for batch_size, factors in GRID.items():
        found = np.full((seeds, len(factors), 2), math.nan)
        for seed in range(seeds):
            name = f"steady/{batch_size}/{seed}"
            runs = store.get(name, steady_runs, batch_size, factors, seed, EPOCHS)
            found[seed] = [at_loss(np.array(rows), losses[seed]) for rows in runs]
        noise, epochs = found[..., 0], found[..., 1]
        print(f"\nBatch {batch_size}\nrate x  noise scale at that loss  epochs to it  seeds there")
        for column, factor in enumerate(factors):
            there = np.isfinite(noise[:, column])
            value = np.exp(np.log(noise[there, column]).mean()) if there.any() else math.nan
            mean = epochs[there, column].mean() if there.any() else math.nan
            print(f"{factor:6g} {value:26.0f} {mean:13.2f} {there.sum():12d}")
        rates = [keeping_rate(np.array(factors), *pair) for pair in zip(noise, wanted, strict=True)]
        value, low, high = over_seeds(rates)
        print(f"keeps the noise scale: x{value:.1f} (95 % interval {low:.1f} to {high:.1f})")
        for name, rule in rules(middle).items():
            print(f"  {name}: x{rule.scale(batch_size, small.batch_size):.1f}", flush=True)


def rules(noise_scale: float) -> dict[str, LearningRateRule]:
    """What the learning rate could follow."""
    return {
        "linear": LearningRateRule(),
        "Eq. A.3 with the noise scale": LearningRateRule(critical_batch_size=noise_scale),
        "square root": LearningRateRule(alpha=0.5),
    }


class Store:
    """Finished runs in a JSON file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs = json.loads(path.read_text()) if path.exists() else {}

    def get(self, name: str, run: Callable[..., Any], *arguments: Any) -> Any:
        """The result under a name, from the file or from a new run."""
        if name not in self.runs:
            self.runs[name] = run(*arguments)
            self.path.write_text(json.dumps(self.runs))
        return self.runs[name]


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Left: the runs of the first recipe. Right: forecast over measurement of all recipes."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    name, runs = next(iter(found.items()))
    for run in runs:
        history, last = run["history"], run["rows"][-1][0]
        updates = np.array(history["update"]) + RECIPES[name].updates(RECIPES[name].warm_up)
        before = updates < run["cut"]
        left.plot(updates[before], np.array(history["noise_scale"])[before], color="C0", lw=0.8)
        left.plot([run["cut"], last], [run["forecast"]] * 2, color="C0", lw=0.8)
        groups = np.array_split(np.array(run["rows"]), len(run["rows"]) // 10)
        where, values = zip(*((group[:, 0].mean(), pooled(group)) for group in groups), strict=True)
        left.plot(where, values, ".", color="C1")
    left.axvline(runs[0]["cut"], color="0.7", ls=":")
    left.axvspan(runs[0]["cut"], runs[0]["settled_at"], color="0.93", label="settling")
    left.fill_between(
        [runs[0]["cut"], last], *[[end] * 2 for end in runs[0]["interval"]], color="C0", alpha=0.12
    )
    left.plot([], [], color="C0", label="BatchSizeScheduler; from the cut on its forecast there")
    left.plot([], [], ".", color="C1", label="measured, frozen weights")
    left.set(yscale="log", xlabel="update", ylabel="noise scale, examples", title=name)
    left.legend(loc="lower right", fontsize=8)
    for row, runs in enumerate(found.values()):
        ratios = [run["forecast"] / run["measured"] for run in runs]
        middle, low, high = over_seeds(ratios)
        right.plot(ratios, [row] * len(ratios), ".", color="0.6")
        right.errorbar(middle, row, xerr=[[middle - low], [high - middle]], fmt="o", capsize=3)
    right.axvspan(1 / 1.5, 1.5, color="0.93")
    right.axvline(1, color="0.7", ls=":")
    right.set(xscale="log", xlabel="forecast / measured, once settled")
    right.set_yticks(range(len(found)), [label.replace(", ", ",\n") for label in found])
    right.set_xticks([0.5, 0.67, 1, 1.5, 2], ["0.5", "0.67", "1", "1.5", "2"])
    right.minorticks_off()
    right.invert_yaxis()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs what was asked for, and keeps finished runs in a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--recipes", nargs="*", default=["softmax regression"], help="names, or: all"
    )
    parser.add_argument("--footnote-14", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--store", type=Path, default=Path("temperature.json"))
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    store = Store(args.store)
    if args.footnote_14:
        footnote_14(store, args.seeds)
        return
    found = {}
    for name in RECIPES if args.recipes == ["all"] else args.recipes:
        recipe = RECIPES[name]
        found[name] = [
            store.get(f"{name}/{seed}", cut_run, recipe, seed) for seed in range(args.seeds)
        ]
        report(name, found[name])
    if args.plot:
        draw(found, args.plot)


if __name__ == "__main__":
    main()
