"""What `advise` refuses before it does anything, and what it says about a model."""

import math
from typing import Any

import keras

from gns_keras.core.calibrated import calibration_for
from gns_keras.core.calibration import Calibration
from gns_keras.core.learning_rate import LearningRateRule
from gns_keras.core.recommend import OBJECTIVES
from gns_keras.training import checks, keras_private
from gns_keras.training.example_source import DrawnExamples, Source

LEARNING_RATE_CHOICES = ("check", "search", "keep")


def check_model(model: Any) -> None:
    """Refuses what cannot be trained and measured.

    Raises:
        TypeError, ValueError, NotImplementedError: With the reason.
    """
    checks.refuse_foreign(model)
    strategy = model.distribute_strategy
    checks.refuse_unsupported(model, strategy)
    if keras_private.has_several_workers(strategy):
        raise NotImplementedError(
            "advise trains with `model.fit`, which Keras 3 does not support under "
            "MultiWorkerMirroredStrategy (keras-team/keras issue 20585). Run it on one worker with "
            "MirroredStrategy: the noise scale does not depend on the number of devices."
        )


def check_choices(objective: str, learning_rate: str, verify: str) -> None:
    """Refuses choices that do not exist.

    Raises:
        ValueError, NotImplementedError: With those that do.
    """
    if objective not in OBJECTIVES:
        raise ValueError(
            f"Expected `objective` to be one of {OBJECTIVES}. Received: {objective!r}."
        )
    if learning_rate not in LEARNING_RATE_CHOICES:
        raise ValueError(
            f"Expected `learning_rate` to be one of {LEARNING_RATE_CHOICES}. "
            f"Received: {learning_rate!r}. The learning rate itself is that of the optimizer."
        )
    if verify != "auto":
        raise NotImplementedError(
            f"advise does not act on verify={verify!r} yet. Supported: verify='auto', the default."
        )


def check_target(target_loss: float | None, run_examples: int | None) -> None:
    """Refuses what is no training loss above 0, no number of examples, or both.

    Raises:
        ValueError: With the reason.
    """
    if target_loss is not None and run_examples is not None:
        raise ValueError(
            "Expected either `target_loss` or `run_examples`: each says where the run ends. "
            f"Received: {target_loss} and {run_examples}."
        )
    if run_examples is not None and run_examples < 1:
        raise ValueError(
            "Expected `run_examples` to be a number of examples, such as epochs * len(x). "
            f"Received: {run_examples}."
        )
    if target_loss is not None and not 0 < target_loss < math.inf:
        raise ValueError(
            "Expected `target_loss` to be a training loss above 0: the forecast is a power law in "
            f"the loss. Received: {target_loss}."
        )


def check_numbers(max_batch_size: int | None, budget: int | None, source: Source) -> None:
    """Refuses numbers that are out of range.

    Raises:
        ValueError: With what to change.
    """
    if max_batch_size is not None and max_batch_size < source.batch_size:
        raise ValueError(
            f"Expected `max_batch_size` of at least the present batch size {source.batch_size}. "
            f"Received: {max_batch_size}. Set a smaller `batch_size`."
        )
    if budget is not None and budget < 1:
        raise ValueError(f"Expected `budget` to be a number of examples. Received: {budget}.")


def without_losses(
    source: Source, learning_rate: str, target_loss: float | None
) -> tuple[str, tuple[str, ...]]:
    """What to do about the learning rate, where the loss does not say how well training goes.

    Args:
        source: The data.
        learning_rate: One of `LEARNING_RATE_CHOICES`.
        target_loss: As given.

    Returns:
        The choice that holds, and remarks on it.

    Raises:
        ValueError: Something was asked for that needs comparable losses.
    """
    if not isinstance(source, DrawnExamples):
        return learning_rate, ()
    if learning_rate == "search" or target_loss is not None:
        raise ValueError(
            "Learning rates and goals are compared by the training loss, and here the model draws "
            "its own data, so that losses of different weights are about different data. "
            f"Received: learning_rate={learning_rate!r}, target_loss={target_loss}. Leave both at "
            "their defaults, and tune the learning rate by the return."
        )
    if learning_rate == "keep":
        return "keep", ()
    return "keep", (
        "The learning rate was not checked: the model draws its own data, and the loss on them "
        "does not say how well it does. Tune it by the return.",
    )


def calibration_of(model: keras.Model) -> Calibration | None:
    """The calibration of the optimizer's class; None where none is known.

    Nor under batch normalization: its statistics are not those of the mean weights, which are not
    measured then.
    """
    return None if checks.has_batch_normalization(model) else calibration_for(model.optimizer)


def learning_rate_rule(model: keras.Model) -> tuple[LearningRateRule | None, list[str]]:
    """The rule of the optimizer, None if none is known, and remarks on its learning rate."""
    remarks = []
    config = keras_private.apply_optimizer(model.optimizer).get_config()
    if isinstance(config.get("learning_rate"), dict):
        remarks.append(
            "The optimizer has a learning-rate schedule. The learning rates here are those at the "
            "end of the trial run: multiply the whole schedule by the same factor."
        )
    try:
        return LearningRateRule.for_optimizer(model.optimizer), remarks
    except ValueError:
        return None, remarks  # The advice says that there is no rule.
