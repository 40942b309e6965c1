"""Processes that are forked, killed or share a store.

Two processes on one store, SIGKILL and SIGINT of a sweep: tests/sweep/test_kill.py, test_store.py
and test_sweep.py.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
from pathlib import Path

import keras
import pytest

from gns_keras.sweep import workers
from gns_keras.sweep.sweep import sweep
from tests.reliability import faults
from tests.reliability.tracked import observed
from tests.sweep import problems

SETTINGS = {
    "batch_sizes": [8, 64],
    "goals": [1.0],
    "learning_rates": [0.1],
    "max_examples": 2000,
    "half_life": 128,
    "verbose": 0,
}
MARKER = "GNS_KERAS_TEST_KILLED"


def killed_once() -> keras.Model:
    """Kills the first worker process that builds it, as a machine short of memory would."""
    marker = Path(os.environ[MARKER])
    if multiprocessing.parent_process() is not None and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return problems.classifier()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_an_executor_that_forks_is_refused_and_does_not_hang() -> None:
    """TensorFlow waits for ever in a forked process; seen with Python's default on Linux."""
    context = multiprocessing.get_context("fork")
    with (
        concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool,
        pytest.raises(RuntimeError, match=r"cannot go on in a forked process.*get_context\('spawn"),
    ):
        sweep(problems.classifier, problems.arrays, executor=pool, **SETTINGS)
    assert os.getpid() in workers._LINEAGE


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_tracker_is_numpy_alone_and_works_in_any_process(method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"there is no {method}")
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        found = pool.submit(observed, 30).result(timeout=120)
    assert found.result() == observed(30).result()


@pytest.mark.slow
def test_a_killed_worker_of_a_pool_loses_its_run_and_no_other(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(MARKER, os.fspath(tmp_path / "killed"))
    arguments = SETTINGS | {"store": tmp_path / "sweep.sqlite", "workers_at_once": 2}
    context = multiprocessing.get_context("spawn")
    for _ in range(2):
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            if not (tmp_path / "killed").exists():
                with pytest.raises(concurrent.futures.process.BrokenProcessPool):
                    sweep(killed_once, problems.arrays, executor=pool, **arguments)
            else:
                result = sweep(killed_once, problems.arrays, executor=pool, **arguments)
    expected = sweep(problems.classifier, problems.arrays, **SETTINGS)
    assert repr(result.without_times().records) == repr(expected.without_times().records)


@pytest.mark.parametrize("name", faults.CALLBACKS)
def test_a_clock_that_jumps_changes_no_weight(name: str, monkeypatch) -> None:
    """`every="auto"` reads a clock that only runs forwards; the wall clock is not asked."""
    import time

    calls = []
    now = time.time

    def jumping() -> float:
        calls.append(1)
        return now() + 3600.0 * (len(calls) % 2)

    x, y = faults.arrays()
    found = []
    for jumps in (False, True):
        if jumps:
            monkeypatch.setattr(time, "time", jumping)
        model = faults.make_model()
        model.fit(x, y, batch_size=16, verbose=0, shuffle=False,
                  callbacks=[faults.CALLBACKS[name]()])  # fmt: skip
        found.append(faults.weights(model))
    assert found[0] == found[1]
