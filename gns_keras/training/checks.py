"""What a model has in it that changes the meaning of its noise scale, or takes it away."""

import warnings
from typing import Any

import keras
import tensorflow as tf

from gns_keras.training import keras_private

_BATCH_COUPLED_LOSSES = ("circle",)
_WHOLE_BATCH_LOSSES = ("dice", "tversky")


def require_tensorflow_backend() -> None:
    """Refuses the JAX, Torch and OpenVINO backends, which have no tf.distribute train step."""
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "gns_keras works inside the TensorFlow train step. Received backend "
            f'"{keras.backend.backend()}". Set the environment variable KERAS_BACKEND=tensorflow '
            "before importing keras, or feed a NoiseScaleTracker from your own loop."
        )


def refuse_foreign(model: Any) -> None:
    """Raises where the model is none of Keras 3 with the TensorFlow backend.

    Raises:
        RuntimeError: Another backend than TensorFlow.
        TypeError: A model of tf-keras 2, or something else.
    """
    require_tensorflow_backend()
    if not isinstance(model, keras.Model):
        kind = type(model)
        raise TypeError(
            f"Expected a keras.Model of Keras 3. Received: {kind.__module__}.{kind.__qualname__}. "
            "Build it with `import keras`; models of tf-keras 2 (`tf_keras`, or `tf.keras` under "
            "TF_USE_LEGACY_KERAS=1) have another train step."
        )


def refuse_untrainable(model: keras.Model) -> None:
    """Raises where a built model has nothing to train.

    Raises:
        ValueError: It has no trainable weights.
    """
    if model.built and not model.trainable_variables:
        raise ValueError(
            f"{type(model).__name__} has no trainable weights, so there is no gradient to measure. "
            "Set `trainable=True` on the layers to train."
        )


def refuse_unsupported(model: keras.Model, strategy: tf.distribute.Strategy) -> None:
    """Raises where a noise scale would be meaningless or cannot be measured.

    Raises:
        RuntimeError: Another backend than TensorFlow.
        TypeError: A model of another kind.
        ValueError: The model is not compiled, or has no trainable weights.
        NotImplementedError: Parameter servers, several optimizers, batch-coupled losses, or
            batch normalization synchronized over replicas.
    """
    refuse_foreign(model)
    if isinstance(strategy, tf.distribute.experimental.ParameterServerStrategy):
        raise NotImplementedError(
            "Keras 3 does not train under ParameterServerStrategy (keras-team/keras issue 18624), "
            "and its asynchronous updates have no common batch gradient. Use MirroredStrategy or "
            "MultiWorkerMirroredStrategy."
        )
    others = keras_private.other_optimizers(model) if hasattr(model, "optimizer") else []
    if others:
        raise NotImplementedError(
            f"{type(model).__name__} holds further optimizers ({', '.join(others)}) besides the "
            "compiled one. The noise scale is that of one gradient; feed one NoiseScaleTracker per "
            "optimizer from your train step."
        )
    if getattr(model, "optimizer", None) is None:
        raise ValueError(
            f"{type(model).__name__} has no optimizer. Call `model.compile(optimizer=..., "
            "loss=...)` first."
        )
    refuse_untrainable(model)
    _refuse_coupled(model, strategy)


def _refuse_coupled(model: keras.Model, strategy: tf.distribute.Strategy) -> None:
    coupled = [name for name in _loss_names(model) if name.lower() in _BATCH_COUPLED_LOSSES]
    if coupled:
        raise NotImplementedError(
            f"The loss {coupled[0]} compares the examples of a batch with each other: there is no "
            "gradient per example, and the mean over parts of a batch is not the gradient of the "
            "whole. Its noise scale is not defined."
        )
    if strategy.num_replicas_in_sync > 1:
        synchronized = [
            layer.name
            for layer in keras_private.all_layers(model)
            if isinstance(layer, keras.layers.BatchNormalization)
            and getattr(layer, "synchronized", False)
            and layer.trainable
        ]
        if synchronized:
            raise NotImplementedError(
                "BatchNormalization(synchronized=True) couples the replicas "
                f"({', '.join(synchronized[:3])}): their gradients are not independent samples. "
                "Use synchronized=False while measuring, or freeze these layers."
            )


def refuse_without_second_moments(optimizer: keras.optimizers.Optimizer) -> None:
    """Raises if `metric="adam"` has nothing to take its metric from.

    Raises:
        ValueError: The optimizer keeps no second moments.
    """
    if not keras_private.keeps_second_moments(optimizer):
        raise ValueError(
            'metric="adam" needs an optimizer with second moments, such as Adam or RMSprop. '
            f'Received: {type(optimizer).__name__}. Use metric="euclidean".'
        )


def refuse_monitor_arguments(microbatches: int | str, metric: str) -> None:
    """Checks arguments of `NoiseScaleMonitor`.

    Raises:
        ValueError: Fewer than two groups, or an unknown metric.
    """
    is_count = isinstance(microbatches, int) and microbatches >= 2
    if microbatches != "auto" and not is_count:
        raise ValueError(
            "The noise scale needs at least two gradient groups per step. Received: "
            f'microbatches={microbatches!r}. Set it to 2 or more, or leave it at "auto".'
        )
    if metric not in ("euclidean", "adam"):
        raise ValueError(f'Expected `metric` "euclidean" or "adam". Received: {metric!r}.')


def refuse_scheduler_arguments(exchange_rate: Any, update_every: Any, most_updates: int) -> None:
    """Checks arguments of `BatchSizeScheduler`.

    Args:
        exchange_rate: As given.
        update_every: As given.
        most_updates: Updates that can be recorded between two looks at them.

    Raises:
        ValueError: No positive number, or no number of updates.
    """
    numeric = isinstance(exchange_rate, int | float) and exchange_rate > 0
    if exchange_rate != "auto" and not numeric:
        raise ValueError(
            'Expected `exchange_rate` to be "auto" or the number of examples that are worth one '
            f"step. Received: {exchange_rate!r}."
        )
    counts = isinstance(update_every, int) and 1 <= update_every <= most_updates
    if update_every != "auto" and not counts:
        raise ValueError(
            'Expected `update_every` to be "auto" or a number of updates from 1 to '
            f"{most_updates}. Received: {update_every!r}."
        )


def refuse_microbatches(microbatches: int | str, strategy: tf.distribute.Strategy) -> None:
    """Raises where the groups are replicas.

    Raises:
        ValueError: Always.
    """
    raise ValueError(
        f"`microbatches` splits the batch on one device. Received: {microbatches} under "
        f"{type(strategy).__name__} with {strategy.num_replicas_in_sync} replicas, which are the "
        'groups. Leave it at "auto".'
    )


def describe_caveats(model: keras.Model, num_replicas: int) -> list[str]:
    """Sentences that say what the number means where it is not plainly the noise scale.

    Args:
        model: Built model.
        num_replicas: Replicas in sync; with two or more they are the groups.
    """
    layers = keras_private.all_layers(model)
    caveats = []
    if has_batch_normalization(model):
        groups = "replica's batch" if num_replicas > 1 else "microbatch"
        caveats.append(
            f"This model has BatchNormalization, which normalizes by the statistics of each "
            f"{groups}: the noise scale is that of training with batch statistics over a "
            f"{groups}, not over the global batch. The difference matters for groups of fewer "
            "than about 16 examples."
        )
    noisy = [layer for layer in layers if _draws_masks(layer)]
    if noisy and num_replicas > 1:
        caveats.append(
            f"{type(noisy[0]).__name__} draws the same random mask on all {num_replicas} replicas "
            "(Keras keeps one seed): its noise does not average out over replicas, and the noise "
            "scale leaves it out. It is too low by the share of gradient noise that the masks make."
        )
    whole = [name for name in _loss_names(model) if name.lower() in _WHOLE_BATCH_LOSSES]
    if whole:
        caveats.append(
            f"The loss {whole[0]} is a ratio of sums over the whole batch: per-example gradients "
            "are defined only approximately, and so is the noise scale."
        )
    return caveats


def warn_once(model: keras.Model, said: set[str]) -> None:
    """Warns of what the number will mean.

    Args:
        model: Built model.
        said: Caveats that were given already; grows.
    """
    caveats = describe_caveats(model, model.distribute_strategy.num_replicas_in_sync)
    for caveat in caveats:
        if caveat not in said:
            said.add(caveat)
            warnings.warn(caveat, stacklevel=3)


def has_batch_normalization(model: keras.Model) -> bool:
    """Whether a batch normalization layer is in training mode."""
    return any(
        isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        for layer in keras_private.all_layers(model)
    )


def _draws_masks(layer: keras.layers.Layer) -> bool:
    has_seed = getattr(layer, "seed_generator", None) is not None
    return has_seed and bool(getattr(layer, "rate", getattr(layer, "stddev", 0.0)))


def _loss_names(model: keras.Model) -> list[str]:
    losses = keras.tree.flatten(model.loss) if getattr(model, "loss", None) is not None else []
    return [
        loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
        for loss in losses
        if loss is not None
    ]
