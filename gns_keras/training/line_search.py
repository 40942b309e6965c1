"""Line searches at frozen weights: how far one step can lower the loss, by batch size."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gns_keras.core.line_search import Progress, search_steps, separate_progress, shared_progress
from gns_keras.ops.hessian_vector import gradient_of
from gns_keras.training import checks, keras_private
from gns_keras.training.microbatches import volatile_variables


class LineSearchMeasurement:
    """Measures `dL(B)` of Eq. 2.7 at the model's present weights, with plain gradient steps.

    Many gradients of batches of one size; along each, the loss of one sample after steps of several
    lengths. The loss is that of training (`compute_loss`, `training=True`), with its penalties.
    Weights, metrics, moving statistics and seeds are put back after every evaluation, so that
    dropout masks are the same along a line.

    A batch size costs a gradient for every batch, and for each about five forward passes of the
    whole sample; Hessian-vector products (`CurvatureMeasurement`) are far cheaper. This way needs
    no second derivative, and shows how well Eq. 2.7 holds.

    Args:
        model: Compiled and built model, on one device.
        sample: `(x, y)`, examples that are in no batch to be measured; thousands.
        jit_compile: Compile with XLA: faster where the model has no convolutions, on a CPU.

    Raises:
        NotImplementedError: Several replicas.
        ValueError: The model is not built or compiled.

    Reference: McCandlish et al. 2018, arXiv 1812.06162, section 2.2 and Figure 5.
    """

    def __init__(self, model: keras.Model, sample: Any, *, jit_compile: bool = False) -> None:
        if not model.built:
            raise ValueError("The model has no weights yet. Call it on a batch, or fit it, first.")
        strategy = model.distribute_strategy
        checks.refuse_unsupported(model, strategy)
        if strategy.num_replicas_in_sync > 1 or keras_private.has_several_workers(strategy):
            raise NotImplementedError(
                "Line searches are measured on one device. Received a model under "
                f"{type(strategy).__name__}; load its weights into a copy made outside of it."
            )
        self._model = model
        self._sample = keras.tree.map_structure(tf.convert_to_tensor, sample)
        self._variables = [variable.value for variable in model.trainable_variables]
        self._gradients = tf.function(self._all_gradients, autograph=False)
        self._losses = tf.function(self._all_losses, jit_compile=jit_compile, autograph=False)

    def progress(self, batches: Any, first_step: float) -> tuple[Progress, float]:
        """The progress that steps along gradients of these batches can make.

        Args:
            batches: `(x, y)` with axes batch and example in front: at least two batches, of
                independent examples.
            first_step: Length to begin with.

        Returns:
            The progress with one length of step for all gradients; and with the best for each, the
            paper's, which is larger the smaller the batches are.

        Raises:
            ValueError: No length of step lowers the mean loss.
        """
        tensors = keras.tree.map_structure(tf.convert_to_tensor, batches)
        gradients = self._gradients(tensors)
        still = self._losses(gradients, tf.constant(0.0)).numpy().astype(np.float64)

        def drops_at(step: float) -> np.ndarray:
            losses = self._losses(gradients, tf.constant(step, tf.float32))
            return still - losses.numpy().astype(np.float64)

        lines = search_steps(drops_at, first_step)
        return shared_progress(*lines), separate_progress(*lines)

    def _all_gradients(self, batches: Any) -> list[tf.Tensor]:
        """Gradient of every batch, by variable, shape `(batches, *variable)`."""

        def one(batch: Any) -> list[tf.Tensor]:
            return self._undisturbed(
                lambda: gradient_of(lambda: self._loss(batch), self._variables)
            )

        kinds = [variable.dtype for variable in self._variables]
        return tf.map_fn(one, batches, fn_output_signature=kinds, parallel_iterations=1)

    def _all_losses(self, gradients: list[tf.Tensor], step: tf.Tensor) -> tf.Tensor:
        """Loss of the sample after a step along each gradient, shape `(batches,)`."""
        at = [tf.identity(variable) for variable in self._variables]

        def one(gradient: list[tf.Tensor]) -> tf.Tensor:
            for variable, value, part in zip(self._variables, at, gradient, strict=True):
                variable.assign(value - tf.cast(step, value.dtype) * part)
            (loss,) = self._undisturbed(lambda: [self._loss(self._sample)])
            return tf.cast(loss, tf.float32)

        losses = tf.map_fn(one, gradients, fn_output_signature=tf.float32, parallel_iterations=1)
        with tf.control_dependencies([losses]):
            for variable, value in zip(self._variables, at, strict=True):
                variable.assign(value)
        return losses

    def _undisturbed(self, compute: Any) -> list[tf.Tensor]:
        """What `compute` returns, with seeds and moving statistics put back."""
        volatile = [
            v.value if isinstance(v, keras.Variable) else v for v in volatile_variables(self._model)
        ]
        saved = [tf.identity(variable) for variable in volatile]
        found = compute()
        with tf.control_dependencies(found):
            for variable, value in zip(volatile, saved, strict=True):
                variable.assign(value)
        return found

    def _loss(self, data: Any) -> tf.Tensor:
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        y_pred = self._model(x, training=True)
        return self._model.compute_loss(x=x, y=y, y_pred=y_pred, training=True)
