"""The recommendation from given measurements, and the JSON of an advice."""

import json
import math
from dataclasses import replace

import pytest

from gns_keras.core.advice import Advice
from gns_keras.core.advice_parts import NoisePoint
from gns_keras.core.evidence import Evidence
from gns_keras.core.learning_rate import LearningRateRule
from gns_keras.core.noise_scale import NoiseScale
from gns_keras.core.numbers import format_number
from gns_keras.core.recommend import recommend
from gns_keras.core.step_time import fit_step_time


def noise_scale(value: float, low: float, high: float, num_examples: float = 8000.0) -> NoiseScale:
    return NoiseScale(
        value=value,
        interval=(low, high),
        grad_sq_norm=0.5,
        trace_cov=0.5 * value,
        num_steps=int(num_examples // 4),
        num_examples=num_examples,
        # The log interval as that of a normal variable.
        relative_variance=(math.log(high / low) / 3.92) ** 2,
        grad_sq_norm_error=0.01,
        trace_cov_error=1.0,
        effective_num_steps=num_examples / 4,
    )


UNRESOLVED = NoiseScale(
    value=math.nan,
    interval=(300.0, math.inf),
    grad_sq_norm=0.1,
    grad_sq_norm_error=0.1,
    trace_cov=90.0,
    num_steps=100,
    num_examples=800.0,
    effective_num_steps=100.0,
)
LINE = {size: 2e-3 + 1e-5 * size for size in (32, 64, 128, 256, 512)}  # a/c = 200 examples


def evidence(scale: NoiseScale | None = None, **changes) -> Evidence:
    given = {
        "noise_scale": scale or noise_scale(130.0, 105.0, 160.0),
        "base_batch_size": 32,
        "base_learning_rate": 0.1,
        "rule": LearningRateRule(),
        "examples_used": 9000,
        **changes,
    }
    return Evidence(**given)


def with_times(**changes) -> Evidence:
    fit = fit_step_time(list(LINE), [[time] for time in LINE.values()])
    return evidence(step_time=fit, **changes)


def test_balanced_is_the_power_of_two_nearest_to_the_critical_batch_size() -> None:
    advice = recommend(evidence())
    assert (advice.batch_size, advice.limited_by) == (128, "noise_scale")
    assert advice.critical_batch_size == 130.0
    assert advice.exchange_rate == 130.0
    assert advice.interval == (105.0, 160.0)
    assert advice.batch_size_interval == (128.0, 128.0)


def test_cost_spends_about_a_fifth_more_than_the_minimum() -> None:
    advice = recommend(evidence(), objective="cost")
    assert advice.batch_size == 32  # 0.2 * 130 = 26
    assert advice.recommended_row.relative_examples == pytest.approx(1 + 32 / 130)


def test_time_is_the_shortest_run() -> None:
    advice = recommend(with_times(), objective="time")
    # (1 + 130/B)(2e-3 + 1e-5 B) has its minimum at sqrt(200 * 130) = 161: 128 or 256. At 128:
    # 2.016 * 3.28e-3 = 6.61e-3; at 256: 1.508 * 4.56e-3 = 6.88e-3.
    assert (advice.batch_size, advice.limited_by) == (128, "throughput")


def test_time_without_overhead_stays_small_whatever_the_noise_scale() -> None:
    times = fit_step_time([32, 64, 128], [[32e-5], [64e-5], [128e-5]])
    advice = recommend(evidence(step_time=times), objective="time")
    assert (advice.batch_size, advice.limited_by) == (32, "throughput")


def test_time_with_constant_step_time_goes_to_the_end_of_the_steps() -> None:
    times = fit_step_time([32, 64, 128], [[0.01], [0.01], [0.01]])
    advice = recommend(evidence(step_time=times), objective="time")
    assert advice.limited_by == "noise_scale"
    assert advice.recommended_row.relative_steps < 1.07
    advice = recommend(evidence(step_time=times), objective="time", max_batch_size=512)
    assert (advice.batch_size, advice.limited_by) == (512, "memory")


def test_time_without_step_times_says_that_it_is_balanced() -> None:
    advice = recommend(evidence(), objective="time")
    assert advice.batch_size == 128
    assert any('objective="time"' in warning for warning in advice.warnings)


def test_every_row_by_hand() -> None:
    advice = recommend(with_times())
    row = next(row for row in advice.table if row.batch_size == 64)
    assert row.relative_steps == pytest.approx(1 + 130 / 64)
    assert row.relative_examples == pytest.approx(1 + 64 / 130)
    # eps ~ B/(B + 130)
    assert row.learning_rate == pytest.approx(0.1 * (64 / 194) / (32 / 162))
    assert row.step_time_s == pytest.approx(2.64e-3)
    base_time = (1 + 130 / 32) * 2.32e-3
    assert row.relative_time == pytest.approx((1 + 130 / 64) * 2.64e-3 / base_time)
    assert row.relative_cost == pytest.approx((1 + 64 / 130) / (1 + 32 / 130))


def test_the_present_batch_size_has_a_row_and_its_own_learning_rate() -> None:
    advice = recommend(with_times(base_batch_size=48))
    sizes = [row.batch_size for row in advice.table]
    assert sizes == sorted(sizes)
    row = next(row for row in advice.table if row.batch_size == 48)
    assert row.learning_rate == pytest.approx(0.1)
    assert row.relative_time == pytest.approx(1.0)
    assert row.relative_cost == pytest.approx(1.0)
    assert not row.step_time_measured
    assert {size & (size - 1) for size in sizes if size != 48} == {0}


def test_memory_caps_the_batch_size() -> None:
    advice = recommend(evidence(), max_batch_size=100)
    assert (advice.batch_size, advice.limited_by) == (64, "memory")
    assert advice.batch_size_interval == (64.0, 64.0)
    assert max(row.batch_size for row in advice.table) <= 100
    assert any("max_batch_size" in warning for warning in advice.warnings)


def test_the_cap_never_goes_below_the_present_batch_size() -> None:
    advice = recommend(evidence(base_batch_size=96), max_batch_size=100)
    assert (advice.batch_size, advice.limited_by) == (96, "memory")


def test_a_small_data_set_caps_the_batch_size() -> None:
    advice = recommend(evidence(dataset_size=90))
    assert (advice.batch_size, advice.limited_by) == (64, "insufficient_data")
    assert any("only 1 steps" in warning for warning in advice.warnings)


def test_unresolved_goes_no_further_than_the_lower_bound() -> None:
    advice = recommend(evidence(UNRESOLVED))
    assert (advice.batch_size, advice.limited_by) == (256, "insufficient_data")  # bound 300
    assert math.isnan(advice.critical_batch_size)
    assert math.isnan(advice.exchange_rate)
    assert advice.batch_size_interval == (256.0, math.inf)
    # (1.96 * 0.1/0.1)^2 - 1 = 2.84 times the 100 groups of 8 examples: 285 * 8 = 2,280.
    assert any("2,300 more examples" in warning for warning in advice.warnings)
    assert any("at least 300" in warning for warning in advice.warnings)


def test_unresolved_never_shrinks_the_present_batch_size() -> None:
    assert recommend(evidence(UNRESOLVED, base_batch_size=512)).batch_size == 512


def test_knowing_nothing_changes_nothing() -> None:
    nothing = replace(UNRESOLVED, interval=(math.nan, math.nan), grad_sq_norm=-1.0)
    advice = recommend(evidence(nothing))
    assert (advice.batch_size, advice.learning_rate) == (32, pytest.approx(0.1))
    assert advice.limited_by == "insufficient_data"
    assert math.isnan(advice.recommended_row.relative_steps)
    assert any("ten times as many" in warning for warning in advice.warnings)


def test_a_wide_interval_is_said_with_what_would_narrow_it() -> None:
    advice = recommend(evidence(noise_scale(200.0, 80.0, 500.0)))
    assert advice.batch_size_interval == (64.0, 512.0)
    # The log interval must shrink from ln 6.25 to ln 2: (1.833/0.693)^2 - 1 = 5.99 times 8,000.
    (warning,) = [warning for warning in advice.warnings if "spans" in warning]
    assert "[80, 500]" in warning
    assert "48,000 more examples" in warning
    assert not any("spans" in warning for warning in recommend(evidence()).warnings)


def snapshots(*values: float) -> tuple[NoisePoint, ...]:
    """Snapshots every 320 examples with these noise scales."""
    return tuple(
        NoisePoint(examples_seen=320 * (i + 1), noise_scale=noise_scale(v, 0.8 * v, 1.25 * v))
        for i, v in enumerate(values)
    )


def test_growth_is_said_only_where_it_is_significant() -> None:
    def grows(*values: float) -> bool:
        advice = recommend(evidence(points=snapshots(*values)))
        return any("noise scale is growing" in warning for warning in advice.warnings)

    assert grows(20, 21, 19, 20, 130, 125, 135, 130)
    assert not grows(20, 21, 19, 20, 25, 24, 26, 25)  # significant, but only by a quarter
    assert not grows(20, 2, 90, 1, 300, 5, 40, 9)  # it swings
    assert not grows()


def test_gain_of_an_adaptive_batch_size_by_hand() -> None:
    advice = recommend(evidence(points=snapshots(20.0, 130.0)))
    # ds = dt/(1 + B_i/32): 10/1.625 = 6.154 and 10/5.0625 = 1.975.
    sqrt_sum = 6.154 * math.sqrt(20) + 1.975 * math.sqrt(130)
    expected = sqrt_sum**2 / ((6.154 + 1.975) * (6.154 * 20 + 1.975 * 130))
    assert advice.adaptive_gain == pytest.approx(expected, rel=1e-3)
    assert math.isnan(recommend(evidence(points=snapshots(20.0))).adaptive_gain)


def test_a_present_batch_size_far_too_big_is_said() -> None:
    advice = recommend(evidence(base_batch_size=1300))
    assert any("11 times the smallest number" in warning for warning in advice.warnings)
    assert advice.batch_size == 128


def test_slower_on_these_devices_is_said() -> None:
    times = fit_step_time([32, 64, 128], [[32e-5], [64e-5], [128e-5]])
    advice = recommend(evidence(step_time=times))
    # Time ~ (1 + 130/B) B = B + 130: 258 at 128 against 162 at 32 (and less below).
    assert any("more devices share it" in warning for warning in advice.warnings)


def test_without_rule_there_is_no_learning_rate() -> None:
    advice = recommend(evidence(rule=None))
    assert math.isnan(advice.learning_rate)
    assert any("tune the learning rate" in warning for warning in advice.warnings)


def test_remarks_of_the_measurement_come_first() -> None:
    assert recommend(evidence(remarks=("Look here.",))).warnings[0] == "Look here."


@pytest.mark.parametrize(
    "made_from",
    [evidence(), with_times(), evidence(UNRESOLVED), evidence(rule=None, remarks=("a 'b' <c>",))],
    ids=["plain", "timed", "unresolved", "without rule"],
)
def test_json_round_trip(made_from: Evidence) -> None:
    advice = recommend(
        replace(made_from, points=(NoisePoint(examples_seen=1, noise_scale=UNRESOLVED),))
    )
    text = advice.to_json()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not strict JSON")

    assert json.loads(text, parse_constant=refuse)["schema_version"] == 4
    back = Advice.from_json(text)
    assert repr(back) == repr(advice)  # repr: NaN equals NaN
    assert back.to_json() == text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(schema_version=1), "schema_version 4"),
        (lambda data: data.pop("schema_version"), "schema_version 4"),
        (lambda data: data.update(schema_version=True), "schema_version 4"),
        (lambda data: data.pop("table"), r"Missing: \['table'\]"),
        (lambda data: data.update(surprise=1), r"Unknown: \['surprise'\]"),
        (lambda data: data.update(batch_size="128"), r"Advice\.batch_size to be int"),
        (lambda data: data.update(batch_size=True), r"Advice\.batch_size to be int"),
        (lambda data: data.update(batch_size=77), "row of the table"),
        (lambda data: data.update(interval=[1.0]), r"Advice\.interval to be 2 values"),
        (lambda data: data.update(learning_rate=None), r"Advice\.learning_rate to be float"),
        (lambda data: data.update(table={}), r"Advice\.table to be a list"),
        (lambda data: data["table"][0].update(step_time_s="slow"), r"table\[0\]\.step_time_s"),
        (lambda data: data.update(noise_scale=3), "Advice.noise_scale to be an object"),
        (lambda data: data["rule"].update(form="cubic"), "`form`"),
    ],
)
def test_damaged_json_is_refused_with_the_place(change, message: str) -> None:
    data = json.loads(recommend(evidence()).to_json())
    change(data)
    with pytest.raises(ValueError, match=message):
        Advice.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null"])
def test_what_is_no_advice_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Expected"):
        Advice.from_json(text)


def test_plain_text_has_every_row_and_warning() -> None:
    advice = recommend(with_times(remarks=("Look here.",)))
    text = str(advice)
    assert text.splitlines()[0].startswith("batch size 128, learning rate 0.251")
    assert text.count("\n") == 2 + len(advice.table) + len(advice.warnings)
    assert "Look here." in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234.5, "1,230"),
        (0.000123456, "0.000123"),
        (12.34, "12.3"),
        (99.96, "100"),
        (-5000.0, "-5,000"),
        (math.nan, "-"),
        (math.inf, "unlimited"),
    ],
)
def test_numbers_are_readable(value: float, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "speed"}, "`objective`"),
        ({"max_batch_size": 0}, "`max_batch_size`"),
        ({"max_batch_size": 16}, "at least the present batch size 32"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recommend(evidence(), **arguments)
