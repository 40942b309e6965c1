"""What the documents name exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def named_tests() -> list[tuple[str, str]]:
    return NAMED.findall((ROOT / "docs" / "reliability.md").read_text())


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_row_of_the_fault_table_names_a_test_that_exists() -> None:
    missing = [
        f"{file}::{name}"
        for file, name in named_tests()
        if not (ROOT / file).is_file() or name not in functions(ROOT / file)
    ]
    assert missing == []
    assert len(named_tests()) > 60


def test_every_row_of_a_table_has_a_test() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text().partition("## Versions")[0]
    rows = [line for line in text.splitlines() if line.startswith("|") and "---" not in line]
    without = [row for row in rows if not NAMED.search(row) and not row.endswith("| Test |")]
    assert without == []


def test_every_test_of_this_folder_is_in_the_document() -> None:
    """Those that are no fault of their own are listed here."""
    folder = Path(__file__).parent
    own = {"test_documents.py", "test_keras_version.py"}
    found = {
        name
        for path in folder.glob("test_*.py")
        if path.name not in own
        for name in functions(path)
        if name.startswith("test_")
    }
    assert found - {name for _, name in named_tests()} <= {
        "test_a_configuration_with_sql_in_it_is_a_value",
        "test_a_real_model_of_keras_2_is_refused_in_its_own_fit",  # Where tf_keras is installed.
    }


def messages() -> str:
    """All text of the package, without line breaks, as messages are put together from pieces."""
    pieces = []
    for path in sorted((ROOT / "gns_keras").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                pieces.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                pieces.append("".join(parts))
    return "\n".join(pieces)


def test_every_message_in_troubleshooting_is_one_of_the_package() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    entries = re.findall(r"^\*\*(.+?)\*\*$", text, flags=re.MULTILINE)
    said = messages()
    assert len(entries) > 40
    unknown = [
        entry
        for entry in entries
        if not all(part.strip() in said for part in entry.replace("\\", "").split("…"))
    ]
    assert unknown == []


@pytest.mark.parametrize("name", ["reliability.md", "troubleshooting.md"])
def test_the_documents_speak_of_the_project_alone(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    assert "/work/" not in text
    assert "/tmp/" not in text
