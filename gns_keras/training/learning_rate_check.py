"""Short paired training runs at several learning rates.

All runs start from the state that the model has, see the same batches in the same order, and draw
the same random numbers in dropout. What counts is the loss that the train step reports for the last
quarter of the batches: as compiled, under whatever strategy, and nothing but the train function of
`fit` is compiled for it.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gns_keras.core.learning_rate_check import FACTORS, FURTHEST, SPACING, LearningRateCheck
from gns_keras.core.short_run_bias import ShortRunBias, short_run_bias
from gns_keras.training import keras_private
from gns_keras.training.example_source import ExampleSource
from gns_keras.training.preserve import preserved

RUN_EXAMPLES = 4096  # Of a run, but within these steps:
FEWEST_USUAL_STEPS, MOST_STEPS = 128, 256
FEWEST_STEPS = 64  # With a small budget.
SHARE_THAT_COUNTS = 4  # The last quarter.
USUAL_RUNS = 4  # Three to five.
MOST_RUNS = len(FACTORS) + round(math.log(FURTHEST / SPACING, SPACING))
SHARE_OF_BUDGET = 3  # A third.
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
        search: The best learning rate is what the noise scale is measured with.
        whole_run: Examples of the run that the learning rate is for, or None.
    """

    batch_size: int
    steps: int
    budget: int | None = None
    search: bool = False
    whole_run: int | None = None

    @property
    def run_examples(self) -> int:
        """Examples that one run takes."""
        return self.steps * self.batch_size

    @property
    def most_examples(self) -> int:
        """Examples that a check takes at most: where the best learning rate is far away."""
        most = MOST_RUNS * self.run_examples
        return most if self.budget is None else min(most, self.budget // 2)


def plan_check(
    batch_size: int,
    budget: int | None,
    *,
    search: bool = False,
    whole_run: int | None = None,
) -> CheckPlan:
    """Divides a third of the budget among the runs.

    Args:
        batch_size: Global batch size, in examples.
        budget: Examples for everything that advise does; None: no limit.
        search: The best learning rate is what the noise scale is measured with.
        whole_run: Examples of the run that the learning rate is for, or None.
    """
    usual = min(max(RUN_EXAMPLES // batch_size, FEWEST_USUAL_STEPS), MOST_STEPS)
    plan = CheckPlan(batch_size=batch_size, steps=usual, search=search, whole_run=whole_run)
    if budget is None:
        return plan
    affordable = budget // SHARE_OF_BUDGET // (USUAL_RUNS * batch_size)
    steps = min(usual, affordable) if affordable >= FEWEST_STEPS else 0
    return replace(plan, steps=steps, budget=budget)


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
    """Trains at a quarter, once and four times the learning rate, and on until the best is inside.

    It trains the model: call it inside `preserved`.

    Args:
        model: Compiled and built model.
        source: The data.
        plan: Length of the runs.
        scale: From `scaled_learning_rate`; at 1 on return.
        seed: Seed of the order of the examples.
        advance: Called with every number of examples that are done.
    """
    check = LearningRateCheck(
        learning_rate=float(tf.convert_to_tensor(model.optimizer.learning_rate)),
        batch_size=plan.batch_size,
        steps=plan.steps,
        searched=plan.search,
    )
    if not plan.steps:
        needed = SHARE_OF_BUDGET * USUAL_RUNS * FEWEST_STEPS * plan.batch_size
        return replace(check, reason=NO_BUDGET.format(plan=plan, needed=needed))
    runs = _Runs(model, source, plan, scale, seed, advance)
    for factor in FACTORS:
        losses = runs.losses(factor)
        if not losses:
            scale(1.0)
            return replace(check, reason=NO_LOSS, examples_used=runs.examples_used)
        check = check.with_runs(factor, losses)
    while (factor := check.next_factor) is not None and runs.affordable:
        check = check.with_runs(factor, runs.losses(factor))
    scale(1.0)
    return replace(check, bias=_bias(model, plan), examples_used=runs.examples_used)


def _bias(model: keras.Model, plan: CheckPlan) -> ShortRunBias:
    optimizer = keras_private.apply_optimizer(model.optimizer)
    return short_run_bias(
        type(optimizer).__name__,
        float(getattr(optimizer, "momentum", 0.0) or 0.0),
        steps=plan.steps,
        is_trained=int(tf.convert_to_tensor(optimizer.iterations)) >= plan.steps,
        run_examples=plan.whole_run,
    )


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
        self._seed = seed + SEED_OFFSET
        self.examples_used = 0
        model.make_train_function()  # Not within `preserved`, which would take it back every time.

    @property
    def affordable(self) -> bool:
        """Whether the budget allows for one more learning rate."""
        more = self.examples_used + self._plan.run_examples
        return self._plan.budget is None or more <= self._plan.budget // 2

    def losses(self, factor: float) -> tuple[float, ...]:
        """Losses of the last batches of the run of a factor; none where the train step has none."""
        run = _Losses(lambda steps: self._advance(steps * self._plan.batch_size))
        with preserved(self._model):
            self._scale(factor)
            self._model.fit(
                self._source.batches(self._plan.batch_size, seed=self._seed),
                steps_per_epoch=self._plan.steps,
                shuffle=False,
                verbose=0,
                callbacks=[run],
            )
        self.examples_used += self._plan.run_examples
        run.advance(self._plan.steps - run.steps)  # Of a run that diverged.
        last = run.losses[-max(1, len(run.losses) // SHARE_THAT_COUNTS) :] if run.losses else []
        return tuple(loss if math.isfinite(loss) else math.inf for loss in last)


class _Losses(keras.callbacks.Callback):
    """Takes the losses of single batches out of the mean over the epoch that Keras reports.

    Args:
        advance: Called with every number of batches that are done.

    Attributes:
        losses: One for each batch; for several, where Keras runs several at a time.
        steps: Batches that are done.
    """

    def __init__(self, advance: Advance) -> None:
        super().__init__()
        self.advance = advance
        self.losses: list[float] = []
        self.steps = 0
        self._total, self._done = 0.0, 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes the mean loss since the last call; ends a run that diverged."""
        self.advance(batch + 1 - self.steps)
        self.steps = batch + 1
        if logs and "loss" in logs:
            total = float(np.asarray(logs["loss"])) * (batch + 1)
            self.losses.append((total - self._total) / (batch + 1 - self._done))
            self._total, self._done = total, batch + 1
            self.model.stop_training = not math.isfinite(total)
