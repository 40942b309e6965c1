"""A reproduction as users meet it: beside the paper's Table 1, and point by point."""

import io
import math
import sys

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from gns_keras.core.noise_scale import NoiseScale
from gns_keras.core.numbers import format_number
from gns_keras.core.reproduction import PublishedRow, Range, ReproductionRecord

WIDTH = 80


class Reproduction(ReproductionRecord):
    """What `reproduce` found.

    `print(result)` shows it beside the paper's numbers. The attributes are those of
    `gns_keras.core.reproduction.ReproductionRecord`.
    """

    def __str__(self) -> str:
        encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower()
        console = Console(
            file=io.StringIO(), width=WIDTH, no_color=True, highlight=False, force_jupyter=False
        )
        console.print(renderable(self, plain_lines=not encoding.startswith("utf")))
        lines = console.file.getvalue().splitlines()
        return "\n".join(line.rstrip() for line in lines).strip("\n")

    def __rich__(self) -> RenderableType:
        return renderable(self)


def renderable(result: ReproductionRecord, *, plain_lines: bool = False) -> RenderableType:
    """Returns the result for a rich console.

    Args:
        result: What was measured.
        plain_lines: Draw tables with ASCII only.
    """
    lines = box.ASCII2 if plain_lines else box.SIMPLE_HEAD
    parts: list[RenderableType] = [escape(_headline(result)), ""]
    parts += [_beside_the_paper(result, lines), _along_the_run(result, lines)]
    parts += [escape(sentence) for sentence in notes(result)]
    return Group(*parts)


def _headline(result: ReproductionRecord) -> str:
    return (
        f"{result.task}: {result.description}\n"
        f"{result.optimizer}, learning rate {result.learning_rate:g} at a batch size of "
        f"{result.batch_size * result.units_per_example:,} {result.unit}"
    )


def _beside_the_paper(result: ReproductionRecord, lines: box.Box) -> Table:
    paper = result.published
    units = result.units_per_example
    title = f"Noise scale, in {result.unit}"
    table = Table(box=lines, title=title, title_justify="left")
    table.add_column("")
    table.add_column("measured here")
    table.add_column("Table 1" if paper is None else f"Table 1, {paper.system}", justify="right")
    stretches = (
        ("initial weights", result.initial, None),
        (f"start: first {result.early * units:,}", result.start, paper and paper.noise_start),
        (f"average: first {result.examples * units:,}", result.average,
         paper and paper.noise_average),
    )  # fmt: skip
    for name, scale, published in stretches:
        table.add_row(name, format_noise_scale(scale), format_range(published))
    return table


def _along_the_run(result: ReproductionRecord, lines: box.Box) -> Table:
    units = result.units_per_example
    title = f"Along the run of seed {result.runs[0].seed}"
    table = Table(box=lines, title=title, title_justify="left")
    for name in (result.unit, "training loss"):
        table.add_column(name, justify="right")
    table.add_column("noise scale")
    for point in result.runs[0].points:
        scale = point.noise_scale.scaled(units, result.unit)
        table.add_row(
            f"{point.examples_seen * units:,}",
            format_number(point.loss),
            format_noise_scale(scale),
        )
    return table


def notes(result: ReproductionRecord) -> list[str]:
    """Sentences on how long the run was, and on what the numbers are."""
    units = result.units_per_example
    runs = f"{len(result.runs)} run{'s' if len(result.runs) > 1 else ''}"
    done = result.examples_trained * units
    passes = ""
    if result.dataset_size:
        passes = f", {format_number(result.examples_trained / result.dataset_size, 2)} passes"
        passes += " over the data"
    found = [f"Length: {runs} of {done:,} {result.unit}{passes}.{_length(result.published)}"]
    if len(result.runs) > 1:
        starts = [format_noise_scale(scale, interval=False) for scale in result.start_of_each]
        averages = [format_noise_scale(scale, interval=False) for scale in result.average_of_each]
        found.append(f"Seed by seed: start {', '.join(starts)}; average {', '.join(averages)}.")
    if result.normalized_group:
        found.append(
            "Batch normalization: the gradients are those of groups of "
            f"{result.normalized_group} examples, normalized by themselves as in the training; the "
            "noise scale is that of this objective."
        )
    found.append(f"The task: {result.status}.")
    found.append(
        "In brackets: 95 % intervals; the paper has none. Measured at frozen weights, averaged "
        "with the weights of appendix D; the paper's are moving averages over its training batches."
    )
    return found


def _length(paper: PublishedRow | None) -> str:
    if paper is None:
        return " The paper has no such task."
    return f" Of the paper: {paper.length}."


def format_noise_scale(scale: NoiseScale, *, interval: bool = True) -> str:
    """A noise scale and its interval in brackets, or what is known of it."""
    if scale.resolved:
        low, high = (format_number(end) for end in scale.interval)
        return format_number(scale.value) + (f" ({low} to {high})" if interval else "")
    if scale.lower_bound > 0:
        return f"unresolved: at least {format_number(scale.lower_bound)}"
    return "unresolved"


def format_range(published: Range | None) -> str:
    """A number of the paper; "-" where there is none."""
    if published is None or math.isnan(published[0]):
        return "-"
    low, high = (format_number(end) for end in published)
    if math.isinf(published[1]):
        return f"more than {low}"
    return low if low == high else f"{low} to {high}"
