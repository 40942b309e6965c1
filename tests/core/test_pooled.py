"""The frozen-weight estimate that pools the mean gradient (`gns_keras.core.pooled`)."""

import dataclasses
import math

import numpy as np
import pytest

from gns_keras.core.noise_scale import estimate_noise_scale
from gns_keras.core.pooled import Blocks, blocks_from_group_means, pooled_noise_scale
from tests.helpers.problems import GaussianProblem, squared_norms

GROUP_SIZE = 4
NUM_GROUPS = 128
NUM_EXAMPLES = GROUP_SIZE * NUM_GROUPS


def group_means(problem, seed=0, repetitions=None):
    """Mean gradients of the groups of whole measurements, shape `([repetitions,] 128, dim)`."""
    return problem.group_means(
        1,
        np.full(NUM_GROUPS, GROUP_SIZE),
        np.random.default_rng(seed),
        repetitions=repetitions,
    ).squeeze(-3)


def pooled(means, num_blocks=16, **options):
    return pooled_noise_scale(blocks_from_group_means(means, GROUP_SIZE, num_blocks), **options)


def test_the_estimate_is_the_squared_norm_of_the_pooled_mean_without_its_noise():
    means = group_means(GaussianProblem(noise_scale=60.0))
    result = pooled(means)
    mean = means.mean(0)
    trace = GROUP_SIZE * np.sum((means - mean) ** 2) / (NUM_GROUPS - 1)
    assert result.trace_cov == pytest.approx(trace)
    assert result.grad_sq_norm == pytest.approx(mean @ mean - trace / NUM_EXAMPLES)
    assert result.value == pytest.approx(result.trace_cov / result.grad_sq_norm)
    assert (result.num_steps, result.num_examples) == (NUM_GROUPS, NUM_EXAMPLES)


def test_the_number_of_blocks_changes_the_interval_and_not_the_estimate():
    means = group_means(GaussianProblem(noise_scale=60.0))
    results = [pooled(means, num_blocks) for num_blocks in (4, 8, 16, 64)]
    for name in ("value", "trace_cov", "grad_sq_norm"):
        found = [getattr(result, name) for result in results]
        np.testing.assert_allclose(found, found[0], rtol=1e-10)
    assert len({result.interval for result in results}) == 4


def test_blocks_may_be_collected_in_any_order():
    blocks = blocks_from_group_means(group_means(GaussianProblem(noise_scale=60.0)), GROUP_SIZE, 16)
    order = np.random.default_rng(0).permutation(16)
    shuffled = dataclasses.replace(
        blocks,
        inner_products=blocks.inner_products[np.ix_(order, order)],
        weighted_sq_norms=blocks.weighted_sq_norms[order],
    )
    assert pooled_noise_scale(shuffled).interval == pytest.approx(
        pooled_noise_scale(blocks).interval
    )


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_the_scale_of_the_loss_does_not_matter(factor):
    means = group_means(GaussianProblem(noise_scale=60.0))
    plain, scaled = pooled(means), pooled(means * factor)
    assert scaled.interval == pytest.approx(plain.interval, rel=1e-9)
    assert scaled.grad_sq_norm == pytest.approx(plain.grad_sq_norm * factor**2, rel=1e-9)


def test_a_rotation_of_all_gradients_does_not_matter():
    means = group_means(GaussianProblem(noise_scale=60.0, dim=20))
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(20, 20)))
    assert pooled(means @ rotation).interval == pytest.approx(pooled(means).interval)


def test_the_unit_of_the_groups_is_the_unit_of_the_answer():
    means = group_means(GaussianProblem(noise_scale=60.0))
    tokens = pooled_noise_scale(blocks_from_group_means(means, GROUP_SIZE * 128, 16), unit="tokens")
    assert tokens.interval == pytest.approx(pooled(means).scaled(128, "tokens").interval)
    assert tokens.unit == "tokens"


@pytest.mark.parametrize("ratio", [0.05, 1.0])
@pytest.mark.parametrize("num_blocks", [8, 16])
def test_claimed_variances_are_the_real_ones_on_average(ratio, num_blocks):
    # 2,000 measurements: the real variance is known to 3 %. The table of M blocks holds
    # 4 G'Sigma G/N + 2 tr(Sigma^2)/N^2 M/(M-1), which is never less than the real one.
    problem = GaussianProblem(noise_scale=ratio * NUM_EXAMPLES)
    results = [pooled(means, num_blocks) for means in group_means(problem, 1, repetitions=2000)]
    signal = 4 * problem.alignment * problem.grad_sq_norm * problem.trace_cov / NUM_EXAMPLES
    noise = 2 * problem.trace_cov**2 / problem.effective_rank / NUM_EXAMPLES**2
    real = np.var([result.grad_sq_norm for result in results])
    claimed = np.mean([result.grad_sq_norm_error**2 for result in results])
    assert real == pytest.approx(signal + noise, rel=0.1)
    # The floor under Var A adds to it where few blocks meet much noise (here 28 % at 8 blocks).
    expected = signal + noise * num_blocks / (num_blocks - 1)
    assert expected * 0.95 < claimed < expected * 1.4
    for value, error in (("trace_cov", "trace_cov_error"), ("grad_sq_norm", "grad_sq_norm_error")):
        truth = getattr(problem, value)
        found = np.array([getattr(result, value) for result in results])
        assert abs(found.mean() - truth) < 3 * found.std() / math.sqrt(2000), value
        assert np.mean([getattr(result, error) for result in results]) > 0.9 * found.std()


def test_pooling_beats_the_mean_over_steps_where_noise_dominates():
    # Noise scale 20 batches of 16 (4 groups of 4), 32 steps, 200 measurements: the ratio of
    # standard deviations is sqrt(Var Y_pooled/Var Y_steps), from the exact variances.
    problem = GaussianProblem(noise_scale=320.0)
    by_steps, by_run = [], []
    for means in group_means(problem, 2, repetitions=200):
        steps = squared_norms(means.reshape(32, 4, -1), np.full(4, GROUP_SIZE))
        by_steps.append(estimate_noise_scale(*steps).grad_sq_norm)
        by_run.append(pooled(means).grad_sq_norm)

    def variance(num_steps, batch, groups):
        signal = 4 * problem.alignment * problem.grad_sq_norm * problem.trace_cov / batch
        spread = 2 * problem.trace_cov**2 / problem.effective_rank / batch**2
        return (signal + spread * groups / (groups - 1)) / num_steps

    expected = math.sqrt(variance(1, 512, 128) / variance(32, 16, 4))
    assert expected < 0.3
    assert np.std(by_run) / np.std(by_steps) == pytest.approx(expected, rel=0.25)


def test_too_few_examples_leave_a_lower_bound():
    result = pooled(group_means(GaussianProblem(noise_scale=50.0 * NUM_EXAMPLES)))
    assert not result.resolved
    assert math.isnan(result.value)
    assert 0 < result.lower_bound < 50 * NUM_EXAMPLES


def test_a_negative_gradient_estimate_stays_negative():
    means = group_means(GaussianProblem(noise_scale=1e9), 1, repetitions=50)
    estimates = [pooled(run).grad_sq_norm for run in means]
    assert 10 < sum(estimate < 0 for estimate in estimates) < 45


def test_gradients_without_noise_have_a_noise_scale_of_zero():
    result = pooled(np.ones((16, 5)), 4)
    assert result.value == pytest.approx(0.0, abs=1e-12)


def test_groups_left_over_are_not_used():
    means = group_means(GaussianProblem(noise_scale=60.0))
    assert pooled(means[:35], 8).num_examples == 32 * GROUP_SIZE
    assert pooled(means[:35], 8).interval == pooled(means[:32], 8).interval


def make_blocks(num_blocks=5, num_groups=2, **changes):
    fields = {
        "inner_products": np.eye(num_blocks) + 1,
        "weighted_sq_norms": np.full(num_blocks, 9.0),
        "num_groups": np.full(num_blocks, num_groups),
        "block_size": 4.0,
    }
    return Blocks(**{**fields, **changes})


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (make_blocks(3), r"at least 4 blocks.*Received shape \(3, 3\)"),
        (make_blocks(inner_products=np.ones((5, 4))), r"Received shape \(5, 4\)"),
        (make_blocks(weighted_sq_norms=np.ones(4)), r"Received shapes \(4,\) and \(5,\)"),
        (make_blocks(num_groups=1), "at least two groups"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(blocks, message):
    with pytest.raises(ValueError, match=message):
        pooled_noise_scale(blocks)


@pytest.mark.parametrize("num_blocks", [0, 9])
def test_too_few_groups_for_the_blocks_are_refused(num_blocks):
    with pytest.raises(ValueError, match=f"each of {num_blocks} blocks"):
        blocks_from_group_means(np.ones((16, 3)), GROUP_SIZE, num_blocks)


def test_products_between_blocks_are_not_fooled_by_groups_that_resemble_each_other():
    # 8 blocks of 16 groups; half of a group's variance is common to its block. |G|^2 = 1 in 20
    # dimensions, trace of a group's covariance times its size 4: 20 * (0.5 + 0.5) * 4 = 80.
    rng = np.random.default_rng(0)
    found, fooled, covered = [], [], 0
    for _ in range(400):
        common = rng.normal(0, 0.5**0.5, (8, 1, 20))
        means = (20**-0.5 + common + rng.normal(0, 0.5**0.5, (8, 16, 20))).reshape(128, 20)
        blocks = blocks_from_group_means(means, GROUP_SIZE, 8)
        result = pooled_noise_scale(blocks, between_blocks=True)
        found.append((result.grad_sq_norm, result.trace_cov))
        fooled.append(pooled_noise_scale(blocks).grad_sq_norm)
        covered += result.interval[0] <= 80 <= result.interval[1]
    grad, trace = np.array(found).T
    for values, truth in [(grad, 1.0), (trace, 80.0)]:
        assert abs(values.mean() - truth) < 3.5 * values.std() / 20  # 400 repetitions.
    assert np.mean(fooled) - 1 > 10 * np.std(fooled) / 20
    assert covered / 400 > 0.95 - 3.5 * 0.011
    independent = blocks_from_group_means(rng.normal(0.2, 1, (128, 20)), GROUP_SIZE, 8)
    one, other = (pooled_noise_scale(independent, between_blocks=b) for b in (False, True))
    assert one.value == pytest.approx(other.value, rel=0.2)
