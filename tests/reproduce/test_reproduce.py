"""`reproduce`: records, stores, stops, and what it refuses."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from gns_keras import Reproduction, reproduce
from gns_keras.core.reproduction import PointsOfRun
from gns_keras.reproduce import store as stores
from gns_keras.tasks import Task, UnknownTargetError
from gns_keras.training.measured_run import MeasuredRun

SIZE, COUNT, BATCH_SIZE = 4, 256, 8


def build_model() -> keras.Model:
    parts = [layers.Dense(8, "relu"), layers.Dropout(0.2), layers.Dense(3)]
    model = keras.Sequential([keras.Input((SIZE,)), *parts])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, metrics=["accuracy"])
    return model


def load_data(split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(COUNT, SIZE)).astype("float32")
    return x, (x @ rng.normal(size=(SIZE, 3)) + rng.normal(size=(COUNT, 3))).argmax(axis=1)


TOY = Task(
    name="mnist",  # To have a row in the paper.
    description="a toy",
    unit="tokens",
    data_needed="none",
    build_model=build_model,
    load_data=load_data,
    batch_size=2 * BATCH_SIZE,
    learning_rate=0.1,
    optimizer="sgd",
    goals=(0.5,),
    status="not run",
    units_per_example=2,
)


def toy(**options: Any) -> Reproduction:
    options = {"examples": 512, "early": 128, "verbose": 0, "task": TOY} | options
    return reproduce(options.pop("task"), **options)


@pytest.fixture(scope="module")
def whole() -> Reproduction:
    return toy(seeds=2)


def test_a_record_holds_the_runs_and_the_row_of_the_paper(whole: Reproduction) -> None:
    assert [run.seed for run in whole.runs] == [0, 1]
    assert whole.runs[0].points != whole.runs[1].points
    assert [p.examples_seen for p in whole.runs[0].points][:3] == [0, 16, 32]
    assert whole.examples_trained == 512
    assert (whole.dataset_size, whole.batch_size, whole.normalized_group) == (COUNT, 8, None)
    assert whole.published is not None
    assert whole.published.noise_average == (900, 900)
    assert whole.start.unit == "tokens"
    assert Reproduction.from_json(whole.to_json()) == whole


def test_the_text_has_both_numbers_and_the_length(whole: Reproduction) -> None:
    text = str(whole)
    for part in ("Table 1, MNIST", "900", "start: first 256", "average: first 1,024", "a toy",
                 "2 runs of 1,024 tokens, 2 passes over the data", "does not say how long",
                 "Seed by seed"):  # fmt: skip
        assert part in text
    assert max(len(line) for line in text.splitlines()) <= 80
    unresolved = replace(whole, runs=(replace(whole.runs[0], points=()),))
    assert "unresolved" in str(unresolved)


def test_the_default_is_one_pass_and_a_twentieth_of_it() -> None:
    found = reproduce(TOY, verbose=0)
    assert (found.examples, found.early) == (COUNT, 20 * BATCH_SIZE)


class Stop(BaseException):
    """Like Ctrl-C, and none of what the code catches."""


@pytest.mark.parametrize("after", [pytest.param(1, marks=pytest.mark.slow), 12])
def test_a_run_that_was_stopped_goes_on_to_the_same_result(
    after: int, whole: Reproduction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = MeasuredRun._measure
    left = [after]

    def until(self: MeasuredRun, *args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Stop
        return measured(self, *args)

    path = tmp_path / "runs.sqlite"
    with monkeypatch.context() as patch:
        patch.setattr(MeasuredRun, "_measure", until)
        with pytest.raises(Stop):
            toy(store=path)
    first = replace(whole, runs=whole.runs[:1])
    assert measurements(toy(store=path)) == measurements(first)
    monkeypatch.setattr(MeasuredRun, "_measure", None)  # Nothing is left to measure.
    assert measurements(toy(store=path)) == measurements(first)


def measurements(found: Reproduction) -> list[Any]:
    """Everything but the losses, which are differences of means in float32."""
    return [(p.examples_seen, p.noise_scale) for run in found.runs for p in run.points]


def test_a_run_in_a_store_can_be_made_longer(whole: Reproduction, tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    first = toy(examples=256, store=path)
    assert first.examples_trained == 256
    longer = toy(store=path)
    assert longer.examples_trained == 512
    assert longer.runs[0].points[: len(first.runs[0].points)] == first.runs[0].points
    assert measurements(longer)[-1] == measurements(replace(whole, runs=whole.runs[:1]))[-1]


def test_callbacks_of_a_task_take_part_and_their_runs_begin_anew(tmp_path: Path) -> None:
    begun: list[int] = []

    class Counting(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            begun.append(int(self.model.optimizer.iterations))

    task = replace(TOY, build_callbacks=lambda: [Counting()])
    path = tmp_path / "runs.sqlite"
    toy(task=task, examples=32, early=32, store=path)
    found = toy(task=task, examples=48, early=32, store=path)
    assert begun == [0, 0]
    assert found.examples_trained == 48


def test_a_store_of_other_settings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    toy(examples=64, store=path)
    with pytest.raises(
        ValueError, match=r"learning rate was 0\.1, now 0\.2\. Give another --store"
    ):
        toy(task=replace(TOY, learning_rate=0.2), examples=64, store=path)
    with pytest.raises(ValueError, match="early was 128, now 64"):
        toy(examples=64, early=64, store=path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no database at all, but long enough to be one" * 20, "cannot read"), (None, "else")],
)
def test_another_file_is_refused_and_left_alone(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "other"
    if content is None:
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE mine (x)")
        connection.close()
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        toy(store=path)
    assert path.read_bytes() == before


def test_a_store_in_use_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    with (
        stores.RunStore(path, {"task": "toy"}),
        pytest.raises(RuntimeError, match="Another process is using"),
    ):
        stores.RunStore(path, {"task": "toy"})
    stores.RunStore(path, {"task": "toy"}).__exit__(None, None, None)


def test_a_state_comes_back_unless_it_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = PointsOfRun(seed=3, points=())
    state = [np.arange(4, dtype=np.float32), np.array(7, dtype=np.int64)]
    with stores.RunStore(tmp_path / "runs.sqlite", {"task": "toy"}) as store:
        assert store.state(3) is None
        store.keep(run, state)
        found = store.state(3)
        assert found is not None
        for ours, theirs in zip(found, state, strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype
        monkeypatch.setattr(stores, "MAX_STATE_BYTES", 10)
        store.keep(run, state)
        assert store.state(3) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": 0}, "Expected `examples` of at least 1. Received: 0"),
        ({"seeds": -1}, "Expected `seeds`"),
        ({"early": True}, "Expected `early`"),
        ({"examples": 8}, "at least 2 steps, 16 examples"),
    ],
)
def test_wrong_numbers_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy(**options)


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(UnknownTargetError, match="Did you mean 'mnist'"):
        reproduce("mnits")
