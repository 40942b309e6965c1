"""How the critical batch size grows with the length of a run that sees every example once.

    B_c(E) = B_c(E_0) (E / E_0)^s

with `E` the examples of the run at a small batch size. Zhang et al. 2024 (arXiv 2410.21676) found
`s` about 0.47 in the pretraining of language models, whatever their size; the exponent here comes
from sweeps of small tasks (docs/decisions/0013-growth-with-the-run.md). Each task has an exponent
of its own: what is known is their mean, and a new one lies about it with Student's t.
"""

import math
from dataclasses import dataclass

from gns_keras.core.intervals import student_quantile
from gns_keras.core.json_records import JsonRecord


@dataclass(frozen=True, kw_only=True)
class Growth(JsonRecord):
    """The law, with what tasks differ by.

    Attributes:
        exponent: Mean over the tasks.
        spread: Standard deviation of the exponent of a new task.
        degrees_of_freedom: Of that.
        largest_ratio: Up to which `E / E_0` it was measured.
        num_tasks: Tasks behind it.
        source: Date and command that the numbers came from.
    """

    exponent: float
    spread: float
    degrees_of_freedom: float
    largest_ratio: float
    num_tasks: int = 0
    source: str = ""

    def over(self, ratio: float, confidence: float = 0.95) -> tuple[float, tuple[float, float]]:
        """By what the critical batch size grows.

        Args:
            ratio: Examples of the run over those of the trial run, at least 1.
            confidence: Coverage of the interval.

        Returns:
            The factor and its interval for a new task.

        Raises:
            ValueError: The ratio is below 1.

        Example:
            >>> law = Growth(exponent=0.5, spread=0.0, degrees_of_freedom=9, largest_ratio=50)
            >>> law.over(16)
            (4.0, (4.0, 4.0))
        """
        if not 1 <= ratio < math.inf:
            raise ValueError(f"Expected a finite `ratio` of at least 1. Received: {ratio}.")
        reach = student_quantile(confidence, self.degrees_of_freedom) * self.spread
        ends = (ratio ** (self.exponent - reach), ratio ** (self.exponent + reach))
        return float(ratio**self.exponent), ends
