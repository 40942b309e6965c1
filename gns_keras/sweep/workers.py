"""Carrying runs to whatever executes them: this thread, other threads, processes, machines."""

import contextlib
import os
import pickle
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gns_keras.core.run_record import RunRecord
from gns_keras.core.sweep_policy import RunKey
from gns_keras.sweep.drawn import AnySource, open_any_source
from gns_keras.sweep.run import RunSettings, Workbench

# Workbenches of this process by sweep. A worker of a pool may see several sweeps.
_WORKBENCHES: dict[str, Workbench] = {}
_OPENING = threading.Lock()
# Processes in which runs were made, from here back to the first one. TensorFlow's threads do not
# follow into a forked process, where a run would wait for them for ever.
_LINEAGE: set[int] = set()
_MAX_WORKBENCHES = 2


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker needs to know to run for a sweep; it can be pickled.

    Attributes:
        sweep: Identifies the sweep.
        build_model: Returns a new compiled model.
        data: A function that returns the data, or `SpilledArrays`. None where the workbench is
            there already, in the process of the sweep.
        settings: What all runs have in common.
    """

    sweep: str
    build_model: Callable[[], keras.Model]
    data: Any
    settings: RunSettings


class SpilledArrays:
    """Arrays in files, for other processes to read: cheaper than sending them with every run.

    Args:
        data: Structure of arrays.
        folder: Where to write them; readers need it too.
    """

    def __init__(self, data: Any, folder: str) -> None:
        leaves = keras.tree.flatten(data)
        self._structure = keras.tree.pack_sequence_as(data, list(range(len(leaves))))
        self._folder = folder
        for number, array in enumerate(leaves):
            np.save(self._path(number), np.asarray(array))

    def __call__(self) -> Any:
        """Reads them."""
        try:
            return keras.tree.map_structure(lambda n: np.load(self._path(n)), self._structure)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"The data of the sweep are in {self._folder}, which this worker cannot see. On "
                "other machines, give `data` as a function that loads them there."
            ) from error

    def _path(self, number: int) -> Path:
        return Path(self._folder) / f"{number}.npy"


class InlineExecutor(Executor):
    """Runs each call at once, in the thread that submits it."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Calls the function and returns a future that is done. Ctrl-C goes through."""
        future: Future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def open_workbench(sweep: str, job: Job, source: AnySource) -> Workbench:
    """Makes the workbench of a sweep in the process that leads it."""
    with _OPENING:
        _LINEAGE.add(os.getpid())
        _WORKBENCHES[sweep] = Workbench(job.build_model, source, job.settings)
        return _WORKBENCHES[sweep]


def close_workbench(sweep: str) -> None:
    """Forgets the workbench of a sweep: models, compiled loops, data."""
    with _OPENING:
        _WORKBENCHES.pop(sweep, None)


def execute(job: Job, key: RunKey) -> RunRecord:
    """Runs once, wherever it is called.

    Raises:
        RuntimeError: The process was forked from one that had used TensorFlow for a sweep.
    """
    if _LINEAGE and os.getpid() not in _LINEAGE:
        raise RuntimeError(
            "TensorFlow cannot go on in a forked process. Received an executor that forks. Use "
            "ProcessPoolExecutor(mp_context=multiprocessing.get_context('spawn')), or threads."
        )
    with _OPENING:
        _LINEAGE.add(os.getpid())
        bench = _WORKBENCHES.get(job.sweep)
        if bench is None:
            while len(_WORKBENCHES) >= _MAX_WORKBENCHES:
                del _WORKBENCHES[next(iter(_WORKBENCHES))]
            bench = Workbench(job.build_model, open_any_source(job.data), job.settings)
            _WORKBENCHES[job.sweep] = bench
    return bench.run(key)


def portable_data(data: Any, executor: Executor, stack: contextlib.ExitStack) -> Any:
    """Returns the data in a form that workers of the executor can open.

    Args:
        data: As given to `sweep`.
        executor: What will run.
        stack: Removes the files that arrays are written to, where that is needed.

    Raises:
        ValueError: A `tf.data.Dataset` is to leave this process.
    """
    if isinstance(executor, (InlineExecutor, ThreadPoolExecutor)):
        return None
    if isinstance(data, tf.data.Dataset):
        raise ValueError(
            "A tf.data.Dataset cannot be sent to another process. Give `data` as a function "
            "without arguments that returns it."
        )
    return data if callable(data) else SpilledArrays(data, stack.enter_context(_spill_folder()))


def check_portable(build_model: Any, executor: Executor) -> None:
    """Refuses functions that a process pool cannot send to its workers.

    Raises:
        ValueError: The function is local or a lambda.
    """
    from concurrent.futures import ProcessPoolExecutor

    if not isinstance(executor, ProcessPoolExecutor):
        return  # Dask and others send more than pickle can.
    try:
        pickle.dumps(build_model)
    except Exception as error:
        raise ValueError(
            "A process pool needs `build_model` as a function at the top of a module, which its "
            f"workers can import. Received: {build_model!r} ({error})."
        ) from error


def _spill_folder() -> tempfile.TemporaryDirectory:
    """A temporary folder for arrays; removed on leaving its context."""
    return tempfile.TemporaryDirectory(prefix="gns-keras-sweep-", ignore_cleanup_errors=True)
