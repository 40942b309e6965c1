"""The registry, and the task that needs no download."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from gns_keras.tasks import UnknownTargetError, digits, get_task


def test_an_unknown_task_is_refused_with_a_guess() -> None:
    with pytest.raises(UnknownTargetError, match=r"'digitts'. Did you mean 'digits'\? Tasks: "):
        get_task("digitts")


def test_tasks_are_imported_when_they_are_asked_for_and_tensorflow_not_even_then() -> None:
    code = """
import sys
from gns_keras.tasks import get_task, list_tasks
assert "gns_keras.tasks.digits" not in sys.modules
[get_task(name) for name in list_tasks()]
assert "gns_keras.tasks.digits" in sys.modules
heavy = {"tensorflow", "keras", "sklearn", "tensorflow_datasets"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_two_splits_hold_every_digit_of_scikit_learn_once() -> None:
    images, labels = load_digits(return_X_y=True)
    parts = [digits.load_data(split) for split in ("train", "test")]
    assert [len(x) for x, _ in parts] == [1500, 297]
    x = np.concatenate([x for x, _ in parts]).reshape(len(images), -1) * 16
    y = np.concatenate([y for _, y in parts])
    found = sorted(map(tuple, np.column_stack([x, y]).astype(int)))
    assert found == sorted(map(tuple, np.column_stack([images, labels]).astype(int)))


def test_pixels_lie_between_0_and_1_and_every_class_is_in_both_splits() -> None:
    for split in ("train", "test"):
        x, y = digits.load_data(split)
        assert (x.dtype, y.dtype, x.shape[1:]) == (np.float32, np.int32, (8, 8, 1))
        assert (x.min(), x.max()) == (0.0, 1.0)
        assert set(y) == set(range(10))


def test_the_split_is_the_same_on_every_call() -> None:
    np.testing.assert_array_equal(digits.load_data()[0], digits.load_data()[0])


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r'"train" or "test". Received: split=\'valid\''):
        digits.load_data("valid")


def test_without_scikit_learn_the_message_holds_the_pip_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-learn"):
        digits.load_data()


def test_the_learning_rate_reaches_the_last_goal_and_generalises() -> None:
    task = get_task("digits")
    model = task.build_model()
    x, y = task.load_data()
    # 20 epochs are 30,000 examples; benchmarks/task_learning_rates.py measured 18,368 to the goal.
    history = model.fit(x, y, batch_size=task.batch_size, epochs=20, verbose=0)
    assert history.history["loss"][-1] < task.goals[-1]
    _, accuracy = model.evaluate(*task.load_data("test"), verbose=0)
    assert accuracy > 0.95
