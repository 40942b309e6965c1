"""Every task builds, and its first 50 steps run: on the real data, or on a mock of their shape.

To stay short, batches are smaller than those of the tasks, and some networks narrower: each case
says which.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from gns_keras.tasks import (
    Task,
    cifar10,
    datasets,
    get_task,
    imagenet,
    language_model,
    limit_cifar10,
    limit_mnist,
    list_tasks,
    mnist,
    residual,
    texts,
)

STEPS = 50
# One of every module; building the others differs in the data alone.
BUILT = ["digits", "mnist", "svhn", "svhn_adam", "cifar10", "autoencoder", "vae", "limit_mnist"]
CIFAR, FASHION, MNIST = "cifar10.npz", "fashion_mnist.npz", "mnist.npz"
# File with the real data ("": part of a package; None: mock), and examples in a batch.
CASES = {
    "digits": ("", 32),
    "mnist": (MNIST, 8),
    "svhn": (None, 4),
    "cnn_fashion_mnist": (FASHION, 4),
    "svhn_adam": (None, 4),
    "autoencoder": (None, 2),
    "vae_fashion_mnist": (FASHION, 4),
    "limit_mnist": (MNIST, 16),
}
SLOW_CASES = {
    "cnn_cifar10": (CIFAR, 8),
    "cnn_cifar10_adam": (CIFAR, 8),
    "cnn_fashion_mnist_adam": (FASHION, 8),
    "cifar10": (CIFAR, 32),
    "autoencoder_cifar10": (CIFAR, 16),
    "autoencoder_fashion_mnist": (FASHION, 16),
    "vae": (None, 8),
    "vae_cifar10": (CIFAR, 16),
    "limit_cifar10": (CIFAR, 32),
}


def first_steps(model: keras.Model, data: Any, batch_size: int, steps: int = STEPS) -> list[float]:
    """Trains a little with `fit` and returns the mean loss of the first and the last fifth."""
    if isinstance(data, tuple):
        data = tf.data.Dataset.from_tensor_slices(tuple(part[:2048] for part in data))
    losses = []
    model.fit(
        data.repeat().batch(batch_size),
        steps_per_epoch=steps,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: losses.append(logs["loss"] * (batch + 1))
        )],
    )  # fmt: skip
    each = np.diff([0.0, *losses])
    assert len(each) == steps
    assert np.all(np.isfinite(each))
    assert int(model.optimizer.iterations) == steps
    fifth = max(1, steps // 5)
    return [each[:fifth].mean(), each[-fifth:].mean()]


def data_of(task: Task, file: str | None, request: pytest.FixtureRequest) -> Any:
    if file is None:
        request.getfixturevalue("mock_tfds")
    elif file:
        request.getfixturevalue("real_data")(file)
    return task.load_data()


@pytest.mark.parametrize("name", BUILT)
def test_a_task_builds_a_compiled_model_of_its_own_description(name: str) -> None:
    task = get_task(name)
    model = task.build_model()
    assert task.name == name
    assert type(model.optimizer).__name__.lower() == task.optimizer
    assert float(model.optimizer.learning_rate) == pytest.approx(task.learning_rate)
    assert task.build_model() is not model


@pytest.mark.parametrize("name", list_tasks())
def test_what_a_task_says_of_itself_fits_together(name: str) -> None:
    task = get_task(name)
    assert task.name == name
    rising = task.draw_data is not None  # Rewards; else losses.
    assert list(task.goals) == sorted(set(task.goals), reverse=not rising)
    units = {"lm": "tokens", "atari": "frames", "self": "frames"}
    assert task.unit == units.get(name.partition("_")[0], "examples")
    assert task.batch_size == task.examples_per_batch * task.units_per_example
    assert all((task.description, task.data_needed, task.status))


@pytest.mark.parametrize("name", CASES)
def test_the_first_steps_of_a_task(name: str, request: pytest.FixtureRequest) -> None:
    check_first_steps(name, *CASES[name], request)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_CASES)
def test_the_first_steps_of_a_slow_task(name: str, request: pytest.FixtureRequest) -> None:
    check_first_steps(name, *SLOW_CASES[name], request)


def check_first_steps(
    name: str, file: str | None, batch_size: int, request: pytest.FixtureRequest
) -> None:
    task = get_task(name)
    first, last = first_steps(task.build_model(), data_of(task, file, request), batch_size)
    if file is not None:  # There is nothing to learn from a mock in 50 steps.
        assert last < first


def test_the_first_steps_of_a_shallow_cifar10(real_data: Callable[[str], Path]) -> None:
    # Depth 8 in place of 32, without shifts.
    real_data(CIFAR)
    first, last = first_steps(cifar10.build_model(8, augment=False), cifar10.load_data(), 8)
    assert last < first


@pytest.mark.parametrize("optimizer", ["lars", "lamb", "momentum"])
def test_the_recipe_for_large_batches_runs_to_a_learning_rate_of_zero(
    optimizer: str, real_data: Callable[[str], Path]
) -> None:
    real_data(MNIST)
    model = limit_mnist.build_model(optimizer, num_updates=20)
    first, last = first_steps(model, mnist.load_data(), 16, 20)
    assert last < first
    assert float(model.optimizer.learning_rate) == 0


def test_the_first_steps_of_a_language_model_on_a_book(real_data: Callable[[str], Path]) -> None:
    # The vocabulary of the task, 64 units in place of 512.
    real_data("tinyshakespeare.txt.gz")
    model = language_model.build_model(64, vocabulary_size=4_000, embedding_size=32)
    data = get_task("lm_512_tinyshakespeare").load_data()
    first, last = first_steps(model, data, 8)
    assert first == pytest.approx(math.log(4_000), rel=0.01)
    assert last < first


def test_the_first_steps_of_a_language_model_on_a_mock_of_lm1b(mock_tfds: None) -> None:
    # 40 tokens and 64 units in place of 40,000 and 512: a mock has ten letters.
    model = language_model.build_model(64, vocabulary_size=40, embedding_size=32)
    first_steps(model, texts.lm1b_sequences("train", 40), 4)


@pytest.mark.slow
@pytest.mark.parametrize("size", [512, 1024, 2048])
@pytest.mark.parametrize("book", texts.BOOKS)
def test_steps_of_the_language_models_at_full_size(
    size: int, book: str, real_data: Callable[[str], Path]
) -> None:
    real_data(f"{book}.txt.gz")
    task = get_task(f"lm_{size}_{book}")
    first_steps(task.build_model(), task.load_data(), 4, STEPS if size == 512 else 2)


def test_the_first_steps_of_imagenet_on_small_mock_pictures(mock_tfds: None) -> None:
    first_steps(imagenet.build_model(32), imagenet.load_data(image_size=32), 2)


def test_the_pictures_of_imagenet_have_one_size(mock_tfds: None) -> None:
    for split in ("train", "test"):
        pictures = imagenet.load_data(split, image_size=32).take(3)
        assert pictures.element_spec[0].shape == (32, 32, 3)
        for image, label in pictures.as_numpy_iterator():
            assert (image.shape, image.dtype, label.dtype) == ((32, 32, 3), np.float32, np.int32)
            assert 0 <= image.min() < 50
            assert 200 < image.max() <= 255


def test_without_the_archives_of_imagenet_the_message_says_what_to_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = functools.partial(datasets.load_tfds, data_dir=tmp_path)
    monkeypatch.setattr(imagenet, "load_tfds", load)
    with pytest.raises(RuntimeError, match=r"(?s)imagenet2012 could not be loaded.*ILSVRC2012"):
        imagenet.load_data()


def test_published_numbers_of_weights() -> None:
    def trained(model: keras.Model) -> int:
        return sum(math.prod(v.shape) for v in model.trainable_variables)

    # He et al. 2015, table 6: 0.27, 0.46, 0.66, 0.85 and 1.7 million.
    depths = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7}
    for depth in (20, 32, 44):
        count = trained(residual.cifar_network(depth)) / 1e6
        assert count == pytest.approx(depths[depth], abs=0.005)
    # keras.io/api/applications: 25.6 million.
    assert imagenet.build_model().count_params() / 1e6 == pytest.approx(25.6, abs=0.05)
    # By hand: 25*3*32 + 32, 25*32*64 + 64, 8*8*64*1024 + 1024, 1024*10 + 10.
    colour = get_task("svhn").build_model()
    assert colour.count_params() == 2_432 + 51_264 + 4_195_328 + 10_250


@pytest.mark.parametrize(("size", "embedding", "tokens"), [(512, 256, 4_000), (1024, 512, 4_000)])
def test_the_weights_of_the_language_models(size: int, embedding: int, tokens: int) -> None:
    model = language_model.build_model(size, vocabulary_size=tokens)
    # Embedding; four gates, each with inputs, state and a bias; logits.
    expected = tokens * embedding + 4 * size * (embedding + size + 1) + (size + 1) * tokens
    assert model.count_params() == expected
    adam = model.optimizer
    assert (adam.beta_1, adam.beta_2, adam.global_clipnorm) == (0.5, 0.999, 10.0)


def test_the_autoencoder_is_infogans() -> None:
    # Chen et al. 2016, table 2: kernels of 4 x 4, from the image inwards and out again.
    model = get_task("autoencoder").build_model()
    kernels = [layer.kernel.shape for layer in model.layers if hasattr(layer, "kernel")]
    assert kernels == [
        (4, 4, 3, 64), (4, 4, 64, 128), (4, 4, 128, 256), (4 * 4 * 256, 128), (128, 168),
        (168, 2 * 2 * 448), (4, 4, 256, 448), (4, 4, 128, 256), (4, 4, 64, 128), (4, 4, 3, 64),
    ]  # fmt: skip
    assert model.output_shape == (None, 32, 32, 3)


def test_both_limits_share_their_recipe() -> None:
    for module in (limit_mnist, limit_cifar10):
        schedule = module.build_model(num_updates=200).optimizer._learning_rate
        assert (schedule.num_updates, schedule.warm_up_updates) == (200, 10)
        assert schedule.peak == module.LEARNING_RATES["lars"]


def test_the_table_of_tasks_names_every_one_with_its_learning_rate() -> None:
    lines = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text("utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    for name in list_tasks():
        task = get_task(name)
        [row] = [row for row in rows if f"`{name}`" in row.split("|")[1]]
        assert f"| {task.learning_rate:g} | {task.batch_size:,}" in row
