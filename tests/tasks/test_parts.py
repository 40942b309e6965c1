"""The parts that tasks are made of: texts, schedules, losses, callbacks, against hand-made ones."""

import gzip
import itertools
import math
from pathlib import Path

import keras
import numpy as np
import pytest

from gns_keras.tasks import Task, autoencoder, get_task, image_codes, residual, texts
from gns_keras.tasks.error_decay import DecayAtTrainingError
from gns_keras.tasks.large_batch import WarmUpPolynomialDecay, large_batch_optimizer
from gns_keras.tasks.token_losses import LastTokenLoss

LINES = [f"{who} {does} the {what} of {place}." for who, does, what, place in itertools.product(
    ("Anna", "Boris", "Natasha"), ("sees", "leaves"), ("house", "garden"), ("Moscow", "Smolensk")
)]  # fmt: skip


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small book in the place of War and Peace."""
    monkeypatch.setenv("GNS_KERAS_DATA", str(tmp_path))
    text = "\n\n".join(LINES).encode()
    (tmp_path / "warandpeace.txt.gz").write_bytes(gzip.compress(text))
    texts.book_encoding.cache_clear()
    yield tmp_path
    texts.book_encoding.cache_clear()


def test_sequences_hold_the_whole_book_once_and_look_one_token_ahead(book: Path) -> None:
    x, y = texts.book_sequences("warandpeace", "train", 60)
    assert x.shape == y.shape == (len(x), 20)
    np.testing.assert_array_equal(x.ravel()[1:], y.ravel()[:-1])
    encoding = texts.book_encoding("warandpeace", 60)
    end = encoding.eos_id()
    all_tokens = [*x.ravel().tolist(), int(y[-1, -1])]
    parts = [list(g) for is_end, g in itertools.groupby(all_tokens, end.__eq__) if not is_end]
    train = LINES[: int(0.9 * len(LINES))]
    # The last line may be cut.
    assert [encoding.decode(part) for part in parts[:-1]] == train[: len(parts) - 1]
    assert len(train) - len(parts) <= 1


def test_the_splits_of_a_book_share_no_line_and_the_encoding_is_that_of_training(
    book: Path,
) -> None:
    train, test = (texts.load_book("warandpeace", split) for split in ("train", "test"))
    assert train + test == LINES
    again = texts.learn_encoding(train, 60)
    line = "Anna leaves Smolensk."
    assert texts.book_encoding("warandpeace", 60).encode(line) == again.encode(line)
    assert len(again) == 60


def test_a_missing_book_says_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GNS_KERAS_DATA", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"file warandpeace\.txt\.gz in the folder that GNS"):
        texts.load_book("warandpeace")


def test_a_text_too_small_for_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="from which 5000 tokens can be learnt"):
        texts.learn_encoding(LINES, 5_000)


def test_the_last_token_loss_is_that_of_the_last_token() -> None:
    logits = np.zeros((2, 3, 4), np.float32)
    logits[0, -1, 2] = math.log(5)  # Probability 5/8 of token 2.
    metric = LastTokenLoss()
    metric.update_state(np.array([[0, 0, 2], [1, 1, 1]]), logits)
    assert float(metric.result()) == pytest.approx((math.log(8 / 5) + math.log(4)) / 2, rel=1e-5)


def test_the_rate_rises_linearly_and_falls_as_a_power() -> None:
    schedule = WarmUpPolynomialDecay(2.0, 14, warm_up_updates=4, power=2.0)
    rates = [float(schedule(step)) for step in range(16)]
    rising = [0.5, 1.0, 1.5, 2.0]
    falling = [2.0 * (1 - left / 10) ** 2 for left in range(11)]
    assert rates == pytest.approx([*rising, *falling, 0.0], abs=1e-6)
    again = WarmUpPolynomialDecay.from_config(schedule.get_config())
    assert float(again(7)) == rates[7]


def test_without_warm_up_the_schedule_is_that_of_keras() -> None:
    own = WarmUpPolynomialDecay(0.7, 30, power=1.5)
    stock = keras.optimizers.schedules.PolynomialDecay(0.7, 30, 0.0, power=1.5)
    for step in (0, 1, 17, 29, 30, 40):
        assert float(own(step)) == pytest.approx(float(stock(step)), abs=1e-6)


def test_a_warm_up_longer_than_the_training_and_an_unknown_optimizer_are_refused() -> None:
    with pytest.raises(ValueError, match="warm_up_updates=30, num_updates=30"):
        WarmUpPolynomialDecay(0.1, 30, warm_up_updates=30)
    with pytest.raises(ValueError, match="Received: 'adam'"):
        large_batch_optimizer("adam", 0.1)


class GivenAccuracy(keras.metrics.Metric):
    """Mean of the labels, under the name of the accuracy."""

    def __init__(self) -> None:
        super().__init__(name="accuracy")
        self.total = self.add_weight(name="total", initializer="zeros")
        self.count = self.add_weight(name="count", initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.total.assign_add(keras.ops.mean(y_true))
        self.count.assign_add(1.0)

    def result(self):
        return self.total / self.count

    def reset_state(self):
        self.total.assign(0.0)
        self.count.assign(0.0)


def test_the_learning_rate_falls_when_the_smoothed_error_does() -> None:
    # The labels are the accuracies: batches of one, in two epochs.
    accuracies = np.concatenate([np.full(20, 0.2), np.full(20, 0.6), np.full(40, 0.9)])
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1e-3), "mse", metrics=[GivenAccuracy()])
    decay = DecayAtTrainingError((0.5, 0.15), half_life=4.0, batch_size=1, factor=0.1)
    for part in np.split(accuracies, 2):  # Two fits go on from one another.
        x = np.zeros((len(part), 1))
        model.fit(x, part[:, None], batch_size=1, shuffle=False, verbose=0, callbacks=[decay])
    smoothed, total, weight = [], 0.0, 0.0
    for error in 1 - accuracies:
        total, weight = (0.5**0.25 * value + (1 - 0.5**0.25) * new
                         for value, new in ((total, error), (weight, 1.0)))  # fmt: skip
        smoothed.append(total / weight)
    expected = [int(np.argmax(np.array(smoothed) <= limit)) + 1 for limit in (0.5, 0.15)]
    assert [update for update, _ in decay.decays] == expected
    for (_, error), update in zip(decay.decays, expected, strict=True):
        assert error == pytest.approx(smoothed[update - 1], abs=1e-5)
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-5)


def test_errors_that_rise_and_a_model_without_accuracy_are_refused() -> None:
    with pytest.raises(ValueError, match="`errors` that fall"):
        DecayAtTrainingError((0.3, 0.4), batch_size=1)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"Compile the model with metrics=\['accuracy'\]"):
        model.fit(
            np.zeros((4, 1)), np.zeros(4), verbose=0, callbacks=[DecayAtTrainingError(batch_size=1)]
        )


def test_the_loss_of_the_vae_is_the_negative_evidence_bound() -> None:
    mean = np.array([[0.5, -1.0], [0.0, 2.0]], np.float32)
    log_variance = np.array([[0.0, 0.5], [-1.0, 0.2]], np.float32)
    layer = image_codes.GaussianCode(3.0, seed=1)
    np.testing.assert_array_equal(layer([mean, log_variance]), mean)
    # Kingma & Welling 2013, appendix B, number by number.
    pairs = zip(mean.ravel(), log_variance.ravel(), strict=True)
    terms = [-0.5 * (1 + v - m * m - math.exp(v)) for m, v in pairs]
    assert float(layer.losses[0]) == pytest.approx(3.0 * sum(terms) / 2, rel=1e-5)


def test_codes_are_drawn_with_their_mean_and_spread() -> None:
    layer = image_codes.GaussianCode(0.0, seed=1)
    mean = np.tile([[1.0, -2.0]], (20_000, 1)).astype(np.float32)
    spread = np.array([0.5, 2.0])
    codes = np.array(layer([mean, np.log(np.broadcast_to(spread**2, mean.shape))], training=True))
    # Four standard errors of 20,000 draws.
    np.testing.assert_allclose(codes.mean(axis=0), [1.0, -2.0], atol=4 * 2 / math.sqrt(20_000))
    np.testing.assert_allclose(codes.std(axis=0), spread, rtol=4 / math.sqrt(40_000))


def test_the_pixel_error_compares_bytes_with_scaled_pixels() -> None:
    target = np.array([0, 255, 51, 204], np.uint8).reshape(1, 2, 2, 1)
    predicted = np.array([-1.0, 0.0, -0.6, 0.6], np.float32).reshape(1, 2, 2, 1)
    assert float(image_codes.PixelError()(target, predicted)) == pytest.approx(0.25, abs=1e-6)


def test_small_images_get_a_black_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GNS_KERAS_DATA", str(tmp_path))
    x = np.random.default_rng(0).integers(1, 256, (3, 28, 28), dtype=np.uint8)
    labels = np.zeros(3, np.uint8)
    np.savez(tmp_path / "fashion_mnist.npz", x_train=x, y_train=labels)
    inputs, targets = autoencoder.load_data(data="fashion_mnist")
    assert inputs is targets
    np.testing.assert_array_equal(inputs[:, 2:-2, 2:-2, 0], x)
    assert inputs.shape == (3, 32, 32, 1)
    assert int(inputs.sum(dtype=np.int64)) == int(x.sum(dtype=np.int64))


def test_images_of_cifar10_are_shifted_one_by_one_and_only_in_training() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype(np.float32)
    same = np.repeat(image, 16, axis=0)
    layers = residual.cifar_network(8).layers[1:3]
    shifted, flipped = (np.array(layer(same, training=True)) for layer in layers)
    assert len({row.tobytes() for row in shifted}) > 8
    assert len({row.tobytes() for row in flipped}) == 2
    for row in shifted:
        # Whole pixels, four at most: the middle still comes from the picture.
        middle = row[8:24, 8:24]
        places = [
            (down, right)
            for down in range(-4, 5)
            for right in range(-4, 5)
            if np.array_equal(middle, image[0, 8 + down : 24 + down, 8 + right : 24 + right])
        ]
        assert len(places) == 1
    np.testing.assert_array_equal(layers[1](layers[0](same, training=False), training=False), same)


def test_shortcuts_skip_pixels_and_pad_channels() -> None:
    # A block whose convolutions are zero lets its shortcut through.
    images = np.random.default_rng(0).uniform(size=(2, 8, 8, 4)).astype(np.float32)
    inputs = keras.Input((8, 8, 4))
    block = keras.Model(inputs, residual._block(inputs, 8, 2))
    for layer in block.layers:
        if isinstance(layer, keras.layers.Conv2D):
            layer.kernel.assign(keras.ops.zeros_like(layer.kernel))
    expected = np.zeros((2, 4, 4, 8), np.float32)
    expected[..., 2:6] = images[:, ::2, ::2]
    np.testing.assert_allclose(block.predict(images, verbose=0), expected, atol=1e-6)


def test_a_task_of_tokens_makes_its_batches_of_sequences() -> None:
    task: Task = get_task("lm_2048")
    assert (task.batch_size, task.units_per_example, task.examples_per_batch) == (1_020, 20, 51)
