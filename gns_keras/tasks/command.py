"""`gns-keras tasks`: the list of tasks."""

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

from gns_keras.tasks import get_task, list_tasks


def add_arguments(parser: argparse.ArgumentParser, output_file: Callable[[str], Path]) -> None:
    """Declares the arguments of the command.

    Args:
        parser: Parser of the sub-command.
        output_file: argparse type of a file that can be written.
    """
    parser.add_argument(
        "--json", type=output_file, metavar="F", help="also write the list to F as JSON"
    )


def run(args: argparse.Namespace) -> None:
    """Prints every task in a few lines, wrapped on a terminal, and writes what was asked for."""
    tasks = [get_task(name) for name in list_tasks()]
    for task in tasks:
        lines = (
            f"{task.name}: {task.description}",
            f"    {task.optimizer}, learning rate {task.learning_rate:g}, "
            f"batch size {task.batch_size} {task.unit}",
            f"    data: {task.data_needed}",
            f"    run: {task.status}",
        )
        print("\n".join(map(_wrapped, lines)))  # noqa: T201  the command's output
    if args.json:
        plain = (str, int, float, tuple)  # Not the functions.
        records = [{k: v for k, v in vars(t).items() if isinstance(v, plain)} for t in tasks]
        args.json.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")


def _wrapped(line: str) -> str:
    """The line without broken words; in a pipe or a file as one, to be searched."""
    if not sys.stdout.isatty():
        return line
    width = max(shutil.get_terminal_size().columns, 20)
    return textwrap.fill(line, width, subsequent_indent=" " * 8, break_on_hyphens=False)
