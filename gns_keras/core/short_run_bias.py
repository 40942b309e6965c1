"""How far the best learning rate of a short run is above that of a whole one.

Measured on small tasks whose best learning rate a sweep found: the vertex of the parabola that
`core.learning_rate_check` draws, over the sweep's rate. The logarithm of the ratio has a mean for
every kind of optimizer, which is taken off, and a spread between tasks, which the interval holds.
A model that has been trained before carries the noise of its learning rate, and a short run gains
by calming it: its best rates are lower. docs/decisions/0010-learning-rate-vertex.md has the
reasons, docs/decisions/0016-two-seeds.md the constants.
"""

import math
from dataclasses import dataclass

WHOLE_RUN = 30_000  # Examples of the runs that the biases below were measured against.


@dataclass(frozen=True, kw_only=True)
class ShortRunBias:
    """Bias and spread of the best rate of a short run, in octaves.

    Attributes:
        log2_bias: Mean of the base-2 logarithm of the best rate of a short run over that of a whole
            one.
        log2_spread: Standard deviation between tasks.
        degrees_of_freedom: Of the spread.
        run_examples: Length of the whole run.
    """

    log2_bias: float = 0.0
    log2_spread: float = 0.0
    degrees_of_freedom: float = math.inf
    run_examples: int = WHOLE_RUN


_STEPS = 128
# Of new models: bias in runs of so many steps, and its change when the steps double.
_NEW = {"sgd": (0.19, -0.16), "momentum": (0.58, -0.4), "adaptive": (1.17, -0.3)}
_SPREAD = (0.72, -0.09)  # Between tasks, and from one run to the next.
_DEGREES_OF_FREEDOM = 30.0  # 34 tasks, of three kinds and with one fall.
# Of models that have been trained for a thousand steps: alike for all kinds. How long and at what
# rate a model was trained changes it, so the spread is put twice as wide as between those tasks.
_TRAINED = (-2.45, 0.9)
_UNKNOWN = (0.8, 1.0)  # Other optimizers: the middle of the three.
# The best rate of a whole run falls as runs become longer, by so many octaves an octave, beyond the
# length of the runs that the above was measured against: as their critical batch size grows
# (docs/decisions/0015-the-best-rate-of-a-long-run.md, whose 0.26 came from fewer sweeps).
_FALL = 0.32
_ADAPTIVE = ("Adam", "AdamW", "Adamax", "Lamb", "Nadam", "RMSprop")


def short_run_bias(
    optimizer: str,
    momentum: float = 0.0,
    *,
    steps: int,
    is_trained: bool,
    run_examples: int | None = None,
) -> ShortRunBias:
    """The bias for one optimizer and length.

    Args:
        optimizer: Name of the Keras class.
        momentum: Its momentum, where it has one.
        steps: Updates of a run, 64 to 256.
        is_trained: The model has been trained before, for longer than a run.
        run_examples: Length of the whole run. None: as long as those of the first measurements.

    Returns:
        The bias; for optimizers that nothing was measured with a middle one with a wide spread.
    """
    octaves = math.log2(steps / _STEPS)
    kind = "adaptive" if optimizer in _ADAPTIVE else ""
    if optimizer == "SGD":
        kind = "momentum" if momentum > 0 else "sgd"
    if is_trained:
        bias, spread = _TRAINED
    elif kind:
        bias, spread = (at + change * octaves for at, change in (_NEW[kind], _SPREAD))
    else:
        bias, spread = _UNKNOWN
    length = WHOLE_RUN if run_examples is None else run_examples
    return ShortRunBias(
        log2_bias=bias + _FALL * math.log2(max(1.0, length / WHOLE_RUN)),
        log2_spread=spread,
        degrees_of_freedom=_DEGREES_OF_FREEDOM,
        run_examples=length,
    )
