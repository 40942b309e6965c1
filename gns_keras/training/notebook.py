"""Where progress can be shown: bars need a terminal, a notebook has a line that is written over."""

import time
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

SECONDS_BETWEEN = 0.5


class NotebookLine:
    """Shows how far a task of a `rich` progress has come, in the output of the present cell."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown_at = 0.0

    def show(self, progress: Progress, task_id: TaskID) -> None:
        """Writes the line anew, at most twice a second."""
        now = time.monotonic()
        if now - self._shown_at < SECONDS_BETWEEN:
            return
        self._shown_at = now
        task = progress.tasks[progress.task_ids.index(task_id)]
        left = "" if task.time_remaining is None else f", at most {task.time_remaining:.0f} s left"
        self._write(f"{task.description}: {task.percentage:.0f} %{left}")

    def clear(self) -> None:
        """Leaves nothing to be read."""
        if self._handle is not None:
            self._write("")

    def _write(self, text: str) -> None:
        from IPython.display import display

        bundle = {"text/plain": text}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def can_draw(console: Console) -> bool:
    """Whether bars can be drawn over: a terminal that can move its cursor."""
    return console.is_terminal and not console.is_dumb_terminal


def notebook_line(verbose: int, console: Console) -> NotebookLine | None:
    """The line, where the process is a notebook's and progress is wanted; else None."""
    return NotebookLine() if verbose and console.is_jupyter else None
