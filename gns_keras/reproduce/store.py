"""Points of runs in an SQLite file, with the model as it was at the last point of each.

A point and its state are written together or not at all: a run that is stopped at any moment goes
on from its last point, and a finished one can be made longer.
"""

import io
import json
import sqlite3
from collections.abc import Mapping
from contextlib import suppress
from os import PathLike
from types import TracebackType
from typing import Any, Self

import numpy as np

from gns_keras.core.json_records import record_from_json, record_to_json
from gns_keras.core.reproduction import PointsOfRun

SCHEMA_VERSION = 1
MAX_STATE_BYTES = 900 * 2**20  # SQLite holds no more than 1 GB in one field.
_TABLES = (
    "CREATE TABLE reproduction (version INTEGER, configuration TEXT)",
    "CREATE TABLE runs (seed INTEGER PRIMARY KEY, points TEXT, state BLOB)",
)

State = list[np.ndarray]


class RunStore:
    """Keeps the runs of one task with one set of settings.

    Args:
        path: SQLite file, made where there is none. None: nothing is kept.
        configuration: What has to be the same for runs to belong together.

    Raises:
        ValueError: The file is something else, or has runs with other settings.
        RuntimeError: Another process is using it.
    """

    def __init__(self, path: str | PathLike[str] | None, configuration: Mapping[str, Any]) -> None:
        self._path = path
        # Transactions are begun and ended below.
        self._connection = sqlite3.connect(path or ":memory:", timeout=1.0, isolation_level=None)
        try:
            self._open(json.dumps(dict(configuration), sort_keys=True))
        except sqlite3.OperationalError as error:
            self._connection.close()
            if "locked" in str(error):
                raise RuntimeError(
                    f"Another process is using {path}. Wait for it, or give another --store."
                ) from error
            raise RuntimeError(f"{path} can be neither read nor written: {error}.") from error
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise self._foreign(f"a file that SQLite cannot read ({error})") from error
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()

    def points(self, seed: int) -> PointsOfRun:
        """What there is of a run; no points if it has not begun."""
        row = self._connection.execute("SELECT points FROM runs WHERE seed = ?", (seed,)).fetchone()
        if row is None:
            return PointsOfRun(seed=seed, points=())
        return record_from_json(PointsOfRun, row[0], SCHEMA_VERSION)

    def state(self, seed: int) -> State | None:
        """All variables at the last point of a run; None if they were not kept."""
        row = self._connection.execute("SELECT state FROM runs WHERE seed = ?", (seed,)).fetchone()
        if row is None or row[0] is None:
            return None
        with np.load(io.BytesIO(row[0]), allow_pickle=False) as arrays:
            return [arrays[f"v{index}"] for index in range(len(arrays.files))]

    def keep(self, run: PointsOfRun, state: State | None) -> None:
        """Writes all points of a run and its state at the last one.

        Args:
            run: The run so far.
            state: All variables. None, or more than 900 MB: a run that is stopped begins anew.
        """
        packed = None
        if state is not None and sum(array.nbytes for array in state) <= MAX_STATE_BYTES:
            buffer = io.BytesIO()
            np.savez(buffer, **{f"v{index}": array for index, array in enumerate(state)})
            packed = buffer.getvalue()
        row = (run.seed, record_to_json(run, SCHEMA_VERSION), packed)
        if self._path is not None:
            self._connection.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?)", row)

    def _open(self, configuration: str) -> None:
        self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._connection.execute("BEGIN EXCLUSIVE")
        tables = self._connection.execute("SELECT name FROM sqlite_master").fetchall()
        if not tables:
            for statement in _TABLES:
                self._connection.execute(statement)
            self._connection.execute(
                "INSERT INTO reproduction VALUES (?, ?)", (SCHEMA_VERSION, configuration)
            )
        self._connection.execute("COMMIT")
        if tables and ("reproduction",) not in tables:
            raise self._foreign("a database of something else")
        version, found = self._connection.execute("SELECT * FROM reproduction").fetchone()
        if version != SCHEMA_VERSION:
            raise self._foreign(f"one of schema {version}")
        if found != configuration:
            raise self._foreign(f"runs of other settings: {_differences(found, configuration)}")

    def _foreign(self, what: str) -> ValueError:
        with suppress(sqlite3.Error):
            self._connection.close()
        return ValueError(
            f"Expected in {self._path} runs of this task with these settings, or no file yet. "
            f"Received {what}. Give another --store, or remove the file."
        )


def _differences(found: str, wanted: str) -> str:
    old, new = json.loads(found), json.loads(wanted)
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return ", ".join(f"{name} was {old.get(name)}, now {new.get(name)}" for name in names)
