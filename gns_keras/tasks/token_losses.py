"""What a language model reports. This module imports Keras."""

from typing import Any

import keras


@keras.saving.register_keras_serializable("gns_keras")
class LastTokenLoss(keras.metrics.Mean):
    """Mean loss of the last token of every sequence; its exponential is the paper's perplexity.

    Args:
        name: Name in the logs.
        **kwargs: What every metric takes.
    """

    def __init__(self, name: str = "last_token_loss", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Args: tokens, shape `(batch, length)`; logits; weights of the sequences, if any."""
        losses = keras.losses.sparse_categorical_crossentropy(
            y_true[:, -1], y_pred[:, -1], from_logits=True
        )
        return super().update_state(losses, sample_weight)
