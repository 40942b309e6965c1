"""`NoiseScaleMonitor`: the gradient noise scale of an ordinary `model.fit`."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gns_keras.core.cadence import Cadence
from gns_keras.core.noise_scale import NoiseScale
from gns_keras.training import checks, keras_private
from gns_keras.training.running_estimate import RunningEstimate
from gns_keras.training.session import Session

DEFAULT_MICROBATCHES = 4
DEFAULT_SHARE = 0.25
OVERHEAD = 0.01  # Share of the time that every="auto" may spend: the promise is 2 and 5 %.


class NoiseScaleMonitor(keras.callbacks.Callback):
    """Measures the gradient noise scale during `model.fit`, without changing the training.

    Weights are bit for bit those of a run without it. Under a strategy with several replicas the
    groups are the replicas, and no communication is added; on one device a few batches are split
    into microbatches, while the squared norm of the gradient is used on every step. Gradients are
    taken before clipping and without loss scale. `History` and the epoch logs gain `noise_scale`,
    `noise_scale_lower` and `noise_scale_upper` (NaN and infinity while unresolved); list the
    monitor before loggers such as `CSVLogger`, so that they see them.

    Args:
        every: Measure one step in so many in full, or "auto": from the measured cost, about 1 % of
            the time, and half as much again while the window is short. As "auto" depends on a
            clock, give an integer to make the measurement repeat exactly; the weights do not depend
            on it.
        microbatches: Groups that the whole batch is split into on one device, or "auto": 4 groups
            from a quarter of the batch. `tr(Sigma)`, which they are for, needs no more: the noisy
            part, `|G|^2`, uses the whole batch of every step.
        half_life: Examples after which a step counts half as much; None: forget nothing; "auto": a
            tenth of the examples seen so far, at least 50 steps.
        unit: Name of what the first axis of a batch counts: "examples", "sequences", "images". It
            is the unit of independence; to state the result in tokens, use
            `result().scaled(tokens_per_sequence, "tokens")`.
        per_layer: Keep the norms of every layer, for `per_layer()`.
        metric: "euclidean", or "adam": norms preconditioned by the optimizer's second moments from
            before the step, `tr(P Sigma) / (G'P G)`.

    Raises:
        ValueError, NotImplementedError, RuntimeError: From `fit`, before it starts: what cannot be
            measured, why, and what to do instead.

    Example:
        ```python
        monitor = NoiseScaleMonitor()
        model.fit(x, y, batch_size=64, epochs=3, callbacks=[monitor])
        print(monitor.result())
        ```

    Reference: McCandlish et al. 2018, arXiv 1812.06162, Eq. 2.9 and Appendix A.1.
    """

    async_safe = True  # Keras need not fetch logs at every step for our sake.

    def __init__(
        self,
        *,
        every: int | str = "auto",
        microbatches: int | str = "auto",
        half_life: float | str | None = "auto",
        unit: str = "examples",
        per_layer: bool = False,
        metric: str = "euclidean",
    ) -> None:
        super().__init__()
        Cadence(every, overhead=1.0)  # Refuses a bad value here, not in fit.
        checks.refuse_monitor_arguments(microbatches, metric)
        self.every = every
        self.microbatches = microbatches
        self.half_life = half_life
        self.unit = unit
        self.keeps_layers = per_layer
        self.metric = metric
        self.history: dict[str, list[float]] = {}

        self._estimate = self._new_estimate()
        self._session: Session | None = None
        self._cadence: Cadence | None = None
        self._watched: Any = None
        self._warned: set[str] = set()
        self._due = False
        self._stepped = False
        self._iterator: Any = None
        self._loaded: dict[str, Any] | None = None

    def get_config(self) -> dict[str, Any]:
        """Arguments that make a monitor like this one."""
        return {
            "every": self.every,
            "microbatches": self.microbatches,
            "half_life": self.half_life,
            "unit": self.unit,
            "per_layer": self.keeps_layers,
            "metric": self.metric,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "NoiseScaleMonitor":
        """Makes a monitor from `get_config()`."""
        return cls(**config)

    @property
    def measures_every(self) -> int | None:
        """Steps per full measurement; None before `every="auto"` has been chosen."""
        return self._cadence.every if self._cadence else None

    def result(self) -> NoiseScale:
        """Returns the noise scale over the current window, or an unresolved one."""
        self._read()
        return self._estimate.result()

    def per_layer(self) -> dict[str, NoiseScale]:
        """Returns the noise scale of every layer with trainable weights, by its path.

        Raises:
            ValueError: The monitor was made without `per_layer=True`.
        """
        if not self.keeps_layers:
            raise ValueError(
                "Layers were not measured. Make the monitor with NoiseScaleMonitor(per_layer=True)."
            )
        self._read()
        names = self._session.layer_names if self._session else []
        return self._estimate.per_layer(names)

    def load_state(self, path: str) -> None:
        """Continues, in the next `fit`, from a model file that was saved while being monitored.

        `BackupAndRestore` and `model.load_weights` during a fit do this by themselves; a model that
        was loaded with `keras.models.load_model` knows nothing of the monitor.

        Args:
            path: A `.keras` or `.weights.h5` file.

        Raises:
            ValueError: The file holds no state of a monitor.
        """
        self._loaded = keras_private.read_saved_state(path)

    # -- Keras calls these ---------------------------------------------------------------------

    def set_model(self, model: keras.Model) -> None:
        """Refuses what cannot be measured, and takes part in the saving of the model."""
        super().set_model(model)
        checks.refuse_foreign(model)  # Others have no `distribute_strategy`.
        checks.refuse_unsupported(model, model.distribute_strategy)
        if self.metric == "adam":
            checks.refuse_without_second_moments(model.optimizer)
        if self._watched is not model:
            self._start_over(model)
        if self._loaded is not None:
            self._unpack(self._loaded)
            self._loaded = None
        keras_private.attach_state(model, keras_private.SavedState(self._pack, self._unpack))

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Puts the dispatcher in the place of the model's train function."""
        if self._cadence is None:
            self._cadence = self._make_cadence()
        self._stock = self.model.train_function
        self._iterator, self._due = None, False
        keras_private.set_train_function(self.model, self._run)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes that the next iterator is another one."""
        self._iterator = None

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes that the next call of the train function belongs to this fit."""
        self._due = True

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the noise scale to the epoch's logs and to `history`."""
        noise_scale = self.result()
        names = ("noise_scale", "noise_scale_lower", "noise_scale_upper")
        shown = dict(zip(names, (noise_scale.value, *noise_scale.interval), strict=True))
        if logs is not None:
            logs.update(shown)
        more = {
            "epoch": epoch,
            "examples_seen": self._estimate.examples_seen,
            "grad_sq_norm": noise_scale.grad_sq_norm,
            "trace_cov": noise_scale.trace_cov,
            "num_steps": noise_scale.num_steps,
        }
        for name, value in {**more, **shown}.items():
            self.history.setdefault(name, []).append(value)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Puts the model's own train function back."""
        self._read()
        self._stop()

    # -- Inside --------------------------------------------------------------------------------

    def _run(self, iterator: Any) -> Any:
        """The model's train function for the length of `fit`."""
        if not isinstance(iterator, tf.data.Iterator | tf.distribute.DistributedIterator):
            return self._stock(iterator)  # From train_on_batch, in another callback.
        known = self._iterator is None or iterator is self._iterator
        if not (self._due and known):
            # A fit that ended in an error could not call on_train_end; this is another one.
            self._stop()
            return self._stock(iterator)
        self._iterator, self._due = iterator, False
        try:
            session = self._ready_session()
            if session is None:
                return self._stock(iterator)
            if session.full:
                self._read()
            return session.run(iterator)
        except (StopIteration, tf.errors.OutOfRangeError):
            raise
        except BaseException:
            self._stop()
            raise

    def _stop(self) -> None:
        if self.model.train_function == self._run:
            keras_private.set_train_function(self.model, self._stock)
        self._iterator, self._due = None, False

    def _ready_session(self) -> Session | None:
        """Returns the session, or None while the model has still to be built by a first step."""
        model = self.model
        unbuilt = not model.built or any(not metric.variables for metric in model.metrics)
        if unbuilt and not self._stepped:
            self._stepped = True
            return None
        if self._session is None or not self._session.belongs_to(model, self._stock):
            self._read()
            before, self._session = self._session, self._make_session(model)
            if before is not None and before.variables != self._session.variables:
                self._estimate = self._new_estimate()  # Layers were frozen or freed.
        return self._session

    def _make_session(self, model: keras.Model) -> Session:
        checks.refuse_unsupported(model, model.distribute_strategy)
        checks.warn_once(model, self._warned)
        is_auto = self.microbatches == "auto"
        return Session(
            model,
            self._stock,
            self._cadence or self._make_cadence(),
            layers=self.keeps_layers,
            metric=self.metric,
            microbatches=DEFAULT_MICROBATCHES if is_auto else int(self.microbatches),
            share=DEFAULT_SHARE if is_auto else 1.0,
        )

    def _make_cadence(self) -> Cadence:
        strategy = self.model.distribute_strategy
        several = strategy.num_replicas_in_sync > 1
        if several and self.microbatches != "auto":
            checks.refuse_microbatches(self.microbatches, strategy)
        return Cadence(
            self.every,
            overhead=OVERHEAD,
            least=8,
            timed=not keras_private.has_several_workers(strategy),
        )

    def _read(self) -> None:
        """Moves what the devices recorded into the estimate."""
        found = self._session.read() if self._session else None
        if found is None or not len(found[1]):
            return
        self._estimate.add(*found)
        per_call = float(found[0].num_examples[-1]) * self._session.steps_per_call
        if self._cadence and per_call > 0:
            self._cadence.follow_window(self._estimate.half_life / per_call)

    def _start_over(self, model: keras.Model) -> None:
        self._watched, self._session, self._cadence = model, None, None
        self._estimate = self._new_estimate()
        self._stepped = False
        self.history = {}

    def _new_estimate(self) -> RunningEstimate:
        return RunningEstimate(self.half_life, self.unit, keeps_layers=self.keeps_layers)

    def _pack(self) -> dict[str, Any]:
        self._read()
        cadence = self._cadence or self._make_cadence()
        return {**self._estimate.pack(), "cadence": np.array(cadence.pack(), np.float64)}

    def _unpack(self, stored: dict[str, Any]) -> None:
        self._estimate.unpack(stored)
        self._cadence = self._cadence or self._make_cadence()
        self._cadence.unpack([float(value) for value in stored["cadence"]])
