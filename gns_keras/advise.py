"""`advise`: which batch size and learning rate to train a model with."""

import math
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gns_keras.core.calibrated import GROWTH, for_long_runs
from gns_keras.core.critical_batch_size import predicted_critical_batch_size
from gns_keras.core.evidence import Evidence
from gns_keras.core.noise_scale import NoiseScale
from gns_keras.core.recommend import recommend
from gns_keras.core.run_forecast import forecast_run
from gns_keras.report.advice import Advice
from gns_keras.training import advise_checks, checks
from gns_keras.training.example_source import DrawnExamples, Source, source_of
from gns_keras.training.learning_rate_check import (
    CheckPlan,
    Scale,
    check_learning_rate,
    plan_check,
    scaled_learning_rate,
)
from gns_keras.training.preserve import preserved
from gns_keras.training.progress import Stage, progress_bars
from gns_keras.training.step_timer import time_steps
from gns_keras.training.trial_plan import TrialPlan, least_budget, plan_trial
from gns_keras.training.trial_run import run_trial

TIMING_SECONDS = 20.0
SHARE_OF_RUN = 0.05  # Of `run_examples`, what an answer may take.
MAX_TIMED_SIZES = 5


def advise(
    model: keras.Model,
    data: Any,
    *,
    batch_size: int | None = None,
    budget: int | None = None,
    target_loss: float | None = None,
    run_examples: int | None = None,
    objective: str = "balanced",
    max_batch_size: int | None = None,
    learning_rate: str = "check",
    verify: str = "auto",
    seed: int = 0,
    verbose: int = 1,
) -> Advice:
    """Recommends a batch size and a learning rate, from a short training run.

    Trains a little at the present batch size, measures the gradient noise scale on the way, with
    the weights frozen for every measurement, times steps at several batch sizes, and puts
    everything back: weights, optimizer, metrics and seeds are the same bit for bit on return, also
    after an error or Ctrl-C.

    Args:
        model: Compiled model, with a learning rate that suits the present batch size: an untuned
            one makes the noise scale meaningless.
        data: Arrays `(x, y)` or `(x, y, sample_weight)`, or a batched `tf.data.Dataset`; for data
            that the model makes itself, as in reinforcement learning, a
            `gns_keras.training.example_source.DrawnExamples`.
        batch_size: Present global batch size, in examples; a small one measures best. Default: a
            batched dataset's own; 32 for arrays.
        budget: Examples to spend on training and measuring. Default: until the answer is resolved;
            with `run_examples` at most 5 % of them, or as few as an answer takes. Step times come
            on top; they use one batch over and over.
        target_loss: Training loss, as compiled, that you want to reach: the critical batch size is
            that of the whole run down to it, partly a forecast. Default: where the run is heading,
            at most fifty times as far as it was watched, or one pass over the data; the report says
            which loss that is. Beyond one pass the answer is an order of magnitude.
        run_examples: How long you are going to train instead, in examples at the present batch
            size, such as `epochs * len(x)`. Better known than how long a loss takes.
        objective: "balanced": the critical batch size, twice the smallest number of steps and of
            examples. "time": the shortest run on these devices. "cost": 20 % more examples than
            the smallest number.
        max_batch_size: Largest global batch size that fits into memory. Default: not known.
        learning_rate: "check": find out by short paired runs whether it is within a factor of 2 of
            the best; if it clearly is not, the advice is to change it, and the noise scale is not
            measured, which goes with its inverse. "search": measure with the best instead; the
            model keeps its own. "keep": take it as it is.
        verify: "auto": nothing is verified by branch runs yet. Nothing else yet.
        seed: Seed of the order of the examples.
        verbose: 1 for progress bars on a terminal, 0 for none.

    Returns:
        The advice; `print` it.

    Raises:
        ValueError: An argument, the data or the budget do not fit; the message says how to fix it.
        TypeError: `data` is of another kind.
        NotImplementedError: A model, strategy or argument that is not supported.
        RuntimeError: Training diverges.

    Reference: McCandlish et al. 2018, arXiv 1812.06162.
    """
    advise_checks.check_model(model)
    advise_checks.check_choices(objective, learning_rate, verify)
    advise_checks.check_target(target_loss, run_examples)
    source = source_of(data, batch_size)
    advise_checks.check_numbers(max_batch_size, budget, source)
    learning_rate, remarks = advise_checks.without_losses(source, learning_rate, target_loss)
    _build(model, source, seed)
    if budget is None and run_examples is not None:
        budget = max(int(SHARE_OF_RUN * run_examples), least_budget(model, source))
    plan_trial(model, source, budget)  # Refuses too little, before anything is done.
    with preserved(model), progress_bars(verbose) as stage, scaled_learning_rate(model) as scale:
        evidence = _present(model, source, remarks)
        if learning_rate != "keep":
            search = learning_rate == "search"
            plan_of_check = plan_check(
                source.batch_size, budget, search=search, whole_run=run_examples
            )
            evidence = _check_learning_rate(
                model, source, evidence, plan_of_check, scale, seed, stage
            )
        memory = max_batch_size
        if not _is_refused(evidence):
            left = None if budget is None else budget - evidence.examples_used
            plan = plan_trial(model, source, left)
            least = 0.0 if run_examples is None else run_examples / GROWTH.largest_ratio
            plan = replace(plan, target_loss=target_loss, least_examples=least)
            evidence = _train_and_measure(model, source, plan, evidence, seed, stage)
            evidence = _with_forecast(evidence, target_loss, run_examples)
            evidence, memory = _time_steps(model, source, evidence, max_batch_size, stage)
    return Advice.of(recommend(evidence, objective=objective, max_batch_size=memory))


def _present(model: keras.Model, source: Source, remarks: tuple[str, ...]) -> Evidence:
    """What the user trains with now."""
    rule, more = advise_checks.learning_rate_rule(model)
    return Evidence(
        noise_scale=NoiseScale(value=math.nan, interval=(math.nan, math.nan)),
        base_batch_size=source.batch_size,
        base_learning_rate=_learning_rate(model),
        rule=rule,
        dataset_size=source.num_examples,
        num_replicas=model.distribute_strategy.num_replicas_in_sync,
        remarks=(*remarks, *more),
    )


def _check_learning_rate(
    model: keras.Model,
    source: Source,
    evidence: Evidence,
    plan: CheckPlan,
    scale: Scale,
    seed: int,
    stage: Stage,
) -> Evidence:
    """Adds the check of the learning rate, and sets the one to measure with."""
    advance = stage("checking the learning rate", plan.most_examples)
    check = check_learning_rate(model, source, plan, scale, seed=seed, advance=advance)
    factor = check.factor_to_use
    scale(factor if math.isfinite(factor) else 1.0)
    return replace(
        evidence,
        base_learning_rate=check.learning_rate * factor,
        learning_rate_check=check,
        examples_used=check.examples_used,
    )


def _is_refused(evidence: Evidence) -> bool:
    check = evidence.learning_rate_check
    return check is not None and check.forbids_measuring


def _train_and_measure(
    model: keras.Model,
    source: Source,
    plan: TrialPlan,
    evidence: Evidence,
    seed: int,
    stage: Stage,
) -> Evidence:
    """Makes the trial run, at the learning rate that is set."""
    advance = stage("training and measuring the noise scale", plan.max_examples)
    trial = run_trial(model, source, plan, seed=seed, advance=advance)
    losses = [] if isinstance(source, DrawnExamples) else trial.losses
    return replace(
        evidence,
        noise_scale=trial.noise_scale,
        mean_noise_scale=trial.mean_noise_scale,
        calibration=advise_checks.calibration_of(model),
        base_learning_rate=_learning_rate(model),  # A schedule has moved on.
        points=tuple(trial.points),
        examples_used=evidence.examples_used + trial.examples_used,
        remarks=(*_remarks(model, losses), *evidence.remarks),
    )


def _with_forecast(
    evidence: Evidence, target_loss: float | None, run_examples: int | None
) -> Evidence:
    """Adds the noise scale of the run in question."""
    forecast = forecast_run(
        evidence.points,
        evidence.base_batch_size,
        target_loss=target_loss,
        run_examples=run_examples,
        dataset_size=evidence.dataset_size,
    )
    calibration = evidence.calibration
    if calibration is not None and forecast is not None and forecast.is_long:
        calibration = for_long_runs(calibration)
    return replace(evidence, forecast=forecast, calibration=calibration)


def _learning_rate(model: keras.Model) -> float:
    return float(tf.convert_to_tensor(model.optimizer.learning_rate))


def _time_steps(
    model: keras.Model,
    source: Source,
    evidence: Evidence,
    max_batch_size: int | None,
    stage: Stage,
) -> tuple[Evidence, int | None]:
    """Adds step times; returns with them the largest batch size that memory allows, if known."""
    sizes = timed_batch_sizes(evidence, max_batch_size)
    advance = stage("timing steps", len(sizes))
    step_time, too_big = time_steps(
        model, source, sizes, seconds=TIMING_SECONDS, advance=lambda: advance(1)
    )
    evidence = replace(evidence, step_time=step_time)
    if too_big is None or step_time is None:
        return evidence, max_batch_size
    largest = max(step_time.batch_sizes)
    remark = f"A step at batch size {too_big:,} ran out of memory; one at {largest:,} did not."
    return replace(evidence, remarks=(*evidence.remarks, remark)), largest


def timed_batch_sizes(evidence: Evidence, max_batch_size: int | None) -> list[int]:
    """The present batch size, and powers of two up to four times the critical one.

    Args:
        evidence: The noise scale, and what is trained with now.
        max_batch_size: No size above this.

    Returns:
        At most five sizes, increasing, evenly spread in ratio.
    """
    base = evidence.base_batch_size
    cap = min(max_batch_size or math.inf, evidence.dataset_size or math.inf)
    high = min(max(8 * base, 4 * predicted_critical_batch_size(evidence).supported), cap)
    exponents = range(math.ceil(math.log2(base)), math.floor(math.log2(high)) + 1)
    powers = [2**exponent for exponent in exponents if 2**exponent != base]
    chosen = np.linspace(0, len(powers) - 1, min(MAX_TIMED_SIZES - 1, len(powers)))
    return [base, *(powers[round(float(index))] for index in chosen)]


def _build(model: keras.Model, source: Source, seed: int) -> None:
    """Gives the model its weights, as `fit` would at its first batch."""
    if model.built:
        return
    batch = next(iter(source.batches(source.batch_size, seed=seed)))
    inputs, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
    with model.distribute_strategy.scope():
        model(inputs, training=False)
    checks.refuse_unsupported(model, model.distribute_strategy)


def _remarks(model: keras.Model, losses: list[float]) -> list[str]:
    """What makes the number mean something else, and whether the training got anywhere."""
    remarks = checks.describe_caveats(model, model.distribute_strategy.num_replicas_in_sync)
    third = len(losses) // 3
    if third and np.mean(losses[-third:]) >= np.mean(losses[:third]):
        remarks.append(
            "The training loss did not fall during the trial run "
            f"({np.mean(losses[:third]):.4g} at first, {np.mean(losses[-third:]):.4g} at last). "
            "The learning rate is probably too high or too low, and "
            "the noise scale then says little: tune it at this batch size and ask again."
        )
    return remarks
