"""Proximal policy optimization as a Keras loss (Schulman et al. 2017, arXiv 1707.06347).

    L_i = -min(r_i A_i, clip(r_i, 1-c, 1+c) A_i) + c_v (V_i - R_i)^2 / 2 - c_H H_i,
    r_i = pi(a_i)/pi_old(a_i),

with the advantages A of generalized advantage estimation (Schulman et al. 2016, arXiv 1506.02438).
Everything a frame needs is packed into the last axis: `y_true` holds action, log pi_old(a), A, R
and weight, `y_pred` the logits and the value. This module imports Keras.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

TARGETS = 5  # Action, its old log probability, advantage, return, weight.
CLIP = 0.2
VALUE_COST = 0.5
ENTROPY_BONUS = 0.01
DISCOUNT = 0.99
TRACE = 0.95


def generalized_advantages(
    rewards: np.ndarray,
    values: np.ndarray,
    ends: np.ndarray,
    last_values: np.ndarray,
    *,
    discount: float = DISCOUNT,
    trace: float = TRACE,
) -> np.ndarray:
    """Advantages `A_t = sum_l (discount * trace)^l delta_{t+l}`, cut where an episode ends.

    `delta_t = r_t + discount V(s_{t+1}) - V(s_t)`, without the middle term at an end.

    Args:
        rewards: `r_t`, shape `(steps, ...)`.
        values: `V(s_t)`, same shape.
        ends: Whether the episode ended with this step, bool, same shape.
        last_values: `V` of what follows the last step, shape `(...)`.
        discount: Of the future.
        trace: lambda of the paper: 0 trusts the values, 1 the rewards.

    Returns:
        float32, same shape. `A_t + V(s_t)` is the return that the value is trained on.
    """
    goes_on = 1.0 - ends.astype(np.float32)
    advantages = np.zeros_like(rewards, dtype=np.float32)
    ahead, value_ahead = np.zeros_like(last_values), last_values
    for step in reversed(range(len(rewards))):
        delta = rewards[step] + discount * goes_on[step] * value_ahead - values[step]
        ahead = delta + discount * trace * goes_on[step] * ahead
        advantages[step], value_ahead = ahead, values[step]
    return advantages


def normalized(advantages: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Advantages of mean 0 and standard deviation 1 over the whole rollout.

    To be done before it is split: normalized group by group, the gradients of the groups would not
    be those of one loss, and their spread not its noise.

    Args:
        advantages: Any shape.
        weights: 1 where a frame is trained on, else 0; same shape.
    """
    total = weights.sum()
    mean = (weights * advantages).sum() / total
    variance = (weights * (advantages - mean) ** 2).sum() / total
    return ((advantages - mean) / (np.sqrt(variance) + 1e-8) * weights).astype(np.float32)


@keras.saving.register_keras_serializable("gns_keras")
class PpoLoss(keras.losses.Loss):
    """The loss above; one example is a sequence of frames, over all of which it is the mean.

    Frames of weight 0 (the dead, another player) add nothing and are counted in that mean.

    Args:
        clip: Largest change of a probability, relative, that is still rewarded.
        value_cost: Weight of the value's squared error.
        entropy_bonus: Weight of the entropy.
        name: Name in the logs.
        **kwargs: What every loss takes.
    """

    def __init__(
        self,
        clip: float = CLIP,
        value_cost: float = VALUE_COST,
        entropy_bonus: float = ENTROPY_BONUS,
        name: str = "ppo",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.clip, self.value_cost, self.entropy_bonus = clip, value_cost, entropy_bonus

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Args: targets, shape `(batch, frames, 5)`; logits and value, `(batch, frames, n + 1)`."""
        return ops.mean(self.of_frames(y_true, y_pred), axis=-1)

    def of_frames(self, y_true: Any, y_pred: Any) -> Any:
        """Returns the weighted loss of every frame, shape `(batch, frames)`."""
        action, old, advantage, target, weight = ops.unstack(y_true, TARGETS, axis=-1)
        log_policy = ops.log_softmax(y_pred[..., :-1], axis=-1)
        chosen = ops.one_hot(ops.cast(action, "int32"), y_pred.shape[-1] - 1, dtype=y_pred.dtype)
        ratio = ops.exp(ops.sum(log_policy * chosen, axis=-1) - old)
        clipped = ops.clip(ratio, 1 - self.clip, 1 + self.clip)
        gain = ops.minimum(ratio * advantage, clipped * advantage)
        entropy = -ops.sum(ops.exp(log_policy) * log_policy, axis=-1)
        error = 0.5 * ops.square(y_pred[..., -1] - target)
        return weight * (self.value_cost * error - gain - self.entropy_bonus * entropy)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        own = {
            "clip": self.clip,
            "value_cost": self.value_cost,
            "entropy_bonus": self.entropy_bonus,
        }
        return {**super().get_config(), **own}
