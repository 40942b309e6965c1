"""Runs of a sweep once more, with training and test error along them.

A sweep keeps the steps to its goals and nothing else. Here its runs at the learning rates that are
best for some goal are trained again (the same weights, examples and order), and loss and error are
evaluated at log-spaced steps on fixed samples: 5,000 training and 5,000 test images. That is
without the delay of a moving average, and alike for both. Goals are read off by interpolation,
after a centred mean over three evaluations.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import benchmarks_path  # noqa: F401
import keras
import numpy as np
import tensorflow as tf
from calibration_tasks import Lookup, Task, image_arrays
from scaling_tasks import TASKS, test_arrays, write

from gns_keras.core.sweep_policy import RunKey, RunOutcome, best_run
from gns_keras.core.sweep_result import SweepRecord
from gns_keras.core.tradeoff_fit import Tradeoff, fit_tradeoff
from gns_keras.sweep.loop import CompiledLoop, initial_state
from gns_keras.sweep.stream import open_source

EVALUATED = 5_000
FIRST = 250  # Examples before the first evaluation.
SPACING = 1.2  # Ratio of the steps of two evaluations.
WINDOW = 3  # Evaluations in a mean.
BEYOND = 1.5  # A run goes on for so many times the examples to its last goal, for the test goals.
SPLITS, METRICS = ("train", "test"), ("loss", "error")


class Recorder:
    """Trains at any batch size, and evaluates on the way.

    Args:
        task: A classifier.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.source = open_source(task.examples)
        self._loops: dict[int, CompiledLoop] = {}
        model = task.build_model()
        (lookup,) = (layer for layer in model.layers if isinstance(layer, Lookup))
        self._judge = keras.Model(lookup.output, model.output)
        images = image_arrays(task.data, task.side)
        held_out = [part[:EVALUATED] for part in test_arrays(task)]
        few = np.random.default_rng(1).permutation(len(images[0]))[:EVALUATED]
        self._samples = [
            tuple(tf.constant(part) for part in (x, y.astype(np.int32)))
            for x, y in ((images[0][few], images[1][few]), held_out)
        ]

    def run(self, key: RunKey, max_examples: float) -> dict[str, list]:
        """Steps of the evaluations; at each, loss and error of both samples.

        Args:
            key: Batch size, learning rate and seed of a run of the sweep.
            max_examples: Where to end.
        """
        if key.batch_size not in self._loops:
            self._loops[key.batch_size] = self._new_loop(key)
        loop = self._loops[key.batch_size]
        keras.utils.set_random_seed(key.seed)
        loop.restart(initial_state(self.task.build_model(), self.source.few)[1], key.learning_rate)
        stream, size = Rows(self.source, key.seed), key.batch_size
        found: dict[str, list] = {"steps": [], "values": []}
        done, position = 0, max(1.0, FIRST / size)
        while done < math.ceil(max_examples / size):
            until = min(max(math.ceil(position), done + 1), math.ceil(max_examples / size))
            advance(loop, stream, until - done, size)
            done, position = until, until * SPACING
            found["steps"].append(done)
            found["values"].append(self._values(loop.model))
            if not np.all(np.isfinite(found["values"][-1])):
                break
        return found

    def _new_loop(self, key: RunKey) -> CompiledLoop:
        keras.utils.set_random_seed(key.seed)
        return CompiledLoop(self.task.build_model(), self.source, key.batch_size, jit_compile=True)

    def _values(self, model: keras.Model) -> list[list[float]]:
        """Loss and error of both samples."""
        for mine, trained in zip(self._judge.weights, model.weights, strict=True):
            mine.assign(trained)
        return [self._evaluate(*sample).numpy().tolist() for sample in self._samples]

    @tf.function(jit_compile=True)
    def _evaluate(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        logits = self._judge(images, training=False)
        losses = keras.ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        wrong = tf.cast(tf.argmax(logits, -1, tf.int32) != labels, tf.float32)
        return tf.stack([tf.reduce_mean(losses), tf.reduce_mean(wrong)])


class Rows:
    """Row numbers in the order of a sweep's run, as many as asked for."""

    def __init__(self, source: Any, seed: int) -> None:
        self.block_steps = source.block_steps
        self._blocks: Iterator[Any] = source.blocks(seed, 1)
        self._rest = np.empty(0, np.int32)

    def take(self, count: int) -> np.ndarray:
        """The next ones."""
        while len(self._rest) < count:
            self._rest = np.concatenate([self._rest, next(self._blocks).numpy().ravel()])
        taken, self._rest = np.split(self._rest, [count])
        return taken


def advance(loop: CompiledLoop, rows: Rows, steps: int, batch_size: int) -> np.ndarray:
    """Trains further; metrics of each step's own batch, shape `(steps, metrics)`.

    Args:
        loop: At this batch size.
        rows: Where its examples come from.
        steps: Number of steps.
        batch_size: Examples a step.
    """
    most = rows.block_steps(batch_size)
    values = []
    while steps:
        now = min(steps, most)
        block = np.zeros((most, batch_size), np.int32)
        block[:now] = rows.take(now * batch_size).reshape(now, batch_size)
        values.append(loop.advance(tf.constant(block), now))
        steps -= now
    return np.concatenate(values)


def recorded(
    name: str, result: SweepRecord, folder: Path, *, may_run: bool = True
) -> dict[RunKey, dict[str, list]]:
    """All recorded runs of a task; makes those that are missing, if it may."""
    path = folder / f"{name}_curves.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    recorder = None
    for key, examples in sorted(wanted(result).items()) if may_run else ():
        label = f"{key.batch_size} {key.learning_rate!r} {key.seed}"
        if label not in known:
            recorder = recorder or Recorder(TASKS[name])
            known[label] = recorder.run(key, examples)
            write(path, json.dumps(known))
            print(f"{name}: {label}, {known[label]['steps'][-1]} steps", flush=True)
    return {_key_of(label): run for label, run in known.items()}


def wanted(result: SweepRecord) -> dict[RunKey, float]:
    """Runs to record: those at the best learning rate for some goal.

    Returns:
        Examples to record of each: `BEYOND` times those to the last goal that it is the best for.
    """
    found: dict[RunKey, float] = {}
    for index, goal in enumerate(result.goals):
        best = {(one.batch_size, one.learning_rate) for one in result.best(goal)}
        for record in result.records:
            if (record.batch_size, record.learning_rate) in best:
                examples = BEYOND * record.steps_to[index] * record.batch_size
                found[record.key] = max(found.get(record.key, 0.0), examples)
    return found


@dataclass(frozen=True, kw_only=True)
class Front:
    """Steps to one goal at every batch size that reached it, every seed a point.

    Attributes:
        goal: Loss or error.
        rates: Best learning rate of every batch size.
        fit: Eq. 2.11.
    """

    goal: float
    rates: dict[int, float]
    fit: Tradeoff


def front(
    runs: dict[RunKey, dict[str, list]], split: str, metric: str, goal: float
) -> Front | None:
    """Fits Eq. 2.11 to the best recorded runs; None if fewer than three batch sizes reach."""
    outcomes = [
        RunOutcome(key=key, steps_to=(crossing(run, split, metric, goal),), diverged=False)
        for key, run in runs.items()
    ]
    seeds = sorted({key.seed for key in runs})
    sizes, steps, rates = [], [], {}
    for size in sorted({key.batch_size for key in runs}):
        best = best_run(outcomes, 0, size, seeds)
        if math.isfinite(best.steps):
            rates[size] = best.learning_rate
            for outcome in outcomes:
                if (outcome.key.batch_size, outcome.key.learning_rate) == (size, rates[size]):
                    sizes.append(size)
                    steps.append(outcome.steps_to[0])
    return Front(goal=goal, rates=rates, fit=fit_tradeoff(sizes, steps)) if len(rates) > 2 else None


def curve(run: dict[str, list], split: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and centred means of a recorded run."""
    values = np.array(run["values"])[:, SPLITS.index(split), METRICS.index(metric)]
    reach = WINDOW // 2
    padded = np.pad(values, reach, mode="reflect", reflect_type="odd")
    smooth = np.convolve(padded, np.full(WINDOW, 1 / WINDOW), mode="valid")
    return np.array(run["steps"], dtype=float), smooth


def crossing(run: dict[str, list], split: str, metric: str, goal: float) -> float:
    """Steps until a goal is first reached, interpolated in their logarithm; NaN if it is not."""
    steps, values = curve(run, split, metric)
    below = np.flatnonzero(values <= goal)
    if not below.size or below[0] == 0:
        return math.nan
    after = int(below[0])
    share = (values[after - 1] - goal) / (values[after - 1] - values[after])
    return float(math.exp(np.log(steps[after - 1 : after + 1]) @ [1 - share, share]))


def _key_of(label: str) -> RunKey:
    size, rate, seed = label.split()
    return RunKey(batch_size=int(size), learning_rate=float(rate), seed=int(seed))
