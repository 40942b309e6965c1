"""Two real worker processes, against two replicas of one process on the same global batches."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from gns_keras.training.multi_worker import enable_multi_worker
from tests.helpers.models import digits_dense
from tests.training import multi_worker_script
from tests.training.multi_worker_script import Results

PROJECT_ROOT = Path(__file__).resolve().parents[2]
SILENCE_S = 90  # On two idle cores the workers say something every few seconds.
NUM_WORKERS = 2


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_workers(
    folder: Path,
    module: str = multi_worker_script.__name__,
    arguments: list[str] | None = None,
    which: str = "all",
) -> list[subprocess.Popen]:
    """Starts both; without arguments each gets the file for its results, and which to make."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(NUM_WORKERS)]}
    workers = []
    for index in range(NUM_WORKERS):
        results = [str(folder / f"{index}.npz"), which]
        task = {"type": "worker", "index": index}
        config = json.dumps({"cluster": cluster, "task": task})
        with open(folder / f"{index}.log", "wb") as log:
            workers.append(
                subprocess.Popen(
                    [sys.executable, "-m", module, *(arguments or results)],
                    cwd=PROJECT_ROOT,
                    env={**os.environ, "TF_CONFIG": config},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return workers


def wait_for(workers: list[subprocess.Popen], folder: Path) -> list[Results]:
    try:
        said, heard = -1, time.monotonic()
        while any(worker.poll() is None for worker in workers):
            size = sum((folder / f"{index}.log").stat().st_size for index in range(NUM_WORKERS))
            if size > said:
                said, heard = size, time.monotonic()
            if time.monotonic() - heard > SILENCE_S:
                pytest.fail(f"The workers hang.\n{last_words(folder)}")
            time.sleep(0.2)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert [worker.returncode for worker in workers] == [0] * NUM_WORKERS, last_words(folder)
    return [dict(np.load(folder / f"{index}.npz")) for index in range(NUM_WORKERS)]


def last_words(folder: Path) -> str:
    logs = (folder / f"{index}.log" for index in range(NUM_WORKERS))
    return "\n".join(f"{log.name}:\n{log.read_text(errors='replace')[-3000:]}" for log in logs)


def mirrored() -> tf.distribute.Strategy:
    tf.distribute.MirroredStrategy._collective_key_base += 100_000  # As in conftest.py.
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def test_two_workers_train_and_measure_like_two_replicas_of_one_process(tmp_path: Path) -> None:
    first, second = wait_for(start_workers(tmp_path, which="compared"), tmp_path)
    expected = multi_worker_script.run(mirrored(), multi_worker_script.COMPARED)
    assert first.pop("num_replicas") == second.pop("num_replicas") == NUM_WORKERS
    assert (first.pop("worker"), second.pop("worker")) == (0, 1)

    workers_agree_bit_for_bit(first, second)
    results_are_those_of_one_process(first, expected)
    np.testing.assert_array_equal(first["watched_weights"], first["plain_weights"])
    np.testing.assert_array_equal(first["watched_logs"], first["plain_logs"])


# One test and not many: what it looks at takes half a minute to make.
@pytest.mark.slow
def test_every_training_of_two_workers_agrees_with_the_others(tmp_path: Path) -> None:
    first, second = wait_for(start_workers(tmp_path), tmp_path)
    for found in (first, second):
        del found["worker"]
    workers_agree_bit_for_bit(first, second)
    the_monitor_changes_no_weight(first)
    a_resumed_run_is_the_uninterrupted_one(first)
    # Calls 10, 20, 30 and 40 of 42, without a look at the clock.
    assert (first["auto_every"], first["auto_noise_scale"][-1]) == (10, 4)


def workers_agree_bit_for_bit(first: Results, second: Results) -> None:
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def results_are_those_of_one_process(found: Results, expected: Results) -> None:
    for name, value in expected.items():
        assert np.isfinite(value).all(), name
        # Float32 sums in another order, over 28 updates.
        absolute = 0 if "noise_scale" in name else 1e-6
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=absolute, err_msg=name)
    np.testing.assert_allclose(found["plain_weights"], expected["plain_weights"], rtol=0, atol=1e-6)


def the_monitor_changes_no_weight(found: Results) -> None:
    np.testing.assert_array_equal(found["several_weights"], found["plain_weights"])
    np.testing.assert_array_equal(found["clipped_weights"], found["clipped_unwatched_weights"])


def a_resumed_run_is_the_uninterrupted_one(found: Results) -> None:
    np.testing.assert_array_equal(found["resumed_epochs"], [2, 3])
    np.testing.assert_array_equal(found["resumed_weights"], found["plain_weights"])
    np.testing.assert_array_equal(found["resumed_noise_scale"], found["watched_noise_scale"])


def test_under_another_strategy_nothing_changes(strategy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for num_replicas in (1, 2):
        with strategy(num_replicas).scope():
            model = digits_dense(num_examples=64).model
        before = dict(model.__dict__)
        assert enable_multi_worker(model) is model
        assert model.__dict__ == before


def test_a_second_call_changes_nothing() -> None:
    # Without TF_CONFIG this strategy is one worker with one replica.
    with tf.distribute.MultiWorkerMirroredStrategy().scope():
        model, x, y = digits_dense(num_examples=64)
    enable_multi_worker(model)
    once = dict(model.__dict__)
    enable_multi_worker(model)
    assert model.__dict__ == once
    plain, _, _ = digits_dense(num_examples=64)
    for each in (model, plain):
        each.fit(x, y, batch_size=32, shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_a_clone_is_as_keras_makes_it() -> None:
    with tf.distribute.MultiWorkerMirroredStrategy().scope():
        model = enable_multi_worker(digits_dense(num_examples=64).model)
        clone = keras.models.clone_model(model)
    assert "_make_function" in model.__dict__
    assert "_make_function" not in clone.__dict__


def test_a_model_from_outside_the_scope_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = {"chief": ["127.0.0.1:1"], "worker": ["127.0.0.1:2"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster}))
    model = digits_dense(num_examples=64).model
    with pytest.raises(
        ValueError, match=r"names 2 workers. Received one created under no strategy"
    ):
        enable_multi_worker(model)
