"""A long run under watch does not grow."""

import os
from pathlib import Path

import keras
import pytest
import tensorflow as tf

from tests.reliability import faults

EPOCHS, STEPS = 10, 10_000
# After the first epoch, in 90,000 steps: less than 120 bytes a step, which is one small Python
# object. The allocator itself moves by a few MiB.
TOLERANCE_MIB = 10.0


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Memory(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.mib = []

    def on_epoch_end(self, epoch, logs=None) -> None:
        self.mib.append(resident_mib())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_100_000_monitored_steps_have_flat_memory() -> None:
    x, y = faults.arrays(512)
    data = tf.data.Dataset.from_tensor_slices((x, y)).repeat().batch(8)
    monitor, memory = faults.make_monitor(), Memory()
    faults.make_model().fit(
        data, epochs=EPOCHS, steps_per_epoch=STEPS, verbose=0, callbacks=[monitor, memory]
    )
    print("resident MiB after each epoch:", [round(mib, 1) for mib in memory.mib])
    assert monitor._estimate.examples_seen == EPOCHS * STEPS * 8
    assert memory.mib[-1] - memory.mib[0] < TOLERANCE_MIB
