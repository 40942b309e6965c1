"""One training run at the base batch size, with everything measured along it that could predict.

The run trains with the model's own train step. Gradients of groups of examples are taken at its
weights, never applied. What is kept is sums and squares, so that `calibration_predictors.py` can
weigh them in any way later.
"""

import functools
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from calibration_tasks import Task

from gns_keras.core.goals import Goal, GoalTracker, MovingAverage
from gns_keras.core.half_progress import cross_fitted_progress
from gns_keras.core.pooled import Blocks, pooled_noise_scale
from gns_keras.sweep.loop import initial_state
from gns_keras.sweep.stream import open_source
from gns_keras.training import keras_private
from gns_keras.training.curvature_measurement import CurvatureMeasurement

GROUPS, GROUP_SIZE, BLOCKS = 64, 16, 8  # Of a snapshot: 1,024 examples.
COUNTS = (1, 2, 4, 8, 16)  # Groups behind one update of the half-progress batch.
SNAPSHOTS, APART = 3, 3  # At every point, and the steps between them.
SPACING = 1.5  # Ratio of the steps of two points.
TRAIN_GROUPS = 4  # Of every training batch, for the running noise scale.
MOST_PARAMETERS = 25_000  # Of the half-progress batch; of more, every second, third, ...
CHUNK = 512  # Steps in one compiled call, at most.
CURVATURE_BATCHES, CURVATURE_SIZE = 32, 64
MEASURE_SEED = 1_000_003


class MeasuredTraining:
    """Compiled functions of one task: train and watch, and gradients of groups.

    Args:
        task: The task.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        keras.utils.set_random_seed(0)
        self.model = task.build_model()
        self.source = open_source(task.examples)
        self._variables, _ = initial_state(self.model, self.source.few)
        self.model.train_step(self.source.few)  # Metrics make their variables.
        self._weights = self.model.trainable_variables
        self._sums = [tf.Variable(tf.zeros(v.shape)) for v in self._weights]
        self._train = tf.function(self._train_steps, jit_compile=True, autograph=False)
        self._groups = tf.function(self._group_gradients, jit_compile=True, autograph=False)
        self._curvature: CurvatureMeasurement | str | None = None

    def restart(self, seed: int, learning_rate: float) -> float:
        """Takes new weights; returns the loss before training."""
        keras.utils.set_random_seed(seed)
        other = self.task.build_model()
        _, state = initial_state(other, self.source.few)
        for variable, value in zip(self._variables, state, strict=True):
            variable.assign(value)
        self.model.optimizer.learning_rate = learning_rate
        self.take_sums()
        rows = tf.range(2048)
        self.model.reset_metrics()
        return float(self.model.test_step(self.source.pick(rows[None], 0))["loss"])

    def take_sums(self) -> list[np.ndarray]:
        """Sums of the weights over the steps since the last call."""
        found = [total.numpy() for total in self._sums]
        for total in self._sums:
            total.assign(tf.zeros_like(total))
        return found

    def at_weights(self, weights: list[np.ndarray], rows: np.ndarray) -> np.ndarray:
        """`group_gradients` at other weights; the model's are put back."""
        own = [variable.numpy() for variable in self._weights]
        for variable, value in zip(self._weights, weights, strict=True):
            variable.assign(value)
        found = self.group_gradients(rows)
        for variable, value in zip(self._weights, own, strict=True):
            variable.assign(value)
        return found

    def rows(self, seed: int, batch_size: int) -> np.ndarray:
        """The whole stream as batches of row numbers, shape `(steps, batch_size)`."""
        order = np.random.default_rng((seed, 0)).permutation(self.source.num_examples)
        usable = len(order) // batch_size * batch_size
        return order[:usable].astype(np.int32).reshape(-1, batch_size)

    def train(self, rows: np.ndarray) -> np.ndarray:
        """Trains on batches; loss, `sum b|g_j|^2` and `|g|^2` of each, shape `(steps, 3)`."""
        parts = []
        for start in range(0, len(rows), CHUNK):
            piece = rows[start : start + CHUNK]
            padded = np.zeros((CHUNK, rows.shape[1]), np.int32)
            padded[: len(piece)] = piece
            parts.append(self._train(tf.constant(padded), tf.constant(len(piece))).numpy())
            parts[-1] = parts[-1][: len(piece)]
        return np.concatenate(parts)

    def group_gradients(self, rows: np.ndarray) -> np.ndarray:
        """Mean gradient of every row of row numbers, shape `(groups, parameters)`."""
        return self._groups(tf.constant(rows)).numpy()

    def preconditioner(self) -> np.ndarray | None:
        """Adam's `1/(sqrt(v) + epsilon)` before the next step; None for other optimizers."""
        optimizer = self.model.optimizer
        if not keras_private.keeps_second_moments(optimizer):
            return None
        moments, decay, epsilon = keras_private.second_moments(optimizer, self._weights)
        flat = np.concatenate([np.ravel(moment) for moment in moments]).astype(np.float64)
        correction = 1 - float(decay) ** int(optimizer.iterations)
        return 1 / (np.sqrt(flat / correction) + epsilon)

    def curvature(self, rows: np.ndarray) -> dict[str, Any]:
        """`tr(H Sigma)` and `G'HG` by Hessian-vector products, or why not."""
        if self._curvature is None:
            try:
                self._curvature = CurvatureMeasurement(self.model)
            except NotImplementedError as error:
                self._curvature = str(error)
        if isinstance(self._curvature, str):
            return {"reason": self._curvature}
        self._curvature.reset()
        for batch in rows:
            self._curvature.add_batch(self.source.pick(tf.constant(batch)[None], 0))
        found = self._curvature.noise_scale()
        return {
            "trace": found.trace_curvature,
            "grad": found.gradient_curvature,
            "value": found.value,
            "reason": found.reason,
        }

    def _train_steps(self, rows: tf.Tensor, num_steps: tf.Tensor) -> tf.Tensor:
        count = min(TRAIN_GROUPS, rows.shape[1])

        def one(step: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            groups = tf.reshape(tf.gather(rows, step), [count, -1])
            gradients = [self._gradient(groups, j) for j in range(count)]
            mean = tf.add_n(gradients) / count
            weighted = tf.add_n([tf.reduce_sum(g**2) for g in gradients])
            self.model.reset_metrics()
            logs = self.model.train_step(self.source.pick(rows, step))
            for total, weight in zip(self._sums, self._weights, strict=True):
                total.assign_add(weight.value)
            row = tf.stack(
                [logs["loss"], weighted * (rows.shape[1] // count), tf.reduce_sum(mean**2)]
            )
            return step + 1, tf.tensor_scatter_nd_update(found, [[step]], [row])

        start = (tf.constant(0), tf.zeros([CHUNK, 3]))
        return tf.while_loop(lambda s, _: s < num_steps, one, start, parallel_iterations=1)[1]

    def _group_gradients(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(
            lambda j: self._gradient(rows, j),
            tf.range(rows.shape[0]),
            fn_output_signature=tf.float32,
            parallel_iterations=1,
        )

    def _gradient(self, rows: tf.Tensor, index: Any) -> tf.Tensor:
        x, y = self.source.pick(rows, index)
        with tf.GradientTape() as tape:
            y_pred = self.model(x, training=True)
            loss = self.model.compute_loss(x=x, y=y, y_pred=y_pred, training=True)
        gradients = tape.gradient(loss, [v.value for v in self._weights])
        return tf.concat([tf.reshape(tf.convert_to_tensor(g), [-1]) for g in gradients], axis=0)


def measure(training: MeasuredTraining, seed: int, learning_rate: float, first: float) -> dict:
    """Trains to the last goal of the task, and measures at log-spaced points on the way.

    Args:
        training: Of the task.
        seed: Of weights, and order of the examples.
        learning_rate: Constant.
        first: Steps to the first goal, about; the points begin at an eighth of them.
    """
    task = training.task
    size = task.base_batch_size
    start_loss = training.restart(seed, learning_rate)
    tracker = GoalTracker(
        [Goal(threshold=goal) for goal in task.goals], ["loss"],
        MovingAverage(size, task.half_life), divergence_factor=4.0, start_loss=start_loss,
    )  # fmt: skip
    rows = training.rows(seed, size)
    fresh = iter(training.rows(MEASURE_SEED + seed, GROUP_SIZE))
    series, points, done = [], [], 0
    sums: list[tuple[int, list[np.ndarray]]] = []
    position = max(2.0, first / 8)
    while done < len(rows) and not tracker.finished:
        point = {"steps": max(math.ceil(position), done + 1), "snapshots": []}
        groups: list[np.ndarray] = []
        metric, before = None, done
        for index in range(SNAPSHOTS):
            until = point["steps"] + index * APART
            series.append(training.train(rows[done:until]))
            tracker.update(series[-1][:, :1])
            done = until
            groups.append(training.group_gradients(_take(fresh, GROUPS)))
            metric = training.preconditioner()
            point["snapshots"].append(snapshot(groups[-1], metric))
        point["half"] = half_progress(groups) if metric is not None else {}
        sums = [*sums[-1:], (done - before, training.take_sums())]
        point["mean"] = at_means(training, sums, fresh, metric)
        pairs = _take(fresh, CURVATURE_BATCHES * CURVATURE_SIZE // GROUP_SIZE)
        point["curvature"] = training.curvature(pairs.reshape(-1, CURVATURE_SIZE))
        points.append(point)
        position = max(position * SPACING, done + 1)
    every = np.concatenate(series)
    return {
        "seed": seed,
        "learning_rate": learning_rate,
        "steps_to": tracker.steps_to,
        "diverged": tracker.diverged,
        "points": points,
        "series": [[float(f"{value:.5g}") for value in row] for row in every],
    }


def at_means(
    training: MeasuredTraining, sums: list, fresh: Any, metric: np.ndarray | None
) -> list[dict[str, list[float]]]:
    """`snapshot` at the mean weights since the last point, and since the one before it.

    Args:
        training: Of the task.
        sums: Steps and sums of weights of the last one or two stretches.
        fresh: Groups of row numbers.
        metric: Adam's.
    """
    rows = [_take(fresh, GROUPS) for _ in range(SNAPSHOTS)]
    found = []
    for stretches in (sums[-1:], sums):
        steps = sum(count for count, _ in stretches)
        totals = zip(*(values for _, values in stretches), strict=True)
        mean = [sum(parts) / steps for parts in totals]
        groups = np.concatenate([training.at_weights(mean, part) for part in rows])
        found.append(snapshot(groups, metric))
    return found


def snapshot(groups: np.ndarray, metric: np.ndarray | None) -> dict[str, list[float]]:
    """`tr Sigma`, `|G|^2` and their errors: plain, in Adam's metric `P`, and in `P^2`."""
    scales = {"simple": None}
    if metric is not None:
        scales |= {"adam": np.sqrt(metric), "adam_squared": metric}
    found = {}
    for name, scale in scales.items():
        values = groups if scale is None else groups * scale.astype(np.float32)
        pooled = pooled_noise_scale(blocks_of(values))
        found[name] = [
            pooled.trace_cov, pooled.grad_sq_norm, pooled.trace_cov_error,
            pooled.grad_sq_norm_error,
        ]  # fmt: skip
    return found


def blocks_of(groups: np.ndarray) -> Blocks:
    """The groups as blocks of a frozen measurement."""
    parts = groups.reshape(BLOCKS, -1, groups.shape[1])
    means = parts.mean(axis=1, dtype=np.float64)
    squares = np.einsum("kp,kp->k", groups, groups, dtype=np.float64)
    return Blocks(
        inner_products=means @ means.T,
        weighted_sq_norms=GROUP_SIZE * squares.reshape(BLOCKS, -1).sum(axis=1),
        num_groups=np.full(BLOCKS, parts.shape[1], dtype=np.float64),
        block_size=float(GROUP_SIZE * parts.shape[1]),
    )


def half_progress(snapshots: list[np.ndarray]) -> dict[str, Any]:
    """Alignment and size of updates at several batch sizes, for two maps from gradient to update.

    "sign" is the sign of the gradient. "steady" divides by the root of the second moments that Adam
    would have after many steps at that batch size: mostly from other groups than the update's.
    """
    stride = -(-snapshots[0].shape[1] // MOST_PARAMETERS)
    halves = [half for groups in snapshots for half in np.split(groups[:, ::stride], 2)]
    found: dict[str, list] = {"sign": [], "steady": []}
    for index, half in enumerate(halves):
        others = [other for i, other in enumerate(halves) if i != index]
        found["sign"].append(cross_fitted_progress(half, np.sign, COUNTS))
        rows = [
            cross_fitted_progress(half, functools.partial(_steady, others, count), [count])
            for count in COUNTS
        ]
        found["steady"].append([np.concatenate(parts) for parts in zip(*rows, strict=True)])
    sizes = [GROUP_SIZE * count for count in COUNTS]
    return {"sizes": sizes} | {name: np.array(rows).tolist() for name, rows in found.items()}


def _steady(others: list[np.ndarray], count: int, updates: np.ndarray) -> np.ndarray:
    """Updates over the root mean square that gradients of as many groups have elsewhere."""
    total, number = np.square(updates), 1.0
    for other in others:
        means = other.reshape(-1, count, other.shape[1]).mean(axis=1)
        total = total + np.square(means).sum(axis=0, dtype=np.float64)
        number += len(means)
    return updates / np.sqrt(np.where(total > 0, total, 1.0) / number)


def _take(batches: Any, count: int) -> np.ndarray:
    return np.stack([next(batches) for _ in range(count)])
