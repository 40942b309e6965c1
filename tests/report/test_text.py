"""What a reader sees of an advice: terminal, HTML, figure."""

import builtins
import dataclasses
import html.parser
import math
import sys
from pathlib import Path

import pytest
from rich.console import Console

from gns_keras.core.advice_parts import NoisePoint
from gns_keras.core.evidence import Evidence
from gns_keras.core.learning_rate import LearningRateRule
from gns_keras.core.learning_rate_check import FACTORS, LearningRateCheck
from gns_keras.core.noise_scale import NoiseScale
from gns_keras.core.recommend import recommend
from gns_keras.core.run_forecast import forecast_run
from gns_keras.core.step_time import fit_step_time
from gns_keras.report.advice import Advice
from gns_keras.report.text import render

RESOLVED = NoiseScale(
    value=130.0,
    interval=(105.0, 160.0),
    grad_sq_norm=1.0,
    trace_cov=130.0,
    num_steps=24,
    num_examples=6144.0,
    relative_variance=0.012,
    effective_num_steps=24.0,
)
UNRESOLVED = NoiseScale(value=math.nan, interval=(300.0, math.inf), num_steps=4)
NOTHING = NoiseScale(value=math.nan, interval=(math.nan, math.nan))
LINE = {size: 2e-3 + 1e-5 * size for size in (32, 64, 128, 256)}


def make_advice(scale: NoiseScale = RESOLVED, **changes) -> Advice:
    given = {
        "noise_scale": scale,
        "base_batch_size": 32,
        "base_learning_rate": 0.1,
        "rule": LearningRateRule(),
        "step_time": fit_step_time(list(LINE), [[time] for time in LINE.values()]),
        "points": (NoisePoint(examples_seen=320, noise_scale=scale),),
        "examples_used": 20_000,
        **changes,
    }
    return Advice.of(recommend(Evidence(**given)))


def checked(*losses: float) -> LearningRateCheck:
    """A learning-rate check with these losses at a quarter, once and four times the rate."""
    noise = (0.999, 1.0, 1.001)
    return LearningRateCheck(
        learning_rate=0.1,
        batch_size=32,
        steps=128,
        factors=FACTORS,
        losses=tuple(tuple(loss * one for one in noise) for loss in losses),
    )


def run(snapshots: int = 50) -> tuple[NoisePoint, ...]:
    """Snapshots of a run in which the noise scale grows as the loss falls."""
    points = []
    for index in range(snapshots):
        seen = 320 * (index + 1)
        loss = 30.0 * seen**-0.5
        trace = 20.0 / loss**1.5 * (1.1 if index % 2 else 0.9)
        scale = NoiseScale(
            value=trace,
            interval=(trace / 2, trace * 2),
            grad_sq_norm=1.0,
            trace_cov=trace,
            num_steps=4,
            num_examples=256.0,
        )
        points.append(NoisePoint(examples_seen=seen, noise_scale=scale, loss=loss))
    return tuple(points)


def blind() -> tuple[NoisePoint, ...]:
    return tuple(dataclasses.replace(point, loss=math.nan) for point in run())


WRONG_RATE = {"learning_rate_check": checked(0.5, 0.7, 0.9), "base_learning_rate": 0.025}
KINDS = {
    "resolved": make_advice(),
    "forecast": make_advice(points=run(), forecast=forecast_run(run(), 32, target_loss=0.1)),
    "long": make_advice(
        points=run(), forecast=forecast_run(run(), 32, target_loss=0.1, dataset_size=60_000)
    ),
    "length": make_advice(points=blind(), forecast=forecast_run(blind(), 32, run_examples=90_000)),
    "too far": make_advice(points=blind(), forecast=forecast_run(blind(), 32, run_examples=10**10)),
    "no forecast": make_advice(points=run(), forecast=forecast_run(run()[:2], 32, target_loss=0.1)),
    "wrong rate": make_advice(NOTHING, points=(), **WRONG_RATE),
    "good rate": make_advice(learning_rate_check=checked(0.7, 0.5, 0.7)),
    "unresolved": make_advice(UNRESOLVED),
    "nothing known": make_advice(NOTHING),
    "no rule, no times": make_advice(rule=None, step_time=None, dataset_size=1000),
    "huge numbers": make_advice(base_batch_size=3_000_000),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_terminal(kind: str, width: int) -> None:
    lines = render(KINDS[kind], width=width).splitlines()
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_and_warning_is_there_uncut(kind: str) -> None:
    advice = KINDS[kind]
    text = str(advice)
    words = " ".join(text.split())
    for row in advice.table:
        assert any(line.split()[:1] == [f"{row.batch_size:,}"] for line in text.splitlines())
    for warning in advice.warnings:
        assert warning in words
    assert "…" not in text
    assert text.count("<- ") == len({advice.batch_size, advice.base_batch_size})


def test_the_answer_comes_first() -> None:
    lines = str(make_advice()).splitlines()
    assert lines[0].split()[:3] == ["Batch", "size", "128;"]
    assert any(line.startswith("Critical batch size  130 examples (95% interval") for line in lines)


def test_unresolved_is_said_and_not_dressed_up() -> None:
    text = str(KINDS["unresolved"])
    assert "unresolved: at least 300 examples" in text
    assert "256 and more" in text
    assert "unresolved: no bound yet" in str(KINDS["nothing known"])
    assert "nan" not in text.lower().split()


def test_a_predicted_step_time_is_marked() -> None:
    text = str(make_advice())
    rows = {line.split()[0]: line.split()[4] for line in text.splitlines() if " 0." in line}
    assert rows["128"] == "3.28"
    assert rows["512"].startswith("~")


def test_colour_only_on_demand() -> None:
    advice = make_advice()
    assert "\x1b[" not in str(advice)
    assert "\x1b[" not in render(advice)
    assert "\x1b[" in render(advice, color=True)


def test_rich_prints_it_as_a_table() -> None:
    console = Console(width=80, record=True, quiet=True)
    with console.capture() as captured:
        Console(width=80, file=console.file)
        console.quiet = False
        console.print(make_advice())
    assert "<- advised" in captured.get()


def test_no_line_drawing_where_it_cannot_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ascii:
        encoding = "ascii"

    monkeypatch.setattr(sys, "stdout", Ascii())
    assert render(make_advice()).isascii()


class Page(html.parser.HTMLParser):
    """Collects text and whatever a page would fetch or run."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.text, self.tags, self.fetched = "", [], []
        self.feed(source)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("kind", KINDS)
def test_html_is_self_contained_and_complete(kind: str, tmp_path: Path) -> None:
    advice = KINDS[kind]
    advice.to_html(tmp_path / "advice.html")
    page = Page((tmp_path / "advice.html").read_text(encoding="utf-8"))
    assert page.fetched == []
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    replicas = 1 + len(advice.replicas) if advice.replicas else 0
    assert page.tags.count("tr") == 1 + len(advice.table) + replicas
    for warning in advice.warnings:
        assert warning in page.text
    assert "Method" in page.text


def test_the_page_begins_with_what_to_do_and_how_sure_that_is(tmp_path: Path) -> None:
    def answer(kind: str) -> str:
        KINDS[kind].to_html(tmp_path / "advice.html")
        text = Page((tmp_path / "advice.html").read_text(encoding="utf-8")).text
        return text.partition("Which batch size?")[2][:300]

    assert "Train with batch size 128 instead of 32" in answer("resolved")
    assert "How sure? Of the noise scale, quite" in answer("resolved")
    assert "First change the learning rate to 0.025" in answer("wrong rate")
    assert "unresolved" in answer("nothing known")


def test_the_charts_are_there_where_there_is_something_to_show(tmp_path: Path) -> None:
    def charts(kind: str) -> list[str]:
        KINDS[kind].to_html(tmp_path / "advice.html")
        source = (tmp_path / "advice.html").read_text(encoding="utf-8")
        return source.split("<figure>")[1:]

    fronts, noise = charts("forecast")
    assert "advised" in fronts
    assert fronts.count("<circle") == len(KINDS["forecast"].table)
    assert noise.count('class="snapshot"') == 50
    assert "training loss, falling" in noise
    assert charts("wrong rate") == []
    assert len(charts("resolved")) == 1  # A single snapshot is no chart.


def test_the_run_and_the_forecast_are_named() -> None:
    words = " ".join(str(KINDS["forecast"]).split())
    assert "of about 89,000 examples at batch size 32, down to a training loss of 0.1: a" in words
    assert "This is a forecast for a run 5.6 times as long as the trial run" in words
    by_length = " ".join(str(KINDS["length"]).split())
    assert "For a run of about 90,000 examples at batch size 32: a forecast" in by_length
    assert "nan" not in by_length
    too_far = " ".join(str(KINDS["too far"]).split())
    assert "The noise scale of the run of 1e+10 examples is unresolved. The run is" in too_far
    long = " ".join(str(KINDS["long"]).split())
    assert "A run of about 89,000 examples is more than one pass over the data." in long
    assert "This is a forecast" not in long
    unresolved = " ".join(str(KINDS["no forecast"]).split())
    assert "down to a training loss of 0.1: unresolved" in unresolved
    assert "within a factor of 2 of the best" in " ".join(str(KINDS["good rate"]).split())
    assert "0.025 or less at 32; the present 0.1 is too high" in str(KINDS["wrong rate"])


def test_html_escapes_what_it_is_given(tmp_path: Path) -> None:
    advice = make_advice(remarks=('<script>alert("1 & 2")</script>',))
    advice.to_html(tmp_path / "advice.html")
    source = (tmp_path / "advice.html").read_text(encoding="utf-8")
    assert "<script>" not in source
    assert '<script>alert("1 & 2")</script>' in Page(source).text


def test_json_gives_the_same_kind_back() -> None:
    advice = make_advice()
    back = Advice.from_json(advice.to_json())
    assert type(back) is Advice
    assert str(back) == str(advice)


@pytest.mark.parametrize("kind", KINDS)
def test_the_figure_has_the_recommendation_and_is_written(kind: str, tmp_path: Path) -> None:
    advice = KINDS[kind]
    figure = advice.plot(tmp_path / "advice.png")
    assert (tmp_path / "advice.png").read_bytes().startswith(b"\x89PNG")
    timed = advice.step_time is not None and not math.isnan(advice.table[0].relative_time)
    assert len(figure.axes) == (2 if timed else 1)
    for axes in figure.axes:
        (line,) = [line for line in axes.lines if line.get_label() == "advised"]
        assert list(line.get_xdata()) == [advice.batch_size] * 2


def test_the_curves_are_those_of_the_trade_off() -> None:
    axes = make_advice().plot().axes[0]
    curves = {line.get_label(): line.get_xydata() for line in axes.lines}
    for size, steps in curves["steps / least"][::50]:
        assert steps == pytest.approx(1 + 130 / size)
    for size, examples in curves["examples / least"][::50]:
        assert examples == pytest.approx(1 + size / 130)


def test_without_matplotlib_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real_import = builtins.__import__

    def no_matplotlib(name: str, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    with pytest.raises(ModuleNotFoundError, match=r"gns-keras\[plot\]"):
        make_advice().plot()


def test_in_a_notebook_the_text_is_returned_and_not_displayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = str(make_advice())
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert str(make_advice()) == expected


def test_what_a_notebook_shows_stands_within_its_page_and_runs_nothing() -> None:
    hostile = dataclasses.replace(make_advice(), warnings=("<script>alert(1)</script>",))
    shown = hostile._repr_html_()
    assert "&lt;script&gt;" in shown
    assert "<script" not in shown
    style = shown.partition("<style>")[2].partition("</style>")[0]
    rules = [selector for rule in style.split("}") for selector in rule.split("{")[0].split(",")]
    assert all(not rule.strip() or rule.strip().startswith(".gns-keras") for rule in rules)
