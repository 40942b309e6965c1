"""`SweepResult` as users meet it: the values of `gns_keras.core.sweep_result`, made to be read."""

import csv
from collections.abc import Sequence
from os import PathLike
from typing import Any

from rich.console import RenderableType

from gns_keras.core import sweep_result as core
from gns_keras.core.noise_scale import NoiseScale
from gns_keras.report.sweep_figures import draw
from gns_keras.report.sweep_text import render, renderable


class SweepResult(core.SweepRecord):
    """All runs of a sweep, with the fits that follow from them.

    `print(result)` shows a table of the goals, `rich.print(result)` in colour. The attributes are
    those of `gns_keras.core.sweep_result.SweepRecord`.
    """

    def __str__(self) -> str:
        return render(self)

    def __rich__(self) -> RenderableType:
        return renderable(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What a notebook and IPython show of it."""
        printer.text(str(self))

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Writes the runs, one line each, with a heading.

        Args:
            path: File to write. A goal that was not reached is "nan".
        """
        runs = self.runs
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(runs[0]) if runs else [])
            writer.writeheader()
            writer.writerows(runs)

    def to_pandas(self) -> Any:
        """Returns the runs as a `pandas.DataFrame`.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "SweepResult.to_pandas needs pandas, which is not installed. Install it with: "
                "pip install pandas. SweepResult.runs and to_csv need nothing.",
                name=error.name,
            ) from error
        return pandas.DataFrame(self.runs)

    def plot(
        self,
        path: str | PathLike[str] | None = None,
        *,
        noise_scales: Sequence[tuple[float, NoiseScale]] = (),
    ) -> Any:
        """Draws Pareto fronts, the best learning rates, and the critical batch size over training.

        Args:
            path: Where to write the figure; the ending chooses the format. None: not written.
            noise_scales: Pairs of a training loss and the noise scale measured there, to stand
                beside the critical batch sizes.

        Returns:
            The `matplotlib.figure.Figure`.

        Raises:
            ModuleNotFoundError: matplotlib is not installed (`pip install "gns-keras[plot]"`).
        """
        return draw(self, path, noise_scales=noise_scales)
