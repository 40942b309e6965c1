"""Where the time of `advise` goes, phase by phase, against what the examples alone would cost.

The bound of a phase is its examples at the speed of plain `fit` at the same batch size, which
`advise` itself times: advice.table has it. Step times have no bound, but a limit of 20 s.

    python benchmarks/advise.py                  # digits and MNIST
    python benchmarks/advise.py --tasks digits
"""

import argparse
import contextlib
import math
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
from tables import head, machine, row

from gns_keras import Advice
from gns_keras.advise import advise
from gns_keras.tasks import get_task

OTHER = "set-up, putting back, forecast, recommendation"


class Stages:
    """Stands in for the progress bars of `advise`, and notes time and examples of every stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.amounts: dict[str, float] = defaultdict(float)
        self.name, self.began = OTHER, time.perf_counter()

    def switch(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[self.name] += now - self.began
        self.name, self.began = name, now

    @contextlib.contextmanager
    def bars(self, verbose: int) -> Iterator[Callable]:
        def stage(description: str, total: float) -> Callable[[float], None]:
            self.switch(description)

            def advance(amount: float) -> None:
                self.amounts[description] += amount

            return advance

        try:
            yield stage
        finally:
            self.switch(OTHER)


def timed_advise(name: str) -> tuple[Advice, Stages]:
    """Asks for advice on a task."""
    task = get_task(name)
    keras.utils.set_random_seed(0)
    model = task.build_model()
    data = task.training_data(model)
    stages = Stages()
    names = advise.__globals__  # The function's own module, which its name in the package hides.
    original, names["progress_bars"] = names["progress_bars"], stages.bars
    try:
        advice = advise(model, data, batch_size=task.examples_per_batch, verbose=0)
    finally:
        names["progress_bars"] = original
    stages.switch("text and HTML")
    with tempfile.TemporaryDirectory() as folder:
        str(advice)
        advice.to_html(Path(folder) / "advice.html")
    stages.switch(OTHER)
    return advice, stages


def measure(name: str) -> None:
    """Prints the rows of one task."""
    advice, stages = timed_advise(name)
    present = advice.base_batch_size
    step = advice.step_time.medians_s[0] if advice.step_time else math.nan  # The present size's.
    for phase, seconds in stages.seconds.items():
        examples = stages.amounts[phase] if "timing" not in phase else 0
        bound = examples / present * step
        row(
            *(name, phase, f"{seconds:.2f}", f"{examples:,.0f}" if examples else ""),
            *(f"{bound:.2f}", f"{seconds / bound:.1f}") if examples else ("", ""),
        )
    row(name, "all", f"{sum(stages.seconds.values()):.2f}", f"{advice.examples_used:,}", "", "")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="*", default=["digits", "mnist"])
    args = parser.parse_args()
    print(f"{machine()}\n")
    head("task", "phase", "s", "examples", "bound, s", "ratio")
    for name in args.tasks:
        measure(name)


if __name__ == "__main__":
    main()
