"""Models that cannot be measured or trained: every door refuses them before it has done anything.

What the monitor alone refuses is in tests/training/test_checks.py, and `advise` in
tests/test_advise.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from gns_keras.sweep.sweep import sweep
from gns_keras.training.memory_guard import MemoryGuard
from tests.reliability import faults

ROOT = Path(__file__).resolve().parents[2]


def fit(model: keras.Model, callback: keras.callbacks.Callback) -> None:
    model.fit(*faults.arrays(64), batch_size=16, shuffle=False, verbose=0, callbacks=[callback])


@pytest.mark.parametrize("name", faults.CALLBACKS)
def test_a_model_that_is_not_compiled_is_refused_by_fit(name: str) -> None:
    with pytest.raises(ValueError, match=r"compile\(\)"):  # By Keras itself.
        fit(faults.make_model(compiled=False), faults.CALLBACKS[name]())


def test_a_model_that_is_not_compiled_is_refused_by_a_sweep() -> None:
    with pytest.raises(ValueError, match=r"compiled keras\.Model"):
        sweep(lambda: faults.make_model(compiled=False), faults.arrays(), **faults.SWEEP)


@pytest.mark.parametrize("built", [True, False])
@pytest.mark.filterwarnings("ignore:The model does not have any trainable:UserWarning")
def test_a_model_with_nothing_to_train_is_refused_at_every_door(built: bool) -> None:
    for make in faults.CALLBACKS.values():
        with pytest.raises(ValueError, match="no trainable weights"):
            fit(faults.make_frozen(built=built), make())
    with pytest.raises(ValueError, match="no trainable weights"):
        sweep(lambda: faults.make_frozen(built=built), faults.arrays(), **faults.SWEEP)


@pytest.mark.parametrize("name", faults.CALLBACKS)
def test_a_model_that_is_not_built_is_built_as_fit_builds_it(name: str) -> None:
    watched, plain = faults.make_model(built=False), faults.make_model(built=False)
    fit(watched, faults.CALLBACKS[name]())
    fit(plain, keras.callbacks.Callback())
    for left, right in zip(watched.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


@pytest.mark.parametrize("name", faults.CALLBACKS)
def test_a_model_of_keras_2_is_refused_by_its_name(name: str) -> None:
    legacy = type("Sequential", (), {"__module__": "tf_keras.src.engine.sequential"})()
    with pytest.raises(TypeError, match=r"tf_keras\.src\.engine\.sequential\.Sequential.*import"):
        faults.CALLBACKS[name]().set_model(legacy)


def test_a_real_model_of_keras_2_is_refused_in_its_own_fit() -> None:
    legacy = pytest.importorskip("tf_keras")
    model = legacy.Sequential([legacy.layers.Dense(2)])
    model.compile("sgd", "mse")
    with pytest.raises(TypeError, match="tf-keras 2"):
        model.fit(*faults.arrays(64), verbose=0, callbacks=[faults.make_monitor()])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_another_backend_is_refused_by_name_and_the_statistics_work(backend: str) -> None:
    pytest.importorskip(backend)
    done = subprocess.run(
        [sys.executable, "-m", "tests.reliability.backend_script"],
        cwd=ROOT, env=os.environ | {"KERAS_BACKEND": backend},
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    first, *doors, last = done.stdout.splitlines()
    assert first == f"{backend} {backend}"
    assert len(doors) == 3
    for line in doors:
        assert f'RuntimeError gns_keras works inside the TensorFlow train step. Received backend "{backend}"' in line  # noqa: E501  # fmt: skip
    assert last == "estimate 8.0"  # (0.25 * 8 / 0.5) * 2 by hand.


# ------------------------------------------------------------------ memory


class OutOfMemory(keras.Sequential):
    """Runs out of memory in the train step that it is told to."""

    at, calls = -1, 0

    def train_step(self, data):
        type(self).calls += 1
        if self.calls == self.at:
            raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
        return super().train_step(data)


@pytest.mark.parametrize("at", [1, 3])
def test_memory_that_runs_out_under_the_monitor_is_the_users_to_see(at: int) -> None:
    """Nothing is retried: the monitor passes the error on, and the next fit is a plain one."""
    model = OutOfMemory([keras.Input((6,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse", run_eagerly=True)
    OutOfMemory.at, OutOfMemory.calls = at, 0
    with pytest.raises(tf.errors.ResourceExhaustedError, match="out of memory"):
        fit(model, faults.make_monitor())
    OutOfMemory.at = -1
    before = faults.weights(model)
    fit(model, keras.callbacks.Callback())
    assert faults.weights(model) != before


def test_an_example_that_does_not_fit_is_an_error_and_no_endless_halving() -> None:
    """What is tried smaller: tests/training/test_batch_scheduler.py."""

    class Source:
        def rows(self, granule):
            return (1,)

    with pytest.raises(RuntimeError, match="A single example per replica does not fit"):
        MemoryGuard(faults.make_model()).smaller(("granule",), Source())


def test_memory_that_runs_out_in_a_sweep_keeps_the_runs_that_had_finished(tmp_path) -> None:
    def greedy() -> keras.Model:
        keras.utils.set_random_seed(0)
        model = OutOfMemory([keras.Input((6,)), keras.layers.Dense(2)])
        model.compile(keras.optimizers.SGD(0.05), "mse")
        return model

    arguments = faults.SWEEP | {"store": tmp_path / "sweep.sqlite", "verbose": 0}
    # Every batch size is traced twice: the third time belongs to the second size.
    OutOfMemory.at, OutOfMemory.calls = 3, 0
    with pytest.raises(tf.errors.ResourceExhaustedError, match="out of memory"):
        sweep(greedy, faults.arrays(), **arguments)
    OutOfMemory.at = -1
    traced = OutOfMemory.calls
    assert len(sweep(greedy, faults.arrays(), **arguments).records) == 2
    assert OutOfMemory.calls == traced + 2  # Only the batch size that was missing.
