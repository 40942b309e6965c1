"""A progress bar for each part of a job, on a terminal; a line of text in a notebook."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gns_keras.training.notebook import can_draw, notebook_line

Stage = Callable[[str, float], Callable[[float], None]]


@contextlib.contextmanager
def progress_bars(verbose: int) -> Iterator[Stage]:
    """Yields `stage(description, total)`, which starts a bar and returns its `advance(amount)`.

    Every part has its own bar and time left, because the parts run at different speeds. A part that
    ends early, at its goal, is shown as done. Nothing is written with `verbose` 0, nor where the
    output is neither a terminal nor a notebook.
    """
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("at most"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        speed_estimate_period=24 * 3600,  # One batch of a large model may take a minute.
    )
    line = notebook_line(verbose, progress.console)
    progress.disable = not verbose or line is not None or not can_draw(progress.console)

    def stage(description: str, total: float) -> Callable[[float], None]:
        for task in progress.tasks:
            progress.update(task.id, completed=task.total)
        identity = progress.add_task(description, total=total)

        def advance(amount: float) -> None:
            progress.advance(identity, amount)
            if line is not None:
                line.show(progress, identity)

        return advance

    with progress:
        yield stage
    if line is not None:
        line.clear()
