"""Trying something out on a model and leaving no trace of it."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gns_keras.training import keras_private

FIT_ATTRIBUTES = (
    "history",
    "predict_function",
    "stop_training",
    "test_function",
    "train_function",
)


@contextlib.contextmanager
def preserved(model: keras.Model) -> Iterator[None]:
    """Restores the model bit for bit on leaving, also after an exception or Ctrl-C.

    Covered: weights and other variables of the layers, seed generators among them; optimizer and
    metric variables; the seeds of Keras, Python, NumPy and TensorFlow's global generator; what
    `fit` leaves on the model. An optimizer that had not been built is built on entering and has its
    initial state on leaving, as `fit` would have given it. Metrics that came into being are reset.

    Not covered, because they cannot be read: variables that a layer hides from Keras, and the
    counters of stateful `tf.random` operations in eagerly run layers.

    Args:
        model: Built and compiled model. Its variables are copied to the host.

    Raises:
        ValueError: The model has no weights yet, or is not compiled.
    """
    if not model.built or getattr(model, "optimizer", None) is None:
        raise ValueError(
            "Expected a compiled model that has its weights. Received: "
            f"built={model.built}, optimizer={getattr(model, 'optimizer', None)}. "
            "Compile it, and call it on a batch."
        )
    if not model.optimizer.built:
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)
    snapshot = _Snapshot(model)
    try:
        try:
            yield
        finally:
            snapshot.restore()
    except KeyboardInterrupt:  # Perhaps in the middle of putting back: once more, all of it.
        snapshot.restore()
        raise


class _Snapshot:
    """Everything that training may change, as host copies."""

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
        self._values = [(variable, _value(variable)) for variable in variables]
        namespace = vars(model)
        self._attributes = {name: namespace[name] for name in FIT_ATTRIBUTES if name in namespace}
        self._keras_seed = keras_private.global_seed_state()
        self._python_seed = random.getstate()
        self._numpy_seed = np.random.get_state()  # noqa: NPY002  the user's global one
        self._tf_seed = tf.random.get_global_generator().state.numpy()

    def restore(self) -> None:
        """Puts everything back."""
        self._model.reset_metrics()  # Those that did not exist yet; the others follow.
        for variable, value in self._values:
            variable.assign(value)
        for name in FIT_ATTRIBUTES:
            if name in self._attributes:
                setattr(self._model, name, self._attributes[name])
            elif name in vars(self._model):
                delattr(self._model, name)
        keras_private.set_global_seed_state(self._keras_seed)
        random.setstate(self._python_seed)
        np.random.set_state(self._numpy_seed)  # noqa: NPY002
        tf.random.get_global_generator().state.assign(self._tf_seed)


def _value(variable: keras.Variable) -> Any:
    # Through a tensor: a variable with one value per replica (a metric) has no array of its own.
    return tf.convert_to_tensor(variable.value).numpy().copy()
