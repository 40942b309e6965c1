"""What the measured runs predict for every goal, and what the sweep found. No TensorFlow here.

Predictors of one run, for a goal that it reached after `t` steps:

    running     ratio of moving averages of training-batch norms, at the goal
    frozen      frozen weights: geometric mean of the three snapshots of a point, averaged up to
                the goal with weights ds = dt/(1 + B_i/B) (Appendix D)
    pairs       the same snapshots, ratio of the weighted sums of tr Sigma and |G|^2
    adam        as `frozen`, in the metric of Adam's lagged second moments
    hessian     B_noise, ratio of the weighted sums of tr(H Sigma) and G'HG
    mean        frozen at the mean of the weights since the last point, ratio of the weighted sums
    longer      the same since the point before that
    both        geometric mean of `frozen` and `mean`, with the weights of the package
    thin        `both` from every third point and one snapshot of three
    mean_adam   as `mean`, in Adam's metric
    sign        half-progress batch of the sign of the gradient, over the last third of the way
    steady      the same of gradients over the root of second moments at that batch size
    branch      run and branches added up

Every value is a geometric mean over the runs; its interval is Student's t between their logarithms.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from gns_keras.core.branched_run import BranchedRun, pool_runs
from gns_keras.core.calibrated import SHARE_OF_MEAN
from gns_keras.core.groups import observe_steps
from gns_keras.core.half_progress import half_progress_batch
from gns_keras.core.sweep_result import SweepRecord
from gns_keras.core.tracker import NoiseScaleTracker
from gns_keras.core.tradeoff_fit import fit_tradeoff
from gns_keras.core.tradeoff_result import Tradeoff

PREDICTORS = (
    "running",
    "frozen",
    "pairs",
    "adam",
    "hessian",
    "mean",
    "longer",
    "both",
    "thin",
    "mean_adam",
    "sign",
    "steady",
    "branch",
)
SNAPSHOT_EXAMPLES = {
    "running": 0,
    "hessian": 2048,
    "both": 6144,
    "thin": 4096,
}  # At a point; 3,072 for all others.
TOO_EARLY = "The smoothing of the loss delays the goal by more than half of the fewest examples."
SHARE_OF_WAY = 3.0  # The half-progress batch pools the points of the last two thirds.


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Geometric mean over the runs, with its interval; NaN and why where there is none."""

    value: float
    interval: tuple[float, float] = (math.nan, math.nan)
    examples: float = math.nan  # Of one run and its measurements up to the goal.
    runs: int = 0


def delay(batch_size: int, half_life: float) -> float:
    """Steps by which the smoothed loss is late."""
    decay = 0.5 ** (batch_size / half_life)
    return decay / (1 - decay)


def truth(result: SweepRecord, goal: float) -> Tradeoff:
    """The sweep's fit without the smoothing's delay, every seed a point.

    Unresolved where the delay is more than half of the fewest examples: the loss falls too fast
    there for its average to say when it passed the goal.
    """
    index = [g.threshold for g in result.goals].index(goal)
    sizes, steps = [], []
    for best in result.best(goal):
        late = delay(best.batch_size, result.half_life)
        for record in result.records:
            if (record.batch_size, record.learning_rate) == (best.batch_size, best.learning_rate):
                sizes.append(record.batch_size)
                steps.append(record.steps_to[index] - late)
    known = [(size, count) for size, count in zip(sizes, steps, strict=True) if count > 0]
    fit = fit_tradeoff(*zip(*known, strict=True))
    if len(known) == len(steps) and not fit.min_examples < 2 * delay(1, result.half_life):
        return fit
    return dataclasses.replace(
        fit, critical_batch_size=math.nan, interval=(0.0, math.inf), reason=TOO_EARLY
    )


def predict(
    runs: list[dict], branches: list[BranchedRun], goal: int, batch_size: int, half_life: float
) -> dict[str, Predicted]:
    """All predictors for one goal.

    Args:
        runs: Measured runs of a task.
        branches: Those with branches; may be empty.
        goal: Index of the goal.
        batch_size: Of the runs.
        half_life: Of the smoothing of the loss.
    """
    late = delay(batch_size, half_life)
    thin = [_thinned(run) for run in runs]
    found = {}
    for name in PREDICTORS[:-1]:
        of_name = thin if name == "thin" else runs
        reached = [(r, r["steps_to"][goal] - late) for r in of_name if r["steps_to"][goal] > 0]
        values = [of_run(name, run, steps, batch_size) for run, steps in reached]
        spent = [
            steps * batch_size
            + SNAPSHOT_EXAMPLES.get(name, 3072) * sum(p["steps"] <= steps for p in run["points"])
            for run, steps in reached
        ]
        found[name] = _pooled(values, float(np.mean(spent)) if spent else math.nan)
    found["branch"] = _branched(branches, goal)
    return found


def _pooled(values: list[float], examples: float) -> Predicted:
    logs = np.log([value for value in values if math.isfinite(value) and value > 0])
    if len(logs) < max(2, len(values)):
        return Predicted(value=math.nan, examples=examples, runs=len(logs))
    width = float(stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1)) / math.sqrt(len(logs))
    middle = float(logs.mean())
    return Predicted(
        value=math.exp(middle),
        interval=(math.exp(middle - width), math.exp(middle + width)),
        examples=examples,
        runs=len(logs),
    )


def of_run(name: str, run: dict, steps: float, batch_size: int) -> float:
    """A predictor of one run for its first steps.

    Args:
        name: One of `PREDICTORS` but "branch".
        run: A measured run.
        steps: How many.
        batch_size: Of the run.

    Returns:
        The average of the noise scale; NaN where it is unresolved or not defined.
    """
    if name == "running":
        return _running(run, steps, batch_size)
    if name in ("both", "thin"):
        frozen, mean = (of_run(part, run, steps, batch_size) for part in ("frozen", "mean"))
        return frozen ** (1 - SHARE_OF_MEAN) * mean**SHARE_OF_MEAN
    if name in ("sign", "steady"):
        return _half_progress(run, steps, name)
    if name == "hessian":
        pairs = [(p["curvature"].get("trace"), p["curvature"].get("grad")) for p in run["points"]]
        return math.nan if pairs[0][0] is None else _of_sums(run, pairs, steps, batch_size)
    key = "adam" if name in ("adam", "mean_adam") else "simple"
    if key not in run["points"][0]["snapshots"][0]:
        return math.nan
    if name in ("mean", "longer", "mean_adam"):
        which = 1 if name == "longer" else 0
        return _of_sums(run, [p["mean"][which][key][:2] for p in run["points"]], steps, batch_size)
    snapshots = [[s[key][:2] for s in p["snapshots"]] for p in run["points"]]
    if name == "pairs":
        return _of_sums(run, [np.mean(s, axis=0) for s in snapshots], steps, batch_size)
    return _average(run, [_of_point(s) for s in snapshots], steps, batch_size)


def _thinned(run: dict) -> dict:
    """Every third point, the last one included, with the first of its three snapshots."""
    kept = run["points"][(len(run["points"]) - 1) % 3 :: 3]
    return run | {"points": [point | {"snapshots": point["snapshots"][:1]} for point in kept]}


def _of_point(snapshots: list[list[float]]) -> float:
    """Geometric mean of the ratios; the ratio of the sums where one is not positive."""
    trace, grad = np.array(snapshots).T
    if np.all(grad > 0) and np.all(trace > 0):
        return float(np.exp(np.log(trace / grad).mean()))
    return float(trace.sum() / grad.sum()) if grad.sum() > 0 else math.nan


def _lengths(run: dict, steps: float) -> np.ndarray:
    """Steps up to the goal that each point stands for: to the geometric middle of neighbours."""
    at = np.array([p["steps"] + 3.0 for p in run["points"]])
    edges = np.concatenate([[0.0], np.sqrt(at[1:] * at[:-1]), [math.inf]])
    return np.clip(np.minimum(edges[1:], steps) - edges[:-1], 0.0, None)


def _average(run: dict, values: list[float], steps: float, batch_size: int) -> float:
    scales, lengths = np.array(values), _lengths(run, steps)
    used = lengths > 0
    if not np.all(np.isfinite(scales[used])):
        return math.nan
    progress = lengths[used] / (1 + scales[used] / batch_size)
    return float(progress @ scales[used] / progress.sum())


def _of_sums(run: dict, pairs: list, steps: float, batch_size: int) -> float:
    trace, grad = np.array(pairs, dtype=float).T
    size = batch_size * grad + trace
    lengths = _lengths(run, steps)
    if np.any(size[lengths > 0] <= 0):
        return math.nan
    weights = np.where(lengths > 0, lengths / np.where(size > 0, size, 1.0), 0.0)
    total = float(weights @ grad)
    return float(weights @ trace) / total if total > 0 else math.nan


def _running(run: dict, steps: float, batch_size: int) -> float:
    rows = np.array(run["series"])[: max(2, math.ceil(steps))]
    count = np.full(len(rows), float(min(4, batch_size)))
    size = np.full(len(rows), float(batch_size))
    tracker = NoiseScaleTracker(half_life="auto")
    tracker.add(
        observe_steps(
            rows[:, 1], rows[:, 2], num_groups=count, inverse_size=1 / size, group_size=size,
            num_examples=size,
        )
    )  # fmt: skip
    found = tracker.result()
    return found.trace_cov / found.grad_sq_norm if found.grad_sq_norm > 0 else math.nan


def _half_progress(run: dict, steps: float, name: str) -> float:
    near = [p for p in run["points"] if steps / SHARE_OF_WAY < p["steps"] <= steps] or [
        min(run["points"], key=lambda p: abs(p["steps"] - steps))
    ]
    if not near[0]["half"]:
        return math.nan
    aligned, curved = [], []
    for point in near:
        rows = np.array(point["half"][name])
        scale = rows[:, :, -1].mean(axis=0)  # Points count alike, whatever the size of gradients.
        aligned.append(rows[:, 0] / scale[0])
        curved.append(rows[:, 1] / scale[1])
    found = half_progress_batch(
        near[0]["half"]["sizes"], np.concatenate(aligned), np.concatenate(curved)
    )
    return found.value


def _branched(branches: list[BranchedRun], goal: int) -> Predicted:
    if len(branches) < 2:
        return Predicted(value=math.nan)
    try:
        total = pool_runs(branches, branches[0].goals[goal])
    except ValueError:
        return Predicted(value=math.nan)
    spent = [run.run_examples + run.branch_examples for run in branches]
    return Predicted(
        value=total.critical_batch_size,
        interval=total.interval,
        examples=float(np.mean(spent)),
        runs=len(branches),
    )


def read_runs(folder: Path, task: str) -> tuple[list[dict], list[BranchedRun]]:
    """Measured runs of a task, and those with branches."""
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{task}_[0-9]*.json"))
            if not path.stem.endswith("_branched")]  # fmt: skip
    branches = [BranchedRun.from_json(path.read_text())
                for path in sorted(folder.glob(f"{task}_*_branched.json"))]  # fmt: skip
    return runs, branches
