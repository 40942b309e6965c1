"""Lines of Markdown tables, and what every benchmark says about the machine."""

import datetime
import importlib.metadata
import os
import platform


def machine() -> str:
    """Date, machine and versions, without importing what is timed."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(package)}"
        for name, package in (("TensorFlow", "tensorflow"), ("Keras", "keras"))
    )
    return (
        f"{datetime.date.today()}, {platform.machine()} with {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {versions}"
    )


def head(*names: str) -> None:
    """Prints the head of a table."""
    row(*names)
    row(*("---" for _ in names))


def row(*cells: object) -> None:
    """Prints a row at once: benchmarks are slow."""
    print("|", " | ".join(str(cell) for cell in cells), "|", flush=True)
