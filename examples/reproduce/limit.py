"""How large can a batch be? Accuracy and diffusion of the weights, up to all data in one batch.

    python examples/reproduce/limit.py --plots docs/reproduction

After You et al. 2020, "The Limit of the Batch Size" (arXiv 2006.08517), in small: momentum, LARS
and Lamb, at a constant learning rate and with the recipe (warm-up and polynomial decay), each with
its own learning rate for every batch size. Four parts:

    mnist, cifar10   a fixed number of epochs: large batches make few updates
    warm-up          with more warm-up, and without decay, all of MNIST in one batch
    updates          a fixed number of updates at a constant rate, on a quarter of MNIST: large
                     batches see more examples. The distance of the weights from their start is
                     fitted here, also at a quarter of the best rate.

The learning rate is searched on powers of 2 with seed 0 and one half of the test images, from three
neighbors outwards while the best is at an edge; what is stated are other seeds on the other half.

Stop it at any moment and start it again: finished runs are kept in limit.json.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from limit_report import draw, report
from limit_settings import SETTINGS
from limit_training import Training

OPTIMIZERS = ("momentum", "lars", "lamb")
PARTS = {
    "mnist": {"setting": "mnist", "epochs": 10, "schedules": ("constant", "recipe")},
    "cifar10": {"setting": "cifar10", "epochs": 5, "schedules": ("constant", "recipe")},
    "warm-up": {"setting": "mnist", "epochs": 10, "schedules": ("20, 2", "20, 0"), "only": 60_000},
    "updates": {"setting": "quarter", "updates": 200, "schedules": ("constant",), "slower": 2},
}
MAX_SEARCHED = 12
LEARNED = 0.12  # Guessing one of ten classes is right in 0.1.


class Store:
    """Finished runs, by name, in a JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.runs: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Returns a run, which is made if it is missing."""
        if name not in self.runs:
            start = time.process_time()
            self.runs[name] = {**run(), "cpu_s": round(time.process_time() - start, 2)}
            written = self._path.with_suffix(".new")
            written.write_text(json.dumps(self.runs))
            written.replace(self._path)
            one = self.runs[name]
            print(f"{name}: {one['validation']:.4f} {one['test']:.4f} {one['cpu_s']} s", flush=True)
        return self.runs[name]


def score(accuracy: float, exponent: int) -> float:
    """What the search compares: accuracy; where nothing was learned, the rate was too high."""
    return accuracy if accuracy > LEARNED else -100.0 - exponent


def best_exponent(value: Callable[[int], float], start: int) -> int:
    """The exponent of the best learning rate: three to begin with, more while an edge is best."""
    found = {k: value(k) for k in (start - 1, start, start + 1)}
    while len(found) < MAX_SEARCHED:
        best = max(sorted(found), key=lambda k: found[k])
        if best not in (min(found), max(found)):
            return best
        further = best - 1 if best == min(found) else best + 1
        found[further] = value(further)
    raise RuntimeError(
        f"Expected a best learning rate inside of {MAX_SEARCHED} powers of 2. Received one at the "
        f"edge of {sorted(found)}. Begin somewhere else."
    )


def curve(
    store: Store, part: str, training: Training, schedule: str, optimizer: str, seeds: int
) -> dict[int, dict[str, Any]]:
    """Tunes and trains at every batch size, from the smallest on."""
    plan, found, last = PARTS[part], {}, None
    budget = {key: plan[key] for key in ("epochs", "updates") if key in plan}
    budget["schedule"] = schedule
    for size in training.setting.batch_sizes:
        if plan.get("only", size) != size:
            continue

        def run(exponent: int, seed: int, size: int = size) -> dict[str, Any]:
            name = f"{part}/{optimizer}/{schedule}/{size}/{exponent}/{seed}"
            return store.get(name, partial(training.run, size, 2.0**exponent, seed, **budget))

        start = training.setting.starts[optimizer]
        if last is not None:  # With the square root of the batch.
            start = last[1] + round(math.log2(size / last[0]) / 2)
        best = best_exponent(lambda k, run=run: score(run(k, 0)["validation"], k), start)
        found[size] = {"exponent": best, "runs": [run(best, seed) for seed in range(1, seeds + 1)]}
        if "slower" in plan:
            slower = best - plan["slower"]
            found[size]["slower"] = [run(slower, seed) for seed in range(1, seeds + 1)]
        last = size, best
    return found


def measure(store: Store, parts: list[str], optimizers: list[str], seeds: int) -> dict[str, Any]:
    """All curves: part, optimizer, schedule, batch size."""
    found: dict[str, Any] = {}
    for part in parts:
        for optimizer in optimizers:
            training = Training(SETTINGS[PARTS[part]["setting"]](), optimizer)
            for schedule in PARTS[part]["schedules"]:
                name = f"{part}/{optimizer}/{schedule}"
                found[name] = curve(store, part, training, schedule, optimizer, seeds)
    return found


def main() -> None:
    """Runs what is missing, prints the tables, and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--optimizers", nargs="*", default=OPTIMIZERS, choices=OPTIMIZERS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--store", type=Path, default=Path("limit.json"))
    parser.add_argument("--plots", type=Path, help="folder for the figures")
    args = parser.parse_args()
    store = Store(args.store)
    found = measure(store, args.parts, args.optimizers, args.seeds)
    goals = {part: SETTINGS[PARTS[part]["setting"]]().goals for part in args.parts}
    report(found, store.runs, goals)
    if args.plots:
        draw(found, args.plots)


if __name__ == "__main__":
    main()
