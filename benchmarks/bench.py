"""Every benchmark, one after the other: prints the tables of docs/performance.md.

    python benchmarks/bench.py --quick   # up to 5 minutes on two idle cores
    python benchmarks/bench.py           # a good hour
    python benchmarks/bench.py --only memory sweep

The quick tables have the same columns, and fewer rows and repeats. Nothing else should run on the
machine.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from tables import machine

FOLDER = Path(__file__).parent
# Title, script, its arguments in full, and quick ones.
PARTS = {
    "import": ("Import", "import_time.py", "", "--quick --repeats 1"),
    "overhead": (
        *("NoiseScaleMonitor", "overhead.py", "--repeats 35 --seconds 0.5"),
        "--repeats 9 --seconds 0.4 --batch-sizes 64",
    ),
    "floor": (
        *("NoiseScaleMonitor against its floor", "floor.py", ""),
        "--repeats 7 --seconds 0.5",
    ),
    "update": (
        *("Batches made of parts", "update_loop.py", "--repeats 9"),
        "--repeats 3 --seconds 0.7 --batch-sizes 256",
    ),
    "memory": ("Memory", "memory.py", "", "--width 2048 --repeats 1 --replicas 1"),
    "sweep": (
        *("Sweeps", "sweep.py", ""),
        "--repeats 3 --batch-sizes 32 128 512 --max-examples 300000",
    ),
    "advise": ("advise", "advise.py", "", "--tasks digits"),
}


def main() -> int:
    """Runs the parts; the exit code is 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rows and repeats")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    began = time.perf_counter()
    print(f"{machine()}; {'quick' if args.quick else 'full'}", flush=True)
    failed = []
    for name in args.only:
        title, script, full, quick = PARTS[name]
        arguments = (quick if args.quick else full).split()
        print(f"\n## {title}\n\n`{' '.join(['benchmarks/' + script, *arguments])}`\n", flush=True)
        started = time.perf_counter()
        ran = subprocess.run(
            [sys.executable, str(FOLDER / script), *arguments],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if ran.returncode:
            failed.append(name)
            print(f"failed:\n{ran.stderr[-2000:]}")
        print(f"\nTook {time.perf_counter() - started:.0f} s.", flush=True)
    print(f"\nAll in {time.perf_counter() - began:.0f} s; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
