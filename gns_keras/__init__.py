"""Which batch size and learning rate to train with: the gradient noise scale for Keras.

Public names are imported when they are first used, so that `import gns_keras` costs next to nothing
and the statistics work without TensorFlow.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gns_keras.advise import advise
    from gns_keras.core.adaptive import adaptive_gain
    from gns_keras.core.goals import Goal
    from gns_keras.core.groups import effective_size
    from gns_keras.core.learning_rate import LearningRateRule
    from gns_keras.core.noise_scale import NoiseScale, estimate_noise_scale
    from gns_keras.core.tracker import NoiseScaleTracker
    from gns_keras.core.tradeoff_fit import Tradeoff, fit_tradeoff
    from gns_keras.report.advice import Advice
    from gns_keras.report.reproduction import Reproduction
    from gns_keras.report.sweep_result import SweepResult
    from gns_keras.reproduce.reproduce import reproduce
    from gns_keras.sweep.branch import branch_test
    from gns_keras.sweep.sweep import sweep
    from gns_keras.training.batch_scheduler import BatchSizeScheduler
    from gns_keras.training.monitor import NoiseScaleMonitor
    from gns_keras.training.multi_worker import enable_multi_worker

__version__ = "0.1.0"

__all__ = [
    "Advice",
    "BatchSizeScheduler",
    "Goal",
    "LearningRateRule",
    "NoiseScale",
    "NoiseScaleMonitor",
    "NoiseScaleTracker",
    "Reproduction",
    "SweepResult",
    "Tradeoff",
    "adaptive_gain",
    "advise",
    "branch_test",
    "effective_size",
    "enable_multi_worker",
    "estimate_noise_scale",
    "fit_tradeoff",
    "reproduce",
    "sweep",
]

_HOME = {
    "Advice": "report.advice",
    "BatchSizeScheduler": "training.batch_scheduler",
    "Goal": "core.goals",
    "LearningRateRule": "core.learning_rate",
    "NoiseScale": "core.noise_scale",
    "NoiseScaleMonitor": "training.monitor",
    "NoiseScaleTracker": "core.tracker",
    "Reproduction": "report.reproduction",
    "SweepResult": "report.sweep_result",
    "Tradeoff": "core.tradeoff_fit",
    "adaptive_gain": "core.adaptive",
    "advise": "advise",
    "branch_test": "sweep.branch",
    "effective_size": "core.groups",
    "enable_multi_worker": "training.multi_worker",
    "estimate_noise_scale": "core.noise_scale",
    "fit_tradeoff": "core.tradeoff_fit",
    "reproduce": "reproduce.reproduce",
    "sweep": "sweep.sweep",
}


class _Package(types.ModuleType):
    """Keeps `advise`, `reproduce` and `sweep` from being hidden by modules of the same name.

    Python binds a submodule in its package when it is first imported, whoever imports it.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
