"""SVHN with the network of the paper and Adam (McCandlish et al. 2018, appendix A.4.1).

Adam has "the default parameter settings momentum = 0.9, beta_2 = 0.999". Everything else is that of
the task `svhn`.
"""

import functools
from dataclasses import replace
from typing import TYPE_CHECKING

from gns_keras.tasks import Task, svhn

if TYPE_CHECKING:
    import keras

LEARNING_RATE = 0.001  # Adam's default; not tuned.


def build_model(name: str = "svhn") -> "keras.Model":
    """Returns a new network, compiled with Adam.

    Args:
        name: "svhn", or the name of one of its variants.
    """
    import keras

    model = svhn.build_model(name)
    model.compile(
        optimizer=keras.optimizers.Adam(LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def _with_adam(task: Task, run: str) -> Task:
    return replace(
        task,
        name=f"{task.name}_adam",
        build_model=functools.partial(build_model, task.name),
        learning_rate=LEARNING_RATE,
        optimizer="adam",
        status=f"learning rate not tuned; {run}",
    )


TASK = _with_adam(svhn.TASK, "50 steps on mock data only")
_RUN = {"cnn_cifar10": "60,000 examples of", "cnn_fashion_mnist": "60,000 examples of"}
VARIANTS = {
    f"{name}_adam": _with_adam(svhn.VARIANTS[name], f"{run} the real data")
    for name, run in _RUN.items()
}
