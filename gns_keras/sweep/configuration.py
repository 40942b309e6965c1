"""What the results of a sweep depend on, in words that can be compared."""

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import keras

from gns_keras.sweep.run import RunSettings
from gns_keras.training import checks


def build_alone(
    build_model: Callable[[], keras.Model], dtype_policy: str, inputs: Any
) -> keras.Model:
    """Builds a model, and its weights, with automatic names that do not count other models.

    Keras counts names for every thread by itself.

    Args:
        build_model: Returns a new compiled model.
        dtype_policy: Name of the policy to build under.
        inputs: A batch for a model that gets its weights when it is called.

    Raises:
        Exception: What `build_model` raised.
        ValueError: It returned no compiled model, or one with nothing to train.
    """
    outcome: list[Any] = []

    def build() -> None:
        try:
            keras.config.set_dtype_policy(dtype_policy)
            outcome.append(_checked(build_model(), inputs))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=build, name="sweep-build")
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def describe_configuration(
    model: keras.Model, settings: RunSettings, data_fingerprint: str
) -> dict[str, Any]:
    """Returns everything that decides the outcome of a run besides its key, by name.

    Args:
        model: From `build_alone`, with its weights.
        settings: What all runs have in common.
        data_fingerprint: Hash of the data.
    """
    optimizer = model.optimizer
    described = {
        "goals": [goal.label for goal in settings.goals],
        "model": hashlib.sha256(_model_text(model).encode()).hexdigest(),
        "optimizer": _plain({"class": type(optimizer).__name__} | optimizer.get_config()),
        "data": data_fingerprint,
    }
    rest = asdict(settings)
    rest.pop("goals")
    return described | rest


def constant_learning_rate(optimizer: keras.optimizers.Optimizer) -> float:
    """Returns the learning rate of an optimizer.

    Raises:
        ValueError: It is a schedule.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    value = inner.get_config()["learning_rate"]
    if isinstance(value, dict):
        raise ValueError(
            "A sweep compares constant learning rates. Received an optimizer with the schedule "
            f"{value.get('class_name')}. Compile the model with a number."
        )
    return float(value)


def _checked(model: Any, inputs: Any) -> keras.Model:
    checks.require_tensorflow_backend()
    if not isinstance(model, keras.Model) or getattr(model, "optimizer", None) is None:
        raise ValueError(
            "Expected `build_model()` to return a compiled keras.Model. "
            f"Received: {type(model).__name__}."
        )
    if not model.built:
        model(inputs)
    checks.refuse_untrainable(model)
    return model


def _model_text(model: keras.Model) -> str:
    """Architecture, shapes of the weights, loss and metrics."""
    try:
        text = model.to_json()
    except NotImplementedError:  # A subclassed model without get_config.
        text = type(model).__qualname__
    shapes = [[list(weight.shape), str(weight.dtype)] for weight in model.weights]
    compiled = model.get_compile_config() or {}
    compiled = {name: compiled.get(name) for name in ("loss", "loss_weights", "metrics")}
    return json.dumps([text, shapes, _plain(compiled)], sort_keys=True)


def _plain(value: Any) -> Any:
    """What JSON can hold; objects by their class, as their address would change."""
    return json.loads(json.dumps(value, default=lambda other: type(other).__qualname__))
