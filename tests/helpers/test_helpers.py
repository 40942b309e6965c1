"""The references that all other tests lean on, checked against hand-written NumPy."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from . import models, problems
from .per_example import exact_noise_scale, jacobian_noise_scale, per_example_gradients

# Per-example gradients are float32; their relative error is of the order of 1e-6.
FLOAT32 = 1e-5

BUILDERS = {
    "digits_dense": models.digits_dense,
    "mnist_cnn": models.mnist_cnn,
    "char_transformer": models.char_transformer,
    "char_lstm": models.char_lstm,
}


def _data_dir() -> Path:
    folder = models.find_data_dir()
    if folder is None:
        pytest.skip("needs the real data: set GNS_KERAS_DATA to the folder with mnist.npz")
    return folder


def _moments(gradients: np.ndarray) -> tuple[float, float]:
    """|G|^2 and tr Sigma (divisor N) of gradients `(N, dim)`."""
    return float(np.sum(gradients.mean(axis=0) ** 2)), float(gradients.var(axis=0).sum())


def _linear_model(dim: int, loss: str = "mse", **dense: object) -> keras.Model:
    model = keras.Sequential([keras.Input((dim,)), keras.layers.Dense(1, use_bias=False, **dense)])
    model.compile("sgd", loss)
    return model


def _regression(num: int, dim: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, dim)).astype("float32"), rng.normal(size=(num, 1)).astype(
        "float32"
    )


def test_helpers_import_nothing_from_the_package() -> None:
    for path in Path(__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in getattr(node, "names", [])]
            names.append(getattr(node, "module", None) or "")
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not any(name.split(".")[0] == "gns_keras" for name in names), path


# ---------------------------------------------------------------- per_example.py


@pytest.mark.parametrize("weighted", [False, True])
def test_linear_regression_matches_the_gradient_written_by_hand(weighted: bool) -> None:
    x, y = _regression(50)
    weight = np.random.default_rng(1).uniform(0.1, 3, size=50) if weighted else None
    model = _linear_model(3)
    kernel = model.get_weights()[0]
    gradients = 2 * (x @ kernel - y) * x
    if weight is not None:
        gradients = weight[:, None] * gradients
    exact = exact_noise_scale(model, x, y, weight)
    grad_sq_norm, trace_cov = _moments(gradients)
    assert exact.num_examples == 50
    assert exact.grad_sq_norm == pytest.approx(grad_sq_norm, rel=FLOAT32)
    assert exact.trace_cov == pytest.approx(trace_cov, rel=FLOAT32)
    assert exact.value == pytest.approx(trace_cov / grad_sq_norm, rel=FLOAT32)


def test_a_regulariser_is_signal_without_noise() -> None:
    x, y = _regression(40)
    plain = _linear_model(3)
    decayed = _linear_model(3, kernel_regularizer=keras.regularizers.L2(0.3))
    decayed.set_weights(plain.get_weights())
    kernel = plain.get_weights()[0]
    gradients = 2 * (x @ kernel - y) * x + 0.6 * kernel[:, 0]
    exact = exact_noise_scale(decayed, x, y)
    assert exact.grad_sq_norm == pytest.approx(_moments(gradients)[0], rel=FLOAT32)
    assert exact.trace_cov == pytest.approx(exact_noise_scale(plain, x, y).trace_cov, rel=FLOAT32)


def test_every_possible_batch_obeys_the_definition() -> None:
    """E|g_B|^2 over all batches, enumerated: with replacement uses N, without uses N - 1."""
    x, y = _regression(5)
    model = _linear_model(3)
    exact = exact_noise_scale(model, x, y)

    def sq_norm(index: tuple[int, ...]) -> float:
        rows = list(index)
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x[rows], y[rows], model(x[rows]))
        gradient = tape.gradient(loss, model.trainable_variables[0].value)
        return float(np.sum(gradient.numpy().astype(np.float64) ** 2))

    with_replacement = np.mean([sq_norm(i) for i in itertools.product(range(5), repeat=2)])
    without = np.mean([sq_norm(i) for i in itertools.combinations(range(5), 2)])
    assert with_replacement == pytest.approx(exact.grad_sq_norm + exact.trace_cov / 2, rel=FLOAT32)
    expected = exact.grad_sq_norm + exact.trace_cov_n1 * (1 / 2 - 1 / 5)
    assert without == pytest.approx(expected, rel=FLOAT32)
    assert sq_norm(tuple(range(5))) == pytest.approx(exact.grad_sq_norm, rel=FLOAT32)


def _cross_entropies(y: np.ndarray, logits: tf.Tensor) -> tf.Tensor:
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)
    return tf.reduce_mean(tf.reshape(losses, (len(y), -1)), axis=1)


@pytest.mark.parametrize("name", ["digits_dense", "char_transformer"])
def test_the_loop_agrees_with_one_jacobian(name: str) -> None:
    model, x, y = BUILDERS[name](num_examples=32)
    models.train_a_little(model, x, y, 20)
    loop = exact_noise_scale(model, x, y)
    jacobian = jacobian_noise_scale(model, x, y, _cross_entropies)
    assert loop.grad_sq_norm == pytest.approx(jacobian.grad_sq_norm, rel=FLOAT32)
    assert loop.trace_cov == pytest.approx(jacobian.trace_cov, rel=FLOAT32)
    assert loop.value == pytest.approx(jacobian.value, rel=FLOAT32)


def test_the_loop_agrees_with_one_jacobian_on_real_mnist() -> None:
    model, x, y = models.mnist_cnn(_data_dir(), num_examples=64)
    loop = exact_noise_scale(model, x, y)
    jacobian = jacobian_noise_scale(model, x, y, _cross_entropies)
    assert loop.value == pytest.approx(jacobian.value, rel=FLOAT32)


def test_repeated_lookups_of_an_embedding_add_up() -> None:
    """Loss = mean square of sum_t E[id_t]: its gradient is written by hand, row by row."""
    ids = np.array([[0, 0, 1], [2, 2, 2], [1, 2, 0], [3, 3, 1]], np.int32)
    model = keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            keras.layers.Embedding(5, 2),
            keras.layers.Lambda(lambda z: keras.ops.sum(z, axis=1)),
        ]
    )
    model.compile("sgd", "mse")
    y = np.random.default_rng(0).normal(size=(4, 2)).astype("float32")
    table = model.get_weights()[0]
    gradients = np.zeros((4, 5, 2))
    for i, row in enumerate(ids):
        residual = table[row].sum(axis=0) - y[i]  # The mean over two outputs cancels the 2.
        for token in row:
            gradients[i, token] += residual
    exact = exact_noise_scale(model, ids, y)
    grad_sq_norm, trace_cov = _moments(gradients.reshape(4, -1))
    assert exact.grad_sq_norm == pytest.approx(grad_sq_norm, rel=FLOAT32)
    assert exact.trace_cov == pytest.approx(trace_cov, rel=FLOAT32)


def _two_headed_model() -> tuple[keras.Model, dict[str, np.ndarray], dict[str, np.ndarray]]:
    inputs = {"a": keras.Input((3,), name="a"), "b": keras.Input((2,), name="b")}
    dense = keras.layers.Dense
    outputs = {
        "p": dense(1, use_bias=False, name="p")(inputs["a"]),
        "q": dense(1, use_bias=False, name="q")(inputs["b"]),
    }
    model = keras.Model(inputs, outputs)
    model.compile("sgd", {"p": "mse", "q": "mse"}, loss_weights={"p": 1.0, "q": 0.5})
    (a, p), (b, q) = _regression(30, 3, seed=1), _regression(30, 2, seed=2)
    return model, {"a": a, "b": b}, {"p": p, "q": q}


def test_dict_inputs_and_several_outputs_are_split_by_layer() -> None:
    model, x, y = _two_headed_model()
    by_path = {v.path: v.numpy() for v in model.trainable_variables}
    gradients = {
        "p": 2 * (x["a"] @ by_path["p/kernel"] - y["p"]) * x["a"],
        "q": 0.5 * 2 * (x["b"] @ by_path["q/kernel"] - y["q"]) * x["b"],
    }
    exact = exact_noise_scale(model, x, y)
    assert set(exact.per_layer) == {"p", "q"}
    for name, expected in gradients.items():
        grad_sq_norm, trace_cov = _moments(expected)
        assert exact.per_layer[name].grad_sq_norm == pytest.approx(grad_sq_norm, rel=FLOAT32)
        assert exact.per_layer[name].trace_cov == pytest.approx(trace_cov, rel=FLOAT32)
    whole = _moments(np.concatenate(list(gradients.values()), axis=1))
    assert (exact.grad_sq_norm, exact.trace_cov) == pytest.approx(whole, rel=FLOAT32)


def test_layers_and_variables_add_up_to_the_model() -> None:
    model, x, y = models.digits_dense(num_examples=32)
    exact = exact_noise_scale(model, x, y)
    assert len(exact.per_layer) == 2
    assert len(exact.per_variable) == 4
    for parts in (list(exact.per_layer.values()), exact.per_variable):
        assert sum(part.trace_cov for part in parts) == pytest.approx(exact.trace_cov, rel=1e-12)
        total = sum(part.grad_sq_norm for part in parts)
        assert total == pytest.approx(exact.grad_sq_norm, rel=1e-12)


def test_the_chunk_size_changes_nothing() -> None:
    model, x, y = models.digits_dense(num_examples=30)
    one, seven = (exact_noise_scale(model, x, y, batch_chunk=n) for n in (1, 7))
    assert one.value == pytest.approx(seven.value, rel=FLOAT32)
    assert seven.num_examples == 30


def test_frozen_variables_are_left_out_and_unused_ones_are_zero() -> None:
    x, y = _regression(20)
    inputs = keras.Input((3,))
    used = keras.layers.Dense(1, name="used")(keras.layers.Dense(3, name="frozen")(inputs))
    model = keras.Model(inputs, used)
    model.get_layer("frozen").trainable = False
    model.unused = keras.layers.Dense(2, name="unused")
    model.unused.build((None, 3))
    model.compile("sgd", "mse")
    exact = exact_noise_scale(model, x, y)
    assert set(exact.per_layer) == {"used", "unused"}
    assert exact.per_layer["unused"].grad_sq_norm == exact.per_layer["unused"].trace_cov == 0
    assert np.isnan(exact.per_layer["unused"].value)
    assert exact.per_layer["used"].trace_cov == pytest.approx(exact.trace_cov)


def test_training_mode_uses_dropout_and_all_state_is_restored() -> None:
    x, y = np.ones((16, 6), "float32"), np.ones((16, 1), "float32")
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5, seed=3),
            keras.layers.Dense(1),
        ]
    )
    model.compile("sgd", "mse")
    model.layers[0].set_weights([np.ones(6), np.ones(6), np.full(6, 0.5), np.full(6, 2.0)])
    before = [v.numpy() for v in model.variables]
    assert exact_noise_scale(model, x, y).trace_cov == pytest.approx(0, abs=1e-10)
    noisy = exact_noise_scale(model, x, y, training=True)
    assert noisy.trace_cov > 1e-3  # Equal examples differ by their dropout masks alone.
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_state_is_restored_when_the_caller_stops_early() -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    before = [v.numpy() for v in model.variables]
    gradients = per_example_gradients(model, *_regression(9), training=True)
    next(gradients)
    gradients.close()
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


# ---------------------------------------------------------------- models.py


@pytest.mark.parametrize(
    ("name", "from_folder"),
    [
        ("digits_dense", False),
        ("mnist_cnn", True),
        ("char_transformer", False),
        ("char_transformer", True),
        ("char_lstm", False),
        ("char_lstm", True),
    ],
)
def test_every_model_has_a_moderate_noise_scale_after_warm_up(name: str, from_folder: bool) -> None:
    model, x, y = BUILDERS[name](_data_dir()) if from_folder else BUILDERS[name]()
    loss = model.evaluate(x, y, verbose=0)
    models.train_a_little(model, x, y, models.WARM_UP_STEPS[name])
    exact = exact_noise_scale(model, x, y)
    assert 0.3 < exact.value / 64 < 5
    assert model.evaluate(x, y, verbose=0) < 0.95 * loss


@pytest.mark.parametrize("name", ["digits_dense", "char_transformer", "char_lstm"])
def test_builders_and_warm_up_are_reproducible(name: str) -> None:
    def weights() -> list[np.ndarray]:
        model, x, y = BUILDERS[name]()
        models.train_a_little(model, x, y, 3)
        return model.get_weights()

    for first, second in zip(weights(), weights(), strict=True):
        np.testing.assert_allclose(first, second, atol=1e-6)


def test_targets_are_the_next_characters() -> None:
    _, x, y = models.char_lstm()
    np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
    alphabet = np.unique(list(models.PUBLIC_DOMAIN_TEXT))
    assert "".join(alphabet[x[0]]) == models.PUBLIC_DOMAIN_TEXT[: models.SEQUENCE_LENGTH]
    assert alphabet[y[0, -1]] == models.PUBLIC_DOMAIN_TEXT[models.SEQUENCE_LENGTH]


# ---------------------------------------------------------------- problems.py


def _pairwise(samples: problems.SquaredNorms | problems.LinearSamples) -> tuple[np.ndarray, ...]:
    """S and Y per step: S = (sum b_j|g_j|^2 - B|g|^2)/(k - 1), Y = |g|^2 - S/B."""
    sizes = np.asarray(samples.group_sizes, np.float64)
    total = sizes.sum(axis=-1)
    scatter = np.sum(sizes * samples.group_sq_norms, axis=-1) - total * samples.mean_sq_norms
    trace_cov = scatter / (sizes.shape[-1] - 1)
    return trace_cov, samples.mean_sq_norms - trace_cov / total


def _assert_mean(values: np.ndarray, expected: float, num_errors: float = 4.0) -> None:
    """The mean of independent `values` is within 4 standard errors (6e-5 of false alarms)."""
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - expected) < num_errors * error, (values.mean(), expected, error)


@pytest.mark.parametrize("tail_shape", [np.inf, 1.0])
@pytest.mark.parametrize("sizes", [(8, 8, 8, 8), (2, 4, 8, 18)])
def test_gaussian_problem_is_unbiased(sizes: tuple[int, ...], tail_shape: float) -> None:
    problem = problems.GaussianProblem(dim=12, noise_scale=96.0, tail_shape=tail_shape)
    rng = np.random.default_rng(0)
    samples = problem.sq_norms(50, sizes, rng, repetitions=400)
    assert samples.group_sq_norms.shape == (400, 50, 4)
    assert samples.mean_sq_norms.shape == (400, 50)
    trace_cov, grad_sq_norm = _pairwise(samples)
    _assert_mean(trace_cov.mean(axis=1), problem.trace_cov)
    _assert_mean(grad_sq_norm.mean(axis=1), problem.grad_sq_norm)
    assert problem.trace_cov / problem.grad_sq_norm == pytest.approx(96.0)


def test_gaussian_problem_has_the_covariance_it_states() -> None:
    """Variance of Y = 4 alpha tau |G|^2/B + 2 tau^2 k/(r B^2 (k - 1)) (Gaussian noise)."""
    problem = problems.GaussianProblem(dim=15, noise_scale=64.0)
    sizes = (16, 16, 16, 16)
    rng = np.random.default_rng(1)
    means = problem.group_means(40_000, sizes, rng)
    spread = means.var(axis=0) * 16
    np.testing.assert_allclose(spread, np.tile(problem.spectrum, (4, 1)), rtol=0.05)
    _, grad_sq_norm = _pairwise(problems.squared_norms(means, sizes))
    tau, total, k = problem.trace_cov, 64, 4
    expected = 4 * problem.alignment * tau * problem.grad_sq_norm / total
    expected += 2 * tau**2 / problem.effective_rank * k / ((k - 1) * total**2)
    # 40,000 steps: the standard error of a variance is about 1.5 % here.
    assert grad_sq_norm.var() == pytest.approx(expected, rel=0.06)


def test_the_heavy_tailed_shortcut_equals_single_examples() -> None:
    """Fourth moments of a group mean against sums over individually drawn examples."""
    problem = problems.GaussianProblem(dim=3, noise_scale=1e9, tail_shape=1.0)
    rng = np.random.default_rng(2)
    scale = rng.exponential(size=(100_000, 3, 1))
    single = np.sqrt(scale) * rng.normal(size=(100_000, 3, 3)) * np.sqrt(problem.spectrum)
    slow = np.sum(single.mean(axis=1) ** 2, axis=1)
    fast = np.sum(problem.group_means(100_000, (3, 5), rng)[:, 0] ** 2, axis=1)
    gaussian = problems.GaussianProblem(dim=3, noise_scale=1e9).group_means(100_000, (3, 5), rng)
    light = np.sum(gaussian[:, 0] ** 2, axis=1)
    for power in (1, 2):
        error = np.hypot(np.std(slow**power), np.std(fast**power)) / np.sqrt(100_000)
        assert abs(np.mean(slow**power) - np.mean(fast**power)) < 4 * error
    # E s^2 = 2 at shape 1, so E of the fourth power grows by 1 + 1/b = 4/3 for b = 3.
    assert np.mean(fast**2) / np.mean(light**2) == pytest.approx(4 / 3, rel=0.05)


def test_group_sizes_may_change_from_step_to_step() -> None:
    problem = problems.GaussianProblem(dim=10, noise_scale=20.0)
    sizes = np.tile([[4, 12], [20, 30]], (50, 1))
    samples = problem.sq_norms(100, sizes, np.random.default_rng(3), repetitions=300)
    trace_cov, grad_sq_norm = _pairwise(samples)
    assert samples.group_sizes.shape == (100, 2)
    for phase in (0, 1):
        _assert_mean(trace_cov[:, phase::2].mean(axis=1), problem.trace_cov)
        _assert_mean(grad_sq_norm[:, phase::2].mean(axis=1), problem.grad_sq_norm)


def test_drifting_gradients_follow_their_path() -> None:
    problem = problems.GaussianProblem(dim=10, noise_scale=64.0)
    path = problems.halving_path(4.0, 100, 50)
    assert path[50] == pytest.approx(2.0)
    rng = np.random.default_rng(4)
    samples = problem.sq_norms(100, (8,) * 8, rng, grad_sq_norms=path, repetitions=300)
    _, grad_sq_norm = _pairwise(samples)
    _assert_mean(grad_sq_norm[:, :50].mean(axis=1), path[:50].mean())
    _assert_mean(grad_sq_norm[:, 50:].mean(axis=1), path[50:].mean())
    assert problems.window_noise_scale(100.0, path) == pytest.approx(100.0 / path.mean())


def test_autocorrelated_paths_have_the_stated_moments_and_are_used_per_run() -> None:
    rng = np.random.default_rng(5)
    paths = problems.log_ar1_path(2.0, 60, 0.9, 0.5, rng, repetitions=4000)
    _assert_mean(paths[:, 0], 2.0)
    _assert_mean(paths[:, -1], 2.0)
    logs = np.log(paths)
    assert logs[:, -1].std() == pytest.approx(0.5, rel=0.05)
    assert np.corrcoef(logs[:, -1], logs[:, -2])[0, 1] == pytest.approx(0.9, abs=0.02)
    assert np.corrcoef(logs[:, -1], logs[:, -11])[0, 1] == pytest.approx(0.9**10, abs=0.06)
    problem = problems.GaussianProblem(dim=10, noise_scale=50.0)
    samples = problem.sq_norms(60, (8,) * 8, rng, grad_sq_norms=paths, repetitions=4000)
    _, grad_sq_norm = _pairwise(samples)
    _assert_mean(grad_sq_norm.mean(axis=1) - paths.mean(axis=1), 0.0)
    assert problems.log_ar1_path(2.0, 7, 0.9, 0.5, rng).shape == (7,)


def test_every_run_keeps_its_own_path_across_chunks() -> None:
    """Noise a million times smaller than the signal: the norms are the paths themselves."""
    problem = problems.GaussianProblem(dim=40, trace_cov=1e-6)
    paths = np.tile(np.arange(1.0, 2501.0)[:, None], (1, 20))
    rng = np.random.default_rng(8)
    samples = problem.sq_norms(20, (8,) * 8, rng, grad_sq_norms=paths, repetitions=2500)
    np.testing.assert_allclose(samples.mean_sq_norms, paths, rtol=0.01)


def test_a_single_run_has_no_leading_axis() -> None:
    problem = problems.GaussianProblem()
    group_sq_norms, mean_sq_norms, sizes = problem.sq_norms(7, (3, 5), np.random.default_rng(0))
    means = problem.group_means(7, (3, 5), np.random.default_rng(0))
    assert (group_sq_norms.shape, mean_sq_norms.shape, sizes.shape) == ((7, 2), (7,), (2,))
    np.testing.assert_allclose(group_sq_norms, np.sum(means**2, axis=-1))
    mean = (3 * means[:, 0] + 5 * means[:, 1]) / 8
    np.testing.assert_allclose(mean_sq_norms, np.sum(mean**2, axis=-1))


@pytest.mark.parametrize("build", [problems.clear_problem, problems.noisy_problem])
def test_the_closed_form_of_the_linear_problems(build) -> None:
    """tau and |G|^2 against 4 million examples; their ratio to 0.5 %."""
    problem = build()
    exact = {"clear_problem": 30.67, "noisy_problem": 314.5}[build.__name__]
    assert problem.trace_cov / problem.grad_sq_norm == pytest.approx(exact, rel=1e-9)
    rng = np.random.default_rng(6)
    sq_norms, means = [], []
    for _ in range(40):
        x, y = problem.examples(100_000, rng)
        gradients = (x @ problem.displacement - y)[:, None] * x
        sq_norms.append(np.mean(np.sum(gradients**2, axis=1)))
        means.append(gradients.mean(axis=0))
    _assert_mean(np.array(sq_norms), problem.trace_cov + problem.grad_sq_norm)
    for coordinate in range(problem.dim):
        _assert_mean(np.array(means)[:, coordinate], problem.gradient[coordinate])
    # E|mean|^2 exceeds |G|^2 by tau/N: 8e-5 at most.
    measured = (np.mean(sq_norms) - problem.grad_sq_norm) / problem.grad_sq_norm
    assert measured == pytest.approx(exact, rel=0.005)


def test_the_linear_problem_is_the_gradient_of_a_keras_model() -> None:
    problem = problems.clear_problem()
    x, y = problem.examples(200, np.random.default_rng(7))
    model = _linear_model(problem.dim)
    model.set_weights([problem.displacement[:, None]])
    gradients = (x @ problem.displacement - y)[:, None] * x
    grad_sq_norm, trace_cov = _moments(gradients)
    exact = exact_noise_scale(model, x.astype("float32"), y[:, None].astype("float32"))
    assert exact.value == pytest.approx(trace_cov / grad_sq_norm, rel=FLOAT32)
    assert exact.grad_sq_norm == pytest.approx(4 * grad_sq_norm, rel=FLOAT32)  # Keras has no 1/2.


@pytest.mark.parametrize("build", [problems.clear_problem, problems.noisy_problem])
def test_linear_runs_are_unbiased_pairwise_and_pooled(build) -> None:
    """20 runs of 4,000 steps; S, pairwise Y and pooled Y each within 4 standard errors."""
    problem = build()
    samples = problem.sample(4000, range(20))
    trace_cov, grad_sq_norm = _pairwise(samples)
    total = problem.group_size * problem.num_groups
    mean = samples.group_means.mean(axis=(1, 2))
    pooled = np.sum(mean**2, axis=-1) - trace_cov.mean(axis=1) / (4000 * total)
    _assert_mean(trace_cov.mean(axis=1), problem.trace_cov)
    _assert_mean(grad_sq_norm.mean(axis=1), problem.grad_sq_norm)
    _assert_mean(pooled, problem.grad_sq_norm)
    if build is problems.noisy_problem:
        assert np.mean(grad_sq_norm < 0) == pytest.approx(0.5, abs=0.02)
        assert pooled.std() < 0.3 * grad_sq_norm.mean(axis=1).std()


def test_a_seed_gives_the_same_run_alone_or_among_others() -> None:
    problem = problems.clear_problem()
    alone, among = problem.sample(5, [3]), problem.sample(5, [1, 3])
    np.testing.assert_array_equal(alone.group_means[0], among.group_means[1])
    assert not np.array_equal(among.group_means[0], among.group_means[1])


def test_an_impossible_noise_scale_is_refused() -> None:
    problem = problems.LinearProblem(noise_scale=5.0, group_size=4, num_groups=4, dim=20, decay=0.5)
    with pytest.raises(ValueError, match="smallest noise scale"):
        problem.sample(2, [0])
