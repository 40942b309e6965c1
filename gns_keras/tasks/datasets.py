"""Image data sets as arrays: from a folder of .npz files, or from tensorflow_datasets (tfds).

The folder is the one that the environment variable `GNS_KERAS_DATA` names, else `../shared/data`
next to a source checkout. A file `<name>.npz` in it holds `x_train`, `y_train`, `x_test`, `y_test`.
"""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_datasets as tfds

DATA_VARIABLE = "GNS_KERAS_DATA"
SPLITS = ("train", "test")
DATA_NEEDED = f"{{name}}.npz in the folder {DATA_VARIABLE}, else fetched by tensorflow_datasets"
# Data sets whose archives tfds can read from a folder: four idx files each, under equal names.
OFFLINE_NAMES = ("fashion_mnist", "mnist")
_PROJECT_ROOT = Path(__file__).resolve().parents[2]
_READ_BATCH = 1024  # Examples read at a time; no effect on the result.
_PathLike = str | os.PathLike[str]


def find_data_folder() -> Path | None:
    """Returns the local folder of .npz files, or None where there is none.

    Raises:
        FileNotFoundError: `GNS_KERAS_DATA` is set, and not to a folder.
    """
    named = os.environ.get(DATA_VARIABLE)
    if not named:
        default = _PROJECT_ROOT.parent / "shared" / "data"
        return default if default.is_dir() else None
    if not Path(named).is_dir():
        raise FileNotFoundError(
            f"{DATA_VARIABLE} should name a folder with files such as mnist.npz. Received: "
            f"{named!r}, which is no folder. Correct it, or unset it to use tensorflow_datasets."
        )
    return Path(named)


def load_arrays(
    name: str, split: str = "train", *, data_dir: _PathLike | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Loads a whole labelled image data set into memory.

    The order of the examples differs between the two sources: tfds shuffles once when it prepares a
    data set. Their contents are equal.

    Args:
        name: "mnist", "fashion_mnist", "cifar10", or another image classification set of tfds.
        split: "train" or "test".
        data_dir: A tfds folder to load from, as given to `prepare_offline`. None: `<name>.npz` in
            the local folder if it is there, else the default folder of tfds, which downloads what
            it does not have.

    Returns:
        `(x, y)`: uint8 images, shape `(n, height, width, channels)`, and int64 labels, `(n,)`.

    Raises:
        ValueError: There is no such split, or the file holds something else.
        FileNotFoundError: `GNS_KERAS_DATA` is set, and not to a folder.
        RuntimeError: tfds could not provide the data.
    """
    if split not in SPLITS:
        raise ValueError(f'`split` should be "train" or "test". Received: split={split!r}.')
    folder = find_data_folder() if data_dir is None else None
    if folder is not None and (folder / f"{name}.npz").is_file():
        x, y = _from_npz(folder / f"{name}.npz", split)
    else:
        x, y = _from_tfds(name, split, data_dir)
    if x.ndim == 3:
        x = x[..., np.newaxis]
    if x.ndim != 4 or y.shape != x.shape[:1]:
        raise ValueError(
            f"The data set {name} should hold images, shape (n, height, width) or (n, height, "
            "width, channels), and one label each, shape (n,). Received: shapes "
            f"{x.shape} and {y.shape}."
        )
    return x, y.astype(np.int64)


def prepare_offline(name: str, archives: _PathLike, data_dir: _PathLike) -> None:
    """Prepares a tfds data set from its original archives, without a network.

    tfds caches what it extracts by file name alone, and the archives of MNIST and Fashion-MNIST
    have equal names: prepared with one download folder, the second data set silently gets the
    images of the first. So every data set gets a download folder of its own here, and every archive
    is compared with the checksum that tfds registered before it is used.

    Args:
        name: "mnist" or "fashion_mnist".
        archives: Folder that holds the four original `.gz` files.
        data_dir: tfds folder to write to; hand it to `load_arrays` afterwards. A data set that is
            already prepared there is left as it is.

    Raises:
        ValueError: Another data set was asked for, or an archive is not the registered one.
        FileNotFoundError: An archive is missing.
    """
    if name not in OFFLINE_NAMES:
        raise ValueError(
            f"Offline preparation is known to work for {', '.join(OFFLINE_NAMES)}. Received: "
            f"name={name!r}."
        )
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=os.fspath(data_dir), try_gcs=False)
    if builder.info.splits:
        return
    archives = Path(archives).resolve()
    _check_archives(builder, archives)
    builder.download_and_prepare(
        download_dir=os.fspath(_download_dir(name, data_dir)),
        download_config=tfds.download.DownloadConfig(
            manual_dir=archives,
            try_download_gcs=False,
        ),
    )


def _download_dir(name: str, data_dir: _PathLike) -> Path:
    """One per data set; see `prepare_offline` for what happens otherwise."""
    return Path(data_dir) / "downloads" / name


def _check_archives(builder: "tfds.core.DatasetBuilder", archives: Path) -> None:
    """Raises unless every archive is there, byte for byte the one that tfds registered."""
    expected = {info.filename: info.checksum for info in builder.url_infos.values()}
    missing = sorted(file for file in expected if not (archives / file).is_file())
    if missing:
        raise FileNotFoundError(
            f"Preparing {builder.name} offline needs {', '.join(sorted(expected))} in one folder. "
            f"Missing in {archives}: {', '.join(missing)}."
        )
    for file, checksum in sorted(expected.items()):
        found = hashlib.sha256((archives / file).read_bytes()).hexdigest()
        if found != checksum:
            raise ValueError(
                f"{archives / file} is not the original archive of {builder.name}: expected "
                f"sha256 {checksum}. Received: {found}. MNIST and Fashion-MNIST use equal file "
                "names; fetch the right file again."
            )


def _from_npz(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads the two arrays of one split."""
    wanted = (f"x_{split}", f"y_{split}")
    with np.load(path) as archive:
        if not set(wanted) <= set(archive.files):
            raise ValueError(
                f"{path} should hold the arrays {' and '.join(wanted)}. Received: "
                f"{', '.join(archive.files) or 'no arrays'}."
            )
        x, y = (archive[key] for key in wanted)
    return x, y


def _from_tfds(name: str, split: str, data_dir: _PathLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Loads one split; downloads the data set first where `data_dir` does not have it."""
    import tensorflow_datasets as tfds

    dataset = load_tfds(
        name, split, f"{name}.npz (x_train, y_train, x_test, y_test)", data_dir, as_supervised=True
    )
    # Not `tfds.load(batch_size=-1)`: for a split whose size is not recorded, as in
    # tfds.testing.mock_data, that asks for a batch of sys.maxsize and aborts the process.
    batches = list(tfds.as_numpy(dataset.batch(_READ_BATCH)))
    return np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])


def load_tfds(
    name: str,
    split: str,
    local_file: str | None = None,
    data_dir: _PathLike | None = None,
    *,
    as_supervised: bool = False,
) -> "tf.data.Dataset":
    """Opens a data set of tensorflow_datasets, which downloads what it does not have.

    Args:
        name: As tfds calls it.
        split: A split of the data set.
        local_file: What would do in its place in the local folder, for the message.
        data_dir: tfds folder; None for the default one.
        as_supervised: Pairs (x, y) in place of dictionaries.

    Raises:
        RuntimeError: tfds could not provide the data.
    """
    import tensorflow_datasets as tfds

    try:
        return tfds.load(
            name,
            split=split,
            data_dir=None if data_dir is None else os.fspath(data_dir),
            as_supervised=as_supervised,
            try_gcs=False,
        )
    # tfds asserts that archives which have to be fetched by hand are there.
    except (OSError, AssertionError, tfds.download.DownloadError) as error:
        instead = f" Without a network, set {DATA_VARIABLE} to a folder with {local_file}."
        raise RuntimeError(
            f"The data set {name} could not be loaded by tensorflow_datasets: {error}"
            f"{instead if local_file else ''}"
        ) from error
