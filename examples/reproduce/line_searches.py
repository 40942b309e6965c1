"""Figure 5, right: how far a single step can lower the loss, by batch size, early and late.

From a training of `fashion_cnn_sgd` at batch size 64 at its best learning rate, when the sweep says
that it reaches an early and a late goal. At the weights found there, line searches with one shared
step per batch size, the paper's with a step for each gradient, and `B_noise` and `B_simple` by
Hessian-vector products and gradients of other examples.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import benchmarks_path  # noqa: F401
import keras
import numpy as np
from calibration_tasks import image_arrays
from scaling_curves import Rows, advance
from scaling_tasks import SGD_TASK, TASKS, error_goal, write

from gns_keras.core.learning_rate_fit import LearningRateFit, fit_learning_rate_rule
from gns_keras.core.line_search import ProgressFit, fit_progress
from gns_keras.core.sweep_result import SweepRecord
from gns_keras.sweep.loop import CompiledLoop, initial_state
from gns_keras.sweep.stream import open_source
from gns_keras.training.curvature_measurement import CurvatureMeasurement
from gns_keras.training.line_search import LineSearchMeasurement

TRAINED_AT = 64
LAST = 50  # Steps whose mean loss is stated.
STAGES = {"early": 0.35, "late": 0.165}  # Training errors.
SIZES = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
GRADIENTS = 64
SAMPLE = 4096
CURVATURE_SHAPE = (64, 512)  # Batches, and examples in each.
SEEDS = (20, 21, 22)


class Lines:
    """A model to train and to measure."""

    def __init__(self) -> None:
        keras.utils.set_random_seed(0)
        self.task = TASKS[SGD_TASK]
        self.source = open_source(self.task.examples)
        self.loop = CompiledLoop(self.task.build_model(), self.source, TRAINED_AT, jit_compile=True)
        self.search: LineSearchMeasurement | None = None
        self.curvature = CurvatureMeasurement(self.loop.model)

    def stages(self, result: SweepRecord, seed: int) -> dict[str, dict[str, Any]]:
        """Measurements of a training, by stage."""
        best = {name: _best(result, goal) for name, goal in STAGES.items()}
        keras.utils.set_random_seed(seed)
        state = initial_state(self.task.build_model(), self.source.few)[1]
        self.loop.restart(state, best["late"].learning_rate)
        rows = Rows(self.source, seed)
        found, done = {}, 0
        for name, one in best.items():
            steps = round(one.steps)
            values = advance(self.loop, rows, steps - done, TRAINED_AT)
            losses = values[-LAST:, self.loop.metric_names.index("loss")]
            done = steps
            found[name] = {"steps": steps, "loss": float(losses.mean())} | self._measure(seed)
        return found

    def _measure(self, seed: int) -> dict[str, Any]:
        rng = np.random.default_rng((seed, 7))
        table, labels = self._examples()
        shuffled = rng.permutation(len(labels))
        kept, rest = shuffled[:SAMPLE], shuffled[SAMPLE:]
        if self.search is None:
            sample = (table[kept], labels[kept])
            self.search = LineSearchMeasurement(self.loop.model, sample, jit_compile=True)
        points, step = [], 0.05
        for size in SIZES:
            rows = rng.choice(rest, (GRADIENTS, size))
            shared, separate = self.search.progress((table[rows], labels[rows]), step)
            step = shared.step
            points.append([size, shared.step, shared.value, shared.error, separate])
        return {"points": points} | self._by_products(rng.choice(rest, CURVATURE_SHAPE))

    def _by_products(self, rows: np.ndarray) -> dict[str, Any]:
        table, labels = self._examples()
        self.curvature.reset()
        for batch in rows:
            self.curvature.add_batch((table[batch], labels[batch]))
        noise, simple = self.curvature.noise_scale(), self.curvature.simple_noise_scale()
        return {
            "noise": [noise.value, *noise.interval],
            "simple": [simple.value, *simple.interval],
        }

    def _examples(self) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers of the training images, and their labels."""
        labels = image_arrays(self.task.data, self.task.side)[1].astype(np.int32)
        return np.arange(len(labels), dtype=np.int32), labels


@dataclass(frozen=True, kw_only=True)
class StageFits:
    """What one measurement says of the noise scale.

    Attributes:
        shared: Fit of Eq. 2.7 with one step per batch size.
        separate: With a step for every gradient.
        rates: Fit of Eq. 2.6 to the shared steps.
        noise: `B_noise` by Hessian-vector products, and its interval.
        simple: `B_simple`, likewise.
    """

    shared: ProgressFit
    separate: ProgressFit
    rates: LearningRateFit
    noise: list[float]
    simple: list[float]


def fits_of(stage: dict[str, Any]) -> StageFits:
    """All fits of a measurement."""
    sizes, steps, progress, errors, separate = np.array(stage["points"]).T
    return StageFits(
        shared=fit_progress(sizes, progress, errors=errors),
        separate=fit_progress(sizes, separate, errors=errors * separate / progress),
        rates=fit_learning_rate_rule(sizes, steps, alpha=1.0),
        noise=stage["noise"],
        simple=stage["simple"],
    )


def line_searches(
    result: SweepRecord, folder: Path, *, may_run: bool = True
) -> dict[str, dict[str, dict[str, Any]]]:
    """Measurements by seed and stage; makes those that are missing, if it may."""
    path = folder / "line_searches.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    lines = None
    for seed in map(str, SEEDS):
        if may_run and seed not in known:
            lines = lines or Lines()
            known[seed] = lines.stages(result, int(seed))
            write(path, json.dumps(known))
            print(f"line searches, seed {seed}: done", flush=True)
    return known


def _best(result: SweepRecord, error: float) -> Any:
    (found,) = (b for b in result.best(error_goal(error)) if b.batch_size == TRAINED_AT)
    return found
