"""One model under a batch scheduler: from one update to the next."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import keras
import numpy as np

from gns_keras.core.batch_decisions import BatchDecisions
from gns_keras.core.batch_ladder import Realisation, realise, realise_in_groups
from gns_keras.core.batch_policy import BatchLimit, BatchPolicy, PresetBatchSizes, tightest_limit
from gns_keras.core.groups import StepObservations
from gns_keras.training import checks, keras_private
from gns_keras.training.granules import GranuleSource
from gns_keras.training.learning_rate_control import LearningRateControl, UpdateNumbers
from gns_keras.training.memory_guard import MemoryGuard
from gns_keras.training.recorder import Recorder
from gns_keras.training.update_loop import UpdateLoop
from gns_keras.training.update_programs import UpdatePrograms

# On one device tr(Sigma) comes from updates that are computed in groups, which costs most of an
# update more; |G|^2, the noisy part, comes from all of them.
EARLY_LOOKS = 10
LOOKS_PER_SPLIT = 4


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """Arguments of `BatchSizeScheduler`, all in examples over all replicas."""

    min_batch_size: int | None
    max_batch_size: int | None
    max_microbatch_size: int | None
    hysteresis: float
    monotone: bool
    update_every: int


class BatchSession:
    """Runs updates of the size that was decided on, and feeds what they show back.

    Args:
        model: Compiled model.
        control: What becomes of its learning rate.
        decisions: Memory of the run.
        options: Limits.
        history: Where a line goes for every look at the gradients, change and epoch.
        preset: Schedule to check against the limits.
        memory: Limits that an earlier run found.
    """

    CAPACITY = 128

    def __init__(
        self,
        model: keras.Model,
        control: LearningRateControl,
        decisions: BatchDecisions,
        options: SessionOptions,
        *,
        history: dict[str, list[float]],
        preset: PresetBatchSizes | None,
        memory: Any = None,
    ) -> None:
        self._model = model
        self._control = control
        self._decisions = decisions
        self._options = options
        self._history = history
        self._preset = preset
        strategy = model.distribute_strategy
        self._replicas = strategy.num_replicas_in_sync
        self._several_workers = keras_private.has_several_workers(strategy)
        self._source = GranuleSource(strategy, eager=model.run_eagerly)
        self._guard = MemoryGuard(model, can_retry=not self._several_workers)
        self._recorder = Recorder(strategy, 1, self.CAPACITY)
        self._loop: UpdateLoop | None = None
        self._warned = False
        self.shown: dict[str, float] = {}
        self.memory = memory

    @property
    def num_traces(self) -> int:
        """How often a program was traced so far."""
        return self._loop.traces if self._loop else 0

    @property
    def memory(self) -> np.ndarray:
        """What was found out about the memory of the device."""
        return np.array([self._guard.max_granules, self._guard.too_large], np.int64)

    @memory.setter
    def memory(self, stored: Any) -> None:
        if stored is not None:
            guard = self._guard
            guard.max_granules, guard.too_large = (int(value) for value in stored)

    def begin(self, iterator: Any, steps: int) -> bool:
        """Looks at the data before the first update of a fit; False if there are none.

        Args:
            iterator: Keras' iterator over granules.
            steps: Granules per epoch.
        """
        granule = self._source.peek(iterator)
        if granule is None:
            return False
        rows = self._source.rows(granule)
        self._per_replica = max(rows)
        self._granule = sum(rows) * self._replicas // len(rows)
        self._set_limits(steps)
        if self._loop is None:
            self._build(granule)
        self._sync()
        return True

    def _set_limits(self, steps: int) -> None:
        options, granule = self._options, self._granule
        self._limit: BatchLimit = tightest_limit(
            granule, max_batch_size=options.max_batch_size, epoch_examples=steps * granule
        )
        if self._preset is not None:
            self._preset.check(granule, self._limit)
        self._policy = BatchPolicy(
            granule=granule,
            min_batch_size=options.min_batch_size or granule,
            max_batch_size=self._limit.size,
            hysteresis=options.hysteresis,
            monotone=options.monotone,
        )
        largest = options.max_microbatch_size
        if largest is not None:
            self._guard.max_granules = min(self._guard.max_granules, max(1, largest // granule))
            self._guard.min_slices = max(self._guard.min_slices, -(-granule // max(1, largest)))

    def _build(self, granule: Any) -> None:
        model = self._model
        if not model.built or any(not metric.variables for metric in model.metrics):
            batch = self._source.one_replica(granule)
            if type(model).train_step is keras.Model.train_step:
                keras_private.build_state(model, batch)
            elif not model.built:  # A step of one's own may not use the compiled loss.
                model(keras.utils.unpack_x_y_sample_weight(batch)[0])
        checks.refuse_unsupported(model, model.distribute_strategy)  # It has its weights now.
        if not model.optimizer.built:
            with model.distribute_strategy.scope():
                model.optimizer.build(model.trainable_variables)
        programs = UpdatePrograms(
            model,
            self._control,
            self._recorder,
            counts_whole=not checks.has_batch_normalization(model),
        )
        self._loop = UpdateLoop(
            programs, self._source, self._guard, several_workers=self._several_workers
        )

    def _sync(self) -> None:
        # Updates that a loss scale skipped are none for a schedule.
        iterations = int(self._model.optimizer.iterations.numpy())
        self._skipped = self._decisions.updates - iterations

    def run(self, iterator: Any) -> dict[str, Any] | None:
        """Makes the updates of one call; logs of the last one, None if no data are left."""
        logs = None
        for _ in range(max(1, int(self._model.steps_per_execution))):
            found = self._update(iterator)
            if found is None:
                break
            logs = found
        return logs

    def read(self) -> None:
        """Moves what the devices recorded into the decisions."""
        if self._decisions.num_pending:
            self._decisions.add(self._recorder.read()[0])
            self._sync()

    def end(self) -> None:
        """After the last update, or one that was interrupted at any point."""
        recorded, pending = self._recorder.read()[0], self._decisions.num_pending
        if len(recorded.num_examples) >= pending:
            # Of an update that was not counted there may be a row, after the others.
            self._decisions.add(_first(recorded, pending))
        else:
            self._decisions.forget_pending()  # They had been read, and not yet added.
        self._sync()
        if self._loop is not None:
            self._loop.start_over()

    def _update(self, iterator: Any) -> dict[str, Any] | None:
        decisions, optimizer = self._decisions, self._model.optimizer
        due = decisions.updates % self._options.update_every == 0
        if due:
            self.read()
        before = decisions.batch_size
        position = decisions.examples_seen // self._granule
        rate = self._control.base_rate(optimizer, decisions.updates - self._skipped, position)
        size = max(before, self._granule)
        temperature = self._control.temperature(rate, optimizer, (size, self._granule))
        size = decisions.choose(temperature, self._policy)
        full = self._control.scale(size, self._granule, decisions.critical_batch_size)
        scale = decisions.warmed_scale(full, self._control.warm_up)
        numbers = UpdateNumbers(scale, size / self._granule, position)
        update = self._loop.run(iterator, self._plan(size, split=due and self._splits()), numbers)
        if update is None:
            return None
        self._show(size, rate * scale, temperature)
        if due or size != before:
            self.note()
        temperature = self._control.temperature(rate, optimizer, (size, self._granule))
        decisions.record(
            update.examples, temperature, observed=update.recorded, warmth=scale / full
        )
        self._refuse(temperature)
        return update.logs

    def _splits(self) -> bool:
        """Whether to compute this update in groups: at every look early on, then at some."""
        looks = self._decisions.updates // self._options.update_every
        return looks < EARLY_LOOKS or looks % LOOKS_PER_SPLIT == 0

    def _plan(self, size: int, *, split: bool) -> Realisation:
        granules, limit = size // self._granule, self._guard.max_granules
        if split:
            return realise_in_groups(granules, limit, self._replicas, self._per_replica)
        return realise(granules, limit)

    def _show(self, size: int, rate: float, temperature: float) -> None:
        noise_scale = self._decisions.noise_scale(temperature)
        low, high = noise_scale.interval
        self.shown = {
            "global_batch_size": size,
            "learning_rate": rate,
            "noise_scale": noise_scale.value,
            "noise_scale_lower": low,
            "noise_scale_upper": high,
            "temperature": temperature,
        }

    def note(self) -> None:
        """Adds a line to the history: what was shown last, and where the run stands."""
        line: Mapping[str, float] = {
            "update": self._decisions.updates,
            "examples_seen": self._decisions.examples_seen,
            "exchange_rate": self._decisions.exchange_rate,
            **self.shown,
        }
        for name, value in line.items():
            self._history.setdefault(name, []).append(value)

    def _refuse(self, temperature: float) -> None:
        if self._warned or self._limit.size == self._options.max_batch_size:
            return
        message = self._decisions.refusal(temperature, self._policy, self._limit)
        if message is not None:
            self._warned = True
            warnings.warn(message, stacklevel=2)


def _first(steps: StepObservations, count: int) -> StepObservations:
    kept = {field.name: getattr(steps, field.name)[:count] for field in fields(steps)}
    return StepObservations(**kept)
