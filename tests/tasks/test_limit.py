"""The limit of the batch size: the builder of its tasks, and its script in small."""

import importlib
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from gns_keras.tasks import limit_cifar10, limit_mnist
from gns_keras.tasks.large_batch import compile_for_large_batches, recipe

FOLDER = Path(__file__).parents[2] / "examples" / "reproduce"
KINDS = {"lars": "Lars", "lamb": "Lamb", "momentum": "SGD"}


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script; its siblings are imported by their bare names."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("limit")


@pytest.fixture
def training_module(limit: ModuleType) -> ModuleType:
    return sys.modules["limit_training"]


@pytest.fixture
def settings_module(limit: ModuleType) -> ModuleType:
    return sys.modules["limit_settings"]


@pytest.fixture
def report_module(limit: ModuleType) -> ModuleType:
    return sys.modules["limit_report"]


def images(split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """96 noisy images, whose class a linear rule decides."""
    rng = np.random.default_rng(0 if split == "train" else 1)
    x = rng.normal(size=(96, 14, 14, 1)).astype(np.float32)
    weights = np.random.default_rng(2).normal(size=(196, 10))
    return x, (x.reshape(96, -1) @ weights).argmax(axis=1).astype(np.int32)


@pytest.fixture
def setting(settings_module: ModuleType) -> Any:
    return settings_module.Setting(
        build=settings_module.build_dense,
        load=images,
        batch_sizes=(8, 96),
        goals=(2.0, 1.5),
        starts={"momentum": -6, "lars": -2, "lamb": -7},
    )


@pytest.mark.parametrize("optimizer", KINDS)
@pytest.mark.parametrize("module", [limit_mnist, limit_cifar10])
def test_both_tasks_are_compiled_by_one_builder(module: ModuleType, optimizer: str) -> None:
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model = compile_for_large_batches(network, optimizer, module.LEARNING_RATES)
    assert model is network
    assert type(model.optimizer).__name__ == KINDS[optimizer]
    rate = module.LEARNING_RATES[optimizer]
    assert float(model.optimizer.learning_rate) == pytest.approx(rate)
    compile_for_large_batches(
        network, optimizer, module.LEARNING_RATES, num_updates=100, learning_rate=3.0
    )
    assert network.optimizer._learning_rate.peak == 3.0
    loss = network.evaluate(np.zeros((2, 4)), np.zeros(2), verbose=0)[0]
    assert loss == pytest.approx(math.log(3), rel=1e-5)  # Zero logits: the loss takes logits.


def test_an_unknown_optimizer_is_refused_by_the_builder() -> None:
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match=r"'lars', 'lamb', 'momentum'.*'adam'"):
        compile_for_large_batches(network, "adam", limit_mnist.LEARNING_RATES)


def test_the_recipe_by_hand() -> None:
    law = recipe(8.0, 10, warm_up_share=0.2)
    expected = [4.0, 8.0, *(8.0 * (1 - t / 8) ** 2 for t in range(8))]
    assert [float(law(t)) for t in range(10)] == pytest.approx(expected, rel=1e-6)
    assert float(law(10)) == 0
    assert recipe(1.0, 200).warm_up_updates == 10
    assert recipe(1.0, 10).warm_up_updates == 0  # Half an update.
    assert recipe(1.0, 4, warm_up_share=1.0).warm_up_updates == 3


def test_the_rates_of_every_schedule(training_module: ModuleType) -> None:
    assert training_module.rates(0.5, 3, "constant").tolist() == [0.5, 0.5, 0.5]
    assert training_module.rates(1.0, 4, "0, 2") == pytest.approx([1, 9 / 16, 4 / 16, 1 / 16])
    assert training_module.rates(1.0, 40, "recipe")[:3] == pytest.approx([0.5, 1, 1])
    assert training_module.rates(1.0, 4, "50, 0") == pytest.approx([0.5, 1, 1, 1])


@pytest.mark.parametrize(
    ("batch_size", "size"),
    [(60_000, 1_000), (16_384, 1_024), (64, 64), (1_031, 1)],
)
def test_chunks_are_of_one_size(training_module: ModuleType, batch_size: int, size: int) -> None:
    assert training_module.chunk_size(batch_size) == size


@pytest.mark.parametrize("network", ["build_dense", "build_strided"])
@pytest.mark.parametrize("size", [96, 24, 1])
def test_the_gradient_over_chunks_is_that_of_one_batch(
    training_module: ModuleType,
    settings_module: ModuleType,
    setting: Any,
    network: str,
    size: int,
) -> None:
    shape = (14, 14, 1) if network == "build_dense" else (4, 4, 48)
    x = np.random.default_rng(3).normal(size=(96, *shape)).astype(np.float32)
    build = getattr(settings_module, network)
    data = replace(setting, build=build, load=lambda split: (x, images()[1]))
    training = training_module.Training(data, "momentum")
    training.restart(0)
    rows = tf.reshape(tf.range(96), [96 // size, size])
    loss, gradients = tf.function(training.mean_gradient)(rows)
    with tf.GradientTape() as tape:
        whole = keras.ops.mean(
            keras.losses.sparse_categorical_crossentropy(
                images()[1], training.model(x), from_logits=True
            )
        )
    expected = tape.gradient(whole, training.model.trainable_variables)
    assert float(loss) == pytest.approx(float(whole), rel=1e-6)
    for found, exact in zip(gradients, expected, strict=True):
        # Sums of 96 float32 numbers in another order.
        scale = float(tf.norm(exact))
        np.testing.assert_allclose(found.numpy(), exact.numpy(), rtol=0, atol=2e-6 * scale)


@pytest.mark.parametrize("optimizer", KINDS)
def test_updates_over_all_data_are_those_of_fit(
    training_module: ModuleType, setting: Any, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_module.chunk_size, "__defaults__", (32,))  # Three chunks.
    rate = {"momentum": 0.02, "lars": 0.5, "lamb": 0.01}[optimizer]
    training = training_module.Training(setting, optimizer)
    for seed in (1, 0):  # The second run knows nothing of the first.
        found = training.run(96, rate, seed, schedule="recipe", updates=4)
    keras.utils.set_random_seed(0)
    model = compile_for_large_batches(setting.build(), optimizer, {optimizer: rate}, num_updates=4)
    start = [w.numpy() for w in model.trainable_variables]
    history = model.fit(*images(), batch_size=96, epochs=4, shuffle=False, verbose=0)
    for weight, other in zip(
        training.model.trainable_variables, model.trainable_variables, strict=True
    ):
        np.testing.assert_allclose(weight.numpy(), other.numpy(), rtol=0, atol=1e-5)
    squares = [
        np.square(w.numpy() - s).sum()
        for w, s in zip(model.trainable_variables, start, strict=True)
    ]
    assert found["distance"]["update"] == [1, 2, 3, 4]
    assert found["distance"]["weight_distance"][-1] == pytest.approx(
        math.sqrt(sum(squares)), rel=1e-4
    )
    assert found["train_loss"] == pytest.approx(history.history["loss"][-1], rel=1e-4)
    right = model.predict(images("test")[0], verbose=0).argmax(axis=1) == images("test")[1]
    assert (found["validation"], found["test"]) == (right[::2].mean(), right[1::2].mean())


def test_a_run_that_diverges_is_said_to(training_module: ModuleType, setting: Any) -> None:
    training = training_module.Training(setting, "momentum")
    found = training.run(96, 1e20, 0, schedule="constant", updates=12)
    assert found["diverged"]
    assert all(math.isnan(updates) for updates in found["updates_to"])
    again = training.run(96, 0.01, 0, schedule="constant", updates=12)
    assert not again["diverged"]


@pytest.mark.parametrize("truth", [-9, -3, 0, 4])
def test_the_search_goes_on_until_the_best_rate_is_inside(limit: ModuleType, truth: int) -> None:
    tried = []

    def score(exponent: int) -> float:
        tried.append(exponent)
        return -abs(exponent - truth)

    assert limit.best_exponent(score, -3) == truth
    assert min(tried) < truth < max(tried)
    assert len(tried) == len(set(tried)) == 3 + abs(truth + 3)


def test_a_search_that_begins_where_nothing_is_learned_finds_its_way(limit: ModuleType) -> None:
    accuracies = {-6: 0.3, -5: 0.4, -4: 0.35, -3: 0.11}

    def value(exponent: int) -> float:
        return limit.score(accuracies.get(exponent, 0.1), exponent)

    assert limit.best_exponent(value, 1) == -5


def test_a_best_rate_that_stays_at_the_edge_is_refused(limit: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="Begin somewhere else"):
        limit.best_exponent(float, 0)


class Interrupted(Exception):
    """In place of a kill."""


@pytest.mark.slow
def test_stopped_and_started_again_it_finds_the_same(
    limit: ModuleType,
    setting: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setitem(limit.SETTINGS, "quarter", lambda: setting)
    monkeypatch.setitem(limit.PARTS["updates"], "updates", 60)
    ends = []
    for folder in ("through", "stopped"):
        (tmp_path / folder).mkdir()
        line = "limit.py --parts updates --optimizers momentum --seeds 2 --store"
        line += f" {tmp_path / folder / 'runs.json'} --plots {tmp_path / folder}"
        monkeypatch.setattr(sys, "argv", line.split())
        if folder == "stopped":
            stop_after(5, limit, monkeypatch)
        limit.main()
        printed = capsys.readouterr().out
        ends.append(printed[printed.index("\nupdates: test accuracy") :])
        assert (tmp_path / folder / "limit_accuracy.png").stat().st_size > 5_000
        assert (tmp_path / folder / "limit_diffusion.png").stat().st_size > 5_000
    assert ends[0] == ends[1]
    assert "| 96 | 60 |" in ends[0]
    monkeypatch.setattr(limit.Training, "run", lambda *_, **__: pytest.fail("Not in the store."))
    limit.main()
    assert capsys.readouterr().out == ends[0]


def stop_after(count: int, limit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the script until it is interrupted in its run number `count + 1`."""
    run, calls = limit.Training.run, []

    def interrupted(*arguments: Any, **budget: Any) -> Any:
        calls.append(1)
        if len(calls) > count:
            raise Interrupted
        return run(*arguments, **budget)

    monkeypatch.setattr(limit.Training, "run", interrupted)
    with pytest.raises(Interrupted):
        limit.main()
    monkeypatch.setattr(limit.Training, "run", run)


def curve(by_size: dict[int, list[float]]) -> dict[int, Any]:
    return {
        size: {"exponent": 0, "runs": [{"test": value / 100} for value in values]}
        for size, values in by_size.items()
    }


def test_a_dense_layer_on_patches_is_a_strided_convolution(
    settings_module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)
    monkeypatch.setattr(settings_module, "load_arrays", lambda *_: (pixels, np.zeros(5)))
    x, _ = settings_module.patches("test")
    model = settings_module.build_strided()
    small = pixels.reshape(5, 16, 2, 16, 2, 3).mean(axis=(2, 4)) / 64 - 2
    kernel = model.layers[0].kernel.numpy().reshape(4, 4, 3, 16)
    expected = tf.nn.relu(tf.nn.conv2d(small.astype(np.float32), kernel, 4, "VALID"))
    np.testing.assert_allclose(model.layers[0](x), expected, atol=1e-5)
    assert model.count_params() == 17_882


def test_where_accuracy_falls(report_module: ModuleType) -> None:
    falling = curve(
        {64: [90, 91], 256: [92, 94], 512: [91.5, 93], 1_024: [89, 91], 2_048: [50, 60]}
    )
    best, fallen, lost = report_module.fall(falling)
    assert (best, fallen) == (256, 1_024)
    assert lost == pytest.approx([-3, -3])
    assert report_module.fall(curve({64: [90], 256: [89.5]})) == (64, None, [])
    # A dip that the next batch size makes good is no fall.
    assert report_module.fall(curve({64: [90], 256: [80], 512: [90], 1_024: [80]}))[:2] == (
        64,
        1_024,
    )


def test_gains_are_paired_by_seed(report_module: ModuleType) -> None:
    found = {
        "mnist/lars/recipe": curve({64: [91, 81]}),
        "mnist/lars/constant": curve({64: [90, 80]}),
    }
    [line] = report_module.gain_lines(found, "mnist", "recipe", "constant")
    assert line == "- LARS, recipe over constant, points: 64: 1.0 (1.0 to 1.0)"
    # Two values, 1 degree of freedom: 12.706 standard errors.
    assert report_module.mean_interval([1.0, 3.0]) == pytest.approx(
        (2, 2 - 12.706, 2 + 12.706), rel=1e-4
    )


def test_the_critical_batch_size_is_that_of_the_best_rates(report_module: ModuleType) -> None:
    runs = {}
    for size in (64, 256, 1_024, 4_096):
        for exponent, factor in ((-3, 1.5), (-2, 1.0), (-1, math.nan)):
            steps = factor * (100 + 50_000 / size)
            runs[f"mnist/momentum/constant/{size}/{exponent}/0"] = {
                "updates": 10,
                "updates_to": [steps, math.nan],
            }
            runs[f"mnist/momentum/constant/{size}/{exponent}/1"] = {
                "updates": 10,
                "updates_to": [1, 1],
            }
    [line] = report_module.critical_lines(runs, "mnist", "momentum", (0.5, 0.1))
    assert line.startswith("- momentum, training loss 0.5: 500 (500 to 500); batches 64 to 4,096")
    assert "0 of 4 best rates at the edge" in line


def test_the_table_of_distances_tells_a_logarithm_from_a_power(report_module: ModuleType) -> None:
    updates = np.unique(np.round(np.geomspace(1, 200, 60)))
    noise = 1e-3 * np.random.default_rng(0).normal(size=len(updates))
    found = {}
    for size, values in ((64, 1 + np.log(updates)), (256, updates**0.5)):
        distance = {"update": updates.tolist(), "weight_distance": (values + noise).tolist()}
        found[size] = {"runs": [{"distance": distance, "train_loss": 0.5}] * 2}
    table = report_module.diffusion_table({"updates/lamb/constant": found})
    log, power = ([cell.strip() for cell in row.split("|")] for row in table[2:])
    assert log[4].startswith(("0.00", "−0.00"))
    assert float(log[5].split(",")[0].replace("−", "-")) < 3  # One parameter fewer is no worse.
    assert power[4].startswith("0.50")
    assert float(power[5].split(",")[0].replace("−", "-")) > 100
