"""How long a user waits before anything happens: whole processes, from the start of the program to its end.

    python benchmarks/startup.py --runs 20

The commands take turns, so that a busy moment of the computer meets all of them. The last column is what Vitrail itself
costs: the difference to Python doing nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

NOTHING = "python -c pass"
COMMANDS = {
    "vitrail --help": [str(Path(sys.executable).with_name("vitrail")), "--help"],
    "python -c 'import vitrail'": [sys.executable, "-c", "import vitrail"],
    NOTHING: [sys.executable, "-c", "pass"],
}


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    for command in COMMANDS.values():
        seconds(command)  # the first run compiles, and reads from the disk
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    nothing = median(times[NOTHING])
    print(f"| whole process, median of {runs} | seconds | least | most | beyond Python |\n|---|---|---|---|---|")
    for name, found in times.items():
        middle = median(found)
        print(f"| `{name}` | {middle:.3f} | {min(found):.3f} | {max(found):.3f} | {middle - nothing:+.3f} |")


if __name__ == "__main__":
    main()
