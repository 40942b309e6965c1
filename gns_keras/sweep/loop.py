"""Many train steps in one compiled call.

The loop runs the model's own `train_step`, so that every loss, metric, layer and optimizer works;
what it saves is the host's part of each step. Metrics are reset before each step: a row holds the
values of that batch alone.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gns_keras.sweep.stream import Source
from gns_keras.training import keras_private

# TensorFlow's own random operations keep their state where nobody can set it back.
_UNSEEDABLE = {
    "Multinomial",
    "ParameterizedTruncatedNormal",
    "RandomGamma",
    "RandomPoissonV2",
    "RandomShuffle",
    "RandomStandardNormal",
    "RandomUniform",
    "RandomUniformInt",
    "TruncatedNormal",
}


class CompiledLoop:
    """Trains a compiled model at one batch size, many steps a call.

    Args:
        model: New compiled model, not trained.
        source: Where the examples come from.
        batch_size: Examples a step.
        jit_compile: Compile with XLA; weights are then those of `model.fit` with `jit_compile=True`
            in `compile`, bit for bit, else those with False. "auto": see `wants_xla`.

    Raises:
        NotImplementedError: The model lives under a distribution strategy of several replicas.
    """

    def __init__(
        self,
        model: keras.Model,
        source: Source,
        batch_size: int,
        *,
        jit_compile: bool | str = "auto",
    ) -> None:
        if model.distribute_strategy.num_replicas_in_sync > 1:
            raise NotImplementedError(
                "A sweep trains every run on one device. Received a model under a strategy of "
                f"{model.distribute_strategy.num_replicas_in_sync} replicas. Build it outside of "
                "the strategy's scope."
            )
        self.model = model
        self._source = source
        self._num_rows = source.block_steps(batch_size)
        self._variables, self.initial_state = initial_state(model, source.few)
        model.train_step(source.few)  # Metrics make their variables at their first batch.
        model.reset_metrics()
        self._assign(self.initial_state)
        self.metric_names = tuple(sorted(model.get_metrics_result()))
        xla = wants_xla(model) if jit_compile == "auto" else bool(jit_compile)
        self._advance = tf.function(self._train, jit_compile=xla, autograph=False)
        self._reusable: bool | None = None

    @property
    def reusable(self) -> bool:
        """Whether `restart` brings back everything that a step depends on. Known after `advance`.

        Not so where a step uses variables that the model does not list, such as the seed generator
        that random operations without a seed share, or TensorFlow's own random operations.
        """
        return bool(self._reusable)

    def restart(self, state: list[np.ndarray], learning_rate: float) -> None:
        """Makes the model new.

        Args:
            state: `initial_state` of a loop whose model was built the same way.
            learning_rate: Learning rate of the next run.
        """
        self._assign(state)
        self.model.optimizer.learning_rate = learning_rate

    def untrained_loss(self, block: Any, state: list[np.ndarray], num_steps: int) -> float:
        """Mean loss of the initial weights, over the first batches of a block.

        Args:
            block: From the source.
            state: As for `restart`, which has to follow.
            num_steps: Number of batches.
        """
        self.restart(state, 0.0)  # Where the loss stays that of the initial weights.
        losses = self.advance(block, num_steps)[:, self.metric_names.index("loss")]
        return float(np.mean(losses, dtype=np.float64))

    def advance(self, block: Any, num_steps: int) -> np.ndarray:
        """Trains on the first batches of a block.

        Args:
            block: From the source.
            num_steps: Number of batches.

        Returns:
            Values of `metric_names` for each step's own batch, float32, shape `(steps, metrics)`.
        """
        steps = tf.constant(num_steps)
        if self._reusable is None:
            self._reusable = self._knows_all_state(block, steps)
        return self._advance(block, steps).numpy()[:num_steps]

    def _assign(self, state: list[np.ndarray]) -> None:
        for variable, value in zip(self._variables, state, strict=True):
            variable.assign(value)

    def _train(self, block: Any, num_steps: tf.Tensor) -> tf.Tensor:
        model = self.model

        def one(step: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            model.reset_metrics()
            logs = model.train_step(self._source.pick(block, step))
            row = tf.stack([tf.cast(logs[name], tf.float32) for name in self.metric_names])
            return step + 1, tf.tensor_scatter_nd_update(rows, [[step]], [row])

        start = (tf.constant(0), tf.zeros([self._num_rows, len(self.metric_names)]))
        _, rows = tf.while_loop(lambda step, _: step < num_steps, one, start, parallel_iterations=1)
        return rows

    def _knows_all_state(self, block: Any, num_steps: tf.Tensor) -> bool:
        concrete = self._advance.get_concrete_function(block, num_steps)
        known = [*self._variables, *self.model.metrics_variables]
        handles = {id(variable.value.handle) for variable in known}
        hidden = [
            tensor
            for tensor in concrete.captured_inputs
            if tensor.dtype == tf.resource and id(tensor) not in handles
        ]
        graph = concrete.graph.as_graph_def()
        nodes = [
            *graph.node,
            *(n for function in graph.library.function for n in function.node_def),
        ]
        return not hidden and not any(node.op in _UNSEEDABLE for node in nodes)


def wants_xla(model: keras.Model) -> bool:
    """Whether to compile the loop with XLA: a rule, so that every machine decides alike.

    Where the model was compiled with `jit_compile=True`, yes. Else wherever all layers support it
    and none is a convolution: those are slower under XLA on a CPU.
    """
    layers = keras_private.all_layers(model)
    if model.jit_compile:
        return True
    return all(layer.supports_jit and "Conv" not in type(layer).__name__ for layer in layers)


def initial_state(model: keras.Model, few: Any) -> tuple[list[keras.Variable], list[np.ndarray]]:
    """Makes weights and optimizer slots; returns all variables but those of metrics, and values.

    Args:
        model: New compiled model.
        few: A batch of two examples.
    """
    if not model.built:
        model(few[0])
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    metrics = {id(variable) for variable in model.metrics_variables}
    variables = [
        variable
        for variable in [*model.variables, *model.optimizer.variables]
        if id(variable) not in metrics
    ]
    return variables, [variable.numpy().copy() for variable in variables]
