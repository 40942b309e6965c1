"""`Advice` as users meet it: the values of `gns_keras.core.advice.Advice`, made to be read."""

from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any, Self

from rich.console import RenderableType

from gns_keras.core import advice as core
from gns_keras.core.recommend import recommend
from gns_keras.report.figure import draw
from gns_keras.report.html import render_fragment, render_html
from gns_keras.report.text import render, renderable
from gns_keras.report.watched import evidence_from_monitor


class Advice(core.Advice):
    """A recommended batch size and learning rate, with the evidence for them.

    `print(advice)` shows it as a table, `rich.print(advice)` in colour; a notebook shows it as
    HTML. The attributes are those of `gns_keras.core.advice.Advice`.
    """

    @classmethod
    def of(cls, advice: core.Advice) -> Self:
        """Returns the same values with the ways to show them."""
        return cls(**{field.name: getattr(advice, field.name) for field in fields(advice)})

    @classmethod
    def from_monitor(
        cls,
        monitor: Any,
        *,
        batch_size: int | None = None,
        objective: str = "balanced",
        max_batch_size: int | None = None,
    ) -> Self:
        """Returns advice from a run that was only watched; its warnings say what is missing.

        Args:
            monitor: A `NoiseScaleMonitor` that was in a `fit`.
            batch_size: Global batch size of the run. Default: from what was measured.
            objective: "balanced", "time" (which needs step times, and is balanced here) or "cost".
            max_batch_size: Largest global batch size that fits into memory.

        Raises:
            ValueError: The monitor has watched no run yet, or an argument is out of range.

        Example:
            ```python
            monitor = NoiseScaleMonitor()
            model.fit(x, y, batch_size=64, callbacks=[monitor])
            print(Advice.from_monitor(monitor))
            ```
        """
        evidence = evidence_from_monitor(monitor, batch_size)
        return cls.of(recommend(evidence, objective=objective, max_batch_size=max_batch_size))

    def __str__(self) -> str:
        return render(self)

    def __rich__(self) -> RenderableType:
        return renderable(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What IPython shows of it."""
        printer.text(str(self))

    def _repr_html_(self) -> str:
        """What a notebook shows of it."""
        return render_fragment(self)

    def to_html(self, path: str | PathLike[str]) -> None:
        """Writes a self-contained page: recommendation, table, warnings and method.

        Args:
            path: File to write.
        """
        Path(path).write_text(render_html(self), encoding="utf-8")

    def plot(self, path: str | PathLike[str] | None = None) -> Any:
        """Draws steps, examples and time over batch size.

        Args:
            path: Where to write the figure; the ending chooses the format. None: not written.

        Returns:
            The `matplotlib.figure.Figure`.

        Raises:
            ModuleNotFoundError: matplotlib is not installed (`pip install "gns-keras[plot]"`).
        """
        return draw(self, path)
