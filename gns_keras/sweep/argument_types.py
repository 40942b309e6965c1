"""Types of command-line arguments: what argparse turns a text into, or refuses."""

import argparse
import os
from pathlib import Path


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1; `10_000` is one."""
    value = not_negative(text)
    if value == 0:
        raise argparse.ArgumentTypeError("expected a whole number of at least 1, received '0'")
    return value


def not_negative(text: str) -> int:
    """An argparse type: a whole number of at least 0."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(
            f"expected a whole number, not negative, received {text!r}"
        )
    return value


def output_file(text: str) -> Path:
    """An argparse type: a file that can be written, found out before the measurement starts."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"expected a file in a folder that exists, received {text!r}"
        )
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"may not be written: {text!r}")
    return path
