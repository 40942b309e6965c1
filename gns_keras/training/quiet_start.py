"""The first import of TensorFlow in a command: a note on the terminal, and none of TensorFlow's."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

SILENT = "3"
NOTE = b"starting TensorFlow ..."


def import_tensorflow() -> None:
    """Imports TensorFlow for the first time, without its start-up notes.

    Its first notes are written before it has read TF_CPP_MIN_LOG_LEVEL, from C++ straight to file
    descriptor 2. A level that the user has set keeps them, unless it is the silent one.
    """
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    level = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", SILENT)
    with stderr_held_back() if level == SILENT else contextlib.nullcontext():
        import tensorflow  # noqa: F401


@contextlib.contextmanager
def stderr_held_back() -> Iterator[None]:
    """Discards what is written to file descriptor 2, except where the body fails."""
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            with note_on(original):
                yield
        except Exception:
            held.seek(0)
            os.write(original, held.read())
            raise
        finally:
            os.dup2(original, 2)
            os.close(original)


@contextlib.contextmanager
def note_on(descriptor: int) -> Iterator[None]:
    """Says on a terminal what takes seconds, and leaves nothing of it."""
    if not os.isatty(descriptor) or os.environ.get("TERM") == "dumb":
        yield
        return
    os.write(descriptor, NOTE)
    try:
        yield
    finally:  # Two more for the ^C of a terminal.
        os.write(descriptor, b"\r" + b" " * (len(NOTE) + 2) + b"\r")
