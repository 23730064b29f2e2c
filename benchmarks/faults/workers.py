"""The same command with 0, 1, 2 and 4 workers: the weights must be the same, bit for bit.

python benchmarks/faults/workers.py [--steps 60]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from kill import differing, new_folder, tiny, undisturbed, verdict, whole, workshop

WORKERS = (0, 1, 2, 4)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    steps, good = parser.parse_args(arguments).steps, 0
    _, expected = undisturbed("plain", steps)
    for workers in WORKERS:
        out = new_folder("workers")
        whole(lambda: tiny(workshop() / "data", out, steps, workers))  # noqa: B023  done at once
        differs = differing(expected, out)
        good += not differs
        print(f"{workers} workers: {', '.join(differs) or 'same'}", flush=True)
    return verdict(good, len(WORKERS), "numbers of workers with the same end")


if __name__ == "__main__":
    sys.exit(main())
