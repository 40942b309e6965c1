"""How long a trial run trains, and how much it measures: its budget, divided."""

import math
from dataclasses import dataclass, replace

import keras

from gns_keras.core.pooled import MIN_BLOCKS
from gns_keras.training import checks
from gns_keras.training.example_source import Source

NUM_GROUPS = 8
EVERY = 10  # Steps between snapshots.
MIN_SNAPSHOTS, MAX_SNAPSHOTS = 40, 200
FEWEST_SNAPSHOTS = 10  # With a small budget.
SHARE_OF_BATCH = 4  # Groups are a quarter of a replica's batch: that makes 8 batches a snapshot.


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """How long to train and how much to measure.

    Attributes:
        batch_size: Global batch size of the training, in examples.
        every: Steps between two snapshots.
        max_snapshots: Most snapshots.
        measure_batch_size: Global batch size of the measurement; a snapshot takes four of them.
        at_mean: Whether as much is measured at the mean weights.
        target_loss: Training loss that is asked about; the run goes on towards it.
        least_examples: Examples to train on at least, as far as the budget goes.
    """

    batch_size: int
    every: int
    max_snapshots: int
    measure_batch_size: int
    at_mean: bool = True
    target_loss: float | None = None
    least_examples: float = 0.0

    @property
    def snapshot_examples(self) -> int:
        """Examples that one snapshot takes, with its share of what is measured at mean weights."""
        return (2 if self.at_mean else 1) * MIN_BLOCKS * self.measure_batch_size

    @property
    def max_examples(self) -> int:
        """Most examples that training and measuring take together."""
        return self.max_snapshots * (self.every * self.batch_size + self.snapshot_examples)


def plan_trial(model: keras.Model, source: Source, budget: int | None) -> TrialPlan:
    """Divides the budget between training and measuring.

    Args:
        model: Built model.
        source: The data.
        budget: Examples to spend; None: as many as it takes, up to one pass over the data, which
            is 5 % of a run of 20, but at least 40 and at most 200 snapshots.

    Raises:
        ValueError: Budget or data are too small for any statement.
    """
    unit = NUM_GROUPS * model.distribute_strategy.num_replicas_in_sync
    share = 1 if checks.has_batch_normalization(model) else SHARE_OF_BATCH
    group = max(1, source.batch_size * NUM_GROUPS // (unit * share))
    data = math.inf if source.num_examples is None else source.num_examples
    group = min(group, data // (MIN_BLOCKS * unit))
    if group < 1:
        raise ValueError(
            f"The noise scale needs at least {MIN_BLOCKS * unit} examples of data. "
            f"Received: {source.num_examples}."
        )
    plan = TrialPlan(
        batch_size=source.batch_size,
        every=EVERY,
        max_snapshots=MIN_SNAPSHOTS,
        measure_batch_size=int(group) * unit,
        # Statistics of batch normalization are not those of the mean weights.
        at_mean=not checks.has_batch_normalization(model),
    )
    if budget is not None:
        return _within(replace(plan, max_snapshots=MAX_SNAPSHOTS), budget)
    one_epoch = data / (plan.every * plan.batch_size + plan.snapshot_examples)
    count = max(MIN_SNAPSHOTS, min(MAX_SNAPSHOTS, one_epoch))
    return replace(plan, max_snapshots=int(count))


def least_budget(model: keras.Model, source: Source) -> int:
    """The fewest examples that `plan_trial` takes as a budget."""
    return _least(plan_trial(model, source, None))


def _least(plan: TrialPlan) -> int:
    return FEWEST_SNAPSHOTS * (plan.batch_size + plan.snapshot_examples)


def _within(plan: TrialPlan, budget: int) -> TrialPlan:
    """Returns the plan with fewer snapshots, and if need be fewer steps between them."""
    per_snapshot = budget // FEWEST_SNAPSHOTS
    every = min(plan.every, (per_snapshot - plan.snapshot_examples) // plan.batch_size)
    if every < 1:
        raise ValueError(
            f"Expected a `budget` of at least {_least(plan)} examples at batch size "
            f"{plan.batch_size}. Received: {budget}. A smaller `batch_size` needs less."
        )
    snapshots = budget // (every * plan.batch_size + plan.snapshot_examples)
    return replace(plan, every=every, max_snapshots=min(plan.max_snapshots, snapshots))
