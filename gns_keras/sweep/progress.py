"""How far a sweep has come, on the terminal or in a notebook."""

from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from gns_keras.core.run_record import RunRecord
from gns_keras.training.notebook import can_draw, notebook_line


class SweepProgress:
    """A bar that counts runs, with the time left, on a terminal; silent with `verbose=0`.

    The total grows where the search for the best learning rate widens. The time left is that of
    the runs known so far.

    Args:
        verbose: 0 for silence.
    """

    def __init__(self, verbose: int) -> None:
        console = Console(stderr=True)
        self._line = notebook_line(verbose, console)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("runs"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[last]}"),
            console=console,
            disable=verbose == 0 or self._line is not None or not can_draw(console),
            transient=True,
            # Runs take from seconds to hours, and the pace is the mean over many of them.
            speed_estimate_period=24 * 3600,
        )
        self._task = self._progress.add_task("sweep", total=None, last="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        if self._line is not None:
            self._line.clear()

    def show(self, finished: int, wanted: int) -> None:
        """Sets the numbers of runs."""
        self._progress.update(self._task, completed=finished, total=wanted)
        if self._line is not None:
            self._line.show(self._progress, self._task)

    def tell(self, record: RunRecord) -> None:
        """Names the last run."""
        text = f"B={record.batch_size} lr={record.learning_rate:g}: {record.status}"
        self._progress.update(self._task, last=text)
