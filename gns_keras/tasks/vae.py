"""A variational autoencoder on SVHN (McCandlish et al. 2018, appendix A.4.3), and on other data.

Data, networks and optimizer are those of the task `autoencoder`. The random codes are noise in the
gradient beyond that of the examples, and part of its noise scale.
"""

import functools
from dataclasses import replace
from typing import TYPE_CHECKING

from gns_keras.tasks import Task, autoencoder

if TYPE_CHECKING:
    import keras

LEARNING_RATE = autoencoder.LEARNING_RATE
GOALS = {
    "svhn": (0.2, 0.1, 0.07, 0.06, 0.05),
    "cifar10": (0.25, 0.15, 0.12, 0.1, 0.09),
    "fashion_mnist": (0.3, 0.2, 0.15, 0.12, 0.1),
}
_RUN = {
    "svhn": "50 steps on mock data only",
    "cifar10": "8,000 examples of the real data",
    "fashion_mnist": "8,000 examples of the real data",
}


def build_model(data: str = "svhn") -> "keras.Model":
    """Returns a new variational autoencoder, compiled with Adam.

    Args:
        data: A key of `autoencoder.DATA`.
    """
    import keras

    from gns_keras.tasks.image_codes import PixelError, variational_network

    model = variational_network(autoencoder.DATA[data][1], name="vae")
    model.compile(optimizer=keras.optimizers.Adam(LEARNING_RATE), loss=PixelError())
    return model


def _variational(task: Task, data: str) -> Task:
    return replace(
        task,
        name=task.name.replace("autoencoder", "vae"),
        description=task.description.replace("an autoencoder", "a variational autoencoder"),
        build_model=functools.partial(build_model, data),
        goals=GOALS[data],
        status=f"learning rate not tuned; {_RUN[data]}",
    )


TASK = _variational(autoencoder.TASK, "svhn")
VARIANTS = {
    f"vae_{data}": _variational(autoencoder.VARIANTS[f"autoencoder_{data}"], data)
    for data in ("cifar10", "fashion_mnist")
}
