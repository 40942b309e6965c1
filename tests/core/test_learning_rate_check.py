"""Verdicts on the learning rate, from losses that are given."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from gns_keras.core.json_records import record_from_json, record_to_json
from gns_keras.core.learning_rate_check import FACTORS, FURTHEST, LearningRateCheck
from gns_keras.core.learning_rate_words import learning_rate_warning
from gns_keras.core.short_run_bias import ShortRunBias, short_run_bias

INF, NAN = math.inf, math.nan
BIAS = ShortRunBias(log2_bias=0.0, log2_spread=0.3, degrees_of_freedom=10.0)
T10 = 1.812  # One-sided 5 % quantile of Student's t with 10 degrees of freedom, from a table.


def check(*means: float, factors=FACTORS, noise: float = 0.001, **changes) -> LearningRateCheck:
    """Losses with these means, and a relative noise that every run has in its own way."""
    rng = np.random.default_rng(0)
    losses = tuple(tuple(mean * (1 + noise * rng.normal(size=8))) for mean in means)
    given = {"learning_rate": 0.1, "batch_size": 32, "steps": 128, "bias": BIAS, **changes}
    return LearningRateCheck(factors=factors, losses=losses, **given)


def parabola(vertex: float, factors=FACTORS, bend: float = 0.1) -> list[float]:
    """Losses whose logarithm is a parabola in the octaves from the present rate."""
    return [0.5 * math.exp(bend * (math.log2(factor) - vertex) ** 2) for factor in factors]


@pytest.mark.parametrize("vertex", [-0.9, -0.3, 0.0, 0.5, 0.9])
@pytest.mark.parametrize("bias", [-2.0, 0.0, 1.5])
def test_the_best_rate_is_the_vertex_without_the_bias(vertex: float, bias: float) -> None:
    found = check(*parabola(vertex), noise=0.0, bias=replace(BIAS, log2_bias=bias))
    assert math.log2(found.best_factor) == pytest.approx(vertex - bias, abs=1e-6)
    assert found.next_factor is None


@pytest.mark.parametrize(
    ("offset", "spread", "verdict"),
    [
        (0.0, 0.3, "good"),
        (0.9, 0.3, "good"),
        (1.1, 0.3, "too_low"),  # 1.1 > 0.5 + 1.812 x 0.3 = 1.04
        (-1.1, 0.3, "too_high"),
        (0.9, 0.1, "good"),  # Significantly off, by less than a factor of 2.
        (1.7, 0.7, "unresolved"),  # 1.7 < 1.77
        (-1.7, 0.7, "unresolved"),
        (1.8, 0.7, "too_low"),
        (3.0, 0.7, "too_low"),
        (-3.0, 0.7, "too_high"),
        (0.0, 1.2, "unresolved"),  # A factor of 4 either way is not known.
    ],
)
def test_verdicts(offset: float, spread: float, verdict: str) -> None:
    bias = replace(BIAS, log2_bias=-offset, log2_spread=spread)
    assert check(*parabola(0.0), noise=0.0, bias=bias).verdict == verdict


@pytest.mark.parametrize(
    ("means", "verdict", "best", "edge"),
    [
        ((0.6, 0.5, INF), "good", 1.0, ""),  # No parabola: between 1/2 and 2.
        ((0.6, INF, INF), "too_high", 0.25, "low"),
        ((INF, INF, INF), "too_high", NAN, "low"),
        ((0.6, NAN, 0.7), "too_high", 0.25, "low"),
        ((0.9, 0.7, 0.5), "too_low", 4.0, "high"),
        ((0.5, 0.7, 0.9), "too_high", 0.25, "low"),
        ((-0.7, -0.9, -0.7), "good", 1.0, ""),  # A likelihood may be negative.
    ],
)
def test_runs_that_diverge_and_runs_at_the_edge(
    means: tuple[float, ...], verdict: str, best: float, edge: str
) -> None:
    found = check(*means)
    assert (found.verdict, found.at_edge) == (verdict, edge)
    assert found.best_factor == pytest.approx(best, rel=0.02, nan_ok=True)


def test_a_neighbour_that_diverged_leaves_an_octave_either_way() -> None:
    """A uniform distribution over two octaves has the standard deviation 1/sqrt(3)."""
    low, high = check(0.6, 0.5, INF, noise=0.0).best_factor_interval
    t = 2.228  # Two-sided, 95 %, 10 degrees of freedom.
    assert math.log2(high) == pytest.approx(t * math.hypot(0.3, 1 / math.sqrt(3)), rel=1e-3)
    assert low * high == pytest.approx(1.0)


def test_noise_of_the_losses_widens_the_interval_as_the_jackknife_says() -> None:
    """Against the scatter of the vertex over many draws of the same noise."""
    rng = np.random.default_rng(1)
    found, errors = [], []
    for _ in range(400):
        means = np.array(parabola(0.3))[:, None]
        losses = tuple(map(tuple, means * (1 + 0.05 * rng.normal(size=(3, 16)))))
        one = replace(check(), losses=losses, factors=FACTORS, bias=ShortRunBias())
        found.append(math.log2(one.best_factor))
        errors.append(one._deviation)
    # 400 draws know a standard deviation to 4 %; the jackknife of 16 values is a little wide.
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(found), rel=0.15)


def test_losses_without_differences_are_unresolved() -> None:
    """200 draws of noise alone: a run is the lowest by luck, and hardly ever clearly so."""
    rng, verdicts = np.random.default_rng(2), []
    for _ in range(200):
        losses = tuple(map(tuple, 0.5 + 0.05 * rng.normal(size=(3, 16))))
        found = replace(check(), losses=losses, factors=FACTORS)
        while (factor := found.next_factor) is not None:
            found = found.with_runs(factor, tuple(0.5 + 0.05 * rng.normal(size=16)))
        verdicts.append(found.verdict)
    assert verdicts.count("unresolved") >= 170


def test_one_batch_decides_nothing_but_divergence() -> None:
    one = replace(check(*parabola(0.0)), losses=((0.6,), (0.5,), (0.6,)))
    assert one.verdict == "unresolved"
    assert replace(one, losses=((0.6,), (INF,), (0.6,))).verdict == "too_high"


def test_runs_are_added_until_the_best_is_inside() -> None:
    found = check(*parabola(3.4))
    for factor in (16.0, 64.0):
        assert found.next_factor == factor
        found = found.with_runs(factor, [0.5 * math.exp(0.1 * (math.log2(factor) - 3.4) ** 2)] * 8)
    assert found.next_factor is None
    assert math.log2(found.best_factor) == pytest.approx(3.4, abs=0.05)
    assert (found.verdict, found.factors) == ("too_low", (0.25, 1.0, 4.0, 16.0, 64.0))


@pytest.mark.parametrize(("falling", "last"), [(True, FURTHEST), (False, 1 / FURTHEST)])
def test_there_is_an_end_to_it(falling: bool, last: float) -> None:
    means = (0.9, 0.8, 0.7) if falling else (0.7, 0.8, 0.9)
    found, loss = check(*means), 0.6
    while (factor := found.next_factor) is not None:
        found, loss = found.with_runs(factor, [loss] * 8), loss * 0.9
    assert last in (found.factors[0], found.factors[-1])
    assert found.verdict == ("too_low" if falling else "too_high")
    low, high = found.best_factor_interval
    assert math.isinf(high) if falling else low == 0.0


def test_what_to_measure_with() -> None:
    assert check(*parabola(0.4)).factor_to_use == 1.0  # Good enough.
    low, high = check(*parabola(3.0, (1, 4, 16)), factors=(1, 4, 16)), check(0.5, 0.7, 0.9)
    assert (low.verdict, low.forbids_measuring) == ("too_low", True)
    assert (high.verdict, high.forbids_measuring) == ("too_high", True)
    assert low.factor_to_use == pytest.approx(8.0, rel=0.02)
    assert not replace(high, searched=True).forbids_measuring
    assert replace(check(INF, INF, INF), searched=True).forbids_measuring
    assert LearningRateCheck(learning_rate=0.1, batch_size=8, reason="No.").factor_to_use == 1.0


def test_no_runs_say_nothing() -> None:
    nothing = LearningRateCheck(learning_rate=0.1, batch_size=8)
    assert (nothing.verdict, nothing.next_factor) == ("unresolved", None)
    assert nothing.best_factor_interval == (0.0, INF)
    assert check(INF, INF, INF).best_factor_interval == (0.0, 0.25)


def test_the_bias_of_an_optimizer() -> None:
    adam = short_run_bias("Adam", steps=128, is_trained=False)
    assert adam == short_run_bias("RMSprop", steps=128, is_trained=False)
    momentum = short_run_bias("SGD", 0.9, steps=128, is_trained=False)
    plain = short_run_bias("SGD", steps=128, is_trained=False)
    assert adam.log2_bias > momentum.log2_bias > plain.log2_bias
    longer = short_run_bias("Adam", steps=256, is_trained=False)
    assert longer.log2_bias < adam.log2_bias
    for name in ("SGD", "Adam", "Lion"):
        new, trained = (short_run_bias(name, steps=128, is_trained=t) for t in (False, True))
        assert trained.log2_bias < 0 <= new.log2_bias
    assert short_run_bias("Lion", steps=128, is_trained=False).log2_spread > adam.log2_spread


def test_the_best_rate_of_a_longer_run_is_lower() -> None:
    for name in ("SGD", "Adam", "Lion"):
        usual, same, short, four, sixteen = (
            short_run_bias(name, steps=128, is_trained=False, run_examples=examples)
            for examples in (None, 30_000, 1000, 120_000, 480_000)
        )
        assert usual == same
        assert short.log2_bias == usual.log2_bias
        assert four.log2_bias > usual.log2_bias
        twice = 2 * (four.log2_bias - usual.log2_bias)
        assert sixteen.log2_bias - usual.log2_bias == pytest.approx(twice)


@pytest.mark.parametrize(
    ("found", "parts"),
    [
        (check(0.9, 0.7, 0.5), ["0.1 is too low", "Set it to 0.4 or more", "out too high"]),
        (check(0.5, 0.7, 0.9), ["0.1 is too high", "0.025 or less", "out too low"]),
        (check(0.5, INF, INF), ["diverged within 128 steps", "Set it to 0.025 or less"]),
        (check(INF, INF, INF), ["every run down to 0.025 diverged", "search"]),
        (
            check(*parabola(0.0), bias=replace(BIAS, log2_spread=1.2)),
            ["is not clear", "1/(learning rate)"],
        ),
        (check(0.5, 0.7, 0.9, searched=True), ["found at batch size 32: 0.025"]),
        (replace(check(), reason="No budget."), ["No budget."]),
        (check(*parabola(0.0)), []),
    ],
)  # fmt: skip
def test_words_say_what_to_do(found: LearningRateCheck, parts: list[str]) -> None:
    said = learning_rate_warning(found)
    assert all(part in said for part in parts), said
    assert bool(said) is bool(parts)
    assert "nan" not in said
    assert "inf" not in said


def test_too_low_a_rate_may_be_right_for_a_longer_run() -> None:
    unknown = check(*parabola(3.0))
    said = learning_rate_warning(unknown)
    assert "The best for a run of 30,000 examples is about" in said
    assert "`run_examples`" in said
    known = replace(unknown, bias=replace(BIAS, run_examples=1_000_000))
    said = learning_rate_warning(known)
    assert "The best for a run of 1,000,000 examples is about" in said
    assert "`run_examples`" not in said


def test_it_goes_to_json_and_back() -> None:
    found = check(0.6, 0.5, INF)
    text = record_to_json(found, 1)
    assert json.loads(text)
    again = record_from_json(LearningRateCheck, text, 1)
    assert (again.verdict, again.bias) == ("good", BIAS)
