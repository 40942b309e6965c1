"""An advice on the terminal."""

import io
import sys

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gns_keras.core.advice import Advice, explain
from gns_keras.report.headlines import COLUMNS, cells, headlines, mark

WIDTH = 80


def render(advice: Advice, *, width: int = WIDTH, color: bool = False) -> str:
    """Returns the advice as text for a terminal.

    Args:
        advice: The advice.
        width: Columns of the terminal; no line is longer.
        color: Whether to add terminal colours. Without, the text holds no escape sequences.
    """
    # What `print` cannot encode must not be in the text: a table without line-drawing characters.
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower()
    console = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        no_color=not color,
        highlight=False,
        force_jupyter=False,  # In a notebook it would display the advice instead of writing it.
    )
    console.print(renderable(advice, plain_lines=not encoding.startswith("utf")))
    lines = console.file.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def renderable(advice: Advice, *, plain_lines: bool = False) -> RenderableType:
    """Returns what `rich.print` and `rich.console.Console.print` show of an advice."""
    parts: list[RenderableType] = [_headlines(advice), _table(advice, plain_lines)]
    notes = [f"{' '.join(name.split())}: {meaning}." for name, meaning in COLUMNS[1:]]
    parts.append(Padding(Text("\n".join(notes), style="dim"), (0, 0, 0, 1)))
    for warning in advice.warnings:
        parts.append(_item("!", Text(warning), "yellow"))
    parts.append(_item("i", Text(explain(advice)), "dim"))
    return Group(*parts)


def _headlines(advice: Advice) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for position, (label, sentence) in enumerate(headlines(advice)):
        style = "bold green" if position < 2 else ""
        grid.add_row(escape(label), Text(sentence, style=style))
    return grid


def _table(advice: Advice, plain_lines: bool) -> Table:
    lines = box.ASCII if plain_lines else box.SIMPLE_HEAD
    table = Table(box=lines, padding=(0, 1, 0, 0))
    for name, _ in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in advice.table:
        marked = mark(advice, row)
        style = "bold green" if row.batch_size == advice.batch_size else ""
        table.add_row(*cells(row), f"<- {marked}" if marked else "", style=style)
    return table


def _item(bullet: str, text: Text, style: str) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    text.stylize(style)
    grid.add_row(Text(bullet, style=style), text)
    return grid
