"""Every private Keras name that this package touches, and nothing else does.

Written for Keras 3.12 to 3.15 on the TensorFlow backend; `constraints.txt` names the release that
the tests run on. Each function says which private name it stands for and why no public one does.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from gns_keras.training.instance_attributes import instance_attributes
from gns_keras.training.saved_state import MONITOR_STATE
from gns_keras.training.saved_state import read_saved_state as read_saved_state

SUPPORTED_KERAS = "3.12 to 3.15"
GLOBAL_SEED_GENERATOR = "global_seed_generator"  # Keras has no name for it before 3.13.
UNSUPPORTED = (
    f"gns_keras needs Keras {SUPPORTED_KERAS}. Received Keras {keras.__version__}, which lacks "
    "{lacking}. Install another: pip install 'keras>=3.12,<3.16'."
)
_MODEL_NAMES = ("_flatten_layers", "_make_function", "_maybe_symbolic_build", "_symbolic_build")
_OPTIMIZER_NAMES = (
    "_all_reduce_sum_gradients",
    "_get_current_learning_rate",
    "_get_variable_index",
)

try:
    from keras.src.backend.common import global_state
    from keras.src.saving.keras_saveable import KerasSaveable
except ImportError as error:
    raise ImportError(UNSUPPORTED.format(lacking=error.name)) from error


def check_private_names(model: type, optimizer: type) -> None:
    """Raises ImportError where a release of Keras lacks what this module needs."""
    wanted = [(model, name) for name in _MODEL_NAMES]
    wanted += [(optimizer, name) for name in _OPTIMIZER_NAMES]
    lacking = [f"{owner.__name__}.{name}" for owner, name in wanted if not hasattr(owner, name)]
    if lacking:
        raise ImportError(UNSUPPORTED.format(lacking=", ".join(lacking)))


@contextlib.contextmanager
def intercepted_reduce(
    optimizer: keras.optimizers.Optimizer,
    observer: Callable[[Sequence[Any], Sequence[Any]], None],
) -> Iterator[None]:
    """Shows `observer` the gradients before and after the optimizer's own all-reduce.

    `_all_reduce_sum_gradients` is the only place that has both, and there is no public way to
    apply gradients that are reduced already.
    """
    original = optimizer._all_reduce_sum_gradients

    def reduce(grads_and_vars: Any) -> Any:
        before = list(grads_and_vars)
        after = list(original(before))
        observer(before, after)
        return after

    with instance_attributes(optimizer, _all_reduce_sum_gradients=reduce):
        yield


def build_train_function(
    model: keras.Model, train_step: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    """Builds a train function around another step, leaving the model's own one in place."""
    stock = model.train_function
    try:
        with instance_attributes(model, train_step=train_step):
            model.make_train_function(force=True)
        return model.train_function
    finally:
        set_train_function(model, stock)


def set_train_function(model: keras.Model, function: Callable[[Any], Any] | None) -> None:
    """Replaces `model.train_function`, which `fit` reads anew at every step."""
    model.__dict__["train_function"] = function


def keras_mask(value: Any) -> tf.Tensor | None:
    """Mask that Keras has attached to an output (`_keras_mask`), or None."""
    return getattr(value, "_keras_mask", None)


def all_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """All layers at any depth, each once (`_flatten_layers`; `model.layers` is one level deep)."""
    return list(model._flatten_layers(include_self=False, recursive=True))


def apply_optimizer(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer that reduces and updates: the inner one of a LossScaleOptimizer."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def loss_scale(optimizer: keras.optimizers.Optimizer) -> Any | None:
    """The factor that `optimizer.scale_loss` puts on the loss, as a tensor or float, or None."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer.dynamic_scale.value if optimizer.built else optimizer.initial_scale
    return optimizer.loss_scale_factor


def clips_gradients(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether the optimizer clips, which it does before the all-reduce."""
    inner = apply_optimizer(optimizer)
    return any((inner.clipnorm, inner.clipvalue, inner.global_clipnorm))


def keeps_second_moments(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether the optimizer is of Adam's family: it will have `_velocities` once it is built."""
    family = ("Adam", "AdamW", "Nadam", "RMSprop", "Lamb")
    inner = apply_optimizer(optimizer)
    return any(kind.__name__ in family for kind in type(inner).__mro__)


def second_moments(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[Any]
) -> tuple[list[tf.Tensor], Any, float]:
    """Second moments (`_velocities`, without a public accessor), their decay, and epsilon."""
    inner = apply_optimizer(optimizer)
    decay = inner.rho if hasattr(inner, "rho") else inner.beta_2
    index = [inner._get_variable_index(variable) for variable in variables]
    return [tf.convert_to_tensor(inner._velocities[i].value) for i in index], decay, inner.epsilon


def has_several_workers(strategy: tf.distribute.Strategy) -> bool:
    """Whether replicas live in more than one process, which then have to decide alike."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def other_optimizers(model: keras.Model) -> list[str]:
    """Names of attributes that hold an optimizer besides the compiled one."""
    known = {id(model.optimizer), id(apply_optimizer(model.optimizer))}
    return [
        name
        for name, value in vars(model).items()
        if isinstance(value, keras.optimizers.Optimizer) and id(value) not in known
    ]


class SavedState(KerasSaveable):
    """Host-side state that travels in `.keras`, `.weights.h5` and BackupAndRestore.

    Keras saves every `KerasSaveable` it finds on a model. The state is none of `model.weights`, and
    a model file that holds it loads where gns_keras is not installed: unknown entries are skipped.

    Args:
        pack: Returns the state as arrays by name.
        unpack: Takes it back.
    """

    def __init__(
        self, pack: Callable[[], dict[str, Any]], unpack: Callable[[dict[str, Any]], None]
    ) -> None:
        self.pack = pack
        self.unpack = unpack

    def _obj_type(self) -> str:
        return "Loss"  # saving_lib knows a fixed list of kinds; a loss has no attributes to skip.

    def save_own_variables(self, store: Any) -> None:
        """Called by Keras on saving."""
        for name, value in self.pack().items():
            store[name] = value

    def load_own_variables(self, store: Any) -> None:
        """Called by Keras on loading."""
        stored = {name: store[name][()] for name in store.keys()}
        if stored:  # Else the file was saved without such a state.
            self.unpack(stored)

    def __reduce__(self) -> Any:
        return (object, ())  # A pickled or deep-copied model starts without it.


def attach_state(model: keras.Model, state: SavedState, name: str = MONITOR_STATE) -> None:
    """Hangs the state on the model, past attribute tracking."""
    model.__dict__[name] = state


def global_seed_generator() -> keras.random.SeedGenerator | None:
    """The seed generator that ops without a seed share; None before its use.

    `keras.random` draws from it and has no way to ask for it.
    """
    return global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)


def global_seed_state() -> Any | None:
    """State of the global seed generator, as an array; None before its use."""
    generator = global_seed_generator()
    return None if generator is None else generator.state.numpy()


def set_global_seed_state(state: Any | None) -> None:
    """Puts back what `global_seed_state` returned."""
    generator = global_seed_generator()
    if generator is None:
        return
    if state is None:
        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, None)
    else:
        generator.state.assign(state)


def creation_strategy(model: keras.Model) -> tf.distribute.Strategy | None:
    """Strategy in whose scope the model was created (`_distribute_strategy`), or None.

    `model.distribute_strategy` answers with the current one where there was none.
    """
    return model._distribute_strategy


def mend_multi_worker_fit(model: keras.Model) -> None:
    """Replaces two methods of one model that fail under MultiWorkerMirroredStrategy.

    `_maybe_symbolic_build` reduces a distributed batch to build the model's state; the worker's own
    part of it has the same structure. `_make_function` builds the train and the test function, and
    averages the step's logs along axis 0: here they get that axis. Its loop over
    `steps_per_execution` calls a function within control flow, where TensorFlow loses the keys of
    collectives ("You must feed a value for placeholder"): here it loops outside of the graph.
    """
    if "_make_function" in model.__dict__:
        return
    strategy = model._distribute_strategy
    make_function = model._make_function

    def own_part(batch: Any) -> Any:
        return keras.tree.map_structure(
            lambda value: strategy.experimental_local_results(value)[0], batch
        )

    def build(iterator: Any = None, data_batch: Any = None) -> None:
        if iterator is not None:
            data_batch = next(own_part(next(batches)) for _, _, batches in iterator)
        with strategy.scope():
            model._symbolic_build(data_batch=data_batch)

    def make(step_function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def with_axis(data: Any) -> Any:
            logs = step_function(data)
            return keras.tree.map_structure(lambda value: tf.convert_to_tensor(value)[None], logs)

        function = make_function(with_axis)

        def run(batches: Any) -> Any:
            distributed = isinstance(batches, tf.distribute.DistributedIterator)
            if distributed and model.steps_per_execution > 1:
                batches = itertools.chain([next(batches)], batches)  # Some Python iterator.
            return function(batches)

        return run

    model.__dict__.update(_maybe_symbolic_build=build, _make_function=make)
    set_train_function(model, None)
    model.__dict__["test_function"] = None


@contextlib.contextmanager
def reduced_update(
    optimizer: Any, learning_rate: Callable[[Any], Any], *, reduced: bool = True, **values: Any
) -> Iterator[None]:
    """For tracing `apply` with a learning rate of its own, and gradients that are `reduced`.

    `learning_rate` gets what the optimizer holds (`_learning_rate`: a variable, a schedule or a
    function) and returns what to use: users and callbacks keep seeing theirs. `values` stand for
    other attributes, such as `beta_2`.
    """
    inner = apply_optimizer(optimizer)
    if reduced:
        values["_all_reduce_sum_gradients"] = list
    values["_get_current_learning_rate"] = lambda: learning_rate(inner._learning_rate)
    with instance_attributes(inner, **values):
        yield


def held_learning_rate(optimizer: keras.optimizers.Optimizer) -> Any:
    """The variable, schedule or function behind `optimizer.learning_rate`."""
    return apply_optimizer(optimizer)._learning_rate


def build_state(model: keras.Model, batch: Any) -> None:
    """Creates the variables of model, metrics and optimizer from a batch (`_symbolic_build`)."""
    with model.distribute_strategy.scope():
        model._symbolic_build(data_batch=batch)


if keras.backend.backend() == "tensorflow":  # Others have none of them, and are refused by name.
    check_private_names(keras.Model, keras.optimizers.Optimizer)
