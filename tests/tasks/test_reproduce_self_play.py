"""The script of the self-play figure, in small."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("magent2")

from gns_keras import NoiseScale

SCRIPT = Path(__file__).parents[2] / "examples" / "reproduce" / "self_play.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("self_play_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "self_play_script", module)  # Its dataclasses look there.
    spec.loader.exec_module(module)
    short = {"num_games": 16, "span": 1, "spans": 2, "measured": 4, "num_matches": 2}
    small = replace(module.SETTINGS["1v1"], snapshots=(0, 2), matches=(2,), **short)
    module.SETTINGS = {"1v1": small}
    return module


@pytest.mark.slow
def test_a_stopped_training_goes_on_and_is_drawn(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = script.Run._train
    spans = []

    def stopped(self: object, training: object) -> None:
        if len(spans) == 1:
            spans.append("stop")
            raise KeyboardInterrupt
        spans.append(training.learner.model.optimizer.iterations.numpy())
        train(self, training)

    monkeypatch.setattr(script.Run, "_train", stopped)
    with pytest.raises(KeyboardInterrupt):
        script.Run("1v1", 0, tmp_path).finish()
    script.Run("1v1", 0, tmp_path).finish()
    # Twelve updates a rollout: the second training began with the optimizer of the first.
    assert spans == [0, "stop", 12]
    kept = json.loads((tmp_path / "1v1_0.json").read_text())
    # Three of 16 games are against a past self, half of whose frames are not trained on.
    assert kept["frames"] == kept["windows"][-1]["at"] == 2 * (16 * 64 - 3 * 32)
    assert [found["span"] for found in kept["frozen"]] == [0, 2]
    assert [found["other"] for found in kept["last"]] == ["untrained", "half-trained"]
    assert sum(kept["matches"][0][key] for key in ("won", "drawn", "lost")) == 2
    before = kept
    run = script.Run("1v1", 0, tmp_path)
    run.finish()  # Nothing is left to do.
    assert run.kept == before
    script.report([run])
    script.draw([run], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_a_noise_scale_of_games_is_stated_in_frames(script: ModuleType) -> None:
    games = NoiseScale(value=10.0, interval=(5.0, np.inf), confidence=0.95, num_examples=100)
    frames = script.in_frames(games, 64.0)
    assert (frames.value, frames.interval, frames.unit) == (640.0, (320.0, np.inf), "frames")
    assert frames.num_examples == 6400


def test_games_won_have_wilsons_interval(script: ModuleType) -> None:
    # Wilson 1927: 10 of 100 at 95 %: 0.0552 to 0.1744.
    shown = script.win_rate({"won": 10, "drawn": 80, "lost": 10})
    assert shown == "10.0% won (5.5% to 17.4%), 80.0% drawn, 10.0% lost of 100"
