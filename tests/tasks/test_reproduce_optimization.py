"""The scripts of figures 8, 15 (slow part), 17 and 18, in small."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import keras
import numpy as np
import pytest
import tensorflow as tf

FOLDER = Path(__file__).parents[2] / "examples" / "reproduce"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)  # They import each other.
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def figure_8(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("figure_8", monkeypatch)


@pytest.fixture
def figure_17(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("figure_17", monkeypatch)


@pytest.fixture
def figure_18(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("figure_18", monkeypatch)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("figure_15_slow", monkeypatch)


def noise_that_follows_the_loss(losses: np.ndarray, factor: float) -> list[list[float]]:
    """Rows of a run whose noise scale is `factor` times 1,000 at loss 4, and grows as it falls."""
    updates = 100 * (1 + np.arange(len(losses)))
    return [
        [int(at), factor * 50 * np.exp(3 * (4 - loss)), 1.0, float(loss)]
        for at, loss in zip(updates, losses, strict=True)
    ]


def test_models_on_one_curve_of_noise_against_loss_have_a_ratio_of_one(figure_8) -> None:
    slow, fast = np.linspace(5, 4.2, 9), np.linspace(5, 3.8, 9)
    found = {
        32: [noise_that_follows_the_loss(slow, 1.0)] * 2,
        64: [noise_that_follows_the_loss(fast, 1.0)] * 2,
        128: [noise_that_follows_the_loss(fast, 2.0)] * 2,
    }
    ratios = figure_8.compared(found, 32, 64)
    assert ratios["equal loss"] == pytest.approx([1, 1], rel=1e-6)
    # Snapshots 4 to 8 of 9: losses that are apart by 0.05 i, with a slope of 3.
    assert ratios["equal tokens"] == pytest.approx([np.exp(0.15 * 6)] * 2, rel=1e-6)
    assert figure_8.compared(found, 64, 128)["equal loss"] == pytest.approx([2, 2], rel=1e-6)
    assert figure_8.slopes(found, 32) == pytest.approx([8, 8], rel=1e-6)
    assert figure_8.at_losses(found[32][0], np.array([4.6]))[0] == pytest.approx(
        np.log(1_000) - 1.8, abs=1e-6
    )


def test_figure_8_goes_on_where_it_was(
    figure_8: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    rng = np.random.default_rng(0)
    data = tuple(rng.integers(0, 30, (64, 20)).astype(np.int32) for _ in range(2))
    for name, value in {"load": lambda: data, "EMBEDDING_SIZES": {4: 2, 6: 2}, "BATCH_SIZE": 4,
                        "VOCABULARY": 30, "UPDATES": (2, 6, 12), "FIRST_COMPARED": 2,
                        "MEASURED": 64, "MEASURED_BATCH": 16}.items():  # fmt: skip
        monkeypatch.setattr(figure_8, name, value)
    rows = figure_8.run(4, 0, (2, 6, 12))
    assert [row[0] for row in rows] == [2, 6, 12]
    assert all(trace > 0 for _, trace, _, _ in rows)
    assert rows[0][3] == pytest.approx(np.log(30), rel=0.05)  # Nothing is learnt yet.
    store, plot = tmp_path / "runs.json", tmp_path / "plot.png"
    made = {f"{size}/0.003/{seed}": noise_that_follows_the_loss(np.linspace(5, 4, 9), 1 + seed)
            for size in (4, 6) for seed in (0, 1)}  # fmt: skip
    better = {seed: noise_that_follows_the_loss(np.linspace(5, 3.9, 9), 3 + 3 * seed)
              for seed in (0, 1)}  # fmt: skip
    made |= {f"6/0.006/{seed}": rows for seed, rows in better.items()}
    made |= {"4/0.006/0": noise_that_follows_the_loss(np.linspace(5, 4.1, 9), 9)}
    store.write_text(json.dumps(made))
    monkeypatch.setattr(figure_8, "LEARNING_RATES", (0.003, 0.006))
    monkeypatch.setattr(figure_8, "run", None)
    line = f"figure_8.py --seeds 2 --store {store} --plot {plot}"
    monkeypatch.setattr(sys, "argv", line.split())
    figure_8.main()
    found = capsys.readouterr().out
    assert "size 6, perplexity at the end: 54.6 at 0.003, 49.4 at 0.006" in found
    one_rate, tuned = found.split("best rates: 0.003 for 4, 0.006 for 6")
    assert "size 6 / size 4 at equal loss: 1 (1 to 1)" in one_rate
    assert "size 6 / size 4 at equal loss: 3 (3 to 3)" in tuned
    assert plot.stat().st_size > 5_000


@pytest.mark.parametrize("curvature", [0.3, 5.0])
def test_a_line_search_on_a_parabola_finds_its_minimum(figure_17, curvature: float) -> None:
    def loss(share: float) -> float:
        return 2 - 0.4 * share + curvature * share**2 / 2

    found = figure_17.line_search(loss)
    assert found["optimal"] == pytest.approx(0.4 / curvature, rel=0.05)
    assert figure_17.ratio_of_averages([found]) == pytest.approx(0.4 / curvature, rel=1e-9)


def test_a_line_search_leaves_the_update_where_it_would_go_uphill_or_far(figure_17) -> None:
    uphill = figure_17.line_search(lambda share: (share + 1) ** 2)
    assert uphill["optimal"] == pytest.approx(-1, rel=0.05)
    far = figure_17.line_search(lambda share: (share - 300) ** 2)
    assert far["optimal"] == pytest.approx(300, rel=0.05)


@pytest.mark.parametrize("rate", [0.03, 1.0])
def test_sgd_in_equilibrium_on_a_quadratic_takes_twice_the_optimal_step(figure_17, rate) -> None:
    rng, hessian, weight = np.random.default_rng(0), np.array([1.0, 0.1]), np.zeros(2)
    probes = []
    for step in range(30_000):
        change = -rate * (hessian * weight + rng.normal(size=2))
        points = [weight + share * change for share in (0, 0.5, 1)]
        start, half, full = (float(hessian @ point**2) / 2 for point in points)
        if step > 5_000:
            probes.append({"start": start, "half": half, "full": full})
        weight = points[-1]
    # The mean of L(1) - L(0) telescopes to nothing: the rest is 0.5 up to the last few steps.
    assert figure_17.ratio_of_averages(probes) == pytest.approx(0.5, abs=0.02)


def test_a_probe_takes_the_update_and_leaves_the_weights_after_it(figure_17: ModuleType) -> None:
    rng = np.random.default_rng(0)
    data = rng.normal(size=(64, 14, 14, 1)).astype(np.float32), rng.integers(0, 10, 64)
    small = replace(figure_17.SETTINGS["CNN, SGD"], load=lambda: data, batch_size=4, searched=16)
    probed, plain = (figure_17.Training(small, 0.05, 0) for _ in range(2))
    for training in (probed, plain):
        training.train(2)
    found = probed.probe()
    plain.train(1)
    for one, other in zip(probed.weights, plain.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    assert found["best"] <= min(found["start"], found["full"]) + 1e-6
    rows = tf.constant(np.random.default_rng(1).integers(0, 64, 16), tf.int32)
    logits = probed.model(tf.gather(data[0], rows))
    whole = probed._loss_at(tf.constant(1.0), rows)
    expected = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(
        tf.gather(data[1], rows), logits
    )
    assert float(whole) == pytest.approx(float(expected), rel=1e-5)


def test_figure_17_goes_on_where_it_was(
    figure_17: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    probe = {"start": 1.0, "half": 0.9, "full": 1.0, "optimal": 0.5, "best": 0.9}
    one = {"probes": [[probe] * 3 for _ in figure_17.POINTS], "curve": [[1, 2.0], [9, 1.0]]}
    store, plot = tmp_path / "runs.json", tmp_path / "plot.png"
    rates = figure_17.SETTINGS["CNN, SGD"].learning_rates
    store.write_text(
        json.dumps({f"CNN, SGD/{rate}/{seed}": one for rate in rates for seed in (0, 1)})
    )
    line = f"figure_17.py --seeds 2 --store {store} --plot {plot} --settings"
    monkeypatch.setattr(sys, "argv", [*line.split(), "CNN, SGD"])
    figure_17.main()
    assert "ratio of averages 0.50 (0.50 to 0.50)" in capsys.readouterr().out
    assert plot.stat().st_size > 5_000


def test_an_oscillation_shows_in_correlations_and_spectrum(figure_18: ModuleType) -> None:
    time, rng = np.arange(192), np.random.default_rng(0)
    directions = rng.normal(size=(2, 50))
    waves = np.stack([np.cos(2 * np.pi * time / 8), np.sin(2 * np.pi * time / 8)], axis=1)
    gradients = waves @ directions
    found = dict(
        zip(
            figure_18.LAGS,
            figure_18.correlations(figure_18.moving_average(gradients), figure_18.LAGS),
            strict=True,
        )
    )
    assert found[4] == pytest.approx(-1, abs=0.02)
    assert found[8] == pytest.approx(1, abs=0.02)
    frequencies, power = figure_18.spectrum(gradients, 64)
    assert frequencies[np.argmax(power)] == 1 / 8


def test_noise_alone_is_white_and_its_average_forgets_by_halves(figure_18: ModuleType) -> None:
    noise = np.random.default_rng(0).normal(size=(192, 4_000))
    # The mean of 185 cosines of 4,000 weights each: a standard error below 0.002.
    expected = 0.5 ** np.array(figure_18.LAGS)
    average = figure_18.moving_average(noise)
    np.testing.assert_allclose(figure_18.correlations(average, figure_18.LAGS), expected, atol=0.01)
    power = figure_18.spectrum(noise, 64)[1]
    # The lowest frequency loses some power with the mean, the highest is counted once.
    np.testing.assert_allclose(power[1:-1], 1, atol=0.05)


def test_figure_18_goes_on_where_it_was(
    figure_18: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    rng = np.random.default_rng(0)
    data = rng.normal(size=(32, 14, 14, 1)).astype(np.float32), rng.integers(0, 10, 32)
    for name, value in {"STARTS": (1, 3), "WINDOW": 24, "SEGMENT": 8, "BATCH_SIZE": 8,
                        "STATED": (1, 4), "LAGS": (1, 2, 4),
                        "load_images": lambda: data}.items():  # fmt: skip
        monkeypatch.setattr(figure_18, name, value)
    store, plot = tmp_path / "runs.json", tmp_path / "plot.png"
    line = f"figure_18.py --seeds 2 --store {store} --plot {plot}"
    monkeypatch.setattr(sys, "argv", line.split())
    figure_18.main()
    first = capsys.readouterr().out
    assert "updates 3 to 27" in first
    assert plot.stat().st_size > 5_000
    monkeypatch.setattr(figure_18, "run", None)  # All runs are in the store.
    figure_18.main()
    assert capsys.readouterr().out == first.replace("seed 0: done\nseed 1: done\n", "")


def test_independent_continuations_tell_the_common_gradient_from_the_fluctuating_one(slow) -> None:
    rng = np.random.default_rng(0)
    size, common = 30_000, 0.05
    constant = rng.normal(size=size) * np.sqrt(common / size)
    snapshots = []
    for branch, temperature in {slow.UNCHANGED: 1, slow.COLD: 1 / 16, slow.COLD_AGAIN: 1 / 16,
                                slow.BATCH: 1 / 16, slow.QUARTER: 1 / 4}.items():  # fmt: skip
        for span in slow.NEAR:
            gradient = constant + rng.normal(size=size) * np.sqrt(temperature / size)
            parts = np.split(gradient, [size // 3, 2 * size // 3])
            snapshots.append(
                {"branch": branch, "span": span, "loss": 3.0, "gradient": parts,
                 "trace": [1.0, 2.0, 3.0], "signal": [float(part @ part) for part in parts]}
            )  # fmt: skip
    found = json.loads(json.dumps(slow.products(snapshots)))
    change = slow.Change(found)
    share = common / (1 + common)
    # Nine products of vectors with 30,000 numbers: an error below 0.001 of the hot |G|^2.
    for one, other in ((slow.COLD, slow.COLD_AGAIN), (slow.UNCHANGED, slow.COLD)):
        assert change.share(one, other, slow.NEAR) == pytest.approx(share, abs=0.004)
    expected = (1 + common) / (1 / 16 + common)
    assert slow.expected_ratio(share, 16) == pytest.approx(expected)
    assert change.common() == pytest.approx(share, abs=0.003)
    assert change.ratio(slow.SIXTEENTH, slow.NEAR) == pytest.approx(expected, rel=0.02)
    assert change.fluctuation_ratio() == pytest.approx(16, rel=0.05)
    assert change.ratio(slow.QUARTER, slow.NEAR) == pytest.approx(1.05 / 0.3, rel=0.02)
    output = slow.Change(found, "output")
    assert output.trace[0] == 3
    assert output.ratio(slow.SIXTEENTH, slow.NEAR) == pytest.approx(expected, rel=0.03)


def test_a_snapshot_agrees_with_gradients_of_single_sequences(slow, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    data = tuple(rng.integers(0, 500, (48, 20)).astype(np.int32) for _ in range(2))
    monkeypatch.setattr(slow, "SIZE", 4)
    monkeypatch.setattr(slow, "GROUP", 1)
    monkeypatch.setattr(slow, "GROUPS", 12)
    training = slow.Probing(replace(slow.setting(0.999), load=lambda: data), 0)
    found = training.snapshot(np.random.default_rng(5))
    rows = np.random.default_rng(5).integers(0, 48, (12, 1))[:, 0]
    each = []
    for row in rows:
        with tf.GradientTape() as tape:
            logits = training.model(data[0][row : row + 1])
            loss = training.model.compute_loss(None, data[1][row : row + 1], logits)
        parts = tape.gradient(loss, [weight.value for weight in training.weights])
        each.append(np.concatenate([tf.convert_to_tensor(part).numpy().ravel() for part in parts]))
    each = np.array(each)
    np.testing.assert_allclose(np.concatenate(found["gradient"]), each.mean(axis=0), atol=1e-6)
    trace = each.var(axis=0, ddof=1).sum()
    assert sum(found["trace"]) == pytest.approx(trace, rel=1e-4)
    unbiased = np.square(each.mean(axis=0)).sum() - trace / 12
    assert sum(found["signal"]) == pytest.approx(unbiased, rel=1e-3)


def test_figure_15_slow_goes_on_where_it_was(
    slow: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    runs = {}
    for label, study in slow.STUDIES.items():
        everything = {**study.branches, slow.UNCHANGED: slow.Branch(1, 1, study.spans)}
        snapshots = [
            {"branch": name, "span": span, "loss": 3.0, "trace": [1.0] * 3,
             "gradient": np.zeros((3, 1)), "signal": [1.0 / branch.divisor / branch.factor] * 3}
            for name, branch in everything.items() for span in branch.spans
        ]  # fmt: skip
        runs |= {f"{label}/{seed}": slow.products(snapshots) for seed in (0, 1)}
    store, plot = tmp_path / "runs.json", tmp_path / "plot.png"
    store.write_text(json.dumps(runs))
    line = f"figure_15_slow.py --seeds 2 --store {store} --plot {plot}"
    monkeypatch.setattr(sys, "argv", line.split())
    slow.main()
    found = capsys.readouterr().out
    assert "late: changed after 15,360 updates" in found
    assert "the rest of |G|^2 falls by 16.0" in found
    assert "rate / 64, spans 16 to 20: x 64.0" in found
    assert plot.stat().st_size > 5_000
