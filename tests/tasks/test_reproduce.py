"""The scripts of examples/reproduce, in small."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

FOLDER = Path(__file__).parents[2] / "examples" / "reproduce"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # Its dataclasses look there.
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def figure_15(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("figure_15", monkeypatch)


@pytest.fixture
def setting(figure_15: ModuleType) -> Any:
    """160 random images, and few snapshots."""
    rng = np.random.default_rng(0)
    data = rng.normal(size=(160, 784)).astype(np.float32), rng.integers(0, 10, 160)
    spans = {"warm_up": 1, "before": 2, "changed": 2, "after": 2, "settling": 1}
    return replace(
        figure_15.SETTINGS["classifier, SGD"],
        load=lambda: data,
        batch_size=2,
        every=64,
        measured_size=16,
        learning_rate=0.01,
        **spans,
    )


def test_over_all_data_the_measurement_is_exact(figure_15: ModuleType, setting: Any) -> None:
    training = figure_15.Training(setting, 0)
    trace, signal = training.measure(np.random.default_rng(0))
    with tf.GradientTape() as tape:
        loss = training.model.compute_loss(training.x, training.y, training.model(training.x))
    whole = tape.gradient(loss, training.model.trainable_variables)
    expected = sum(float(tf.reduce_sum(tf.square(part))) for part in whole)
    assert signal == pytest.approx(expected, rel=1e-4)
    each = []
    for row in range(160):
        x, y = training.x[row : row + 1], training.y[row : row + 1]
        with tf.GradientTape() as tape:
            loss = training.model.compute_loss(x, y, training.model(x))
        parts = tape.gradient(loss, training.model.trainable_variables)
        each.append(sum(float(tf.reduce_sum(tf.square(part))) for part in parts))
    exact = (np.mean(each) - expected) * 160 / 159
    # Eighty groups of two examples, in many directions.
    assert trace == pytest.approx(exact, rel=0.1)


def test_all_curves_see_the_same_examples_and_part_at_the_change(
    figure_15: ModuleType, setting: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    runs = [figure_15.run_seed(setting, seed) for seed in (0, 1)]
    for run in runs:
        rows = {name: np.array(curve) for name, curve in run.items()}
        for name in figure_15.CURVES:
            assert rows[name][:, 0].tolist() == [128, 192, 256, 320, 384, 448]
            np.testing.assert_array_equal(rows[name][:2], rows["unchanged"][:2])
        losses = {name: curve[2, 3] for name, curve in rows.items()}
        assert len(set(losses.values())) == 4
    figure_15.report("small", setting, runs)
    assert "batch x 16: " in capsys.readouterr().out
    figure_15.SETTINGS["small"] = setting
    figure_15.draw({"small": runs}, tmp_path / "small.png")
    assert (tmp_path / "small.png").stat().st_size > 10_000


def test_a_state_comes_back_bit_for_bit(figure_15: ModuleType, setting: Any) -> None:
    training = figure_15.Training(setting, 0)
    state = training.state()
    training.train((1, 16))
    assert int(training.model.optimizer.iterations) == 2
    training.restore(state)
    for value, kept in zip(training.state(), state, strict=True):
        np.testing.assert_array_equal(value, kept)
    assert float(keras.ops.convert_to_numpy(training.model.optimizer.iterations)) == 0


def test_the_diffusion_script_fits_its_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    diffusion = script("diffusion", monkeypatch)
    rng = np.random.default_rng(0)
    data = rng.normal(size=(64, 28, 28, 1)).astype(np.float32), rng.integers(0, 10, 64)
    monkeypatch.setattr(diffusion.mnist, "load_data", lambda: data)
    store, plot = tmp_path / "runs.json", tmp_path / "plot.png"
    line = (
        f"diffusion.py --batch-sizes 8 64 --updates 40 --seeds 2 --first-update 2 --store {store}"
    )
    monkeypatch.setattr(sys, "argv", [*line.split(), "--plot", str(plot)])
    diffusion.main()
    first = capsys.readouterr().out
    assert [row.split()[0] for row in first.splitlines()] == ["batch", "8", "64"]
    assert plot.stat().st_size > 5_000
    monkeypatch.setattr(diffusion, "run", None)  # All runs are in the store.
    diffusion.main()
    assert capsys.readouterr().out == first
