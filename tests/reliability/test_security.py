"""Reading a file executes nothing, a page shows what it was given, and nobody is called up."""

from __future__ import annotations

import ast
import html
import os
import pickle
import socket
import sqlite3
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import h5py
import numpy as np
import pytest

from gns_keras.core.run_record import RunRecord
from gns_keras.report.advice import Advice
from gns_keras.report.sweep_result import SweepResult
from gns_keras.sweep.store import Store
from gns_keras.tasks import UnknownTargetError, custom, datasets
from gns_keras.training.saved_state import read_saved_state
from tests.report.test_text import make_advice

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "gns_keras").rglob("*.py"))
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "literal_eval"}
FORBIDDEN_ATTRIBUTES = {
    ("pickle", "load"), ("pickle", "loads"), ("marshal", "loads"), ("shelve", "open"),
    ("yaml", "load"), ("yaml", "unsafe_load"), ("os", "system"), ("os", "popen"),
    ("joblib", "load"), ("dill", "loads"), ("cloudpickle", "loads"), ("torch", "load"),
}  # fmt: skip
FORBIDDEN_MODULES = {
    "dill", "ftplib", "http", "marshal", "requests", "shelve", "smtplib", "subprocess",
    "telnetlib", "urllib", "urllib3", "xmlrpc", "yaml",
}  # fmt: skip


def calls(path: Path) -> list[ast.Call]:
    tree = ast.parse(path.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno}"


# ------------------------------------------------------------------ the sources


def test_no_source_runs_text_or_unpickles() -> None:
    found = []
    for path in SOURCES:
        for node in calls(path):
            name = node.func
            if isinstance(name, ast.Name) and name.id in FORBIDDEN_CALLS:
                found.append(place(path, node))
            if tuple(ast.unparse(name).rsplit(".", 1)) in FORBIDDEN_ATTRIBUTES:
                found.append(place(path, node))
            allows = [k for k in node.keywords if k.arg in ("allow_pickle", "shell")]
            found += [place(path, k.value) for k in allows if ast.unparse(k.value) != "False"]
            unsafe = [k for k in node.keywords if k.arg == "safe_mode"]
            found += [place(path, k.value) for k in unsafe if ast.unparse(k.value) == "False"]
    assert found == []


def test_no_source_imports_a_network_or_a_shell() -> None:
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            found += [place(path, node) for n in names if n.split(".")[0] in FORBIDDEN_MODULES]
    assert found == []


def test_a_module_is_imported_by_name_in_three_places_only() -> None:
    """The public names of the package, its own tasks, and what the user has typed."""
    found = {
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        for node in calls(path)
        if ast.unparse(node.func).endswith("import_module")
    }
    assert found == {
        "gns_keras/__init__.py",
        "gns_keras/tasks/__init__.py",
        "gns_keras/tasks/custom.py",
    }


# ------------------------------------------------------------------ hostile files


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (os.fspath(self.path),)


@pytest.fixture
def crater(tmp_path: Path) -> Path:
    path = tmp_path / "crater"
    pickle.loads(pickle.dumps(Bomb(path)))
    assert path.is_dir()  # The bomb works.
    path.rmdir()
    return path


@pytest.mark.parametrize("kind", [Advice, SweepResult])
def test_hostile_json_is_text(kind: type, crater: Path) -> None:
    hostile = [
        f'{{"__class__": "os.mkdir", "schema_version": 1, "args": ["{crater}"]}}',
        f'{{"py/reduce": [{{"py/function": "os.mkdir"}}, {{"py/tuple": ["{crater}"]}}]}}',
        f"!!python/object/apply:os.mkdir ['{crater}']",
        f"__import__('os').mkdir('{crater}')",
        pickle.dumps(Bomb(crater), 0).decode(),
        "[" * 100_000,
    ]
    for text in hostile:
        with pytest.raises(ValueError, match=r"Expected|fields"):
            kind.from_json(text)
    assert not crater.exists()


def test_a_hostile_store_is_refused_unread(tmp_path: Path, crater: Path) -> None:
    bomb = pickle.dumps(Bomb(crater))
    path = tmp_path / "pickle.sqlite"
    path.write_bytes(bomb)
    with pytest.raises(ValueError, match="Expected a sweep store"):
        Store(path, {})
    path = tmp_path / "rows.sqlite"
    Store(path, {}).finish(
        RunRecord(batch_size=8, learning_rate=0.1, seed=0, status="ended", reason="", steps=1,
                  examples=8, steps_to=(), last_loss=1.0, seconds=1.0)
    )  # fmt: skip
    for value in (bomb, f"__import__('os').mkdir('{crater}')", bomb.hex()):
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE runs SET steps_to = ?", (value,))
        with pytest.raises(ValueError, match="is damaged"):
            Store(path, {})
    assert not crater.exists()


def test_a_configuration_with_sql_in_it_is_a_value(tmp_path: Path) -> None:
    path = tmp_path / "sweep.sqlite"
    hostile = {"goals'); DROP TABLE runs; --": "x'); DROP TABLE runs; --"}
    Store(path, hostile)
    assert Store(path, hostile).records() == []


def test_a_hostile_data_file_is_refused_unpickled(tmp_path: Path, crater: Path, monkeypatch):
    objects = np.array([Bomb(crater)] * 2, dtype=object)
    np.savez(tmp_path / "evil.npz", x_train=objects, y_train=objects)
    monkeypatch.setenv(datasets.DATA_VARIABLE, os.fspath(tmp_path))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        datasets.load_arrays("evil")
    assert not crater.exists()


def test_a_hostile_state_file_is_arrays_or_an_error(tmp_path: Path, crater: Path) -> None:
    path = tmp_path / "evil.weights.h5"
    with h5py.File(path, "w") as file:
        file["noise_scale_state/vars/seen"] = np.void(pickle.dumps(Bomb(crater)))
    assert set(read_saved_state(os.fspath(path))) == {"seen"}
    assert not crater.exists()


# ------------------------------------------------------------------ what the user names


def test_a_target_runs_the_function_that_was_named_and_no_other(tmp_path, monkeypatch) -> None:
    (tmp_path / "mine_7.py").write_text(
        "ran = []\ndef build():\n    ran.append('build')\n    return None\n"
        "def danger():\n    ran.append('danger')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(os.fspath(tmp_path))
    function = custom.import_function(*custom.parse_target("mine_7:build"))
    assert sys.modules["mine_7"].ran == []  # Named and checked; not yet called.
    with pytest.raises(TypeError):
        custom.call_function(function, "mine_7:build")
    assert sys.modules["mine_7"].ran == ["build"]
    for target in ("mine_7:danger()", "mine_7:build;danger", "mine_7:ran.append", "mine_7:",
                   "../mine_7:danger", "mine_7.py:danger", "os;mine_7:danger"):  # fmt: skip
        with pytest.raises(UnknownTargetError):
            custom.parse_target(target)
    assert sys.modules["mine_7"].ran == ["build"]


# ------------------------------------------------------------------ the network


@pytest.mark.slow
def test_importing_every_module_opens_no_connection() -> None:
    """In a process of its own whose sockets refuse to be connected or to look up a name."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in SOURCES
        if path.name not in ("__main__.py", "__init__.py")
    ]
    script = (
        "import socket, sys, importlib\n"
        "def refuse(*a, **k): raise SystemExit('network: %r' % (a,))\n"
        "socket.socket.connect = socket.socket.connect_ex = refuse\n"
        "socket.getaddrinfo = socket.create_connection = refuse\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print('quiet')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.splitlines()[-1:] == ["quiet"], done.stdout + done.stderr


def test_a_data_set_in_the_local_folder_needs_no_network(tmp_path, monkeypatch) -> None:
    def refuse(*args, **kwargs):
        raise AssertionError(f"network: {args}")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    images = np.zeros((3, 4, 4), np.uint8)
    np.savez(tmp_path / "mine.npz", x_train=images, y_train=np.arange(3))
    monkeypatch.setenv(datasets.DATA_VARIABLE, os.fspath(tmp_path))
    x, y = datasets.load_arrays("mine")
    assert x.shape == (3, 4, 4, 1)
    assert list(y) == [0, 1, 2]


# ------------------------------------------------------------------ pages


class Tags(HTMLParser):
    """The tags and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        self.seen.append((tag, dict(attrs)))


def test_a_page_shows_hostile_strings_and_runs_none(tmp_path: Path) -> None:
    hostile = "</dd></style><script>alert(1)</script><img src=x onerror='alert(1)'>\"&"
    advice = make_advice()
    evil = replace(
        advice,
        warnings=(hostile, "<b>bold</b>"),
        noise_scale=replace(advice.noise_scale, unit=hostile),
    )
    evil.to_html(tmp_path / "advice.html")
    source = (tmp_path / "advice.html").read_text(encoding="utf-8")
    kept = {tag for tag, _ in Tags(source).seen}
    assert not kept & {"script", "img", "iframe", "object", "link"}
    assert not [name for _, found in Tags(source).seen for name in found if name.startswith("on")]
    assert html.escape("<script>alert(1)</script>") in source
