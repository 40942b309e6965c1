"""How long a sweep takes, and what the compiled loop saves against `model.fit`.

    python benchmarks/sweep.py                     # 45 runs of a 784-128-10 network on MNIST
    python benchmarks/sweep.py --figure sweep.png  # and the figure

Nine batch sizes, five learning rates each, up to 1.2 million examples a run. The ratio is that of
the same steps through `model.fit`, on the same examples, taken in turns in one process: the median
over the turns. `fit` gets arrays and `steps_per_execution=1`, its defaults. "bare" is the bound:
the same steps in TensorFlow operations alone, compiled likewise, without Keras and metrics.
"""

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import tensorflow as tf
from tables import head, machine, row

from gns_keras.core.learning_rate import LearningRateRule
from gns_keras.core.sweep_policy import LearningRateGrid
from gns_keras.sweep.loop import CompiledLoop
from gns_keras.sweep.stream import ArraySource
from gns_keras.sweep.sweep import sweep
from gns_keras.tasks.datasets import load_arrays

BATCH_SIZES = [2**power for power in range(3, 12)]
GOALS = [0.5, 0.3, 0.2, 0.1]
MAX_EXAMPLES = 1_200_000
AIM_RUNS, AIM_S = 45, 120
NUM_BLOCKS = 4  # 32,768 examples: what one call of `fit` costs hardly shows.
LEARNING_RATE = 0.05  # At batch size 8.


def build_model() -> keras.Model:
    """784-128-10 with plain SGD."""
    model = keras.Sequential(
        [
            keras.Input((784,)),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.SGD(LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def load_data() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_arrays("mnist")
    return x.reshape(-1, 784).astype(np.float32) / 255, y.astype(np.int32)


class BareLoop:
    """The same network and steps, written out."""

    def __init__(self, data: tuple[np.ndarray, np.ndarray]) -> None:
        self.x, self.y = (tf.constant(each) for each in data)
        self.weights = [tf.Variable(w) for w in build_model().get_weights()]
        self.advance = tf.function(self._advance, jit_compile=True, autograph=False)

    def _advance(self, block: tf.Tensor, num_steps: tf.Tensor) -> tf.Tensor:
        def one(step: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            rows = tf.gather(block, step)
            first, bias, second, last = self.weights
            with tf.GradientTape() as tape:
                hidden = tf.nn.relu(tf.gather(self.x, rows) @ first + bias)
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                    tf.gather(self.y, rows), hidden @ second + last
                )
                loss = tf.reduce_mean(losses)
            for weight, gradient in zip(
                self.weights, tape.gradient(loss, self.weights), strict=True
            ):
                weight.assign_sub(LEARNING_RATE * gradient)
            return step + 1, total + loss

        start = (tf.constant(0), tf.constant(0.0))
        return tf.while_loop(lambda step, _: step < num_steps, one, start, parallel_iterations=1)[1]


def seconds(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def compare(data: tuple[np.ndarray, np.ndarray], repeats: int) -> None:
    """Prints times per step, in turns on the same examples."""
    print("\nA step of the compiled loop, in µs:\n")
    head("batch size", "loop", "bare", "model.fit", "fit / loop", "loop / bare")
    source = ArraySource(data)
    for batch_size in (8, 128, 2048):
        loop, bare = CompiledLoop(build_model(), source, batch_size), BareLoop(data)
        model = build_model()
        blocks = list(itertools.islice(source.blocks(0, batch_size), NUM_BLOCKS))
        block_steps = source.block_steps(batch_size)
        rows = np.concatenate([block.numpy().reshape(-1) for block in blocks])
        x, y = data[0][rows], data[1][rows]
        number = tf.constant(block_steps)
        ways = (
            lambda loop=loop, b=blocks, n=block_steps: [loop.advance(each, n) for each in b],
            lambda bare=bare, b=blocks, n=number: [bare.advance(each, n).numpy() for each in b],
            lambda m=model, x=x, y=y, n=batch_size: m.fit(
                x, y, batch_size=n, shuffle=False, verbose=0
            ),
        )
        for way in ways:
            way()
        times = [[seconds(way) for way in ways] for _ in range(repeats)]
        medians = [statistics.median(column) for column in zip(*times, strict=True)]
        per_step = [f"{each / NUM_BLOCKS / block_steps * 1e6:,.0f}" for each in medians]
        against_fit = statistics.median(theirs / ours for ours, _, theirs in times)
        to_bound = statistics.median(ours / bound for ours, bound, _ in times)
        row(f"{batch_size:,}", *per_step, f"{against_fit:.3g}", f"{to_bound:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="threads, one run each")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch-sizes", nargs="*", type=int, default=BATCH_SIZES)
    parser.add_argument("--max-examples", type=int, default=MAX_EXAMPLES)
    parser.add_argument("--figure", help="write the figure of the sweep")
    parser.add_argument("--store", help="keep the runs; a second start then measures nothing")
    args = parser.parse_args()
    # Several runs at a time share the cores better than one run splits its operations.
    tf.config.threading.set_intra_op_parallelism_threads(args.workers)
    data = load_data()
    grid = LearningRateGrid(
        base_learning_rate=LEARNING_RATE,
        base_batch_size=8,
        rule=LearningRateRule(critical_batch_size=128),
        max_widenings=0,
    )
    began = time.perf_counter()
    with ThreadPoolExecutor(args.workers) as pool:
        result = sweep(
            build_model,
            data,
            batch_sizes=args.batch_sizes,
            goals=GOALS,
            learning_rates=grid,
            max_examples=args.max_examples,
            executor=pool,
            workers_at_once=args.workers,
            store=args.store,
        )
    took = time.perf_counter() - began
    examples = sum(record.examples for record in result.records)
    print(f"{machine()}; {args.workers} workers, median of {args.repeats} turns\n")
    head("runs", "s", "aim, s", "examples", "µs each")
    aim = AIM_S * len(result.records) / AIM_RUNS
    each = f"{took / examples * 1e6:.2f}"
    row(len(result.records), f"{took:.1f}", f"{aim:.0f}", f"{examples:,}", each)
    if args.figure:
        result.plot(args.figure)
    compare(data, args.repeats)


if __name__ == "__main__":
    main()
