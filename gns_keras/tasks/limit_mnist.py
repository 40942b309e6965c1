"""MNIST in batches up to the whole training set (You et al. 2020, arXiv 2006.08517).

The network is that of the task `mnist`. It is compiled with a constant learning rate, as every task
is; give `build_model` the number of updates for warm-up and polynomial decay.
"""

from typing import TYPE_CHECKING

from gns_keras.tasks import Task, mnist

if TYPE_CHECKING:
    import keras

# Of constant or peak learning rates, none of them tuned.
LEARNING_RATES = {"lars": 0.2, "lamb": 0.01, "momentum": 0.1}
BATCH_SIZE = 4096


def build_model(
    optimizer: str = "lars", *, num_updates: int | None = None, learning_rate: float | None = None
) -> "keras.Model":
    """Returns the network, compiled for large batches.

    Args:
        optimizer: "lars", "lamb" or "momentum".
        num_updates: Updates of the whole training, the first 5 % of them warm-up. None: a constant
            learning rate.
        learning_rate: Constant, or the peak. Default: that of `LEARNING_RATES`.
    """
    from gns_keras.tasks.large_batch import compile_for_large_batches

    return compile_for_large_batches(
        mnist.build_model(),
        optimizer,
        LEARNING_RATES,
        num_updates=num_updates,
        learning_rate=learning_rate,
    )


TASK = Task(
    name="limit_mnist",
    description="The task mnist for large batches: LARS, Lamb or momentum; warm-up and decay",
    unit="examples",
    data_needed=mnist.TASK.data_needed,
    build_model=build_model,
    load_data=mnist.load_data,
    batch_size=BATCH_SIZE,
    learning_rate=LEARNING_RATES["lars"],
    optimizer="lars",
    goals=mnist.TASK.goals,
    status="learning rates not tuned; 50 steps of small batches on the real data; the experiment "
    "up to all data in one batch on a smaller network, docs/reproduction/limit.md",
)
