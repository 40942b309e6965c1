"""Table 1: the simple noise scale of the paper's tasks, at the start and on average.

    python examples/reproduce/table_1.py --folder table_1            # runs what is missing
    python examples/reproduce/table_1.py --folder table_1 --table    # the table of what is there

Each stage is what `gns-keras reproduce TASK --store FILE` does; all starts come first, then longer
runs of the cheaper tasks, then further seeds. Stop it at any moment and start it again. The data
come from the folder GNS_KERAS_DATA, else from tensorflow_datasets.
"""

import argparse
import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import benchmarks_path  # noqa: F401
import keras
from calibration_predictors import delay, truth

from gns_keras import Goal, LearningRateRule, Reproduction, SweepResult, reproduce, sweep
from gns_keras.core.numbers import format_number
from gns_keras.core.sweep_policy import LearningRateGrid
from gns_keras.core.tradeoff_fit import Tradeoff
from gns_keras.report.reproduction import format_noise_scale, format_range
from gns_keras.tasks import Task, get_task


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One call of `reproduce`.

    Attributes:
        task: Name of the task.
        examples: Length of the runs.
        seeds: How many.
        max_measured: Most examples of one point.
        learning_rate: In the place of the task's own.
    """

    task: str
    examples: int
    seeds: int = 1
    max_measured: int = 1024
    learning_rate: float | None = None

    @property
    def name(self) -> str:
        """The task, and what is otherwise."""
        rate = self.learning_rate
        return self.task if rate is None else f"{self.task} at a learning rate of {rate:g}"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One sweep, with one seed.

    Attributes:
        task: Name of the task.
        batch_sizes: In examples.
        goals: Training losses to reach, smoothed; of games mean rewards of a step.
        max_examples: Longest run.
        half_life: Of the smoothing, in examples.
        learning_rate: Centre of the grid, in the place of the task's own.
    """

    task: str
    batch_sizes: tuple[int, ...]
    goals: tuple[float, ...]
    max_examples: int
    half_life: float = 512.0
    learning_rate: float | None = None

    @property
    def name(self) -> str:
        """The task."""
        return self.task


STARTS = (
    Stage(task="mnist", examples=3_000),
    Stage(task="cnn_fashion_mnist", examples=3_000),
    Stage(task="autoencoder_fashion_mnist", examples=3_000),
    Stage(task="vae_fashion_mnist", examples=3_000),
    Stage(task="lm_512_tinyshakespeare", examples=1_020),
    Stage(task="cnn_fashion_mnist_adam", examples=3_000),
    Stage(task="cnn_cifar10", examples=2_500),
    Stage(task="cifar10", examples=2_560),
    Stage(task="autoencoder_cifar10", examples=2_500),
    Stage(task="vae_cifar10", examples=2_500),
    Stage(task="cnn_cifar10_adam", examples=2_500),
)
RUNS = (
    Stage(task="mnist", examples=12_000),
    Stage(task="cnn_fashion_mnist", examples=12_000),
    Stage(task="lm_512_tinyshakespeare", examples=5_000),
    Stage(task="autoencoder_fashion_mnist", examples=8_000),
    Stage(task="vae_fashion_mnist", examples=8_000),
    Stage(task="cnn_fashion_mnist_adam", examples=12_000),
    Stage(task="cnn_cifar10", examples=12_000),
    Stage(task="cifar10", examples=12_800),
    Stage(task="cifar10", examples=12_800, learning_rate=0.0125),
    Stage(task="mnist", examples=120_000),
    Stage(task="cnn_fashion_mnist", examples=120_000),
    Stage(task="cnn_fashion_mnist", examples=480_000),
    Stage(task="cnn_fashion_mnist_adam", examples=60_000),
    Stage(task="cnn_cifar10", examples=100_000),
    Stage(task="autoencoder_cifar10", examples=8_000),
    Stage(task="vae_cifar10", examples=8_000),
    Stage(task="cnn_cifar10_adam", examples=60_000),
    Stage(task="lm_512_tinyshakespeare", examples=20_000),
)
SWEEPS = (
    Sweep(task="cifar10", batch_sizes=(16, 64, 256, 1024), goals=(2.6, 2.3, 2.1),
          max_examples=40_000, learning_rate=0.025),
    Sweep(task="lm_512_tinyshakespeare", batch_sizes=(8, 32, 128, 512), goals=(6.6, 6.3, 6.1),
          max_examples=20_000, half_life=128),
    # With batch normalization a batch of 4 trains another network than one of 256.
    Sweep(task="autoencoder_fashion_mnist", batch_sizes=(16, 64, 256), goals=(0.12, 0.09, 0.08),
          max_examples=16_000, half_life=128),
    Sweep(task="mnist", batch_sizes=(8, 32, 128, 512), goals=(0.5, 0.2, 0.1),
          max_examples=60_000, half_life=256),
    Sweep(task="cnn_fashion_mnist", batch_sizes=(8, 32, 128, 512), goals=(0.7, 0.5, 0.4),
          max_examples=80_000),
    Sweep(task="cnn_fashion_mnist_adam", batch_sizes=(4, 16, 64, 256), goals=(0.8, 0.6),
          max_examples=20_000),
    Sweep(task="vae_fashion_mnist", batch_sizes=(16, 64, 256), goals=(0.2, 0.17, 0.15),
          max_examples=16_000, half_life=128),
    Sweep(task="cnn_cifar10", batch_sizes=(4, 16, 64, 256), goals=(2.1, 1.9), max_examples=30_000),
)  # fmt: skip
GAMES = (
    Sweep(task="self_play_1v1", batch_sizes=(64, 256, 1024), goals=(0.01, 0.02),
          max_examples=150_000),
)  # fmt: skip
SEEDS = (
    Stage(task="mnist", examples=3_000, seeds=3),
    Stage(task="cnn_fashion_mnist", examples=3_000, seeds=3),
    Stage(task="autoencoder_fashion_mnist", examples=3_000, seeds=3),
)  # fmt: skip
PARTS = {"starts": STARTS, "runs": RUNS, "sweeps": SWEEPS, "games": GAMES, "seeds": SEEDS}


def run(stage: Stage | Sweep, folder: Path) -> Reproduction | SweepResult:
    """Runs a stage, or what is missing of it, and writes its result as JSON."""
    started = time.process_time()
    found = measure(stage, folder) if isinstance(stage, Stage) else train(stage, folder)
    path_of(stage, folder).write_text(found.to_json() + "\n", encoding="utf-8")
    seconds = time.process_time() - started
    print(f"\n{stage.name}\n{found}\n{seconds:.0f} s of one core", flush=True)
    return found


def measure(stage: Stage, folder: Path) -> Reproduction:
    """The noise scale along runs."""
    task = get_task(stage.task)
    if stage.learning_rate is not None:
        task = at_learning_rate(task, stage.learning_rate)
    return reproduce(
        task,
        examples=stage.examples,
        seeds=stage.seeds,
        max_measured=stage.max_measured,
        store=folder / f"{stage.name}.sqlite",
    )


def at_learning_rate(task: Task, learning_rate: float) -> Task:
    """The same task, compiled with another learning rate."""

    def build_model() -> keras.Model:
        model = task.build_model()
        model.optimizer.learning_rate = learning_rate
        return model

    return replace(task, build_model=build_model, learning_rate=learning_rate)


def train(stage: Sweep, folder: Path) -> SweepResult:
    """Runs at every batch size."""
    task = get_task(stage.task)
    grid = LearningRateGrid(
        base_learning_rate=stage.learning_rate or task.learning_rate,
        base_batch_size=task.examples_per_batch,
        rule=LearningRateRule(alpha=0.5 if task.optimizer in ("adam", "rmsprop") else 1.0,
                              critical_batch_size=64.0),
        num=3,
        max_widenings=2,
    )  # fmt: skip
    return sweep(
        task.build_model,
        task.training_data if task.draw_data else task.load_data(),
        batch_sizes=stage.batch_sizes,
        goals=[goal_of(stage, goal) for goal in stage.goals],
        learning_rates=grid,
        max_examples=stage.max_examples,
        base_batch_size=task.examples_per_batch,
        half_life=stage.half_life,
        store=folder / f"{stage.task}.sweep.sqlite",
        verbose=0,
    )


def goal_of(stage: Sweep, goal: float) -> Goal:
    """Where the runs are to get."""
    if stage in GAMES:
        return Goal(metric="reward", threshold=goal, direction="above")
    return Goal(threshold=goal)


def path_of(stage: Stage | Sweep, folder: Path) -> Path:
    """Where the result of a stage is."""
    if isinstance(stage, Sweep):
        return folder / f"{stage.task}.sweep.json"
    return folder / f"{stage.name}.{stage.examples}.{stage.seeds}.json"


def results(folder: Path) -> dict[str, list[Reproduction]]:
    """Of every task what there is: shorter runs first, more seeds last."""
    found: dict[str, list[Reproduction]] = {}
    for stage in (*STARTS, *RUNS, *SEEDS):
        path = path_of(stage, folder)
        if path.exists():
            found.setdefault(stage.name, []).append(Reproduction.from_json(path.read_text("utf-8")))
    return found


def report(folder: Path) -> str:
    """The tables of docs/reproduction/table_1.md."""
    found = results(folder)
    parts = [noise_table(found), start_table(found), critical_table(folder)]
    return "\n\n".join(part for part in parts if part)


def noise_table(found: dict[str, list[Reproduction]]) -> str:
    """Start and average beside the paper's."""
    lines = [
        "| Task | Row of the paper | Start, measured | Start, paper | Measured / paper "
        "| Average, measured | Average, paper | Over |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task, kinds in found.items():
        best = max(kinds, key=lambda result: len(result.runs))
        longest = max(kinds, key=lambda result: result.examples)
        row = best.published
        passes = longest.examples_trained / (longest.dataset_size or math.nan)
        has_average = longest.examples > 1.5 * longest.early
        seeds = f", {len(best.runs)} runs" if len(best.runs) > 1 else ""
        cells = [
            f"`{task}`", row.system if row else "-", format_noise_scale(best.start) + seeds,
            format_range(row and row.noise_start), _ratio(best),
            format_noise_scale(longest.average) if has_average else "-",
            format_range(row and row.noise_average),
            f"{longest.examples_trained * longest.units_per_example:,} {longest.unit}, "
            f"{passes:.2g} passes" if has_average else "-",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ratio(result: Reproduction) -> str:
    """Start over the paper's; of a range, over its nearer end."""
    if result.published is None:
        return "-"
    low, high = result.published.noise_start
    start = result.start
    value = start.value if start.resolved else start.lower_bound
    nearer = min(max(value, low), high)
    return f"{'' if start.resolved else 'at least '}{format_number(value / nearer, 2)}"


def start_table(found: dict[str, list[Reproduction]]) -> str:
    """How the noise scale and the loss move over the start, at five of its nine points."""
    lines = [
        "| Task | Start: first | Initial weights | 1/8 of the start | 1/4 | 1/2 | End "
        "| Loss up to 1/8, 1/4, 1/2, end |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task, kinds in found.items():
        run = min(kinds, key=lambda result: result.examples)
        points = [run.runs[0].points[index] for index in (0, 1, 2, 4, 8)]
        scales = [p.noise_scale.scaled(run.units_per_example, run.unit) for p in points]
        cells = [
            f"`{task}`", f"{run.early * run.units_per_example:,} {run.unit}",
            *map(format_noise_scale, scales),
            ", ".join(format_number(point.loss) for point in points[1:]),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def critical_table(folder: Path) -> str:
    """Critical batch sizes, without the delay of the smoothing; not where it is most of the way."""
    lines = [
        "| Task | Goal | Critical batch size | Least steps | Least examples | Rms of the fit "
        "| Noise scale up to the goal |",
        "|---|---|---|---|---|---|---|",
    ]
    runs = results(folder)
    for stage in (*SWEEPS, *GAMES):
        if path_of(stage, folder).exists():
            swept = SweepResult.from_json(path_of(stage, folder).read_text("utf-8"))
            run_of = max(runs.get(stage.task, [None]), key=lambda run: run.examples if run else 0)
            for goal in stage.goals:
                noise = "-" if run_of is None else noise_up_to(goal, run_of)
                lines.append(_critical_row(stage, goal, truth(swept, goal), noise))
    return "\n".join(lines) if len(lines) > 2 else ""


def _critical_row(stage: Sweep, goal: float, fit: Tradeoff, noise: str) -> str:
    units = get_task(stage.task).units_per_example
    label = goal_of(stage, goal).label
    if is_late(fit, stage):
        return f"| `{stage.task}` | {label} | too early | - | - | - | {noise} |"
    low, high = (format_number(units * end) for end in fit.interval)
    critical = f"{format_number(units * fit.critical_batch_size)} ({low} to {high})"
    if not fit.resolved:
        critical = f"unresolved, at least {low}" if fit.interval[0] > 0 else "unresolved"
    cells = [
        f"`{stage.task}`", label, critical, format_number(fit.min_steps),
        format_number(units * fit.min_examples), f"{fit.residual_rms:.0%}", noise,
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def is_late(fit: Tradeoff, stage: Sweep) -> bool:
    """Whether the smoothing delays the goal by more than half of the fewest examples."""
    return not fit.min_examples > 2 * delay(1, stage.half_life)


def noise_up_to(goal: float, run: Reproduction) -> str:
    """The noise scale averaged up to a training loss."""
    return format_noise_scale(run.between(0, examples_to(goal, run)))


def examples_to(goal: float, run: Reproduction) -> int:
    """Examples at the first point before which the mean loss of a stretch was below the goal."""
    points = run.runs[0].points
    return next((p.examples_seen for p in points if p.loss < goal), points[-1].examples_seen)


def main() -> None:
    """Runs what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("table_1"))
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--only", choices=list(PARTS), nargs="+", default=list(PARTS))
    parser.add_argument("--tasks", nargs="+", help="only these")
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    wanted = [] if args.table else [stage for part in args.only for stage in PARTS[part]]
    for stage in wanted:
        chosen = args.tasks is None or stage.task in args.tasks
        if chosen and not path_of(stage, args.folder).exists():
            run(stage, args.folder)
    print(report(args.folder))


if __name__ == "__main__":
    main()
