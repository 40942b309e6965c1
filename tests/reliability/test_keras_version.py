"""A Keras that lacks a private name is refused at import, with the releases that have it."""

import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from gns_keras.training import keras_private

ROOT = Path(__file__).resolve().parents[2]


def test_the_installed_keras_has_every_name() -> None:
    keras_private.check_private_names(keras.Model, keras.optimizers.Optimizer)


@pytest.mark.parametrize("name", [*keras_private._MODEL_NAMES, *keras_private._OPTIMIZER_NAMES])
def test_a_release_without_a_name_is_refused_with_the_supported_ones(name: str) -> None:
    class Optimizer:
        pass

    class Model:
        pass

    for owner, names in (
        (Model, keras_private._MODEL_NAMES),
        (Optimizer, keras_private._OPTIMIZER_NAMES),
    ):
        for other in names:
            if other != name:
                setattr(owner, other, None)
    message = rf"needs Keras 3\.12 to 3\.15\. Received Keras [\d.]+, which lacks \w+\.{name}\."
    with pytest.raises(ImportError, match=message):
        keras_private.check_private_names(Model, Optimizer)


def test_every_private_name_that_is_used_is_checked() -> None:
    """Attributes of models and optimizers, by the names they have in the one module that may."""
    source = Path(keras_private.__file__).read_text()
    used = set(re.findall(r"\b(?:model|optimizer|inner)\.(_[a-z]\w+)", source))
    set_by_instances = {"_distribute_strategy", "_learning_rate", "_velocities"}
    checked = {*keras_private._MODEL_NAMES, *keras_private._OPTIMIZER_NAMES}
    assert used - set_by_instances <= checked


@pytest.mark.slow
def test_the_message_is_what_the_import_says() -> None:
    script = (
        "import keras\n"
        "name = '_symbolic_build'\n"
        "delattr(next(c for c in keras.Model.__mro__ if name in vars(c)), name)\n"
        "try:\n    from gns_keras import NoiseScaleMonitor\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert "needs Keras 3.12 to 3.15" in done.stdout, done.stderr
