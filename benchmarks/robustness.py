"""Time and memory of the robustness report, a process for each number of images.

    OMP_NUM_THREADS=2 python benchmarks/robustness.py runs/vit runs/resnet
    OMP_NUM_THREADS=2 python benchmarks/robustness.py runs/vit runs/resnet --images 1000 --data fashion-mnist

Wall time is of the whole command, with starting Python and reading the data; memory is the peak resident size.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def measure(model: str, beside: str, data: str | None, images: int, out: Path) -> tuple[float, float]:
    """Seconds and MiB of one command."""
    command = [sys.executable, "-m", "vitrail", "eval", model, "--protocol", "robustness", "--beside", beside]
    command += ["--set", f"images={images}", "--out", str(out), *(["--data", data] if data else [])]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    _, said = process.communicate()
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(said)
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("beside")
    parser.add_argument("--data")
    parser.add_argument(
        "--images", type=int, nargs="+", default=[250, 1000, 4000]
    )  # growing: the peak is of all so far
    asked = parser.parse_args()
    print(f"{os.environ.get('OMP_NUM_THREADS', 'all')} threads\n| images | seconds | MiB |\n|---|---|---|")
    for images in sorted(asked.images):
        with tempfile.TemporaryDirectory() as folder:
            seconds, memory = measure(asked.model, asked.beside, asked.data, images, Path(folder))
        print(f"| {images:,} | {seconds:.0f} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    main()
