"""The command line: `gns-keras advise`, `sweep`, `reproduce` and `tasks`.

Nothing heavy is imported at the top: `gns-keras --help` must not wait for TensorFlow.
"""

import argparse
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from gns_keras import __version__
from gns_keras.reproduce import command as reproduce_command
from gns_keras.sweep import command as sweep_command
from gns_keras.sweep.argument_types import not_negative, output_file, positive
from gns_keras.tasks import UnknownTargetError, get_task
from gns_keras.tasks import command as tasks_command
from gns_keras.tasks.custom import call_function, import_function, parse_target
from gns_keras.training.quiet_start import import_tensorflow

EXIT_OK, EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
_MAX_MESSAGE = 2000  # Characters of an error message that fit on a screen.

_DESCRIPTION = """\
Which batch size and learning rate should a Keras model be trained with?
gns-keras measures the gradient noise scale of the model on its own data,
predicts the critical batch size from it, and says what each batch size would
cost."""

_EXAMPLES = """\
examples:
  gns-keras advise digits                   a first look: nothing to download
  gns-keras advise mnist --html mnist.html  on MNIST, with a report to keep
  gns-keras advise train:build              your model: build() in train.py
  gns-keras sweep digits --store d.sqlite   the critical batch size, measured
  gns-keras reproduce digits                the noise scale along a run
  gns-keras tasks                           what can stand in place of "digits"

exit codes:
  0 fine, 1 failed (one line on stderr says why), 2 wrong usage,
  130 stopped by Ctrl-C"""

_ADVISE = """\
Measures the gradient noise scale in a short training run, and prints what each
batch size costs and which one to use. Weights and seeds are restored
afterwards; nothing is trained for good."""

_TARGET_HELP = """\
TARGET is a task (gns-keras tasks lists them) or package.module:function, a
function of yours without arguments. It returns (model, data) or
(model, data, batch_size):

  # train.py
  def build():
      model = keras.Sequential([...])
      model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
      return model, (x, y), 32

model is a compiled keras.Model. data is a batched tf.data.Dataset, or arrays
(x, y) or (x, y, sample_weight). The module is looked for in the current folder
first.

examples:
  gns-keras advise digits --budget 50_000
  gns-keras advise train:build --batch-size 64 --max-batch-size 4096
  gns-keras advise my_project.train:build --objective time --json advice.json

TF_CPP_MIN_LOG_LEVEL=0 in the environment brings back the log of TensorFlow."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Arguments without the program's name; None for those of the process.

    Returns:
        The exit code: 0 fine, 1 failure, 2 wrong usage, 130 stopped by Ctrl-C.
    """
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed its message, the help or the version.
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    try:
        args.run(args)
    except UnknownTargetError as error:
        return _complain(error, args, EXIT_USAGE)
    except KeyboardInterrupt:
        print("gns-keras: stopped by Ctrl-C", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        return _complain(error, args, EXIT_FAILURE)
    return EXIT_OK


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the whole command line; `args.run` is the function of the command."""
    parser = argparse.ArgumentParser(
        prog="gns-keras",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gns-keras {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    advise = commands.add_parser(
        "advise",
        help="recommend a batch size and a learning rate",
        description=_ADVISE,
        epilog=_TARGET_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_advise_arguments(advise)
    sweep = commands.add_parser(
        "sweep",
        help="measure the critical batch size with tuned runs over batch sizes",
        description=sweep_command.DESCRIPTION,
        epilog=sweep_command.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sweep_command.add_arguments(sweep, positive, output_file)
    sweep.set_defaults(run=lambda args: sweep_command.run(args, import_tensorflow))
    reproduce = commands.add_parser(
        "reproduce",
        help="measure a task of the paper along its training, beside Table 1",
        description=reproduce_command.DESCRIPTION,
        epilog=reproduce_command.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    reproduce_command.add_arguments(reproduce, positive, output_file)
    reproduce.set_defaults(run=lambda args: reproduce_command.run(args, import_tensorflow))
    tasks = commands.add_parser("tasks", help="list the tasks that come with gns-keras")
    tasks_command.add_arguments(tasks, output_file)
    tasks.set_defaults(run=tasks_command.run)
    for command in (advise, sweep, reproduce, tasks):
        command.add_argument(
            "--traceback", action="store_true", help="after a failure, also print where it happened"
        )
    return parser


def _add_advise_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_run_advise)
    parser.add_argument("target", metavar="TARGET", help="a task or package.module:function")
    parser.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help="small batch size to measure at (default: that of the task, the function or the "
        "dataset, else 32)",
    )
    parser.add_argument(
        "--budget",
        type=positive,
        metavar="N",
        help="examples to spend at most (default: until the answer is resolved)",
    )
    parser.add_argument(
        "--target-loss",
        type=float,
        metavar="L",
        help="training loss to reach, as compiled (default: where the run is heading)",
    )
    parser.add_argument(
        "--run-examples",
        type=positive,
        metavar="N",
        help="examples that you are going to train on, instead of a loss",
    )
    parser.add_argument(
        "--learning-rate",
        choices=("check", "search", "keep"),
        default="check",
        help="check it by short runs, search a better one, or keep it unseen (default: check)",
    )
    parser.add_argument(
        "--objective",
        choices=("balanced", "time", "cost"),
        default="balanced",
        help="what to save: training time, compute cost, or both alike (default: balanced)",
    )
    parser.add_argument(
        "--max-batch-size", type=positive, metavar="N", help="recommend no batch size above this"
    )
    parser.add_argument(
        "--seed", type=not_negative, default=0, metavar="N", help="random seed (default: 0)"
    )
    parser.add_argument(
        "--json", type=output_file, metavar="F", help="also write the result to F as JSON"
    )
    parser.add_argument(
        "--html", type=output_file, metavar="F", help="also write a report to F, one HTML page"
    )
    parser.add_argument(
        "--quiet", action="store_true", help="no progress bar; the recommendation is still printed"
    )


def _run_advise(args: argparse.Namespace) -> None:
    """Builds the target, asks `advise`, and shows and writes its answer."""
    is_task = args.target.isidentifier()
    load = _find_task(args.target) if is_task else _find_own(args.target)
    import_tensorflow()
    import keras

    from gns_keras.advise import advise

    keras.utils.set_random_seed(args.seed)  # The weights are drawn by the next line.
    model, data, batch_size = load()
    advice = advise(
        model,
        data,
        batch_size=args.batch_size or batch_size,
        budget=args.budget,
        target_loss=args.target_loss,
        run_examples=args.run_examples,
        objective=args.objective,
        max_batch_size=args.max_batch_size,
        learning_rate=args.learning_rate,
        seed=args.seed,
        verbose=0 if args.quiet else 1,
    )
    print(advice)
    if is_task and (note := get_task(args.target).in_units(advice.batch_size)):
        print(note)
    if args.json:
        args.json.write_text(advice.to_json() + "\n", encoding="utf-8")
    if args.html:
        advice.to_html(args.html)


Loader = Callable[[], tuple[Any, Any, int | None]]


def _find_task(name: str) -> Loader:
    """Returns the function that builds a task's model and loads its data."""
    task = get_task(name)

    def load() -> tuple[Any, Any, int]:
        model = task.build_model()
        return model, task.training_data(model), task.examples_per_batch

    return load


def _find_own(target: str) -> Loader:
    """Returns the function that does the same for a function of the user."""
    module, function = parse_target(target)  # Fails at once on a typing error, before ...
    import_tensorflow()  # ... this takes seconds; the module is going to need it.
    own = import_function(module, function)
    return lambda: call_function(own, target)


def _complain(error: Exception, args: argparse.Namespace, code: int) -> int:
    """Prints one line on stderr and returns the exit code."""
    if args.traceback:
        traceback.print_exception(error)
    text = str(error)
    if text.startswith("in user code:"):  # AutoGraph puts a whole traceback into the message.
        text = text.rstrip().rpartition("\n")[2].strip().removeprefix(f"{type(error).__name__}: ")
    text = textwrap.shorten(text, _MAX_MESSAGE)
    hint = ""
    if code == EXIT_FAILURE:
        text = f"{type(error).__name__}: {text}"
        hint = "" if args.traceback else " (--traceback shows where)"
    print(f"gns-keras: {text}{hint}", file=sys.stderr)
    return code
