"""Training at any batch size up to the whole data set, for `limit.py`.

A batch of `B` examples is cut into chunks of equal size, at most `CHUNK`. The mean of their
gradients is the gradient of the batch, for networks that treat examples one by one: batch
normalization sees chunks, and dropout draws for chunks.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from limit_settings import Setting

from gns_keras.core.goals import Goal, GoalTracker, MovingAverage
from gns_keras.sweep.stream import ArraySource
from gns_keras.tasks.large_batch import large_batch_optimizer, recipe

CHUNK = 1_024
HALF_LIFE = 2_048.0  # Of the smoothed training loss, in examples.


def rates(peak: float, num_updates: int, schedule: str) -> np.ndarray:
    """The learning rate of every update.

    `schedule` is "constant", "recipe" (5 % warm-up, quadratic decay), or "20, 2": 20 % warm-up and
    a decay with power 2, which is none for power 0.
    """
    if schedule == "constant":
        return np.full(num_updates, peak, np.float32)
    share, power = (5.0, 2.0) if schedule == "recipe" else map(float, schedule.split(","))
    law = recipe(peak, num_updates, warm_up_share=share / 100, power=power)
    return np.asarray(law(np.arange(num_updates)), np.float32)


def chunk_size(batch_size: int, largest: int = CHUNK) -> int:
    """The largest divisor of the batch that is not above `largest`."""
    return max(size for size in range(1, min(batch_size, largest) + 1) if batch_size % size == 0)


class Training:
    """A network and an optimizer, trained again and again from new weights."""

    def __init__(self, setting: Setting, optimizer: str) -> None:
        self.setting = setting
        self.model = setting.build()
        self.optimizer = large_batch_optimizer(optimizer, 1.0)
        self.optimizer.build(self.model.trainable_variables)
        self._fresh = [(v, v.numpy().copy()) for v in self.optimizer.variables]
        self._start = [tf.Variable(v.numpy()) for v in self.model.trainable_variables]
        data = setting.load("train")
        self._source = ArraySource(data)
        self.x, self.y = (tf.constant(part) for part in data)
        self._test = setting.load("test")

    def run(self, batch_size: int, peak: float, seed: int, **budget: Any) -> dict[str, Any]:
        """Trains once.

        Args:
            batch_size: Examples an update.
            peak: Learning rate.
            seed: Of weights and order of the examples.
            **budget: `schedule`, and `epochs` or `updates`.

        Returns:
            Accuracies on the two halves of the test images, losses, updates to every goal, and the
            distance of the weights from their start after every update.
        """
        count = budget.get("updates") or round(budget["epochs"] * len(self.x) / batch_size)
        self.restart(seed)
        found = self._all(batch_size, rates(peak, count, budget["schedule"]), seed)
        tracker = self._goals(batch_size, found[:, 0])
        validation, test = self._accuracies()
        return {
            "updates": count,
            "validation": validation,
            "test": test,
            "train_loss": float(found[-max(1, count // 10) :, 0].mean()),
            "diverged": bool(len(found) < count or not np.isfinite(found).all()),
            "updates_to": tracker,
            "distance": distances_kept(found[:, 1]),
        }

    def restart(self, seed: int) -> None:
        """New weights, and an optimizer that knows nothing."""
        keras.utils.set_random_seed(seed)
        fresh = self.setting.build()
        for old, new in zip(self.model.weights, fresh.weights, strict=True):
            old.assign(new)
        for start, weight in zip(self._start, self.model.trainable_variables, strict=True):
            start.assign(weight)
        for variable, value in self._fresh:
            variable.assign(value)

    def _all(self, batch_size: int, per_update: np.ndarray, seed: int) -> np.ndarray:
        blocks = self._source.blocks(seed, batch_size)
        size, done, found = chunk_size(batch_size), 0, []
        while done < len(per_update):
            now = per_update[done : done + self._source.block_steps(batch_size)]
            rows = next(blocks)[: len(now)]
            rows = tf.reshape(rows, [len(now), batch_size // size, size])
            found.append(self._updates(rows, tf.constant(now)).numpy())
            done += len(now)
            if not np.isfinite(found[-1]).all():
                break
        return np.concatenate(found)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, None], tf.int32),
            tf.TensorSpec([None], tf.float32),
        ]
    )
    def _updates(self, rows: tf.Tensor, per_update: tf.Tensor) -> tf.Tensor:
        found = tf.TensorArray(tf.float32, size=tf.shape(rows)[0], element_shape=[2])
        for update in tf.range(tf.shape(rows)[0]):
            loss, gradients = self.mean_gradient(rows[update])
            self._apply(gradients, per_update[update])
            found = found.write(update, tf.stack([loss, self._distance()]))
        return found.stack()

    def mean_gradient(self, rows: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Loss and gradient of one batch, given as chunks, shape `(chunks, size)`."""
        variables = self.model.trainable_variables
        loss, totals = tf.constant(0.0), [tf.zeros(v.shape) for v in variables]
        for index in tf.range(tf.shape(rows)[0]):
            x, y = tf.gather(self.x, rows[index]), tf.gather(self.y, rows[index])
            with tf.GradientTape() as tape:
                part = self.model.compute_loss(x, y, self.model(x, training=True))
            gradients = tape.gradient(part, variables)
            totals = [total + gradient for total, gradient in zip(totals, gradients, strict=True)]
            loss += part
        count = tf.cast(tf.shape(rows)[0], tf.float32)
        return loss / count, [total / count for total in totals]

    def _apply(self, gradients: list[tf.Tensor], rate: tf.Tensor) -> None:
        self.optimizer.learning_rate = rate
        self.optimizer.apply(gradients, self.model.trainable_variables)

    def _distance(self) -> tf.Tensor:
        pairs = zip(self.model.trainable_variables, self._start, strict=True)
        return tf.sqrt(
            tf.add_n([tf.reduce_sum(tf.square(weight - start)) for weight, start in pairs])
        )

    def _goals(self, batch_size: int, losses: np.ndarray) -> list[float]:
        average = MovingAverage(batch_size, HALF_LIFE)
        goals = [Goal.of(goal) for goal in self.setting.goals]
        tracker = GoalTracker(
            goals, ("loss",), average, divergence_factor=10, start_loss=float(losses[0])
        )
        tracker.update(losses[:, np.newaxis])
        return tracker.steps_to

    def _accuracies(self) -> tuple[float, float]:
        """On even and on odd test images: the former choose the learning rate."""
        x, y = self._test
        parts = [self.model(x[i : i + 1_000]).numpy() for i in range(0, len(x), 1_000)]
        right = np.concatenate(parts).argmax(axis=1) == y
        return float(right[::2].mean()), float(right[1::2].mean())


def distances_kept(values: np.ndarray, points_per_octave: int = 8) -> dict[str, list[float]]:
    """Log-spaced updates and the distances after them."""
    steps = np.geomspace(1, len(values), 1 + round(points_per_octave * np.log2(len(values))))
    updates = np.unique(np.round(steps)).astype(int)
    return {
        "update": updates.tolist(),
        "weight_distance": [round(float(values[update - 1]), 6) for update in updates],
    }
