"""`BatchSizeScheduler`: a global batch size that follows the noise scale, inside `model.fit`."""

import warnings
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from gns_keras.core.batch_decisions import BatchDecisions
from gns_keras.core.batch_policy import PresetBatchSizes
from gns_keras.core.learning_rate import LearningRateRule
from gns_keras.training import checks, keras_private
from gns_keras.training.batch_session import BatchSession, SessionOptions
from gns_keras.training.learning_rate_control import LearningRateControl
from gns_keras.training.saved_state import SCHEDULER_STATE, read_saved_state

DEFAULT_UPDATE_EVERY = 10
OUT_OF_DATA = "Your input ran out of data"
ANOTHER_CALLBACK = (
    "Another callback has replaced the train function, and batches would not be scheduled. Leave "
    "NoiseScaleMonitor out: BatchSizeScheduler measures the noise scale itself."
)


class BatchSizeScheduler(keras.callbacks.Callback):
    """Lets the global batch size follow `sqrt(r * noise scale)`, and the learning rate with it.

    The data set is batched as for the smallest batch; larger ones are made of several of its
    batches, exactly: weights are those of training at the true batch size. Batch size and learning
    rate change on the same update. One Keras batch is one update, so that `iterations`, schedules
    and callbacks count updates, and an epoch has fewer of them as the batch grows. Gradients for
    the noise scale are those of the update itself.

    `History` and logs gain `global_batch_size`, `learning_rate` (that of the update; the
    optimizer's own is the base rate), `noise_scale` with its interval, and `temperature`. Logs of
    single updates gain them unless `fit(verbose=1)` shows its bar, which would not fit on a line.

    Args:
        exchange_rate: `r`, examples that are worth one step, or "auto": `E_min/S_min` of the run so
            far, at which it takes as many times the fewest steps as the fewest examples.
        min_batch_size: Smallest global batch size, in examples. Default: the data set's.
        max_batch_size: Largest global batch size. Default: an epoch.
        max_microbatch_size: Most examples in one forward and backward pass, over all replicas.
            Default: what fits in memory, which is found by trying on a GPU; on a CPU 32 batches.
        learning_rate_rule: A `LearningRateRule`; "auto": the one for the optimizer, with the
            noise scale averaged over the run so far as critical batch size; None: leave the
            learning rate alone. That of the compiled model belongs to the data set's batch size.
        hysteresis: Factor by which the wanted batch size must differ from the present one.
        update_every: Updates between two looks at the recorded gradients, or "auto": 10. Where one
            device computes an update in one piece, it does so in four at the first ten looks, and
            then at every fourth.
        batch_sizes: `{examples_seen: global_batch_size}`, followed instead of the noise scale.
        monotone: Never shrink the batch.
        schedule_in_examples: Read a `LearningRateSchedule` at the examples seen over the data set's
            batch size, so that a growing batch does not stretch it.
        keep_half_life: Keep the half-life of Adam's second moments in examples.

    Raises:
        ValueError, NotImplementedError, RuntimeError: Also from `fit`, before it starts: what
            cannot be done, why, and what to do instead.

    Example:
        ```python
        scheduler = BatchSizeScheduler(max_batch_size=4096)
        model.fit(x, y, batch_size=64, epochs=10, callbacks=[scheduler])
        scheduler.history["global_batch_size"]
        ```

    Reference: McCandlish et al. 2018, arXiv 1812.06162, Appendix D.
    """

    async_safe = True  # Keras need not fetch logs at every step for our sake.

    def __init__(
        self,
        *,
        exchange_rate: float | str = "auto",
        min_batch_size: int | None = None,
        max_batch_size: int | None = None,
        max_microbatch_size: int | None = None,
        learning_rate_rule: LearningRateRule | str | None = "auto",
        hysteresis: float = 2.0,
        update_every: int | str = "auto",
        batch_sizes: Mapping[int, int] | None = None,
        monotone: bool = False,
        schedule_in_examples: bool = False,
        keep_half_life: bool = False,
    ) -> None:
        super().__init__()
        checks.refuse_scheduler_arguments(exchange_rate, update_every, BatchSession.CAPACITY)
        if learning_rate_rule not in (None, "auto") and not isinstance(
            learning_rate_rule, LearningRateRule
        ):
            raise ValueError(
                'Expected `learning_rate_rule` to be "auto", None or a LearningRateRule. '
                f"Received: {learning_rate_rule!r}."
            )
        self._options = SessionOptions(
            min_batch_size=min_batch_size,
            max_batch_size=max_batch_size,
            max_microbatch_size=max_microbatch_size,
            hysteresis=hysteresis,
            monotone=monotone,
            update_every=DEFAULT_UPDATE_EVERY if update_every == "auto" else int(update_every),
        )
        self._rate = None if exchange_rate == "auto" else float(exchange_rate)
        self._rule = learning_rate_rule
        self._preset = None if batch_sizes is None else PresetBatchSizes.of(batch_sizes)
        self._control_options = (schedule_in_examples, keep_half_life)
        self.history: dict[str, list[float]] = {}
        self._decisions = BatchDecisions(exchange_rate=self._rate, preset=self._preset)
        self._memory: Any = None
        self._session: BatchSession | None = None
        self._session_of: Any = None
        self._watched: Any = None
        self._stock: Any = None
        self._iterator: Any = None
        self._due = False
        self._is_new = True
        self._silenced: warnings.catch_warnings | None = None

    @property
    def batch_size(self) -> int:
        """Present global batch size, in examples; 0 before the first update."""
        return self._decisions.batch_size

    @property
    def exchange_rate(self) -> float:
        """`r`, in examples per step; NaN while it is not known."""
        return self._decisions.exchange_rate

    @property
    def adaptive_gain(self) -> float:
        """`gamma` of Eq. D.5 over the run so far; NaN while it is not known."""
        return self._decisions.adaptive_gain

    @property
    def num_traces(self) -> int:
        """How often a program for updates was traced."""
        return self._session.num_traces if self._session else 0

    def load_state(self, path: str) -> None:
        """Continues, in the next `fit`, from a model file that was saved during one.

        `BackupAndRestore` does this by itself.

        Raises:
            ValueError: The file holds no state of a scheduler.
        """
        self._unpack(read_saved_state(path, SCHEDULER_STATE))

    # -- Keras calls these ---------------------------------------------------------------------

    def set_model(self, model: keras.Model) -> None:
        """Refuses what cannot be scheduled, and takes part in the saving of the model."""
        super().set_model(model)
        checks.refuse_foreign(model)  # Others have no `distribute_strategy`.
        checks.refuse_unsupported(model, model.distribute_strategy)
        self._control = self._make_control(model.optimizer)
        if self._watched is not None and self._watched is not model:
            self._decisions = BatchDecisions(exchange_rate=self._rate, preset=self._preset)
            self._session, self._memory, self.history = None, None, {}
        self._watched = model
        state = keras_private.SavedState(self._pack, self._unpack)
        keras_private.attach_state(model, state, SCHEDULER_STATE)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Puts the update loop in the place of the model's train function."""
        if self.params.get("steps") is None:
            raise ValueError(
                "The batch scheduler needs to know how many batches the data set has: Keras would "
                "take the number of updates in the first epoch for the limit of all others. Give "
                "the data set its size with `tf.data.experimental.assert_cardinality`, or use "
                "`.repeat()` and `steps_per_epoch`."
            )
        if isinstance(
            getattr(self.model.train_function, "__self__", None), keras.callbacks.Callback
        ):
            raise RuntimeError(ANOTHER_CALLBACK)
        self._stock = self.model.train_function
        self._iterator, self._due = None, False
        self._is_new = True
        keras_private.set_train_function(self.model, self._run)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes that the next iterator is another one."""
        self._iterator = None
        if self.model.train_function != self._run:
            keras_private.set_train_function(self.model, self._stock)
            raise RuntimeError(ANOTHER_CALLBACK)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes that the next call of the train function belongs to this fit."""
        self._due = True

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds what the update was made with to the logs, unless they go into a bar.

        Most terminals cannot write over a bar of several lines, and would scroll at every update.
        """
        has_bar = self.params.get("verbose") in (1, "auto")
        if logs is not None and self._session is not None and not has_bar:
            logs.update(self._session.shown)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds what the last update was made with to the epoch's logs."""
        self._speak_again()
        if self._session is not None:
            self._session.read()
            self._session.note()
            if logs is not None:
                logs.update(self._session.shown)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Puts the model's own train function back."""
        self._stop()

    # -- Inside --------------------------------------------------------------------------------

    def _run(self, iterator: Any) -> Any:
        """The model's train function for the length of `fit`."""
        if not isinstance(iterator, tf.data.Iterator | tf.distribute.DistributedIterator):
            return self._stock(iterator)  # From train_on_batch, in another callback.
        if not self._due or self._iterator not in (None, iterator):
            # A fit that ended in an error could not call on_train_end; this is another one.
            self._stop()
            return self._stock(iterator)
        self._iterator, self._due = iterator, False
        try:
            session = self._ready_session()
            if self._is_new:
                has_data = session.begin(iterator, int(self.params["steps"]))
                self._is_new = not has_data
            logs = None if self._is_new else session.run(iterator)
        except BaseException:
            self._stop()
            raise
        if logs is None:
            self._silence()
            raise StopIteration
        return logs

    def _ready_session(self) -> BatchSession:
        if self._session is None or self._session_of is not self._stock:
            self._session = BatchSession(
                self.model,
                self._control,
                self._decisions,
                self._options,
                history=self.history,
                preset=self._preset,
                memory=self._memory,
            )
            self._session_of = self._stock
        return self._session

    def _make_control(self, optimizer: keras.optimizers.Optimizer) -> LearningRateControl:
        rule = LearningRateRule.for_optimizer(optimizer) if self._rule == "auto" else self._rule
        in_examples, keep = self._control_options
        control = LearningRateControl(
            rule=rule, schedule_in_examples=in_examples, keep_half_life=keep
        )
        control.check(optimizer)
        return control

    def _stop(self) -> None:
        if self.model.train_function == self._run:
            keras_private.set_train_function(self.model, self._stock)
        if self._session is not None:
            self._session.end()
        self._iterator = None
        self._speak_again()

    def _silence(self) -> None:
        """Keeps Keras from warning of data that ran out: with a growing batch they should."""
        self._speak_again()
        self._silenced = warnings.catch_warnings()
        self._silenced.__enter__()
        warnings.filterwarnings("ignore", message=OUT_OF_DATA)

    def _speak_again(self) -> None:
        silenced, self._silenced = self._silenced, None
        if silenced is not None:
            silenced.__exit__(None, None, None)

    def _pack(self) -> dict[str, Any]:
        if self._session is not None:
            self._session.read()
            self._memory = self._session.memory
        packed: dict[str, Any] = dict(self._decisions.pack())
        return packed if self._memory is None else packed | {"memory": self._memory}

    def _unpack(self, stored: dict[str, Any]) -> None:
        self._decisions.unpack(stored)
        self._memory = stored.get("memory")
        if self._session is not None:
            self._session.memory = self._memory
