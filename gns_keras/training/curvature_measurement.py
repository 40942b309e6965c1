"""`B_noise` and the best learning rate at frozen weights, by Hessian-vector products."""

import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gns_keras.core.curvature import (
    TOO_FEW,
    BestLearningRate,
    HessianNoiseScale,
    best_learning_rate,
    hessian_noise_scale,
)
from gns_keras.core.noise_scale import NoiseScale
from gns_keras.core.pooled import MIN_BLOCKS, Blocks, pooled_noise_scale
from gns_keras.ops.hessian_vector import gradient_of, hessian_vector_product
from gns_keras.training import checks, keras_private
from gns_keras.training.batch_sizes import LossNormalization
from gns_keras.training.fresh_draws import FreshDraws
from gns_keras.training.microbatches import volatile_variables


class CurvatureMeasurement:
    """Measures `B_simple`, `B_noise` and `eps_opt` from the same batches, at the present weights.

    Half of every batch is one gradient group `g`; the other half gives the Hessian of `H g`, so
    that the Hessian never has seen the gradients that it multiplies. A batch costs about three
    gradients of half its size, and a group is half a batch: many small batches are worth more than
    few big ones. The loss is that of training (`training=True`), with its penalties.

    Weights, optimizer, metrics, moving statistics and seeds stay as they are. Between `num_blocks`
    and twice as many pairs of partial sums, of `g` and of `H g`, are kept on the host; when they
    are full, neighbours are joined.

    Args:
        model: Compiled and built model with Keras' own train step, on one device. Its mean is
            taken to be over examples: masks and sample weights are not accounted for.
        num_blocks: Fewest blocks once there are enough batches, at least 4.

    Raises:
        NotImplementedError: A custom train step, several replicas, a summed loss, a compute dtype
            that is not that of the weights, or a normalization layer.
        ValueError: The model is not built or compiled, or `num_blocks` is too small.

    Reference: McCandlish et al. 2018, arXiv 1812.06162, Eq. 2.5 to 2.8.
    """

    def __init__(self, model: keras.Model, *, num_blocks: int = 8) -> None:
        if num_blocks < MIN_BLOCKS:
            raise ValueError(f"Expected num_blocks >= {MIN_BLOCKS}. Received: {num_blocks}.")
        if not model.built:
            raise ValueError("The model has no weights yet. Call it on a batch, or fit it, first.")
        checks.refuse_unsupported(model, model.distribute_strategy)
        _refuse_what_has_no_plain_loss(model)
        _refuse_normalization(model)
        self._model = model
        self._variables = [v.value for v in model.trainable_variables]
        self._pass = self._measured_pass
        if not model.run_eagerly:
            self._pass = tf.function(self._measured_pass, reduce_retracing=True, autograph=False)
        self._draws = FreshDraws(model)
        self._max_blocks = 2 * num_blocks
        self.reset()

    def reset(self) -> None:
        """Forgets all batches, to measure at other weights without compiling anew."""
        self._draws.restart()
        self._blocks: list[_Sums] = []
        self._filling: _Sums | None = None
        self._per_block = 2  # A block needs two groups.
        self._group_size: int | None = None

    @property
    def num_examples(self) -> int:
        """Examples used so far, for gradients and for the Hessian."""
        groups = sum(b.count for b in [*self._blocks, *([self._filling] if self._filling else [])])
        return 2 * groups * (self._group_size or 0)

    def add_batch(self, data: Any) -> None:
        """Measures one batch: its first half for the gradient, its second half for the Hessian.

        Args:
            data: `(x, y)` or `x`, with the batch as first axis. All batches must have the same
                even size, and independent examples in random order.

        Raises:
            ValueError: An odd batch, one of another size than the first, or sample weights.
        """
        tensors = keras.tree.map_structure(tf.convert_to_tensor, data)
        if keras.utils.unpack_x_y_sample_weight(tensors)[2] is not None:
            raise ValueError("Expected data of the form (x, y). Received sample weights as well.")
        num_examples = int(keras.tree.flatten(tensors)[0].shape[0])
        expected = num_examples if self._group_size is None else 2 * self._group_size
        if num_examples % 2 or num_examples != expected or not num_examples:
            raise ValueError(
                "Expected batches of one even size"
                f"{'' if self._group_size is None else f', {expected} like the first'}. "
                f"Received: {num_examples} examples. Batch with drop_remainder=True."
            )
        self._group_size = num_examples // 2
        with self._draws.another():
            gradient, product = (part.numpy() for part in self._pass(tensors))
        group = _Sums.of_group(gradient.astype(np.float64), product.astype(np.float64))
        self._filling = group if self._filling is None else self._filling.plus(group)
        if self._filling.count == self._per_block:
            self._blocks.append(self._filling)
            self._filling = None
        if len(self._blocks) == self._max_blocks:
            pairs = zip(self._blocks[::2], self._blocks[1::2], strict=True)
            self._blocks = [a.plus(b) for a, b in pairs]
            self._per_block *= 2

    def noise_scale(self, confidence: float = 0.95) -> HessianNoiseScale:
        """Returns `B_noise`; unresolved, with the reason, where it is not defined or too noisy."""
        if len(self._blocks) < MIN_BLOCKS:
            return HessianNoiseScale.nothing(confidence)
        return hessian_noise_scale(self._in_metric(hessian=True), confidence=confidence)

    def simple_noise_scale(self, confidence: float = 0.95) -> NoiseScale:
        """Returns `B_simple` from the same gradients."""
        if len(self._blocks) < MIN_BLOCKS:
            return NoiseScale(value=math.nan, interval=(math.nan, math.nan), confidence=confidence)
        return pooled_noise_scale(self._in_metric(hessian=False), confidence=confidence)

    def best_learning_rate(
        self, batch_size: float = math.inf, confidence: float = 0.95
    ) -> BestLearningRate:
        """Returns `eps_opt(batch_size)` of Eq. 2.6 for one step of plain SGD; inf: `eps_max`."""
        if len(self._blocks) < MIN_BLOCKS:
            nan = math.nan
            return BestLearningRate(
                value=nan, interval=(nan, nan), batch_size=batch_size, confidence=confidence,
                reason=TOO_FEW,
            )  # fmt: skip
        return best_learning_rate(
            self._in_metric(hessian=False),
            self._in_metric(hessian=True),
            batch_size=batch_size,
            confidence=confidence,
        )

    def _in_metric(self, *, hessian: bool) -> Blocks:
        means = np.stack([b.gradient / b.count for b in self._blocks])
        others = np.stack([b.product / b.count for b in self._blocks]) if hessian else means
        half = means @ others.T
        size = float(self._group_size or 0)
        return Blocks(
            inner_products=(half + half.T) / 2,
            weighted_sq_norms=size
            * np.array([b.curvature if hessian else b.sq_norm for b in self._blocks]),
            num_groups=np.array([float(b.count) for b in self._blocks]),
            block_size=size * self._per_block,
        )

    def _measured_pass(self, data: Any) -> tuple[tf.Tensor, tf.Tensor]:
        volatile = [_native(v) for v in volatile_variables(self._model)]
        saved = [tf.identity(v) for v in volatile]
        first, second = (
            keras.tree.map_structure(lambda leaf, part=part: tf.split(leaf, 2)[part], data)
            for part in (0, 1)
        )
        gradient = gradient_of(lambda: self._loss(first), self._variables)
        product = hessian_vector_product(lambda: self._loss(second), self._variables, gradient)
        with tf.control_dependencies([*gradient, *product]):
            for variable, value in zip(volatile, saved, strict=True):
                variable.assign(value)
        return _flat(gradient), _flat(product)

    def _loss(self, data: Any) -> tf.Tensor:
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        y_pred = self._model(x, training=True)
        return self._model.compute_loss(x=x, y=y, y_pred=y_pred, training=True)


@dataclass(frozen=True)
class _Sums:
    """Sums over some groups: `g`, `H g`, `|g|^2`, `g' H g`, and their number."""

    gradient: np.ndarray
    product: np.ndarray
    sq_norm: float
    curvature: float
    count: int

    @staticmethod
    def of_group(gradient: np.ndarray, product: np.ndarray) -> "_Sums":
        return _Sums(
            gradient, product, float(gradient @ gradient), float(gradient @ product), count=1
        )

    def plus(self, other: "_Sums") -> "_Sums":
        return _Sums(
            self.gradient + other.gradient,
            self.product + other.product,
            self.sq_norm + other.sq_norm,
            self.curvature + other.curvature,
            self.count + other.count,
        )


# Their TensorFlow code takes the mean out of the variance with a stop_gradient (`tf.nn.moments`):
# right for the first derivative, whose contribution is zero, and wrong for the second.
_NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
)


def _refuse_normalization(model: keras.Model) -> None:
    found = [
        layer.name for layer in keras_private.all_layers(model)
        if isinstance(layer, _NORMALIZATIONS)
        and (layer.trainable or not isinstance(layer, keras.layers.BatchNormalization))
    ]  # fmt: skip
    if found:
        raise NotImplementedError(
            f"TensorFlow's second derivative of normalization layers is wrong ({found[:3]}): it "
            "holds their mean fixed. Use the simple noise scale for this model, or freeze its "
            "BatchNormalization layers (`trainable = False`)."
        )


def _refuse_what_has_no_plain_loss(model: keras.Model) -> None:
    strategy = model.distribute_strategy
    if strategy.num_replicas_in_sync > 1 or keras_private.has_several_workers(strategy):
        raise NotImplementedError(
            "Hessian-vector products are measured on one device. Received a model under "
            f"{type(strategy).__name__}; load its weights into a copy made outside of the strategy."
        )
    if type(model).train_step is not keras.Model.train_step or "train_step" in vars(model):
        raise NotImplementedError(
            f"{type(model).__name__} has a train step of its own, whose loss cannot be "
            "differentiated twice from outside. Compute the loss in `compute_loss`, or give "
            "`gns_keras.core.curvature` the products of your own loss."
        )
    if LossNormalization.of(model).is_sum:
        raise NotImplementedError(
            "The Hessian of a summed loss grows with the batch. Compile the model with "
            'reduction="sum_over_batch_size".'
        )
    mixed = {layer.name for layer in keras_private.all_layers(model)
             if layer.compute_dtype != layer.variable_dtype}  # fmt: skip
    if mixed:
        raise NotImplementedError(
            "Second derivatives need the precision of the weights. Received layers that compute "
            f"in another dtype: {sorted(mixed)[:3]}. Rebuild the model with a float32 policy and "
            "load the weights."
        )


def _native(variable: Any) -> Any:
    return variable.value if isinstance(variable, keras.Variable) else variable


def _flat(parts: list[tf.Tensor]) -> tf.Tensor:
    return tf.concat([tf.reshape(part, [-1]) for part in parts], axis=0)
