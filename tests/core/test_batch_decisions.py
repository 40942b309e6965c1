"""An adaptive run played through with simulated gradients, without a model."""

import math

import numpy as np
import pytest

from gns_keras.core.batch_decisions import BatchDecisions
from gns_keras.core.batch_policy import BatchLimit, BatchPolicy, PresetBatchSizes
from gns_keras.core.groups import StepObservations, observe_groups
from gns_keras.core.noise_scale import NoiseScale

POLICY = BatchPolicy(granule=16, min_batch_size=16, max_batch_size=2048)
DIMENSIONS = 200


def observe(
    rng: np.random.Generator, noise_scale: float, batch_size: int, temperature: float
) -> StepObservations:
    """One update in 4 groups: `tr(Sigma) = noise_scale`, `|G|^2 = T` in 200 dimensions."""
    signal = math.sqrt(temperature / DIMENSIONS)
    deviation = math.sqrt(noise_scale / DIMENSIONS / (batch_size / 4))
    groups = signal + deviation * rng.normal(size=(4, DIMENSIONS))
    norms, mean = np.square(groups).sum(-1), np.square(groups.mean(0)).sum()
    return observe_groups(norms[None], [mean], np.full(4, batch_size / 4))


def play(
    decisions: BatchDecisions, updates: int, noise_scale: float, temperature: float, seed: int
) -> list[int]:
    rng, sizes = np.random.default_rng(seed), []
    for _ in range(updates):
        size = decisions.choose(temperature, POLICY)
        decisions.record(size, temperature, observed=True)
        decisions.add(observe(rng, noise_scale, size, temperature))
        sizes.append(size)
    return sizes


@pytest.mark.parametrize("seed", range(3))
def test_the_batch_settles_at_the_root_of_rate_times_noise(seed: int) -> None:
    decisions = BatchDecisions(exchange_rate=250.0)
    sizes = play(decisions, 400, noise_scale=640.0, temperature=1.0, seed=seed)
    assert sizes[0] == 16
    # sqrt(250 * 640) = 400; the lower bound is below it, and sizes are powers of two of 16.
    assert sizes[-1] in (128, 256)
    assert decisions.exchange_rate == 250.0
    assert decisions.examples_seen == sum(sizes)
    assert decisions.updates == 400


def test_at_the_natural_rate_the_batch_is_the_noise_scale() -> None:
    decisions = BatchDecisions()
    assert math.isnan(decisions.exchange_rate)
    sizes = play(decisions, 400, noise_scale=640.0, temperature=1.0, seed=0)
    assert 400 < decisions.exchange_rate < 1000
    assert sizes[-1] in (256, 512)
    assert 0.8 < decisions.adaptive_gain <= 1


def test_a_colder_update_is_larger_at_once() -> None:
    decisions = BatchDecisions(exchange_rate=50.0)
    sizes = play(decisions, 400, noise_scale=640.0, temperature=1.0, seed=0)
    warm = decisions.noise_scale(1.0)
    assert decisions.noise_scale(0.0625).value == pytest.approx(16 * warm.value)
    assert decisions.choose(0.0625, POLICY) == 4 * sizes[-1]


def test_a_preset_schedule_goes_by_examples() -> None:
    decisions = BatchDecisions(preset=PresetBatchSizes.of({0: 32, 100: 64}))
    assert play(decisions, 6, 640.0, 1.0, seed=0) == [32, 32, 32, 32, 64, 64]
    assert decisions.refusal(1.0, POLICY, BatchLimit(size=2048, reason="the epoch")) is None


def test_growth_past_the_limit_is_refused_in_words() -> None:
    decisions = BatchDecisions(exchange_rate=1e5)
    play(decisions, 200, noise_scale=640.0, temperature=1.0, seed=0)
    limit = BatchLimit(size=2048, reason="the number of examples in an epoch")
    said = decisions.refusal(1.0, POLICY, limit)
    assert decisions.batch_size == 2048
    assert said is not None
    assert "the number of examples in an epoch is 2048" in said


def test_a_packed_run_continues_bit_for_bit() -> None:
    whole, first, second = (BatchDecisions() for _ in range(3))
    expected = [
        *play(whole, 150, 640.0, 1.0, seed=0),
        *play(whole, 150, 640.0, 0.5, seed=1),
    ]
    found = play(first, 150, 640.0, 1.0, seed=0)
    second.unpack(first.pack())
    found += play(second, 150, 640.0, 0.5, seed=1)
    assert found == expected
    for name, value in whole.pack().items():
        assert second.pack()[name].tobytes() == value.tobytes(), name


def test_observations_that_were_not_recorded_are_refused() -> None:
    decisions = BatchDecisions()
    steps = observe(np.random.default_rng(0), 640.0, 16, 1.0)
    with pytest.raises(ValueError, match=r"of 0 updates.*Received: 1"):
        decisions.add(steps)


def test_the_rule_gets_the_average_of_the_run_and_before_that_a_lower_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decisions = BatchDecisions()
    decisions.choose(1.0, POLICY)
    assert decisions.critical_batch_size is None  # Nothing is known: the plain rule.

    def measured(value: float, lower: float) -> None:
        found = NoiseScale(value=value, interval=(lower, math.inf))
        monkeypatch.setattr(decisions, "noise_scale", lambda temperature: found)

    measured(math.nan, 40.0)
    decisions.choose(1.0, POLICY)
    assert decisions.critical_batch_size == 40.0
    for value in (64.0, 64.0, 6400.0):
        measured(value, value / 2)
        decisions.record(64, 1.0, observed=False)
    decisions.choose(1.0, POLICY)
    shares = np.array([1 / 2, 1 / 2, 1 / 101])  # ds = dt/(1 + N/B)
    expected = shares @ [64, 64, 6400] / shares.sum()  # 126, far from 6,400.
    assert decisions.critical_batch_size == pytest.approx(expected)
