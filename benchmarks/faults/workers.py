"""The same command with 0, 1, 2 and 4 workers: the weights must be the same, bit for bit.

python benchmarks/faults/workers.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from kill import digests, new_folder, tiny, workshop


def main() -> int:
    found = {}
    with tempfile.TemporaryDirectory() as place:
        data = write_pictures(Path(place) / "data")
        for workers in (0, 1, 2, 4):
            tiny(data, Path(place) / f"workers-{workers}", 60, workers)
            found[workers] = digests(Path(place) / f"workers-{workers}")
            shown = "  ".join(f"{name} {found[workers][f'{name} hash'][:12]}" for name in ("weights", "optimizer"))
            print(f"{workers} workers: {shown}", flush=True)
    equal = all(found[workers] == found[0] for workers in found)
    print("all equal" if equal else "they differ")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
