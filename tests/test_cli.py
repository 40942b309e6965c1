"""The command line: arguments, exit codes, messages, and one run for real."""

import json
import os
import pty
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import gns_keras
from gns_keras import cli
from gns_keras.tasks import get_task, list_tasks
from gns_keras.training import quiet_start


class RecordedAdvice:
    """Stands in for the answer where only the way of the arguments is tested."""

    batch_size = 64

    def __str__(self) -> str:
        return "the recommendation"

    def to_json(self) -> str:
        return '{"batch_size": 64}'

    def to_html(self, path: Path) -> None:
        Path(path).write_text("<html></html>", encoding="utf-8")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Puts a recorder in the place of `advise`, and returns what it was called with."""
    recorded: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def advise(*args: Any, **kwargs: Any) -> RecordedAdvice:
        recorded.append((args, kwargs))
        return RecordedAdvice()

    replace_advise(monkeypatch, advise)
    return recorded


def replace_advise(monkeypatch: pytest.MonkeyPatch, function: Any) -> None:
    module = types.ModuleType("gns_keras.advise")
    module.advise = function
    monkeypatch.setitem(sys.modules, "gns_keras.advise", module)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """`own.write(text)` writes a module into the current folder; `own.name` is its name."""
    name = f"train_{tmp_path.name.replace('-', '_').replace('[', '_').replace(']', '_')}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    path = tmp_path / f"{name}.py"
    return types.SimpleNamespace(name=name, write=path.write_text)


OWN_MODULE = """
import keras
import numpy as np

def model():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse")
    return model

X, Y = np.zeros((8, 3)), np.zeros((8, 1))
build = lambda: (model(), (X, Y))
build_4 = lambda: (model(), (X, Y), 4)
loose = lambda: (model(), X, Y)
swapped = lambda: ((X, Y), model())
four = lambda: (model(), X, Y, 4)
alone = lambda: model()
zero = lambda: (model(), (X, Y), 0)

def needy(path): ...

def broken():
    raise KeyError("layers")
"""


def test_the_help_teaches_by_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert "gns-keras advise digits" in capsys.readouterr().out
    assert cli.main(["advise", "--help"]) == 0
    shown = capsys.readouterr().out
    options = "--json --html --batch-size --budget --objective --max-batch-size --seed --quiet"
    for part in [*options.split(), "package.module:function", "return model, (x, y), 32"]:
        assert part in shown


@pytest.mark.parametrize("command", ["", "advise", "sweep", "reproduce", "tasks"])
def test_the_help_fits_a_terminal_of_80_columns(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([*command.split(), "--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_the_list_of_tasks_is_wrapped_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert cli.main(["tasks"]) == 0
    whole = capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli.main(["tasks"]) == 0
    wrapped = capsys.readouterr().out
    assert max(map(len, wrapped.splitlines())) <= 60 < max(map(len, whole.splitlines()))
    assert wrapped.split() == whole.split()


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"gns-keras {gns_keras.__version__}\n"


@pytest.mark.parametrize(
    "command", [["--help"], ["tasks"], ["advise", "no_such_task"], ["reproduce", "--help"]]
)
def test_what_needs_no_tensorflow_does_not_wait_for_it(command: list[str]) -> None:
    code = (
        "import sys; from gns_keras.cli import main; main(sys.argv[1:]); "
        "print({'tensorflow', 'keras', 'scipy', 'rich'} & set(sys.modules), file=sys.stderr)"
    )
    run = [sys.executable, "-c", code, *command]
    done = subprocess.run(run, check=True, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "set()"


def test_tasks_are_listed_with_what_they_need(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tasks"]) == 0
    shown = capsys.readouterr().out
    for name in list_tasks():
        task = get_task(name)
        parts = (name, task.description, task.data_needed, task.status, f"{task.learning_rate:g}")
        for part in parts:
            assert part in shown


def test_tasks_are_written_as_json(tmp_path: Path) -> None:
    assert cli.main(["tasks", "--json", str(tmp_path / "tasks.json")]) == 0
    records = json.loads((tmp_path / "tasks.json").read_text())
    assert [record["name"] for record in records] == list(list_tasks())
    digits = records[0]
    assert (digits["optimizer"], digits["batch_size"]) == ("sgd", get_task("digits").batch_size)
    assert digits["goals"] == list(get_task("digits").goals)


def test_every_command_writes_json() -> None:
    parser = cli.build_parser()
    commands = parser._subparsers._group_actions[0].choices
    for name, command in commands.items():
        assert "--json" in command._option_string_actions, name


def test_a_task_is_measured_at_its_own_batch_size(
    calls: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["advise", "digits"]) == 0
    assert capsys.readouterr().out == "the recommendation\n"
    [((model, (x, y)), options)] = calls
    assert model.name == "digits"
    assert (len(x), len(y)) == (1500, 1500)
    assert options == {
        "batch_size": 32,
        "budget": None,
        "target_loss": None,
        "run_examples": None,
        "objective": "balanced",
        "max_batch_size": None,
        "learning_rate": "check",
        "seed": 0,
        "verbose": 1,
    }


def test_every_option_reaches_advise(
    calls: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"--json": tmp_path / "a.json", "--html": tmp_path / "a.html"}
    line = "advise digits --batch-size 16 --budget 10_000 --objective time --max-batch-size 512"
    line += " --seed 7 --quiet --run-examples 2_000_000 --learning-rate search"
    assert cli.main([*line.split(), *(str(part) for pair in files.items() for part in pair)]) == 0
    assert calls[0][1] == {
        "batch_size": 16,
        "budget": 10_000,
        "target_loss": None,
        "run_examples": 2_000_000,
        "objective": "time",
        "max_batch_size": 512,
        "learning_rate": "search",
        "seed": 7,
        "verbose": 0,
    }
    assert json.loads(files["--json"].read_text(encoding="utf-8")) == {"batch_size": 64}
    assert files["--html"].read_text(encoding="utf-8") == "<html></html>"
    assert capsys.readouterr().out == "the recommendation\n"


def test_the_seed_draws_the_weights(calls: list[Any]) -> None:
    for seed in ("3", "3", "4"):
        assert cli.main(["advise", "digits", "--seed", seed]) == 0
    first, again, other = (arguments[0].get_weights()[0] for arguments, _ in calls)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("function", "option", "expected"),
    [("build", [], None), ("build_4", [], 4), ("build_4", ["--batch-size", "2"], 2)],
)
def test_an_own_function_gives_model_data_and_batch_size(
    calls: list[Any],
    own: types.SimpleNamespace,
    function: str,
    option: list[str],
    expected: int | None,
) -> None:
    own.write(OWN_MODULE)
    assert cli.main(["advise", f"{own.name}:{function}", *option]) == 0
    [((model, (x, y)), options)] = calls
    assert isinstance(model, keras.Model)
    assert (x.shape, y.shape) == ((8, 3), (8, 1))
    assert options["batch_size"] == expected


@pytest.mark.parametrize(
    ("function", "code", "message"),
    [
        ("loose", 1, "batch size third, a positive int. Received: ndarray. Arrays belong together"),
        ("zero", 1, "batch size third, a positive int. Received: 0."),
        ("swapped", 1, "a compiled keras.Model first. Received: tuple first"),
        ("four", 1, "(model, data) or (model, data, batch_size). Received: tuple of 4."),
        ("alone", 1, "(model, data) or (model, data, batch_size). Received: Sequential."),
        ("broken", 1, "broken failed: KeyError: 'layers'"),
        ("needy", 2, "should need no arguments. Received: a function with the signature (path)."),
        ("X", 2, "should be a function that returns (model, data). Received: an object of type"),
        ("biuld", 2, "has no function 'biuld'. Did you mean"),
    ],
)
def test_an_own_function_of_the_wrong_form_gets_one_clear_line(
    calls: list[Any],
    own: types.SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
    function: str,
    code: int,
    message: str,
) -> None:
    own.write(OWN_MODULE)
    assert cli.main(["advise", f"{own.name}:{function}"]) == code
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("gns-keras: ")
    assert len(printed.err.splitlines()) == 1
    assert printed.out == ""
    assert calls == []


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("digitts", "Did you mean 'digits'?"),
        ("train.py:build", "Write train:build in the folder"),
        ("my/train.py", "Write my.train:function in the folder"),
        ("my.train", "should be package.module:function. Received: 'my.train'"),
        ("train:", "should be package.module:function. Received: 'train:'"),
        (":build", "should be package.module:function. Received: ':build'"),
        ("no_such_module:build", "There is no module 'no_such_module' in "),
        ("json.no_such_part:build", "There is no module 'json.no_such_part' in "),
    ],
)
def test_a_target_that_does_not_exist_is_wrong_usage(
    calls: list[Any],
    own: types.SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
    target: str,
    message: str,
) -> None:
    assert cli.main(["advise", target]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 1


def test_a_missing_dependency_of_the_own_module_is_a_failure_and_not_a_typing_error(
    own: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    own.write("import no_such_dependency")
    assert cli.main(["advise", f"{own.name}:build"]) == 1
    assert f"Importing {own.name} failed: ModuleNotFoundError" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "",
        "advise",
        "advance digits",
        "advise digits --batch-size 0",
        "advise digits --budget many",
        "advise digits --seed -1",
        "advise digits --objective speed",
        "advise digits --json no_such_folder/a.json",
        "advise digits --html .",
    ],
)
def test_wrong_usage_ends_with_2_before_anything_is_measured(
    calls: list[Any], capsys: pytest.CaptureFixture[str], line: str
) -> None:
    assert cli.main(line.split()) == 2
    assert "usage: gns-keras" in capsys.readouterr().err
    assert calls == []


def failing(*args: Any, **kwargs: Any) -> None:
    raise ValueError("The model should be compiled.\nReceived: one that is not.")


def test_a_failure_is_one_line_with_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_advise(monkeypatch, failing)
    assert cli.main(["advise", "digits"]) == 1
    assert capsys.readouterr().err == (
        "gns-keras: ValueError: The model should be compiled. Received: one that is not. "
        "(--traceback shows where)\n"
    )


def test_a_failure_inside_a_graph_is_still_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def body(x: Any) -> Any:
        raise ValueError("The layer needs three axes.")

    replace_advise(monkeypatch, lambda *args, **kwargs: tf.function(body)(1.0))
    assert cli.main(["advise", "digits"]) == 1
    assert capsys.readouterr().err == (
        "gns-keras: ValueError: The layer needs three axes. (--traceback shows where)\n"
    )


def test_the_traceback_is_there_for_who_asks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_advise(monkeypatch, failing)
    assert cli.main(["advise", "digits", "--traceback"]) == 1
    assert "in failing" in capsys.readouterr().err


def test_ctrl_c_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    replace_advise(monkeypatch, interrupted)
    assert cli.main(["advise", "digits"]) == 130
    assert capsys.readouterr().err == "gns-keras: stopped by Ctrl-C\n"


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_terminal_is_told_what_takes_seconds_and_is_clean_again(
    term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    seen, terminal = pty.openpty()
    with quiet_start.note_on(terminal):
        pass
    os.write(terminal, b"end")
    shown = b""
    while not shown.endswith(b"end"):
        shown += os.read(seen, 1000)
    os.close(terminal)
    os.close(seen)
    if term == "dumb":
        assert shown == b"end"
        return
    note, spaces, end = shown.split(b"\r")
    assert note.startswith(b"starting TensorFlow")
    assert spaces == b" " * len(note + b"^C")
    assert end == b"end"


def stderr_of_first_import(level: str | None, code: str = "") -> str:
    """Imports TensorFlow as the command does, in a new process; returns its stderr."""
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    if level is not None:
        environment["TF_CPP_MIN_LOG_LEVEL"] = level
    code += "\nfrom gns_keras.training import quiet_start\nquiet_start.import_tensorflow()\n"
    code += "import os, sys; print('level', os.environ['TF_CPP_MIN_LOG_LEVEL'], file=sys.stderr)"
    run = [sys.executable, "-c", code]
    return subprocess.run(run, env=environment, capture_output=True, text=True).stderr


def test_tensorflow_starts_without_its_notes() -> None:
    assert stderr_of_first_import(None) == "level 3\n"


def test_a_log_level_of_the_user_is_kept() -> None:
    printed = stderr_of_first_import("0")
    assert printed.endswith("level 0\n")
    assert printed != "level 0\n"


def broken_tensorflow(folder: Path, error: str) -> str:
    """Writes a `tensorflow` that writes a note and fails; returns the code that prefers it."""
    text = f"import os\nos.write(2, b'libcuda is broken')\nraise {error}"
    (folder / "tensorflow.py").write_text(text)
    return f"import sys; sys.path.insert(0, {str(folder)!r})"


def test_what_a_failing_import_wrote_is_not_lost(tmp_path: Path) -> None:
    printed = stderr_of_first_import(None, broken_tensorflow(tmp_path, "ImportError('none')"))
    assert "libcuda is broken" in printed
    assert "ImportError: none" in printed


def test_ctrl_c_during_the_import_brings_no_notes(tmp_path: Path) -> None:
    printed = stderr_of_first_import(None, broken_tensorflow(tmp_path, "KeyboardInterrupt"))
    assert "libcuda is broken" not in printed
    assert "KeyboardInterrupt" in printed


def test_advise_digits_answers_for_real(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gns_keras.core.advice import Advice

    page, record = tmp_path / "a.html", tmp_path / "a.json"
    line = ["advise", "digits", "--budget", "15_000", "--quiet"]
    assert cli.main([*line, "--json", str(record), "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    advice = Advice.from_json(record.read_text(encoding="utf-8"))
    assert advice.base_batch_size == 32
    assert advice.base_learning_rate == pytest.approx(0.5)
    assert 0 < advice.examples_used <= 15_000
    assert f"{advice.batch_size}" in shown
    assert f"{advice.batch_size}" in page.read_text(encoding="utf-8")
    # Both ends far outside of what any seed gives, and inside of what an error in a unit gives.
    assert 1 <= advice.noise_scale.interval[0] <= advice.noise_scale.interval[1]
    assert advice.noise_scale.interval[0] < 1500


def test_reproduce_is_explained_with_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce", "--help"]) == 0
    shown = capsys.readouterr().out
    options = "--examples --seeds --early --max-measured --store --json --quiet"
    for part in options.split():
        assert part in shown
    assert "gns-keras reproduce mnist --store mnist.sqlite" in shown


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("reproduce", "usage: gns-keras"),
        ("reproduce mnits", "Did you mean 'mnist'?"),
        ("reproduce train:build", "No task is called 'train:build'"),
        ("reproduce digits --examples 0", "at least 1, received '0'"),
        ("reproduce digits --store no_such_folder/a.sqlite", "a folder that exists"),
    ],
)
def test_wrong_usage_of_reproduce_ends_with_2(
    capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    assert cli.main(line.split()) == 2
    assert message in capsys.readouterr().err


def test_reproduce_digits_for_real_and_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from gns_keras import Reproduction

    store, record = tmp_path / "digits.sqlite", tmp_path / "digits.json"
    line = ["reproduce", "digits", "--early", "160", "--max-measured", "512", "--quiet"]
    line += ["--store", str(store), "--json", str(record)]
    assert cli.main([*line, "--examples", "320"]) == 0
    first = Reproduction.from_json(record.read_text(encoding="utf-8"))
    capsys.readouterr()
    assert cli.main([*line, "--examples", "640"]) == 0
    shown = capsys.readouterr().out
    found = Reproduction.from_json(record.read_text(encoding="utf-8"))
    assert found.runs[0].points[: len(first.runs[0].points)] == first.runs[0].points
    assert found.examples_trained == 640
    for part in ("start: first 160", "average: first 640", "1 run of 640 examples", "paper has no"):
        assert part in shown
    # An error in a unit or a sign is far outside of this; seeds are not.
    assert 3 < found.start.trace_cov / found.start.grad_sq_norm < 300
    # The store belongs to these settings: a failure in one line.
    assert cli.main([*line, "--examples", "640", "--early", "96"]) == 1
    error = capsys.readouterr().err
    assert "early was 160, now 96" in error
    assert len(error.splitlines()) == 1
