"""Real data for the tasks, read once; mocks of the same shape where there are none."""

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from gns_keras.tasks import datasets, texts


@pytest.fixture(scope="session")
def _read_once() -> Iterator[None]:
    """CIFAR-10 takes seconds to unpack, and several tasks use it."""
    original = datasets._from_npz
    datasets._from_npz = functools.lru_cache(original)
    yield
    datasets._from_npz = original


@pytest.fixture
def real_data(
    _read_once: None, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """`real_data(file)` returns a file of the data folder, or skips the test."""
    monkeypatch.setenv("GNS_KERAS_DATA", str(data_dir))

    def find(file: str) -> Path:
        if not (data_dir / file).is_file():
            pytest.skip(f"{file} is not in {data_dir}")
        return data_dir / file

    return find


@pytest.fixture
def mock_tfds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty local folder, and tensorflow_datasets with random content of the right shapes."""
    monkeypatch.setenv("GNS_KERAS_DATA", os.fspath(tmp_path))
    # Never the real folder of tfds, which may hold anything.
    monkeypatch.setenv("TFDS_DATA_DIR", os.fspath(tmp_path / "tfds"))
    texts._lm1b_encoding.cache_clear()
    with tfds.testing.mock_data(num_examples=64):
        yield
    texts._lm1b_encoding.cache_clear()
