"""Line searches on the exact quadratic, where Eq. 2.7 and both noise scales are known."""

import doctest
import math

import numpy as np
import pytest

from gns_keras.core import line_search
from gns_keras.core.line_search import (
    Progress,
    fit_progress,
    search_steps,
    separate_progress,
    shared_progress,
)

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
MAX_PROGRESS = 0.5 * 3.0**2 / 2.0


class Quadratic:
    """A loss with Hessian H, and gradients of batches with mean G and covariance Sigma/B."""

    def __init__(self, dimension: int = 20) -> None:
        rng = np.random.default_rng(2)
        rotation, _ = np.linalg.qr(rng.normal(size=(dimension, dimension)))
        self.hessian = rotation @ np.diag(np.logspace(0, -2.5, dimension)) @ rotation.T
        self.factor = self.hessian @ rng.normal(size=(dimension, dimension)) * 0.6
        self.gradient = self.hessian @ rng.normal(size=dimension)
        self.rng = rng

    @property
    def noise_scale(self) -> float:
        """tr(H Sigma)/(G'HG) of Eq. 2.8."""
        trace = np.trace(self.hessian @ self.factor @ self.factor.T)
        return float(trace / (self.gradient @ self.hessian @ self.gradient))

    def gradients(self, batch_size: int, count: int) -> np.ndarray:
        noise = self.rng.normal(size=(count, len(self.gradient))) @ self.factor.T
        return self.gradient + noise / math.sqrt(batch_size)

    def drops(self, gradients: np.ndarray, step: float) -> np.ndarray:
        curved = np.einsum("mi,ij,mj->m", gradients, self.hessian, gradients)
        return step * gradients @ self.gradient - step**2 / 2 * curved

    def measured(self, batch_size: int, count: int) -> tuple[Progress, float]:
        gradients = self.gradients(batch_size, count)
        lines = search_steps(lambda step: self.drops(gradients, step), 0.1)
        return shared_progress(*lines), separate_progress(*lines)


def parabola(slope: float, bend: float, steps: np.ndarray) -> np.ndarray:
    return slope * steps - bend * steps**2 / 2


def test_the_examples_in_the_docstrings_run() -> None:
    outcome = doctest.testmod(line_search)
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_shared_steps_find_the_noise_scale_and_separate_ones_do_not() -> None:
    problem = Quadratic()
    found = [problem.measured(size, 4000) for size in SIZES]
    shared = fit_progress(
        SIZES, [one.value for one, _ in found], errors=[one.error for one, _ in found]
    )
    separate = fit_progress(SIZES, [other for _, other in found])
    # 4,000 gradients: about 2 % at a batch of 1.
    assert shared.noise_scale == pytest.approx(problem.noise_scale, rel=0.04)
    assert shared.interval[0] < problem.noise_scale < shared.interval[1]
    assert separate.noise_scale < 0.9 * problem.noise_scale
    exact = problem.gradient @ problem.gradient
    curvature = problem.gradient @ problem.hessian @ problem.gradient
    assert shared.max_progress == pytest.approx(0.5 * exact**2 / curvature, rel=0.02)


def test_the_best_shared_step_is_that_of_the_mean_parabola() -> None:
    steps = np.array([0.5, 1.0, 1.5, 2.25])
    drops = np.stack([parabola(3.0, 2.0, steps), parabola(1.0, 1.0, steps)])
    # The mean has slope 2 and bend 1.5: 2/1.5, and 2^2/(2 * 1.5).
    found = shared_progress(steps, drops)
    assert found.step == pytest.approx(4 / 3)
    assert found.value == pytest.approx(4 / 3)
    values = [parabola(3.0, 2.0, 4 / 3), parabola(1.0, 1.0, 4 / 3)]
    assert found.error == pytest.approx(abs(values[0] - values[1]) / 2)
    # Each by itself: 9/4 and 1/2.
    assert separate_progress(steps, drops) == pytest.approx((9 / 4 + 1 / 2) / 2)


def test_a_gradient_that_never_helps_counts_as_no_progress() -> None:
    steps = np.array([0.5, 1.0, 2.0])
    drops = np.stack([parabola(2.0, 2.0, steps), parabola(-1.0, 1.0, steps)])
    assert separate_progress(steps, drops) == pytest.approx(1.0 / 2)


@pytest.mark.parametrize("first_step", [1e-4, 1.3, 1e4])
def test_the_search_goes_either_way_until_the_best_is_inside(first_step: float) -> None:
    steps, drops = search_steps(lambda step: parabola(3.0, 2.0, np.array([step])), first_step)
    assert 0 < int(np.argmax(drops.mean(axis=0))) < len(steps) - 1
    assert shared_progress(steps, drops).value == pytest.approx(MAX_PROGRESS)


def test_steps_where_the_loss_is_not_finite_are_too_long() -> None:
    def drops(step: float) -> np.ndarray:
        return np.array([parabola(3.0, 2.0, step) if step < 4 else math.nan])

    steps, found = search_steps(drops, 100.0)
    assert shared_progress(steps, found).value == pytest.approx(MAX_PROGRESS)


def test_progress_that_only_grows_gives_a_lower_bound() -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([1.0, 2, 4, 8, 16])
    fit = fit_progress(sizes, 0.01 * sizes * np.exp(0.1 * rng.normal(size=5)))
    assert not fit.resolved
    assert math.isnan(fit.noise_scale)
    assert fit.interval[0] > 0
    assert fit.interval[1] == math.inf
    assert "Add batch sizes above 16" in fit.reason


def test_precise_points_weigh_more() -> None:
    sizes = np.array([1.0, 4, 16, 64, 256, 1024])
    values = 2 / (1 + 30 / sizes)
    values[0] *= 3
    errors = np.full(6, 0.01)
    errors[0] = 50.0
    assert fit_progress(sizes, values, errors=errors).noise_scale == pytest.approx(30, rel=0.01)
    assert abs(math.log(fit_progress(sizes, values).noise_scale / 30)) > 0.1


def test_the_interval_covers_at_its_rate() -> None:
    rng = np.random.default_rng(1)
    sizes = np.array([4.0, 16, 64, 256, 1024, 4096])
    trials = 300
    inside = 0
    for _ in range(trials):
        values = 2 / (1 + 100 / sizes) * np.exp(0.08 * rng.normal(size=6))
        low, high = fit_progress(sizes, values).interval
        inside += low <= 100 <= high
    # 95 %: 285 expected, standard deviation 3.8; 3 of them.
    assert 273 <= inside <= 297


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: search_steps(lambda s: [1.0], 0.0), "positive `first_step`"),
        (lambda: search_steps(lambda s: [-s, -2 * s], 1.0), "lower the loss on average"),
        (lambda: shared_progress([1.0, 2.0], [[1.0, 2.0]]), "Add longer ones"),
        (lambda: shared_progress([2.0, 1.0], [[1.0, 2.0]]), "increasing `steps`"),
        (lambda: shared_progress([1.0, 2.0], [1.0, 2.0]), "shape"),
        (lambda: fit_progress([1, 2, 4], [1.0, -1.0, 2.0]), "add gradients"),
        (lambda: fit_progress([1, 2, 2], [1.0, 1.0, 2.0]), "at least 3 different"),
        (lambda: fit_progress([1, 2, 4], [1.0, 1.0]), "one shape"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
