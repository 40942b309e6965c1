"""Training with very large batches: optimizers, warm-up and decay. This module imports Keras.

The recipe of LARS (You et al. 2017, arXiv 1708.03888) and LAMB (You et al. 2019, arXiv 1904.00962),
which "The Limit of the Batch Size" (You et al. 2020, arXiv 2006.08517) starts from: the learning
rate rises linearly from zero, then falls as a power of what is left of the training.
"""

from collections.abc import Mapping
from typing import Any

import keras

from gns_keras.training.lars import Lars

OPTIMIZERS = ("lars", "lamb", "momentum")
# LARS trains biases by SGD with its own learning rate: at the usual 0.001, and learning rates near
# 10, the network of `mnist`, which has no batch normalization, learns nothing.
TRUST_COEFFICIENT = 0.02


@keras.saving.register_keras_serializable("gns_keras")
class WarmUpPolynomialDecay(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises to its peak and falls to zero.

    With peak `e`, `W` updates of warm-up and `N` in all, at update `t` (the first is 0):

        e (t + 1)/W                        for t < W
        e (1 - (t - W)/(N - W))^power      after that;  0 from t = N on

    Args:
        peak: The highest learning rate.
        num_updates: Updates in all.
        warm_up_updates: Updates until the peak, fewer than `num_updates`; 0 for none.
        power: Of the decay; 2 as in MLPerf's ResNet-50, 0 for a constant rate.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self, peak: float, num_updates: int, *, warm_up_updates: int = 0, power: float = 2.0
    ) -> None:
        if not (0 <= warm_up_updates < num_updates and power >= 0):
            raise ValueError(
                "Expected 0 <= warm_up_updates < num_updates and a power that is not negative. "
                f"Received: warm_up_updates={warm_up_updates}, num_updates={num_updates}, "
                f"power={power}."
            )
        self.peak = float(peak)
        self.num_updates = int(num_updates)
        self.warm_up_updates = int(warm_up_updates)
        self.power = float(power)

    def __call__(self, step: Any) -> Any:
        """Returns the learning rate of update `step`, counted from 0."""
        ops = keras.ops
        done = ops.cast(step, "float32")
        rising = (done + 1) / max(self.warm_up_updates, 1)
        left = (self.num_updates - done) / (self.num_updates - self.warm_up_updates)
        falling = ops.power(ops.clip(left, 0.0, 1.0), self.power)
        return self.peak * ops.where(done < self.warm_up_updates, rising, falling)

    def get_config(self) -> dict[str, Any]:
        """Arguments that make a schedule like this one."""
        return {
            "peak": self.peak,
            "num_updates": self.num_updates,
            "warm_up_updates": self.warm_up_updates,
            "power": self.power,
        }


def recipe(
    peak: float, num_updates: int, *, warm_up_share: float = 0.05, power: float = 2.0
) -> WarmUpPolynomialDecay:
    """Returns warm-up and polynomial decay for a whole training.

    Below 30 updates the default share is one update or none, which is no warm-up: the first update
    of a warm-up of one is at the peak.

    Args:
        peak: The highest learning rate.
        num_updates: Updates of the whole training.
        warm_up_share: Share of the updates that are warm-up, rounded; one at least is left for the
            decay.
        power: Of the decay; 0 for none.
    """
    warm_up = min(round(warm_up_share * num_updates), num_updates - 1)
    return WarmUpPolynomialDecay(peak, num_updates, warm_up_updates=warm_up, power=power)


def large_batch_optimizer(
    name: str,
    learning_rate: float,
    *,
    num_updates: int | None = None,
    warm_up_share: float = 0.05,
) -> keras.optimizers.Optimizer:
    """Returns an optimizer for large batches, with or without the recipe.

    Args:
        name: "lars", "lamb", or "momentum" (SGD, 0.9).
        learning_rate: Constant, or the peak of the schedule.
        num_updates: Updates of the whole training, for warm-up and decay. None: constant.
        warm_up_share: Share of the updates that are warm-up.

    Raises:
        ValueError: There is no such optimizer.
    """
    rate: Any = learning_rate
    if num_updates is not None:
        rate = recipe(learning_rate, num_updates, warm_up_share=warm_up_share)
    if name == "lars":
        return Lars(rate, trust_coefficient=TRUST_COEFFICIENT)
    if name == "lamb":
        return keras.optimizers.Lamb(rate)
    if name == "momentum":
        return keras.optimizers.SGD(rate, momentum=0.9)
    raise ValueError(f"Expected one of {OPTIMIZERS}. Received: {name!r}.")


def compile_for_large_batches(
    model: keras.Model,
    optimizer: str,
    learning_rates: Mapping[str, float],
    *,
    num_updates: int | None = None,
    learning_rate: float | None = None,
) -> keras.Model:
    """Compiles a classifier of logits for large batches, and returns it.

    Args:
        model: A new network; what it was compiled with before is replaced.
        optimizer: "lars", "lamb" or "momentum".
        learning_rates: Of every optimizer: constant, or the peak.
        num_updates: Updates of the whole training, for warm-up and decay. None: constant.
        learning_rate: In place of the one in `learning_rates`.

    Raises:
        ValueError: There is no such optimizer.
    """
    rate = learning_rates.get(optimizer, 0.0) if learning_rate is None else learning_rate
    model.compile(
        optimizer=large_batch_optimizer(optimizer, rate, num_updates=num_updates),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model
