"""Short paired training runs at several learning rates.

All runs start from the state that the model has. Those of one seed see the same batches in the same
order, and draw the same random numbers in dropout. A run trains for some steps, takes the mean of
its weights over the second half of them, and goes on through fresh batches at learning rate 0: the
loss that the train step reports there is the loss at those weights, as compiled, under whatever
strategy, and nothing but the train function of `fit` is compiled for it.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gns_keras.core.learning_rate import LearningRateRule
from gns_keras.core.learning_rate_check import BIAS_OF_ADAM, FACTORS, LearningRateCheck
from gns_keras.training import keras_private
from gns_keras.training.example_source import ExampleSource
from gns_keras.training.preserve import preserved

STEPS, FEWEST_STEPS = 32, 24
PROBE_STEPS = 8
SEEDS = 4
NUM_RUNS = SEEDS * len(FACTORS)
SHARE_OF_BUDGET = 3  # A third.
SNAPSHOTS = 10  # Weights that the mean is taken of, at most about.
SEED_OFFSET = 7919  # Other orders of the examples than those of the trial run.
NO_LOSS = (
    "The learning rate was not checked: the train step of the model reports no `loss`. Return it "
    "from `train_step` under that name."
)
NO_BUDGET = (
    "The learning rate was not checked: at batch size {plan.batch_size:,} that needs a `budget` of "
    "{needed:,} examples, of which it takes a third. Received: {plan.budget:,}."
)

Scale = Callable[[float], None]
Advance = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class CheckPlan:
    """How long the runs are.

    Attributes:
        batch_size: Global batch size, in examples.
        steps: Updates of a run; 0: there is no budget for a check.
        budget: Examples for everything that advise does; None: no limit. Half of it may be spent.
        search: Go on until the best learning rate lies inside of those tried.
    """

    batch_size: int
    steps: int
    budget: int | None = None
    search: bool = False

    @property
    def run_examples(self) -> int:
        """Examples that one run takes."""
        return (self.steps + PROBE_STEPS) * self.batch_size

    @property
    def usual_examples(self) -> int:
        """Examples that a check takes that needs no further learning rates."""
        return NUM_RUNS * self.run_examples if self.steps else 0


def plan_check(batch_size: int, budget: int | None, *, search: bool = False) -> CheckPlan:
    """Divides a third of the budget among the runs.

    Args:
        batch_size: Global batch size, in examples.
        budget: Examples for everything that advise does; None: no limit.
        search: Go on until the best learning rate lies inside of those tried.
    """
    if budget is None:
        return CheckPlan(batch_size=batch_size, steps=STEPS, search=search)
    affordable = budget // SHARE_OF_BUDGET // (NUM_RUNS * batch_size) - PROBE_STEPS
    steps = min(STEPS, affordable) if affordable >= FEWEST_STEPS else 0
    return CheckPlan(batch_size=batch_size, steps=steps, budget=budget, search=search)


@contextlib.contextmanager
def scaled_learning_rate(model: keras.Model) -> Iterator[Scale]:
    """Yields a function that sets the learning rate to so many times the present one.

    A schedule or a function is multiplied as a whole. Enter it inside `preserved`, which also takes
    back the train function that a schedule needs.
    """
    held = keras_private.held_learning_rate(model.optimizer)
    if isinstance(held, keras.Variable):
        present = held.numpy()
        try:
            yield lambda factor: held.assign(present if factor == 1 else present * factor)
        finally:
            held.assign(present)
        return
    with model.distribute_strategy.scope():
        variable = tf.Variable(1.0, trainable=False)

    def scaled(schedule: Any) -> tf.Tensor:
        is_schedule = isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule)
        rate = schedule(model.optimizer.iterations) if is_schedule else schedule()
        return tf.convert_to_tensor(rate) * tf.cast(variable, tf.convert_to_tensor(rate).dtype)

    keras_private.set_train_function(model, None)  # To be traced anew.
    with keras_private.reduced_update(model.optimizer, scaled, reduced=False):
        yield variable.assign


def check_learning_rate(
    model: keras.Model,
    source: ExampleSource,
    plan: CheckPlan,
    scale: Scale,
    *,
    seed: int,
    advance: Advance,
) -> LearningRateCheck:
    """Trains at a quarter to four times the learning rate, and further where that does not decide.

    It trains the model: call it inside `preserved`.

    Args:
        model: Compiled and built model.
        source: The data.
        plan: Length of the runs.
        scale: From `scaled_learning_rate`; at 1 on return.
        seed: Seed of the order of the examples.
        advance: Called with every number of examples that are done.
    """
    rate = float(tf.convert_to_tensor(model.optimizer.learning_rate))
    check = LearningRateCheck(
        learning_rate=rate,
        batch_size=plan.batch_size,
        steps=plan.steps,
        bias=_bias(model.optimizer),
        searched=plan.search,
    )
    if not plan.steps:
        needed = SHARE_OF_BUDGET * NUM_RUNS * (FEWEST_STEPS + PROBE_STEPS) * plan.batch_size
        return replace(check, reason=NO_BUDGET.format(plan=plan, needed=needed))
    runs = _Runs(model, source, plan, scale, seed, advance)
    start = runs.losses(0.0)
    if not start:
        return replace(check, reason=NO_LOSS, examples_used=runs.examples_used)
    check = replace(check, start_loss=float(np.mean(start)))
    for factor in FACTORS:
        check = check.with_runs(factor * check.bias, runs.losses(factor * check.bias))
    while (factor := check.next_factor) is not None and runs.affordable:
        check = check.with_runs(factor, runs.losses(factor))
    scale(1.0)
    return replace(check, examples_used=runs.examples_used)


def _bias(optimizer: keras.optimizers.Optimizer) -> float:
    """For optimizers that divide by the size of the gradient, that of Adam; else none."""
    try:
        return BIAS_OF_ADAM if LearningRateRule.for_optimizer(optimizer).alpha < 1 else 1.0
    except ValueError:
        return 1.0


class _Runs:
    """Makes runs from the state that the model has when a run is asked for."""

    def __init__(
        self,
        model: keras.Model,
        source: ExampleSource,
        plan: CheckPlan,
        scale: Scale,
        seed: int,
        advance: Advance,
    ) -> None:
        self._model, self._source, self._plan = model, source, plan
        self._scale, self._advance = scale, advance
        self._seeds = [seed + SEED_OFFSET * (index + 1) for index in range(SEEDS)]
        self.examples_used = 0
        model.make_train_function()  # Not within `preserved`, which would take it back every time.

    @property
    def affordable(self) -> bool:
        """Whether the budget allows for one more learning rate."""
        more = self.examples_used + SEEDS * self._plan.run_examples
        return self._plan.budget is None or more <= self._plan.budget // 2

    def losses(self, factor: float) -> tuple[float, ...]:
        """Losses that the runs of a factor came to; without training for factor 0.

        Empty where the train step reports none.
        """
        found = []
        for seed in self._seeds:
            with preserved(self._model):
                found.append(self._loss(factor, seed))
        losses = [loss for loss in found if loss is not None]
        return tuple(loss if math.isfinite(loss) else math.inf for loss in losses)

    def _loss(self, factor: float, seed: int) -> float | None:
        steps = self._plan.steps if factor else 0
        run = _Run(steps, self._scale)
        self._scale(factor)
        history = self._model.fit(
            self._source.batches(self._plan.batch_size, seed=seed),
            steps_per_epoch=steps + PROBE_STEPS,
            shuffle=False,
            verbose=0,
            callbacks=[run],
        )
        examples = (steps + PROBE_STEPS) * self._plan.batch_size
        self.examples_used += examples
        self._advance(examples)
        loss = history.history.get("loss")
        return None if loss is None else float(loss[-1])


class _Run(keras.callbacks.Callback):
    """Takes the mean of the weights, then looks at the loss there with learning rate 0."""

    def __init__(self, steps: int, scale: Scale) -> None:
        super().__init__()
        self._steps, self._scale = steps, scale
        self._every = max(1, steps // 2 // SNAPSHOTS)
        self._sums: list[np.ndarray] | None = None
        self._count = 0
        self._training = steps > 0
        self._next = steps // 2

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Adds the weights up where it is due, and stops the training at its end."""
        done = batch + 1
        if self._training and done >= self._next:
            self._add()
            self._next = done + self._every
        if self._training and done >= self._steps:
            self._training = False
            for variable, total in zip(self.model.trainable_variables, self._sums, strict=True):
                variable.assign(total / self._count)
            self._scale(0.0)
            self.model.reset_metrics()

    def _add(self) -> None:
        values = [
            tf.convert_to_tensor(variable.value).numpy().astype(np.float64)
            for variable in self.model.trainable_variables
        ]
        before = self._sums or [np.zeros_like(value) for value in values]
        self._sums = [total + value for total, value in zip(before, values, strict=True)]
        self._count += 1
