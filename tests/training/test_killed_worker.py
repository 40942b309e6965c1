"""SIGKILL of one of two workers: what the other one says, and that both resume."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.training import killed_worker_script
from tests.training.killed_worker_script import SLOW_EPOCH
from tests.training.multi_worker_script import COLLECTIVE_TIMEOUT_S
from tests.training.test_multi_worker import last_words, start_workers

START_S = 240  # Two processes import TensorFlow and trace on a machine that may be busy.
END_S = COLLECTIVE_TIMEOUT_S + 120


def start(folder: Path, kind: str) -> list[subprocess.Popen]:
    return start_workers(folder, killed_worker_script.__name__, [str(folder), kind])


def finish(workers: list[subprocess.Popen], folder: Path, kind: str) -> list[dict]:
    try:
        codes = [worker.wait(timeout=START_S) for worker in workers]
    finally:
        stop(workers)
    assert codes == [0, 0], last_words(folder)
    return [dict(np.load(folder / f"{kind}{index}.npz")) for index in range(2)]


def stop(workers: list[subprocess.Popen]) -> None:
    for worker in workers:
        worker.kill()
        worker.wait()


def wait_until_both_say(words: str, folder: Path, workers: list[subprocess.Popen]) -> None:
    end = time.monotonic() + START_S
    while not all(words in (folder / f"{index}.log").read_text() for index in range(2)):
        if time.monotonic() > end or any(worker.poll() is not None for worker in workers):
            pytest.fail(last_words(folder))
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("killed", "by"), [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP)]
)
def test_when_a_worker_is_killed_the_other_fails_and_both_resume(
    killed: int, by: signal.Signals, tmp_path: Path
) -> None:
    # Stopped, it keeps its connections and answers no more, as a machine without power would.
    unbroken = finish(start(tmp_path, "unbroken"), tmp_path, "unbroken")

    workers = start(tmp_path, "broken")
    try:
        wait_until_both_say(f"epoch {SLOW_EPOCH}", tmp_path, workers)
        time.sleep(1.5)  # Into the epoch.
        os.kill(workers[killed].pid, by)
        began = time.monotonic()
        code = workers[1 - killed].wait(timeout=END_S)  # It does not hang.
        print(f"The other worker ended after {time.monotonic() - began:.1f} s")
    finally:
        stop(workers)
    said = (tmp_path / f"{1 - killed}.log").read_text(errors="replace")
    print(said[-3000:])
    assert code != 0
    assert "UnavailableError" in said or "UNAVAILABLE" in said
    assert not list(tmp_path.glob("broken*.npz"))

    # Of a kill between their two writes the workers would keep different epochs.
    shutil.rmtree(tmp_path / f"backup{killed}")
    shutil.copytree(tmp_path / f"backup{1 - killed}", tmp_path / f"backup{killed}")
    resumed = finish(start(tmp_path, "resumed"), tmp_path, "resumed")
    assert f"epoch {SLOW_EPOCH - 1}\n" not in (tmp_path / "0.log").read_text()
    for before, after in zip(unbroken, resumed, strict=True):
        for name in before:
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)
