"""The Python code of README and documentation runs as it stands, page by page."""

import os
import re
from pathlib import Path
from typing import Any

import keras
import pytest
from sklearn.datasets import load_digits

ROOT = Path(__file__).resolve().parents[1]
# The rest needs several devices, minutes or downloads; what it shows is tested elsewhere.
PAGES = [
    "README.md",
    "docs/start.md",
    "docs/choosing.md",
    "docs/advise.md",
    "docs/monitor.md",
    "docs/adaptive.md",
    "docs/cli.md",
    *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs/questions").glob("*.md")),
]
LINK = re.compile(r"\[[^\]]*\]\(([^)#:\s]+)(?:#[^)]*)?\)")


def code_of(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.M | re.S)


def digits_and_a_model() -> dict[str, Any]:
    """What pages take as given."""
    keras.utils.set_random_seed(0)
    x, y = load_digits(return_X_y=True)
    model = keras.Sequential([keras.layers.Dense(16, activation="relu"), keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    return {"model": model, "x": (x / 16).astype("float32"), "y": y}


@pytest.mark.parametrize("page", [page for page in PAGES if code_of(page)])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_code_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # Some write files.
    given = digits_and_a_model()
    for block in code_of(page):
        exec(compile(block, page, "exec"), given)


@pytest.mark.parametrize(
    "page",
    ["README.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md")))],
)
def test_links_lead_somewhere(page: str) -> None:
    here = (ROOT / page).parent
    broken = [
        target
        for target in LINK.findall((ROOT / page).read_text())
        if not Path(os.path.normpath(here / target)).exists()
    ]
    assert not broken
