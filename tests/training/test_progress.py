"""Progress bars: on a terminal, and done when a part ends early; a line in a notebook."""

import io
import sys
import types

import pytest
from rich.console import Console

from gns_keras.training import progress


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch):
    """Returns `terminal(is_one)`, which replaces the console and returns what it writes to."""

    def make(is_one: bool) -> io.StringIO:
        written = io.StringIO()
        console = Console(file=written, force_terminal=is_one, width=100)
        monkeypatch.setattr(progress, "Console", lambda stderr: console)
        return written

    return make


def use(verbose: int) -> None:
    with progress.progress_bars(verbose) as stage:
        advance = stage("first part", 10)
        advance(4)
        stage("second part", 2)(1)


def test_a_terminal_shows_every_part_with_its_share(terminal) -> None:
    written = terminal(True)
    use(verbose=1)
    text = written.getvalue()
    assert "first part" in text
    assert "second part" in text
    assert "100 %" in text  # The first part ended early, at its goal.


@pytest.mark.parametrize(("verbose", "is_terminal"), [(0, True), (1, False)])
def test_otherwise_nothing_is_written(terminal, verbose: int, is_terminal: bool) -> None:
    written = terminal(is_terminal)
    use(verbose)
    assert written.getvalue() == ""


def test_a_terminal_that_cannot_move_its_cursor_is_left_alone(
    terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    written = terminal(True)
    use(verbose=1)
    assert written.getvalue() == ""


def test_a_notebook_shows_a_line_that_is_written_over(
    terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = terminal(False)
    shown: list[str] = []

    class Handle:
        def update(self, bundle: dict[str, str], raw: bool) -> None:
            shown.append(bundle["text/plain"])

    def display(bundle: dict[str, str], raw: bool, display_id: bool) -> Handle:
        Handle().update(bundle, raw)
        return Handle()

    ipython = types.SimpleNamespace(display=display)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(display=ipython))
    monkeypatch.setitem(sys.modules, "IPython.display", ipython)
    monkeypatch.setattr("gns_keras.training.notebook.SECONDS_BETWEEN", 0.0)
    progress.Console(stderr=True).is_jupyter = True
    use(verbose=1)
    assert shown[0].startswith("first part: 40 %")
    assert shown[1].startswith("second part: 50 %")
    assert shown[-1] == ""
    assert written.getvalue() == ""
