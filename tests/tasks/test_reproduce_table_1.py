"""The scripts of Table 1 and Figure 4: what they read, and their arithmetic."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from gns_keras import estimate_noise_scale

FOLDER = Path(__file__).parents[2] / "examples" / "reproduce"


@pytest.fixture
def figure_4(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("figure_4", FOLDER / "figure_4.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "figure_4", module)  # Its dataclasses look there.
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("table_1", None)


PAGE = """
## Every goal
| Task | Goal | Measured | running | frozen | adam |
|---|---|---|---|---|---|
| toy_sgd (fit) | 0.4 | 100 (80 to 120) | 1.3 (0.4 to 4.6) | 0.7 (0.5 to 0.9) | - |
| toy_lstm (fit) | 2.6 | unresolved (0 to inf) | - | - | - |
| toy_adam (test) | 0.45 | 695 (411 to 1.28e+03) | 0.1 (0.1 to 0.2) | 0.2 (0.1 to 0.3) | - |

| Predictor | What it is |
|---|---|
| running | not a task (1 to 2) |
"""


def test_points_of_the_validation_page_are_its_ratios_times_what_was_measured(
    figure_4: ModuleType,
) -> None:
    first, second = figure_4.of_validation(PAGE)
    assert (first.critical, first.critical_interval) == (100, (80, 120))
    assert first.noise_scale == pytest.approx(70)
    assert first.noise_interval == pytest.approx((50, 90))
    assert second.critical_interval == (411, 1280)
    assert second.noise_scale == pytest.approx(139)


def test_what_the_page_says_of_its_table_comes_out_of_it(figure_4: ModuleType) -> None:
    text = figure_4.VALIDATION.read_text("utf-8")
    stated = re.search(r"(\d+) goals of (\d+) tasks; the sweep of (\d+) of them", text)
    goals, tasks, bounds = (int(number) for number in stated.groups())
    points = figure_4.of_validation(text)
    assert len(points) == goals - bounds
    assert len({point.label.split()[0] for point in points}) == tasks
    # Worst factor and R^2 of "frozen" as it is: computed by another script, from the runs.
    row = re.search(r"^\| frozen \| \d+ \| \d+%, ([\d.]+), (-?[\d.]+) \|", text, flags=re.M)
    found = figure_4.agreement(points)
    assert found["r_squared"] == pytest.approx(float(row[2]), abs=0.015)
    assert found["worst"] == pytest.approx(float(row[1]), rel=0.05)


SCALED = """
| error | critical batch size | rms | `B_simple` | over critical | `B_noise` | over critical |
|---|---|---|---|---|---|---|
| 0.3 | 54 (46 to 63) | 0.1 | 47 (28 to 79) | 0.88 | 52 (15 to 175) | 0.96 |
| 0.2 | 167 (135 to 208) | 0.1 | – | – | – | – |

| task | goal | critical batch size | `B_simple`, averaged | over critical |
|---|---|---|---|---|
| toy | 0.7 | 459 (75 to 40,000) | 185 (116 to 296) | 0.4 |

| error | `B_*` | critical batch size |
|---|---|---|
| 0.3 | 25 (16 to 38) | 54 (1 to 100) |
"""


def test_points_of_the_scaling_page_have_both_numbers(figure_4: ModuleType) -> None:
    first, second = figure_4.of_scaling(SCALED)
    assert (first.critical, first.noise_scale, first.noise_interval) == (54, 47, (28, 79))
    assert (second.critical, second.noise_scale) == (459, 185)
    assert second.critical_interval == (75, 40_000)
    assert len(figure_4.of_scaling(figure_4.SCALING.read_text("utf-8"))) > 10


def test_the_papers_table_gives_the_r_squared_that_its_authors_state(figure_4: ModuleType) -> None:
    # https://openai.com/research/how-ai-training-scales: the noise scale explains 80 % of the
    # variation of the critical batch size over tasks that differ by six orders of magnitude.
    found = figure_4.agreement(figure_4.of_paper())
    assert found["points"] == 18
    assert found["of_a_line"] == pytest.approx(0.8, abs=0.03)


def test_agreement_by_hand(figure_4: ModuleType) -> None:
    def point(noise_scale: float, critical: float) -> object:
        return figure_4.Point(
            kind="measured here", label="toy", noise_scale=noise_scale, critical=critical,
            noise_interval=(0, 0), critical_interval=(0, 0),
        )  # fmt: skip

    found = figure_4.agreement([point(10, 20), point(100, 200), point(1000, 2000)])
    assert found["of_a_line"] == pytest.approx(1.0)
    assert found["bias"] == pytest.approx(0.5)
    assert found["worst"] == pytest.approx(2.0)
    # 3 ln(2)^2 missed, of 2 ln(10)^2.
    assert found["r_squared"] == pytest.approx(1 - 3 * np.log(2) ** 2 / (2 * np.log(10) ** 2))
    assert found["decades"] == pytest.approx(2.0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_table_of_a_short_run_and_a_sweep_of_digits(
    figure_4: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table_1 = sys.modules["table_1"]
    run = table_1.Stage(task="digits", examples=1_500, max_measured=512)
    sweep = table_1.Sweep(
        task="digits",
        batch_sizes=(8, 32, 128, 512),
        goals=(1.2,),
        max_examples=10_000,
        half_life=16,
    )
    monkeypatch.setattr(table_1, "STARTS", (run,))
    monkeypatch.setattr(table_1, "RUNS", (run,))
    monkeypatch.setattr(table_1, "SWEEPS", (sweep,))
    monkeypatch.setattr(table_1, "GAMES", ())
    monkeypatch.setattr(table_1, "SEEDS", ())
    monkeypatch.setattr(table_1, "PARTS", {"starts": (run,), "sweeps": (sweep,)})
    monkeypatch.setattr(sys, "argv", ["table_1.py", "--folder", str(tmp_path)])
    table_1.main()
    shown = capsys.readouterr().out
    assert shown.count("| `digits` |") == 3
    assert "| `digits` | loss < 1.2 |" in shown
    monkeypatch.setattr(table_1, "run", None)  # Nothing is left to run.
    table_1.main()
    [point] = figure_4.of_folder(tmp_path)
    assert point.kind == "measured here"
    assert 3 < point.critical < 3_000
    assert math.isfinite(point.noise_scale)
    figure_4.draw([point, *figure_4.of_paper()], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5_000


def test_the_moving_ratio_is_that_of_the_papers_equation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = importlib.util.spec_from_file_location("estimator", FOLDER / "table_1_estimator.py")
    estimator = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "estimator", estimator)  # Its dataclass looks there.
    spec.loader.exec_module(estimator)
    # Two steps by hand, groups of 16 of 32: S = (mean of groups - whole)/(1/16 - 1/32),
    # |G|^2 = 2 whole - mean of groups. S = 32, 64; |G|^2 = 1, 2.
    rows = {"groups": [[3.0, 3.0], [5.0, 7.0]], "mean": [2.0, 4.0], "loss": [1.0, 1.0]}
    assert estimator.moving_ratio(rows, 0, 32) == pytest.approx(96 / 3)
    rows["mean"] = [2.0, 5.0]  # S = 32, 32; |G|^2 = 1, 4; the first step counts a half.
    assert estimator.moving_ratio(rows, 1, 32) == pytest.approx((16 + 32) / (0.5 + 4))
    # Over all steps alike it is what the package estimates.
    rng = np.random.default_rng(0)
    gradients = 0.3 + rng.normal(size=(50, 2, 20)) / 4
    groups = np.square(gradients).sum(axis=-1)
    mean = np.square(gradients.mean(axis=1)).sum(axis=-1)
    expected = estimate_noise_scale(groups, mean, np.full(2, 16.0))
    rows = {"groups": groups.tolist(), "mean": mean.tolist(), "loss": [1.0] * 50}
    assert estimator.moving_ratio(rows, 0, 32) == pytest.approx(expected.value)
    assert "unresolved" not in estimator.report("toy", estimator.Variant("toy", 0.1), rows)
