"""How the learning rate changes with the batch size.

McCandlish et al. 2018 (arXiv 1812.06162), Eq. 2.6 and A.3:

    saturating:  eps(B) = eps_* / (1 + B_*/B)^alpha

It is proportional to `B^alpha` far below `B_*` and constant far above. `alpha = 1` for SGD and
momentum; 0.5 to 1 for Adam and RMSProp. AdaScale's gain (Johnson et al. 2020, arXiv 2007.05105),
`(s^2 + m^2)/(s^2/S + m^2)` at `S` times the batch, is the ratio `eps(S B)/eps(B)` of this rule with
`alpha = 1` and `B_*` the noise scale.

    linear:      eps(B) ~ B / (1 + B_*/B)^alpha

This other form grows like `B^(1 + alpha)` far below `B_*` and like `B` far above: it never levels
off. It is kept for comparison; nothing in this package recommends it.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

FORMS = ("saturating", "linear")

# The paper's Appendix A.3 for the first four. The others divide the gradient by its size, or keep
# its sign alone, as Adam does: their step follows the square root of the batch size (Malladi et al.
# 2022, arXiv 2205.10287; Naganuma et al. 2026, arXiv 2602.03001, for sign and spectral descent).
# LARS divides by the norm of the gradient, |g| ~ |G| (1 + B_noise/B)^(1/2) in many dimensions: to
# go as far as SGD along G, it needs Eq. A.3 with exactly alpha = 0.5. MLPerf's ResNet-50: rates of
# 10.5 at 3,264 with momentum 0.9 and 32.2 at 32k with 0.94 (mlcommons/training_policies, issues 377
# and 272) make an exponent of 0.49, or of 0.71 for eps/(1 - m).
OPTIMIZER_ALPHA = {
    "SGD": 1.0,
    "Adam": 0.5,
    "RMSprop": 0.5,
    "Adagrad": 0.5,
    "Adafactor": 0.5,
    "Adamax": 0.5,
    "AdamW": 0.5,
    "Lamb": 0.5,
    "Lars": 0.5,
    "Lion": 0.5,
    "Muon": 0.5,
    "Nadam": 0.5,
    "ScheduleFreeAdamW": 0.5,
}


@dataclass(frozen=True, kw_only=True)
class LearningRateRule:
    """Ratio of the best learning rates at two batch sizes. A starting point for tuning.

    Attributes:
        alpha: Exponent: 1 for SGD and momentum, 0.5 to 1 for Adam and RMSProp.
        critical_batch_size: `B_*`, in the unit of the batch sizes; the paper found it "somewhat
            smaller" than the noise scale. None: not known yet, every batch size counts as far
            below it, so that the learning rate goes with `B^alpha`.
        form: "saturating" (Eq. A.3) or "linear" (`B/(1 + B_*/B)^alpha`, see the module).
        warm_up: Examples over which the learning rate rises, linearly in examples, after the batch
            has grown while training (Goyal et al. 2017, arXiv 1706.02677). 0: it is there at once.

    Raises:
        ValueError: A value is out of range, or "linear" comes without a critical batch size.

    Example:
        >>> rule = LearningRateRule(critical_batch_size=96)  # the paper's SVHN fit, .27 B/(96 + B)
        >>> rule.scale(96, 32)
        2.0
    """

    alpha: float = 1.0
    critical_batch_size: float | None = None
    form: str = "saturating"
    warm_up: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise ValueError(
                "Expected `alpha` to be finite and not negative: 1 for SGD and momentum, 0.5 to 1 "
                f"for Adam and RMSProp. Received: {self.alpha}."
            )
        if self.form not in FORMS:
            raise ValueError(f"Expected `form` to be one of {FORMS}. Received: {self.form!r}.")
        critical = self.critical_batch_size
        if critical is not None and not (math.isfinite(critical) and critical > 0):
            raise ValueError(
                "Expected `critical_batch_size` to be positive and finite, or None if it is not "
                f"known. Received: {critical}."
            )
        if not (math.isfinite(self.warm_up) and self.warm_up >= 0):
            raise ValueError(
                "Expected `warm_up` to be a number of examples, finite and not negative; 0 for "
                f"none. Received: {self.warm_up}."
            )
        if critical is None and self.form == "linear":
            raise ValueError(
                'form="linear" has no limit for an unknown critical batch size. Give '
                "`critical_batch_size`."
            )

    def scale(self, batch_size: float, base_batch_size: float) -> float:
        """Factor to multiply the learning rate with when the batch size changes.

        Args:
            batch_size: New global batch size `B`.
            base_batch_size: Global batch size `B_0` that the learning rate was tuned for.

        Returns:
            `eps(B)/eps(B_0)`.

        Raises:
            ValueError: A batch size is not positive and finite.
        """
        return self._shape(batch_size) / self._shape(base_batch_size)

    def temperature(self, learning_rate: float, batch_size: float, momentum: float = 0.0) -> float:
        """How hot the training is: `T = eps/eps_max(B)` up to a constant factor (Appendix C).

        Momentum `m` counts as `eps/(1 - m)`. The noise scale goes with `1/T` (Eq. C.2). Only ratios
        of temperatures mean something: the unit is chosen so that `T = eps/B^alpha` far below the
        critical batch size.

        Args:
            learning_rate: `eps`, not negative.
            batch_size: Global batch size `B`.
            momentum: `m`, at least 0 and below 1.

        Raises:
            ValueError: A value is out of range.
        """
        if not 0 <= momentum < 1:
            raise ValueError(f"Expected `momentum` in [0, 1). Received: {momentum}.")
        if not (math.isfinite(learning_rate) and learning_rate >= 0):
            raise ValueError(
                "Expected `learning_rate` to be finite and not negative. "
                f"Received: {learning_rate}."
            )
        return learning_rate / (1 - momentum) / self._shape(batch_size)

    def at(self, critical_batch_size: float | None) -> "LearningRateRule":
        """Returns the same rule with another critical batch size."""
        return replace(self, critical_batch_size=critical_batch_size)

    def get_config(self) -> dict[str, float | str | None]:
        """Returns the arguments that make this rule again."""
        return asdict(self)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "LearningRateRule":
        """Makes a rule from `get_config()`."""
        return cls(**config)

    @classmethod
    def for_optimizer(cls, optimizer: object) -> "LearningRateRule":
        """The rule for an optimizer, found by the name of its class or of a class it extends.

        Args:
            optimizer: A Keras optimizer. A wrapper such as `LossScaleOptimizer` counts as its
                `inner_optimizer`.

        Returns:
            `alpha` 1 for SGD with or without momentum, 0.5 for Adam, RMSProp and their relatives;
            without critical batch size.

        Raises:
            ValueError: The optimizer is not one of those.
        """
        inner = getattr(optimizer, "inner_optimizer", None)
        if inner is not None:
            return cls.for_optimizer(inner)
        for base in type(optimizer).__mro__:
            if base.__name__ in OPTIMIZER_ALPHA:
                return cls(alpha=OPTIMIZER_ALPHA[base.__name__])
        raise ValueError(
            f"No learning-rate rule is known for {type(optimizer).__name__}. Known optimizers: "
            f"{', '.join(OPTIMIZER_ALPHA)}. Choose the exponent yourself: LearningRateRule("
            "alpha=1.0) for an optimizer whose step is proportional to the gradient, alpha=0.5 for "
            "one that divides by the gradient's size."
        )

    def _shape(self, batch_size: float) -> float:
        """`eps(B)` up to a constant factor."""
        if not (math.isfinite(batch_size) and batch_size > 0):
            raise ValueError(f"Expected a positive batch size. Received: {batch_size}.")
        critical = self.critical_batch_size
        if self.form == "linear" and critical is not None:
            return batch_size * math.pow(1 + critical / batch_size, -self.alpha)
        # 1/(1/B + 1/B_*) = B_* / (1 + B_*/B): Eq. A.3 with a unit that exists without B_*.
        inverse = 1 / batch_size + (0.0 if critical is None else 1 / critical)
        return math.pow(inverse, -self.alpha)
