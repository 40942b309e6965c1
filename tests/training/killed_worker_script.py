"""One of two workers that back up their training; `test_killed_worker.py` kills one of them.

TF_CONFIG=... python -m tests.training.killed_worker_script FOLDER unbroken|broken|resumed
"""

import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gns_keras.training.monitor import NoiseScaleMonitor
from tests.training.multi_worker_script import (
    COLLECTIVE_TIMEOUT_S,
    build,
    dataset,
    noise_scale,
    weights,
)

EPOCHS = 5
SLOW_EPOCH = 2  # Where the other worker is killed.


class Teller(keras.callbacks.Callback):
    """Says where the training is; from one epoch on it waits, so that a kill falls within it."""

    def __init__(self, waits: bool) -> None:
        super().__init__()
        self.waits, self.epoch = waits, 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch
        print(f"epoch {epoch}", flush=True)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.waits and self.epoch == SLOW_EPOCH:
            time.sleep(1)


def train(
    strategy: tf.distribute.Strategy, folder: Path, *, waits: bool
) -> tuple[keras.Model, NoiseScaleMonitor]:
    backup = keras.callbacks.BackupAndRestore(
        str(folder / f"backup{strategy.cluster_resolver.task_id}"), delete_checkpoint=False
    )
    monitor = NoiseScaleMonitor(every=1)
    model = build(strategy)
    callbacks = [backup, monitor, Teller(waits)]
    model.fit(dataset(), epochs=EPOCHS, verbose=0, callbacks=callbacks)
    return model, monitor


def main(folder: Path, kind: str) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)  # Two workers share the machine.
    options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=COLLECTIVE_TIMEOUT_S)
    strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    where = folder / "unbroken" if kind == "unbroken" else folder
    model, monitor = train(strategy, where, waits=kind == "broken")
    np.savez(
        folder / f"{kind}{strategy.cluster_resolver.task_id}.npz",
        weights=weights(model),
        noise_scale=noise_scale(monitor),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
