"""The quick tests of training on every Python and Keras, and of statistics on every Python.

Every Python gets an environment of its own in `.versions/`, which is kept; one Keras after another
is installed into it. A pair whose Python is not there, or that cannot be installed, is left out and
said so.
The statistics use no Keras and are tested with the newest one alone. The last lines are a table for
docs/reliability.md.

    python tests/versions.py                               # all twelve pairs: an hour or more
    python tests/versions.py --python 3.13 --keras 3.12
    python tests/versions.py --tests tests/core
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".versions"
PYTHONS = ("3.11", "3.12", "3.13")
KERAS = ("3.12", "3.13", "3.14", "3.15")
STATISTICS = ("tests/core",)
TRAINING = (
    "tests/reliability/test_keras_version.py",
    *(
        f"tests/training/test_{name}.py"
        for name in (
            *("monitor_exact", "monitor_neutral", "monitor_lifecycle", "gradient_tap", "checks"),
            *("batch_scheduler", "update_loop", "preserve", "lars"),
        )
    ),
)


def interpreter(version: str) -> str | None:
    """Path of a Python: one of pyenv's, or on PATH."""
    of_pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    # One on PATH may be a shim of pyenv's that finds no version.
    for path in (*map(str, reversed(of_pyenv)), shutil.which(f"python{version}")):
        if path and not run(path, "-c", "").returncode:
            return path
    return None


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(part) for part in command], cwd=ROOT, text=True, capture_output=True, **options
    )


def environment(python: str, keras: str) -> Path | str:
    """Python of the environment of a pair; or why there is none."""
    there = interpreter(python)
    if there is None:
        return "this Python is not installed"
    folder = FOLDER / f"python{python}"
    ours = folder / "bin" / "python"
    # Without constraints.txt, which pins one release of Keras.
    install = (ours, "-m", "pip", "install", "--quiet")
    commands: tuple[tuple[str | Path, ...], ...] = ((*install, f"keras=={keras}.*"),)
    if not (folder / "ready").exists():
        create = (there, "-m", "venv", "--clear", folder)
        commands = (create, (*install, "-e", ".[test]", f"keras=={keras}.*"))
    for command in commands:
        done = run(*command)
        if done.returncode:
            return f"not installed: {done.stderr.strip().splitlines()[-1][:200]}"
    (folder / "ready").touch()
    return ours


def row(python: str, keras: str, tests: Sequence[str]) -> tuple[str, bool]:
    """A row of the table, and whether it is a good one."""
    ours = environment(python, keras)
    if isinstance(ours, str):
        return f"| {python} | {keras} | | | {ours} |", True
    code = (
        "import platform; from importlib.metadata import version as v; "
        "print(platform.python_version(), v('keras'), v('tensorflow'))"
    )
    versions = run(ours, "-c", code).stdout.split()
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = run(ours, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", *tests, env=quiet)
    said = done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]]
    failed = [line for line in said if line.startswith(("FAILED", "ERROR"))]
    print("\n".join(failed), flush=True)
    rooms = dict.fromkeys("/".join(Path(test).parts[:2]) for test in tests)
    return f"| {' | '.join(versions)} | {', '.join(rooms)} | {said[-1]} |", not done.returncode


def main() -> int:
    """Prints the table; the exit code is 1 if a test failed on some pair."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", nargs="*", choices=PYTHONS, default=PYTHONS)
    parser.add_argument("--keras", nargs="*", choices=KERAS, default=KERAS)
    parser.add_argument("--tests", nargs="*", help="these and no others")
    args = parser.parse_args()
    found = []
    for python in args.python:
        for keras in args.keras:
            tests = args.tests or (*(STATISTICS if keras == KERAS[-1] else ()), *TRAINING)
            found.append(row(python, keras, tests))
            print(found[-1][0], flush=True)
    print("\n| Python | Keras | TensorFlow | Run | Result |\n|---|---|---|---|---|")
    print("\n".join(line for line, _ in found))
    return 0 if all(good for _, good in found) else 1


if __name__ == "__main__":
    sys.exit(main())
