"""The script of examples/reproduce/atari.py: what it makes of what was played."""

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "reproduce" / "atari.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reproduce_atari", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_windows_hold_whole_epochs_and_every_game_once(script: ModuleType) -> None:
    lines = [{"frames": 10 * i, "scores": [float(i)] * 60} for i in range(1, 8)]
    found = script.windows(lines, num_games=100)
    assert [w["frames"] for w in found] == [20, 40, 60]  # The seventh epoch is not full yet.
    assert [w["mean"] for w in found] == [1.5, 3.5, 5.5]
    assert {w["games"] for w in found} == {120}


def test_the_interval_of_a_mean_is_students(script: ModuleType) -> None:
    # Scores 1 to 9: standard deviation 2.7386, divided by 3; quantile of 8 degrees of freedom.
    mean, half = script.mean_interval([float(i) for i in range(1, 10)])
    assert mean == 5
    assert half == pytest.approx(2.306 * 2.7386 / 3, rel=1e-3)


def test_the_table_and_the_figure(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "random_breakout.json").write_text(json.dumps([0.0, 1.0, 2.0, 1.0]))
    known = {"value": 200.0, "interval": [100.0, 500.0]}
    unknown = {"value": math.nan, "interval": [50.0, math.inf]}
    (tmp_path / "start_pong_0_initial.json").write_text(json.dumps(known))
    (tmp_path / "later.json").write_text(json.dumps({"0000010": known, "0000030": unknown}))
    with (tmp_path / "learn.jsonl").open("w") as file:
        for epoch in range(1, 5):
            line = {
                "frames": 10 * epoch, "scores": [1.0, 3.0] * 150, "cpu_s": 6.0 * epoch,
                "noise_scale": known if epoch > 2 else unknown,
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")
    script.show(tmp_path, "breakout", tmp_path / "figure.png")
    text = capsys.readouterr().out
    assert "| pong_0_initial | 200 (100 to 500) |" in text
    assert "| 30 | unresolved, at least 50 |" in text
    assert "random policy: 1.00 +- 1.30 in 4 games" in text
    assert "40 frames in 0.4 CPU minutes" in text
    assert (tmp_path / "figure.png").stat().st_size > 10_000
