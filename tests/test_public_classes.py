"""What Keras and type checkers expect of the classes that are public."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import pytest

import gns_keras
from gns_keras import LearningRateRule, NoiseScaleMonitor
from gns_keras.training.lars import Lars

# Keras saves objects of these by `get_config` and `from_config`; callbacks it does not save.
SERIALISED = (
    keras.layers.Layer,
    keras.losses.Loss,
    keras.metrics.Metric,
    keras.optimizers.Optimizer,
    keras.optimizers.schedules.LearningRateSchedule,
)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "Lars": {"learning_rate": 0.5, "momentum": 0.8, "weight_decay": 1e-3},
    "GaussianCode": {"divergence_weight": 0.3, "seed": 4},
    "WarmUpPolynomialDecay": {"peak": 0.2, "num_updates": 100, "warm_up_updates": 7},
    "PolicyLoss": {"entropy_weight": 0.05},
    "PpoLoss": {"clip": 0.3},
    "LastTokenLoss": {"name": "last"},
    "PixelError": {"name": "pixels"},
    "_PerImageStandardization": {"name": "standardization"},
}


def modules() -> Iterator[Any]:
    for info in pkgutil.walk_packages(gns_keras.__path__, "gns_keras."):
        if not info.name.endswith("__main__"):
            yield importlib.import_module(info.name)


def serialised_classes() -> list[type]:
    found = {
        item
        for module in modules()
        for item in vars(module).values()
        if inspect.isclass(item)
        and issubclass(item, SERIALISED)
        and item.__module__ == module.__name__
        and not issubclass(item, keras.Model)  # Saved whole; their own tests do that.
    }
    return sorted(found, key=lambda item: item.__name__)


@pytest.mark.parametrize("cls", serialised_classes(), ids=lambda cls: cls.__name__)
def test_what_keras_saves_comes_back_with_its_arguments(cls: type) -> None:
    arguments = ARGUMENTS[cls.__name__]  # A new class needs an entry here.
    config = cls(**arguments).get_config()
    assert arguments.items() <= config.items()
    again = cls.from_config(config)
    assert type(again) is cls
    assert again.get_config() == config


def test_lars_comes_back_through_keras() -> None:
    one = Lars(0.5, momentum=0.8)
    saved = keras.saving.serialize_keras_object(one)
    again = keras.saving.deserialize_keras_object(saved, custom_objects={"Lars": Lars})
    assert again.get_config() == one.get_config()


@pytest.mark.parametrize(
    "item",
    [
        LearningRateRule(alpha=0.5, critical_batch_size=100.0, form="linear"),
        NoiseScaleMonitor(every=7, half_life=None, unit="images", metric="adam"),
    ],
    ids=lambda item: type(item).__name__,
)
def test_a_rule_and_a_monitor_come_back_with_their_arguments(item: Any) -> None:
    again = type(item).from_config(item.get_config())
    assert again.get_config() == item.get_config()


def public_functions() -> list[tuple[str, Any]]:
    found = []
    for name in gns_keras.__all__:
        item = getattr(gns_keras, name)
        if not inspect.isclass(item):
            found.append((name, item))
            continue
        for key, member in inspect.getmembers(item):
            ours = str(getattr(member, "__module__", "")).startswith("gns_keras")
            if callable(member) and ours and (not key.startswith("_") or key == "__init__"):
                found.append((f"{name}.{key}", member))
    return found


@pytest.mark.parametrize(
    ("name", "function"), [pytest.param(*each, id=each[0]) for each in public_functions()]
)
def test_every_public_function_has_type_hints(name: str, function: Any) -> None:
    signature = inspect.signature(function)
    without = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.annotation is parameter.empty and parameter.name not in ("self", "cls")
    ]
    assert without == []
    assert signature.return_annotation is not signature.empty or name.endswith("__init__")


def test_the_type_hints_are_announced() -> None:
    assert (Path(gns_keras.__file__).parent / "py.typed").is_file()


def test_the_api_page_has_every_public_name() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "api.md").read_text()
    shown = {line.rpartition(".")[2] for line in page.splitlines() if line.startswith(":::")}
    assert set(gns_keras.__all__) <= shown
