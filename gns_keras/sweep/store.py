"""Finished runs in one SQLite file, and who is working on which of the others.

A run is one row, written in one transaction when it has finished: a process that is killed loses
the runs under way and nothing else. Before it starts a run, a process claims it; a claim holds
while the process is alive, and lapses with it. So several processes may share one file, and no run
is done twice.
"""

import contextlib
import json
import math
import os
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gns_keras.core.json_records import record_from_json, record_to_json
from gns_keras.core.run_record import RunRecord
from gns_keras.core.sweep_policy import RunKey

SCHEMA_VERSION = 1
LEASE_S = 60.0
_BUSY_S = 60.0  # How long to wait for another process' transaction, each a few milliseconds.

_SCHEMA = """
CREATE TABLE schema_version (version INTEGER NOT NULL);
CREATE TABLE configuration (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE runs (
    batch_size INTEGER NOT NULL, learning_rate REAL NOT NULL, seed INTEGER NOT NULL,
    status TEXT NOT NULL, reason TEXT NOT NULL, steps INTEGER NOT NULL, examples INTEGER NOT NULL,
    steps_to TEXT NOT NULL, last_loss REAL, seconds REAL NOT NULL,
    PRIMARY KEY (batch_size, learning_rate, seed)
);
CREATE TABLE claims (
    batch_size INTEGER NOT NULL, learning_rate REAL NOT NULL, seed INTEGER NOT NULL,
    owner TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL, expires REAL NOT NULL,
    PRIMARY KEY (batch_size, learning_rate, seed)
);
"""
_KEY = "batch_size = ? AND learning_rate = ? AND seed = ?"


class Store:
    """Finished runs and claims of one sweep configuration.

    Args:
        path: The file; made if it does not exist. None: in memory, for this object alone.
        configuration: What the results depend on, by name. A file made with another one is refused.
        lease_s: Seconds after which a claim lapses that nobody has renewed.

    Raises:
        ValueError: The file belongs to another configuration, has another schema, is damaged, or is
            no store.
        OSError: It cannot be opened or written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        configuration: Mapping[str, Any],
        *,
        lease_s: float = LEASE_S,
    ) -> None:
        self.path = None if path is None else Path(path)
        self._owner = uuid.uuid4().hex
        self._host = socket.gethostname()
        self._lease_s = lease_s
        # One connection for the sweep and its heartbeat, one at a time.
        self._lock = threading.RLock()
        with self._told():
            self._connection = sqlite3.connect(
                ":memory:" if path is None else os.fspath(path),
                timeout=_BUSY_S,
                isolation_level=None,
                check_same_thread=False,
            )
        try:
            with self._told():
                self._open(configuration)
        except BaseException:
            self._connection.close()
            raise

    def records(self) -> list[RunRecord]:
        """All finished runs, by batch size, learning rate and seed."""
        with self._lock, self._told():
            cursor = self._connection.execute(
                "SELECT * FROM runs ORDER BY batch_size, learning_rate, seed"
            )
            names = [column[0] for column in cursor.description]
            rows = [dict(zip(names, values, strict=True)) for values in cursor]
        return [_record(row) for row in rows]

    def claim(self, key: RunKey) -> bool:
        """Takes a run for this process, unless it is finished or another process is at it."""
        now = time.time()
        with self._transaction() as connection:
            if connection.execute(f"SELECT 1 FROM runs WHERE {_KEY}", _values(key)).fetchone():
                return False
            held = connection.execute(
                f"SELECT owner, host, pid, expires FROM claims WHERE {_KEY}", _values(key)
            ).fetchone()
            if held and held[0] != self._owner and self._alive(*held[1:], now):
                return False
            connection.execute(
                "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*_values(key), self._owner, self._host, os.getpid(), now + self._lease_s),
            )
        return True

    def finish(self, record: RunRecord) -> None:
        """Writes a finished run and gives up its claim. A run that is there already stays."""
        steps_to = [None if math.isnan(steps) else steps for steps in record.steps_to]
        last_loss = record.last_loss if math.isfinite(record.last_loss) else None
        values = (
            *_values(record.key), record.status, record.reason, record.steps, record.examples,
            json.dumps(steps_to), last_loss, record.seconds,
        )  # fmt: skip
        with self._transaction() as connection:
            connection.execute(
                f"INSERT OR IGNORE INTO runs VALUES ({', '.join('?' * len(values))})", values
            )
            connection.execute(f"DELETE FROM claims WHERE {_KEY}", _values(record.key))

    def renew(self) -> None:
        """Extends all claims of this process."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE claims SET expires = ? WHERE owner = ?",
                (time.time() + self._lease_s, self._owner),
            )

    def release(self) -> None:
        """Gives up all claims of this process."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM claims WHERE owner = ?", (self._owner,))

    @contextlib.contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Renews the claims while the body runs; gives them up and closes the file on leaving."""
        stopped = threading.Event()

        def beat() -> None:
            while not stopped.wait(self._lease_s / 4):
                # Another process may hold the file for long; the next beat will do.
                with contextlib.suppress(OSError):
                    self.renew()

        thread = threading.Thread(target=beat, name="sweep-heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()
            # Claims that cannot be given up lapse; the body's own error is the one to be seen.
            with contextlib.suppress(OSError):
                self.release()
            self._connection.close()

    def _alive(self, host: str, pid: int, expires: float, now: float) -> bool:
        """Whether a claim still holds. On this machine, a process that is gone lets go at once."""
        if now >= expires:
            return False
        if host != self._host:
            return True
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # It exists, and belongs to somebody else.
            return True
        return True

    def _open(self, configuration: Mapping[str, Any]) -> None:
        with contextlib.suppress(sqlite3.OperationalError):  # Some file systems cannot.
            self._connection.execute("PRAGMA journal_mode = WAL")
        wanted = {name: json.dumps(value, sort_keys=True) for name, value in configuration.items()}
        with self._transaction() as connection:
            tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
            if not tables:
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    connection.execute(statement)
                connection.execute("INSERT INTO schema_version VALUES (?)", (SCHEMA_VERSION,))
                connection.executemany("INSERT INTO configuration VALUES (?, ?)", wanted.items())
                return
            if ("schema_version",) not in tables:
                raise ValueError(
                    f"Expected a sweep store, or a new file. Received {self.path}, a database of "
                    "something else."
                )
            version = connection.execute("SELECT max(version) FROM schema_version").fetchone()[0]
            found = dict(connection.execute("SELECT name, value FROM configuration"))
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"Expected a sweep store of schema {SCHEMA_VERSION}. Received {self.path} of "
                f"schema {version}. Read it with the version of gns_keras that wrote it."
            )
        different = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
        if different:
            raise ValueError(
                f"The store {self.path} holds another sweep: {', '.join(different)} differ. Use "
                "another file, or the settings of that sweep."
                + "".join(
                    f"\n  {n}: stored {_short(found.get(n))}, now {_short(wanted.get(n))}"
                    for n in different
                )
            )
        self._check_rows()

    def _check_rows(self) -> None:
        """Reads everything once, so that damage is met now and not as an odd number later."""
        (verdict,) = self._connection.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise ValueError(_damaged(self.path, verdict))
        try:
            for record in self.records():
                record_from_json(RunRecord, record_to_json(record, 1), 1)
            self._connection.execute("SELECT expires FROM claims")
        except (OSError, TypeError, ValueError, sqlite3.OperationalError) as error:
            raise ValueError(_damaged(self.path, error)) from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Runs the body alone among all processes; its changes stay all or not at all."""
        with self._lock, self._told():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite ends it itself on a full disk.
                    self._connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Says of SQLite's errors which file it is about, and what to do."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OSError(
                f"The sweep store {self.path} cannot be read or written: {error}. Its folder must "
                "exist and be writable, with room on the disk. Runs that had finished are kept: "
                "start the sweep again to go on."
            ) from error
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"Expected a sweep store, or a new file. Received {self.path}: {error}."
            ) from error


def _values(key: RunKey) -> tuple[int, float, int]:
    return key.batch_size, key.learning_rate, key.seed


def _record(row: dict[str, Any]) -> RunRecord:
    steps_to = json.loads(row.pop("steps_to"))
    if not isinstance(steps_to, list):
        raise ValueError(f"Expected `steps_to` as a list. Received: {steps_to!r}.")
    last_loss = row.pop("last_loss")
    return RunRecord(
        **row,
        steps_to=tuple(math.nan if steps is None else float(steps) for steps in steps_to),
        last_loss=math.nan if last_loss is None else last_loss,
    )


def _damaged(path: Path | None, what: Any) -> str:
    return (
        f"The sweep store {path} is damaged: {what}. Restore it from a copy, or use a new file and "
        "run the sweep again."
    )


def _short(value: str | None) -> str:
    return "nothing" if value is None else value if len(value) <= 60 else value[:57] + "..."
