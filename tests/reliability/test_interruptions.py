"""Ctrl-C at any line of the package: it ends the run, and leaves a model that trains as before.

A real SIGINT, at the n-th line that the package executes on the main thread, for lines spread over
a whole run. Python turns it into KeyboardInterrupt at that line.
"""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import gns_keras
from gns_keras.training.preserve import preserved
from tests.reliability import faults
from tests.training.runs import differences, variables_of

PACKAGE = str(Path(gns_keras.__file__).parent)


def lines_of(run: Callable[[], Any], interrupt_at: int | None = None) -> int:
    """Runs it and counts the lines of the package; sends SIGINT at one of them."""
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            count += 1
            if count == interrupt_at:
                signal.raise_signal(signal.SIGINT)
        return trace

    # A process that was started in the background may ignore SIGINT.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(None)
        signal.signal(signal.SIGINT, handler)
    return count


def trained(callback: keras.callbacks.Callback | None, model: keras.Model) -> None:
    x, y = faults.arrays(160)
    callbacks = [] if callback is None else [callback]
    model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)


def check_plain_afterwards(model: keras.Model) -> None:
    """The next fit is that of a model that was never watched, bit for bit."""
    twin = faults.make_model()
    twin.optimizer.build(twin.trainable_variables)
    model.optimizer.build(model.trainable_variables)
    for mine, other in zip(model.variables, twin.variables, strict=True):
        other.assign(mine)
    for mine, other in zip(model.optimizer.variables, twin.optimizer.variables, strict=True):
        other.assign(mine)
    for one in (model, twin):
        one.reset_metrics()
        trained(None, one)
    assert differences(variables_of(model), variables_of(twin)) == []
    assert not [name for name in vars(model.optimizer) if name in ("apply", "scale_loss")]
    assert "_all_reduce_sum_gradients" not in vars(model.optimizer)
    assert "_get_current_learning_rate" not in vars(model.optimizer)
    assert "train_step" not in vars(model)
    assert "compute_loss" not in vars(model)


def interrupt_everywhere(name: str, times: int, seed: int) -> None:
    total = lines_of(lambda: trained(faults.CALLBACKS[name](), faults.make_model()))
    rng = random.Random(seed)
    interrupted = 0
    for part in range(times):  # One line out of each equal stretch of the run.
        at = 1 + (part * total + rng.randrange(total)) // times
        model, callback = faults.make_model(), faults.CALLBACKS[name]()
        try:
            lines_of(lambda c=callback, m=model: trained(c, m), at)
        except KeyboardInterrupt:
            interrupted += 1
        check_plain_afterwards(model)
        trained(callback, model)  # And under watch it goes on.
        assert all(np.isfinite(weight).all() for weight in model.get_weights())
    assert interrupted >= times - 2  # "auto" makes some runs a few lines shorter.


@pytest.mark.slow
@pytest.mark.parametrize("name", faults.CALLBACKS)
def test_ctrl_c_anywhere_leaves_a_model_that_trains_as_before(name: str) -> None:
    interrupt_everywhere(name, times=20, seed=2)


def test_ctrl_c_at_every_line_of_putting_back_puts_everything_back() -> None:
    """`advise` leaves no trace: also where Ctrl-C comes while it tidies up."""
    model = faults.make_model()
    trained(None, model)
    before = variables_of(model)

    def tried() -> None:
        with preserved(model):
            model.set_weights([weight + 1.0 for weight in model.get_weights()])
            model.optimizer.learning_rate = 7.0

    interrupted, at = True, 0
    while interrupted:  # Until it is through before the signal: the first run has more lines.
        at += 1
        try:
            lines_of(tried, at)
        except KeyboardInterrupt:
            interrupted = True
        else:
            interrupted = False
        assert differences(before, variables_of(model)) == [], at
    assert at > 10


def test_training_on_a_batch_within_a_scheduled_fit_does_not_end_the_schedule() -> None:
    x, y = faults.arrays(160)

    class Extra(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 1:
                self.model.train_on_batch(x[:16], y[:16])

    scheduler, model = faults.make_scheduler(), faults.make_model()
    model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=[scheduler, Extra()])
    assert scheduler.history["examples_seen"][-1] == 320
    assert model.train_function != scheduler._run


def test_an_error_in_another_callback_leaves_the_next_fit_unscheduled() -> None:
    class Raises(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            raise ZeroDivisionError

    scheduler, model = faults.make_scheduler(), faults.make_model()
    with pytest.raises(ZeroDivisionError):
        trained_with(model, scheduler, Raises())
    check_plain_afterwards(model)
    assert scheduler.batch_size == 0


def trained_with(model: keras.Model, *callbacks: keras.callbacks.Callback) -> None:
    x, y = faults.arrays(160)
    model.fit(x, y, batch_size=16, shuffle=False, verbose=0, callbacks=list(callbacks))
