"""`gns-keras reproduce`: Table 1 from the command line. TensorFlow is imported when it runs."""

import argparse
from collections.abc import Callable
from pathlib import Path

from gns_keras.tasks import get_task

DESCRIPTION = """\
Trains a task as the paper has it, measures the simple noise scale along the
way, and prints it early in the run and on average beside Table 1 of the paper
(McCandlish et al. 2018). Every number has its 95 % interval, or says
"unresolved: at least X"."""

EXAMPLES = """\
A run is one pass over the data unless --examples says otherwise; the paper's
runs are longer, and the output says how long yours was. Measuring costs about
as much again as training. With --store a run that was stopped by Ctrl-C, or
killed, goes on from its last point, and a finished one is made longer by a
larger --examples.

The critical batch sizes of Table 1 come from many runs: gns-keras sweep TASK.

examples:
  gns-keras reproduce digits                      seconds; not in the paper
  gns-keras reproduce mnist --examples 3_000      the start, in a minute
  gns-keras reproduce mnist --store mnist.sqlite  one pass over the data ...
  gns-keras reproduce mnist --store mnist.sqlite --examples 600_000  ... and on
  gns-keras reproduce cnn_fashion_mnist --seeds 3 --json svhn_network.json"""


def add_arguments(
    parser: argparse.ArgumentParser,
    positive: Callable[[str], int],
    output_file: Callable[[str], Path],
) -> None:
    """Declares the arguments of the command.

    Args:
        parser: Parser of the sub-command.
        positive: argparse type of a whole number of at least 1.
        output_file: argparse type of a file that can be written.
    """
    add = parser.add_argument
    add("task", metavar="TASK", help="one of those that gns-keras tasks lists")
    add(
        "--examples", type=positive, metavar="N",
        help="length of a run (default: one pass over the data; 1,000 updates without an end)",
    )  # fmt: skip
    add("--seeds", type=positive, default=1, metavar="K", help="runs; three give an interval that "
        "holds what differs between runs (default: 1)")  # fmt: skip
    add(
        "--early", type=positive, metavar="N",
        help="examples that count as the start (default: 5 %% of a pass, at least 20 updates)",
    )  # fmt: skip
    add(
        "--max-measured", type=positive, metavar="N",
        help="most examples that one point is measured on (default: 4,096; 512 of games)",
    )  # fmt: skip
    add("--store", type=output_file, metavar="F", help="keeps points and models, to go on from")
    add("--json", type=output_file, metavar="F", help="also write everything to F as JSON")
    add("--quiet", action="store_true", help="no progress bar; the result is still printed")


def run(args: argparse.Namespace, import_tensorflow: Callable[[], None]) -> None:
    """Runs or goes on with the task, prints the result, and writes what was asked for.

    Args:
        args: Parsed arguments.
        import_tensorflow: Imports TensorFlow; called once the task is known to exist.

    Raises:
        UnknownTargetError: There is no such task. It is a `ValueError`.
    """
    task = get_task(args.task)
    import_tensorflow()
    from gns_keras.reproduce.reproduce import reproduce

    result = reproduce(
        task,
        examples=args.examples,
        early=args.early,
        seeds=args.seeds,
        max_measured=args.max_measured,
        store=args.store,
        verbose=0 if args.quiet else 1,
    )
    print(result)  # noqa: T201  the command's output
    if args.json:
        args.json.write_text(result.to_json() + "\n", encoding="utf-8")
