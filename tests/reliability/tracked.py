"""A tracker's run; without TensorFlow, so that a new process has it at once."""

import numpy as np

from gns_keras.core.tracker import NoiseScaleTracker


def observed(steps: int) -> NoiseScaleTracker:
    """A tracker that has seen so many steps of two groups."""
    tracker, rng = NoiseScaleTracker(), np.random.default_rng(0)
    for _ in range(steps):
        groups = rng.normal(1.0, 1.0, size=(2, 8))
        tracker.observe(np.square(groups).sum(1), np.square(groups.mean(0)).sum(), [8, 8])
    return tracker
