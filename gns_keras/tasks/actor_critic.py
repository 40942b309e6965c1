"""What an actor-critic model is made of besides its network. This module imports Keras.

Advantage actor-critic (Mnih et al. 2016, arXiv 1602.01783), in the form of OpenAI Baselines' A2C:

    loss = mean(-A log pi(a|s)) - entropy_weight mean(H(pi(.|s))) + value_weight mean((R - V(s))^2)

with `n`-step returns `R` and advantages `A = R - V(s)`, both constants for the gradient.
"""

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray


def n_step_returns(
    rewards: NDArray[np.float32],
    ended: NDArray[np.bool_],
    last_values: NDArray[np.float32],
    discount: float,
) -> NDArray[np.float32]:
    """Discounted returns up to the end of a rollout, and the value of the state behind it.

        R_t = r_t + discount R_{t+1}, without the second term where step t ended an episode

    Args:
        rewards: Shape `(environments, steps)`.
        ended: Whether a step ended its episode, same shape.
        last_values: `V` of the state after the last step, shape `(environments,)`; without effect
            where the last step ended an episode.
        discount: Per step.

    Returns:
        Shape `(environments, steps)`, float32.
    """
    returns = np.zeros_like(rewards, dtype=np.float32)
    following = last_values
    for step in reversed(range(rewards.shape[1])):
        following = rewards[:, step] + discount * following * ~ended[:, step]
        returns[:, step] = following
    return returns


@keras.saving.register_keras_serializable("gns_keras")
class PolicyLoss(keras.losses.Loss):
    """`-A log pi(a|s) - entropy_weight H(pi(.|s))` for every step.

    The first argument of the call is `(action, A)` along the last axis, shape `(..., 2)`; the
    second the logits, shape `(..., actions)`.

    Args:
        entropy_weight: Keeps the policy from becoming deterministic too soon.
        name: Name of the loss.
        **kwargs: What every loss takes.
    """

    def __init__(
        self, entropy_weight: float = 0.01, name: str = "policy_loss", **kwargs: Any
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.entropy_weight = entropy_weight

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns the loss of every step, shape `(...)`."""
        ops = keras.ops
        log_policy = ops.log_softmax(y_pred, axis=-1)
        taken = ops.one_hot(ops.cast(y_true[..., 0], "int32"), y_pred.shape[-1])
        log_taken = ops.sum(taken * log_policy, axis=-1)
        entropy = -ops.sum(ops.exp(log_policy) * log_policy, axis=-1)
        return -y_true[..., 1] * log_taken - self.entropy_weight * entropy

    def get_config(self) -> dict[str, Any]:
        """Arguments that make a loss like this one."""
        return {**super().get_config(), "entropy_weight": self.entropy_weight}
