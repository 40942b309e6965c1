"""The shape of the package, read from its sources: imports follow the arrows, and no others.

    core <- ops <- training <- advise, reproduce, sweep <- cli
    core <- report <- advise, reproduce, sweep, cli
    training <- tasks <- cli, reproduce, sweep

A room is a folder or a module directly under `gns_keras`. `a <- b` means that b may import a, and
everything that a may import.
"""

import ast
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "gns_keras"
PACKAGE_DIR = Path(__file__).resolve().parents[1] / PACKAGE
MAX_MODULE_LINES = 300

MAY_IMPORT = {
    "core": {"core"},
    "ops": {"core", "ops"},
    "training": {"core", "ops", "training"},
    "advise": {"advise", "core", "ops", "report", "training"},
    "tasks": {"core", "ops", "tasks", "training"},
    "sweep": {"core", "ops", "report", "sweep", "tasks", "training"},
    "report": {"core", "report"},
    "reproduce": {"core", "ops", "report", "reproduce", "tasks", "training"},
    "cli": {"advise", "cli", "core", "ops", "report", "reproduce", "sweep", "tasks", "training"},
    "__main__": {"cli"},
    # The public door names every room but the command line.
    "__init__": {"advise", "core", "ops", "report", "reproduce", "sweep", "tasks", "training"},
}

# Third-party packages, for the rooms that must stay light.
MAY_DEPEND_ON = {
    "core": {"numpy", "scipy"},
    "report": {"matplotlib", "numpy", "pandas", "rich"},
    "__init__": set(),
    "__main__": set(),
}

KERAS_PRIVATE_MODULE = "gns_keras.training.keras_private"
# Keras may rename these in any release. They are listed so that overriding one, or reaching it
# through `self` in a subclass, is found as well.
KERAS_PRIVATE_NAMES = {
    "_all_reduce_sum_gradients",
    "_backend_update_step",
    "_distributed_dataset",
    "_get_current_learning_rate",
    "_maybe_symbolic_build",
    "_symbolic_build",
    "_tf_apply",
}
NAMEDTUPLE_API = {"_asdict", "_fields", "_make", "_replace"}
OWN_OBJECT = {"self", "cls"}
PRIVATE_MODULES = ("keras.src", "tensorflow.python")
REFLECTION = {"getattr", "setattr", "hasattr", "delattr"}


def module_name(path: Path) -> str:
    """Returns the dotted name of a source file; a package keeps its `__init__`."""
    return ".".join([PACKAGE, *path.relative_to(PACKAGE_DIR).with_suffix("").parts])


def room_of(module: str) -> str:
    return module.split(".")[1]


def imported_modules(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """Yields (line, dotted name) of everything that a module imports, also inside functions.

    `from a import b` yields `a.b`: whether b is a module or a name, the first parts say where it
    lives. Relative imports are resolved.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            if node.level:
                base = module.split(".")[: -node.level] + base
            for alias in node.names:
                yield node.lineno, ".".join([*base, alias.name])
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            target = node.args[0]
            if name in {"import_module", "__import__"} and isinstance(target, ast.Constant):
                yield node.lineno, str(target.value)


def import_violations(source: str, module: str) -> list[str]:
    """Returns one line of text per import that no arrow allows."""
    room = room_of(module)
    if room not in MAY_IMPORT:
        return [f"{module}: {room} is no room of the package. Rooms: {sorted(MAY_IMPORT)}"]
    found = []
    for line, target in imported_modules(ast.parse(source), module):
        top, *rest = target.split(".")
        if top == PACKAGE:
            allowed = bool(rest) and (
                rest[0] in MAY_IMPORT[room] or (rest == ["__version__"] and room == "cli")
            )
        else:
            allowed = (
                top in sys.stdlib_module_names
                or room not in MAY_DEPEND_ON
                or top in MAY_DEPEND_ON[room]
            )
        if not allowed:
            found.append(f"{module}:{line}: {room} may not import {target}")
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in NAMEDTUPLE_API


def is_own(node: ast.AST) -> bool:
    """Whether an expression is the object itself: `self`, `cls` or `super()`."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in OWN_OBJECT


def private_name_in(node: ast.AST) -> str | None:
    """Returns the private name that one syntax node reaches for in another object, if any."""
    if isinstance(node, ast.Attribute):
        foreign = is_private(node.attr) and not is_own(node.value)
        return node.attr if foreign or node.attr in KERAS_PRIVATE_NAMES else None
    if isinstance(node, ast.FunctionDef):
        return node.name if node.name in KERAS_PRIVATE_NAMES else None
    if isinstance(node, ast.Constant) and node.value in KERAS_PRIVATE_NAMES:
        return node.value
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") in REFLECTION:
        name = getattr(node.args[1], "value", "") if len(node.args) > 1 else ""
        if isinstance(name, str) and is_private(name) and not is_own(node.args[0]):
            return name
    return None


def private_violations(source: str, module: str) -> list[str]:
    """Returns one line of text per private name of Keras or TensorFlow outside its one module.

    The rule is wider than its purpose: no private attribute of *any* other object. What type an
    object has cannot be read from the source.
    """
    if module == KERAS_PRIVATE_MODULE or room_of(module) in {"core", "report"}:
        return []  # These two rooms cannot import Keras.
    tree = ast.parse(source)
    found = [
        f"{module}:{line}: private module {target}"
        for line, target in imported_modules(tree, module)
        if f"{target}.".startswith(tuple(f"{name}." for name in PRIVATE_MODULES))
    ]
    for node in ast.walk(tree):
        name = private_name_in(node)
        if name is not None:
            found.append(f"{module}:{node.lineno}: private name {name}")
        elif isinstance(node, ast.Attribute) and re.fullmatch(
            r"(keras\.src|(tf|tensorflow)\.python)", ast.unparse(node)
        ):
            found.append(f"{module}:{node.lineno}: private module {ast.unparse(node)}")
    return found


def assert_lines(source: str) -> list[int]:
    return [node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]


MODULES = {module_name(path): path for path in sorted(PACKAGE_DIR.rglob("*.py"))}


@pytest.fixture(params=MODULES, ids=lambda name: name.removeprefix(f"{PACKAGE}."))
def module(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def source(module: str) -> str:
    return MODULES[module].read_text(encoding="utf-8")


def test_imports_follow_the_arrows(module: str, source: str) -> None:
    assert import_violations(source, module) == []


def test_private_keras_names_stay_in_one_module(module: str, source: str) -> None:
    assert private_violations(source, module) == []


def test_shipped_code_has_no_assert(source: str) -> None:
    assert assert_lines(source) == []


def test_a_module_fits_in_one_reading(source: str) -> None:
    num_lines = len(source.splitlines())
    assert num_lines <= MAX_MODULE_LINES


def test_every_folder_of_the_package_is_importable() -> None:
    folders = {path.parent for path in MODULES.values()}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


# The checks above are worth something only if they can fail.


@pytest.mark.parametrize(
    ("module", "bad"),
    [
        ("gns_keras.core.moments", "import tensorflow as tf"),
        ("gns_keras.core.moments", "from keras import ops"),
        ("gns_keras.core.advice", "def show():\n    import rich"),
        ("gns_keras.core.moments", "import matplotlib.pyplot as plt"),
        ("gns_keras.core.moments", "from gns_keras.ops.norms import sq_norm"),
        ("gns_keras.core.moments", "from gns_keras import training"),
        ("gns_keras.core.moments", "from ..ops import norms"),
        ("gns_keras.core.__init__", "from ..training import monitor"),
        ("gns_keras.core.moments", "import gns_keras"),
        ("gns_keras.core.advice", "import importlib\nimportlib.import_module('gns_keras.report')"),
        ("gns_keras.ops.norms", "from gns_keras.training import tap"),
        ("gns_keras.training.tap", "import gns_keras.advise"),
        ("gns_keras.training.tap", "from gns_keras import NoiseScale"),
        ("gns_keras.advise", "from gns_keras.tasks import digits"),
        ("gns_keras.sweep.run", "from gns_keras import advise"),
        ("gns_keras.report.text", "from gns_keras.advise import advise"),
        ("gns_keras.report.text", "import keras"),
        ("gns_keras.tasks.digits", "from gns_keras.cli import main"),
        ("gns_keras.utils", "import numpy"),
        ("gns_keras.__init__", "import tensorflow"),
    ],
)
def test_an_import_against_the_arrows_is_found(module: str, bad: str) -> None:
    assert len(import_violations(bad, module)) == 1


@pytest.mark.parametrize(
    ("module", "good"),
    [
        ("gns_keras.core.intervals", "import math\nimport numpy as np\nfrom scipy import stats"),
        ("gns_keras.core.intervals", "from . import moments\nfrom .moments import Moments"),
        ("gns_keras.ops.norms", "import tensorflow as tf\nfrom gns_keras.core import moments"),
        ("gns_keras.training.tap", "import keras\nfrom gns_keras.ops.norms import sq_norm"),
        ("gns_keras.sweep.run", "from gns_keras.tasks import digits"),
        ("gns_keras.cli", "from gns_keras import __version__\nfrom gns_keras.report import text"),
        ("gns_keras.__init__", "from gns_keras.core.noise_scale import NoiseScale"),
    ],
)
def test_an_import_along_the_arrows_passes(module: str, good: str) -> None:
    assert import_violations(good, module) == []


@pytest.mark.parametrize(
    "bad",
    [
        "from keras.src.optimizers import base_optimizer",
        "from keras import src",
        "import keras.src.trainers",
        "import keras\nbase = keras.src.trainers.trainer",
        "from tensorflow.python.eager import context",
        "def step(model): model._symbolic_update()",
        "def step(self): return self.model._train_step",
        "def step(optimizer): optimizer._anything = 1",
        "def step(optimizer): return getattr(optimizer, '_anything', None)",
        "class Mine:\n    def _get_current_learning_rate(self): ...",
        "def step(self): return self._distributed_dataset",
        "NAME = '_all_reduce_sum_gradients'",
    ],
)
def test_a_private_keras_name_is_found(bad: str) -> None:
    assert len(private_violations(bad, "gns_keras.training.tap")) == 1
    assert private_violations(bad, KERAS_PRIVATE_MODULE) == []


def test_an_object_may_use_its_own_private_attributes() -> None:
    own = """
    class Monitor:
        def __init__(self):
            super()._start()
            self._moments = None
            self.__class__.__name__

        def read(self, row):
            return row._replace(value=getattr(self, "_moments"))
    """
    assert private_violations(textwrap.dedent(own), "gns_keras.training.monitor") == []


def test_an_assert_is_found() -> None:
    assert assert_lines("def f(x):\n    assert x > 0\n    return x") == [2]
