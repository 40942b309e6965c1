"""A store on a full, read-only or damaged disk, and under a clock that jumps."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from gns_keras.core.run_record import RunRecord
from gns_keras.core.sweep_policy import RunKey
from gns_keras.sweep.store import Store

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATION = {"goals": ["loss < 0.5"]}


def record(seed: int = 0, reason: str = "") -> RunRecord:
    return RunRecord(
        batch_size=8, learning_rate=0.1, seed=seed, status="reached", reason=reason, steps=12,
        examples=96, steps_to=(1 / 3,), last_loss=0.25, seconds=0.5,
    )  # fmt: skip


def key(seed: int = 0) -> RunKey:
    return RunKey(batch_size=8, learning_rate=0.1, seed=seed)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sweep.sqlite"


def filled(path: Path, runs: int = 3) -> None:
    store = Store(path, CONFIGURATION)
    with store.heartbeat():
        for seed in range(runs):
            store.finish(record(seed))


def finish_many(store: Store) -> None:
    for seed in range(1, 1000):
        store.finish(record(seed, reason="x" * 500))


def refusal(path: Path) -> str:
    """What opening the store says; nothing where its rows are those that `filled` wrote."""
    try:
        found = Store(path, CONFIGURATION).records()
    except ValueError as error:
        return str(error)
    if found != [record(seed) for seed in range(3)]:
        raise RuntimeError(f"Other rows than were written: {found}")
    return ""


# ------------------------------------------------------------------ a full or read-only disk


def test_a_full_disk_loses_the_run_under_way_and_no_other(path: Path) -> None:
    store = Store(path, CONFIGURATION)
    store.finish(record(0))
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own full disk.
    with store.heartbeat():
        with pytest.raises(OSError, match=r"sweep\.sqlite cannot be .*full.*room on the disk"):
            finish_many(store)
        kept = len(store.records())
        assert 1 <= kept < 1000
    again = Store(path, CONFIGURATION)
    assert [found.seed for found in again.records()] == list(range(kept))
    again.finish(record(kept))  # With room, it goes on.
    assert len(again.records()) == kept + 1


def test_a_write_that_the_system_refuses_is_told_and_nothing_is_lost(path: Path) -> None:
    """The operating system's own limit on the size of files, in a process of its own."""
    script = (
        "import resource, signal, sys\n"
        "from tests.reliability.test_store_faults import *\n"
        "store = Store(sys.argv[1], CONFIGURATION)\n"
        "store.finish(record(0))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "try:\n"
        "    for seed in range(1, 1000): store.finish(record(seed, reason='x' * 500))\n"
        "except OSError as error: print(error)\n"
        "print(len(store.records()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, os.fspath(path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    message, kept = done.stdout.splitlines()
    assert "cannot be read or written" in message, done.stderr
    assert 1 <= int(kept) < 1000
    assert len(Store(path, CONFIGURATION).records()) == int(kept)


def test_a_read_only_store_is_refused_and_left_alone() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sweep.sqlite"
        filled(path)
        before = path.read_bytes()
        path.chmod(0o444)
        Path(folder).chmod(0o555)
        # Root may write anywhere, so that it becomes nobody for a moment.
        is_root = os.geteuid() == 0
        try:
            if is_root:
                os.seteuid(65534)
            with pytest.raises(OSError, match="cannot be read or written: attempt to write"):
                Store(path, CONFIGURATION)
        finally:
            if is_root:
                os.seteuid(0)
            Path(folder).chmod(0o755)
        assert path.read_bytes() == before


def test_a_folder_that_does_not_exist_is_told(tmp_path: Path) -> None:
    for path in (tmp_path / "none" / "sweep.sqlite", tmp_path):
        with pytest.raises(OSError, match="Its folder must exist"):
            Store(path, CONFIGURATION)


# ------------------------------------------------------------------ damage


@pytest.mark.parametrize("cut", [10, 100, 5000, -100])
def test_a_store_that_was_cut_off_is_refused(path: Path, cut: int) -> None:
    filled(path)
    path.write_bytes(path.read_bytes()[:cut])
    message = refusal(path)
    assert str(path) in message or cut == -100  # The end of the last page is not in use.


def test_random_bytes_in_any_page_are_refused_or_do_no_harm(path: Path) -> None:

    filled(path)
    whole = path.read_bytes()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("PRAGMA page_size").fetchone()
    pages = len(whole) // page
    messages = []
    for number in range(pages):
        damaged = bytearray(whole)
        start = number * page
        damaged[start : start + page] = np.random.default_rng(number).bytes(page)
        victim = path.with_name(f"page-{number}.sqlite")
        victim.write_bytes(bytes(damaged))
        messages.append(refusal(victim))
    assert "page-0.sqlite" in messages[0]
    assert sum(bool(message) for message in messages) >= pages - 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE runs SET steps_to = '[1,'",
        "UPDATE runs SET steps_to = '{}'",
        "UPDATE runs SET steps = 'many'",
        "UPDATE runs SET last_loss = 'low'",
        "ALTER TABLE runs DROP COLUMN seconds",
        "DROP TABLE runs",
        "DROP TABLE claims",
    ],
)
def test_a_row_or_table_that_does_not_fit_is_refused(path: Path, statement: str) -> None:
    filled(path)
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    with pytest.raises(ValueError, match=r"is damaged: .*Restore it from a copy"):
        Store(path, CONFIGURATION)


@pytest.mark.parametrize("statement", ["UPDATE schema_version SET version = 0",
                                       "DELETE FROM schema_version"])  # fmt: skip
def test_an_older_schema_or_none_is_refused(path: Path, statement: str) -> None:
    filled(path)
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    with pytest.raises(ValueError, match=r"of schema (0|None)"):
        Store(path, CONFIGURATION)


# ------------------------------------------------------------------ a clock that jumps


@pytest.mark.parametrize("jump", [-7200.0, 7200.0])
def test_a_clock_that_jumps_loses_no_run_and_counts_none_twice(
    path: Path, jump: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forwards, a run may be done again by another process: the first result stays."""
    one, other = Store(path, CONFIGURATION), Store(path, CONFIGURATION)
    assert one.claim(key())
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + jump)
    taken = other.claim(key())
    assert taken == (jump > 0)
    one.renew()
    assert not Store(path, CONFIGURATION).claim(key()) or not taken
    one.finish(record())
    other.finish(record(reason="second"))
    assert [found.reason for found in other.records()] == [""]
    assert not one.claim(key())
    assert not other.claim(key())
