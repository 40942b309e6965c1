"""The bar of a sweep: on a terminal while it runs, and nowhere else."""

import io

import pytest
from rich.console import Console

from gns_keras.sweep import progress


@pytest.mark.parametrize(
    ("verbose", "is_terminal", "term"),
    [(1, True, "xterm"), (0, True, "xterm"), (1, False, "xterm"), (1, True, "dumb")],
)
def test_the_bar_is_for_terminals_and_leaves_nothing(
    verbose: int, is_terminal: bool, term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.StringIO()
    monkeypatch.setenv("TERM", term)
    console = Console(file=written, force_terminal=is_terminal, width=100)
    monkeypatch.setattr(progress, "Console", lambda stderr: console)
    with progress.SweepProgress(verbose) as bar:
        bar.show(3, 15)
    text = written.getvalue()
    if not (verbose and is_terminal and term == "xterm"):
        assert text == ""
        return
    assert "3/15" in text
    assert text.endswith("\x1b[1A\x1b[2K")  # Up to the line of the bar, which is erased.
