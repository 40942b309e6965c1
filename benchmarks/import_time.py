"""What `import gns_keras` costs, alone and on top of `import keras`.

Each import runs in a process of its own, all kinds in turns, so that the other load of the machine
hits them alike; medians are printed. `gns_keras` imports its parts when they are first used, so the
second table shows what the first use of a public name adds.

    python benchmarks/import_time.py
    python benchmarks/import_time.py --repeats 15
"""

import argparse
import os
import statistics
import subprocess
import sys

from tables import head, machine, row

TARGET_S = 0.3
# What is imported first and not timed, and what is timed.
CASES = {
    "keras": ("", "import keras"),
    "keras and gns_keras": ("", "import keras, gns_keras"),
    "gns_keras, on top of keras": ("import keras", "import gns_keras"),
    "gns_keras, alone": ("", "import gns_keras"),
    "NoiseScaleMonitor, on top of keras": (
        "import keras",
        "import gns_keras; gns_keras.NoiseScaleMonitor",
    ),
    "advise, on top of keras": ("import keras", "import gns_keras; gns_keras.advise"),
}


def measure(before: str, timed: str) -> tuple[float, float]:
    """Returns wall and processor seconds of `timed` in a new process, after `before`."""
    code = (
        f"import time\n{before}\n"
        f"wall, cpu = time.perf_counter(), time.process_time()\n{timed}\n"
        "print(time.perf_counter() - wall, time.process_time() - cpu)"
    )
    environment = {
        **os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    wall, cpu = ran.stdout.split()[-2:]
    return float(wall), float(cpu)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="fill the file cache only once")
    args = parser.parse_args()
    warm_up = list(CASES.values())[-1:] if args.quick else CASES.values()
    for before, timed in warm_up:
        measure(before, timed)  # Fills the file cache and writes the bytecode.
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for _ in range(args.repeats):
        for name, (before, timed) in CASES.items():
            taken[name].append(measure(before, timed))
    print(f"{machine()}; medians of {args.repeats}\n")
    head("import", "s", "processor s", "aim")
    for name, times in taken.items():
        wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        aim = TARGET_S if name == "gns_keras, on top of keras" else ""
        row(name, f"{wall:.3f}", f"{cpu:.3f}", aim)


if __name__ == "__main__":
    main()
