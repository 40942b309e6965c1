"""Train steps that do what the model's own does, bit for bit, and write down squared norms.

`light`     one device: |g|^2 of the update's gradient, for one read of it.
`split`     one device: also the norms of the gradients of microbatches, from extra passes over the
            same batch. They leave no trace: seeds, metrics and moving statistics are put back.
`replicas`  several replicas: the norms before and after the optimizer's own all-reduce.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from gns_keras.ops.sq_norms import adam_preconditioner, dense, sq_norms
from gns_keras.training import keras_private
from gns_keras.training.gradient_tap import GradientTap, TracedStep
from gns_keras.training.microbatches import Groups, over_microbatches, volatile_variables
from gns_keras.training.recorder import Recorder, Row


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What is measured, and how.

    Attributes:
        components: Index of the component of every trainable variable.
        num_components: Their number.
        metric: "euclidean" or "adam".
        microbatches: Groups that a batch is split into on one device.
        share: Part of the batch that they are taken from: only their number matters for the
            precision of tr(Sigma), and fewer examples cost less.
        is_sum: The loss adds examples up instead of averaging them.
        update_counts: The update's own gradient estimates the same |G|^2 as the microbatches do;
            not so with batch normalization, whose statistics depend on the batch.
    """

    components: tuple[int, ...]
    num_components: int
    metric: str = "euclidean"
    microbatches: int = 8
    share: float = 1.0
    is_sum: bool = False
    update_counts: bool = True


class MeasuredStep:
    """Builds the measured variants of a model's train step.

    Args:
        model: Compiled and built model.
        train_step: Its own step.
        tap: Tap of this model.
        recorder: Where rows go; None if only `microbatch_pass` is used.
        measurement: What is measured.
    """

    def __init__(
        self,
        model: keras.Model,
        train_step: Callable[[Any], Any],
        tap: GradientTap,
        recorder: Recorder | None,
        measurement: Measurement,
    ) -> None:
        self._model = model
        self._train_step = train_step
        self._tap = tap
        self._recorder = recorder
        self._what = measurement
        self._position = {id(v): i for i, v in enumerate(model.trainable_variables)}

    def light(self, data: Any) -> Any:
        """One device: the step, and |g|^2 of its gradient."""
        mean: list[tf.Tensor] = []
        logs, step = self._tap.run(
            self._train_step, data, on_gradients=lambda step: mean.append(self._update_norm(step))
        )
        nothing = tf.zeros([self._what.num_components])
        self._write(
            Row(
                groups=tf.constant(0.0),
                group_size=tf.constant(0.0),
                group_inv=tf.constant(0.0),
                inverse=1.0 / step.effective_size,
                examples=step.num_examples,
                weighted=nothing,
                group_mean=nothing,
                mean=mean[0],
            )
        )
        return logs

    def split(self, data: Any) -> Any:
        """One device: the step, |g|^2 of its gradient and the norms of its microbatches."""
        groups, group_mean = self.microbatch_pass(data)
        # Side by side with the microbatches, the step would hold a second gradient until they end.
        data = _after([group_mean, groups.weighted], data)
        mean: list[tf.Tensor] = []
        logs, step = self._tap.run(
            self._train_step, data, on_gradients=lambda step: mean.append(self._update_norm(step))
        )
        counts = self._what.update_counts
        self._write(
            Row(
                groups=groups.count,
                group_size=groups.size,
                group_inv=1.0 / groups.size,
                inverse=1.0 / (step.effective_size if counts else groups.size),
                examples=step.num_examples,
                weighted=groups.weighted,
                group_mean=group_mean,
                mean=mean[0] if counts else group_mean,
            )
        )
        return logs

    def replicas(self, data: Any) -> Any:
        """Several replicas: the step, and the norms before and after the all-reduce."""
        context = tf.distribute.get_replica_context()
        count = float(context.num_replicas_in_sync)
        optimizer = self._model.optimizer
        # The optimizer clips, and a loss scale may skip the update, before its own all-reduce.
        own_reduce = keras_private.clips_gradients(optimizer) or (
            keras_private.loss_scale(optimizer) is not None
        )
        local: list[tf.Tensor] = []
        reduced: list[tf.Tensor] = []
        metric: list[Any] = []

        def on_gradients(step: TracedStep) -> None:
            metric.append(self._preconditioner(step.variables))
            local.append(self._norm(step, step.gradients, metric[0]))
            if own_reduce:
                present = [g for g in step.gradients if g is not None]
                total = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, present))
                after = [None if g is None else next(total) for g in step.gradients]
                reduced.append(self._norm(step, after, metric[0]))

        def on_reduced(step: TracedStep, grads_and_vars: Sequence[Any]) -> None:
            if not own_reduce:
                reduced.append(self._norm_of_pairs(step, grads_and_vars, metric[0]))

        logs, step = self._tap.run(
            self._train_step, data, on_gradients=on_gradients, on_reduced=on_reduced
        )
        self._write(self._replica_row(step, local[0], reduced[0] / count, count))
        return logs

    def _write(self, row: Row) -> None:
        self._recorder.write(row, tf.convert_to_tensor(self._model.optimizer.iterations))

    def _replica_row(
        self, step: TracedStep, local: tf.Tensor, mean: tf.Tensor, count: float
    ) -> Row:
        size = step.effective_size
        holds = tf.cast(size > 0, tf.float32)
        inverse = tf.math.divide_no_nan(1.0, size)
        if self._what.is_sum:
            weighted = local * inverse  # b |g_sum / b|^2
        else:
            weighted = local * size * count**2  # Keras divides the loss by the replicas.
        of_mean = inverse / count**2
        return Row(
            groups=holds,
            group_size=size,
            group_inv=of_mean,
            inverse=of_mean,
            examples=step.num_examples,
            weighted=weighted,
            group_mean=mean,
            mean=mean,
        )

    def _update_norm(self, step: TracedStep) -> tf.Tensor:
        norm = self._norm(step, step.gradients, self._preconditioner(step.variables))
        return norm / tf.square(step.effective_size) if self._what.is_sum else norm

    def _norm(self, step: TracedStep, gradients: Sequence[Any], metric: Any) -> tf.Tensor:
        components = [self._what.components[self._index(v)] for v in step.variables]
        total = sq_norms(gradients, components, self._what.num_components, metric)
        return total if step.scale is None else total / tf.square(step.scale)

    def _norm_of_pairs(
        self, step: TracedStep, grads_and_vars: Sequence[Any], metric: Any
    ) -> tf.Tensor:
        # The optimizer leaves out variables without a gradient and hands on native variables.
        by_native = {id(v.value): i for i, v in enumerate(step.variables)}
        where = [by_native[id(v)] for _, v in grads_and_vars]
        components = [self._what.components[self._index(step.variables[i])] for i in where]
        chosen = None if metric is None else [metric[i] for i in where]
        gradients = [g for g, _ in grads_and_vars]
        return sq_norms(gradients, components, self._what.num_components, chosen)

    def _index(self, variable: Any) -> int:
        position = self._position.get(id(variable))
        if position is None:
            raise NotImplementedError(
                f"The train step updates {getattr(variable, 'path', variable)!r}, which is not "
                "among model.trainable_variables. Create all layers before the first fit, and let "
                "the step update the model's own variables only."
            )
        return position

    def _preconditioner(self, variables: Sequence[Any]) -> list[tf.Tensor] | None:
        if self._what.metric != "adam":
            return None
        moments, decay, epsilon = keras_private.second_moments(self._model.optimizer, variables)
        steps = self._model.optimizer.iterations  # Zero before the first update: left out as NaN.
        return [adam_preconditioner(v, decay, steps, epsilon) for v in moments]

    def microbatch_pass(self, data: Any) -> tuple[Groups, tf.Tensor]:
        """Sums over the microbatches and |mean gradient|^2; puts everything back as it was."""
        variables = self._model.trainable_variables
        norms = self._component_norms(self._preconditioner(variables))
        volatile = volatile_variables(self._model)
        saved = [tf.identity(_native(v)) for v in volatile]

        whole = tf.shape(keras.tree.flatten(data)[0])[0] if self._what.is_sum else None

        def one_more(part: Any, groups: Groups) -> Groups:
            _, step = self._tap.run(self._train_step, part, update=False, part_of=whole)
            return groups.plus(self._unscaled(step), step.effective_size, norms)

        start = Groups.none(variables, self._what.num_components)
        groups = over_microbatches(
            data, self._what.microbatches, one_more, start, share=self._what.share
        )
        for variable, value in zip(volatile, saved, strict=True):
            variable.assign(value)
        return groups, norms(groups.mean())

    def _component_norms(self, metric: Any) -> Callable[[Sequence[Any]], tf.Tensor]:
        what = self._what
        return lambda grads: sq_norms(grads, what.components, what.num_components, metric)

    def _unscaled(self, step: TracedStep) -> list[tf.Tensor | None]:
        """Mean gradients of a microbatch, one per trainable variable of the model."""
        factor = tf.constant(1.0) if step.scale is None else 1.0 / step.scale
        if self._what.is_sum:
            factor = factor / step.effective_size
        ordered: list[tf.Tensor | None] = [None] * len(self._position)
        for gradient, variable in zip(step.gradients, step.variables, strict=True):
            if gradient is not None:
                ordered[self._index(variable)] = dense(gradient) * factor
        return ordered


def _after(events: Sequence[tf.Tensor], data: Any) -> Any:
    """Returns the data, which are there only once the events have been computed."""
    with tf.control_dependencies(events):
        return keras.tree.map_structure(
            lambda leaf: None if leaf is None else tf.identity(leaf), data
        )


def _native(variable: Any) -> Any:
    return variable.value if isinstance(variable, keras.Variable) else variable
