"""A recipe over several seeds: top-1 with its spread, time and peak memory.

python benchmarks/recipes.py fashion-mnist --recipe fashion-mnist --seeds 0,1,2
python benchmarks/recipes.py fashion-mini --recipe demo --seeds 0,1,2
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev


def run(data: str, recipe: str, seed: int, out: Path, extra: list[str]) -> dict:
    command = [
        sys.executable,
        "-m",
        "vitrail",
        "train",
        data,
        "--recipe",
        recipe,
        "--seed",
        str(seed),
        "--out",
        str(out),
    ]
    start = time.monotonic()
    process = subprocess.Popen([*command, "--json", *extra], stdout=subprocess.PIPE, text=True)
    answer = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"seed {seed}: status {status}\n{answer}")
    return {**json.loads(answer), "minutes": (time.monotonic() - start) / 60, "peak_mb": usage.ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--recipe", default="from-scratch")
    parser.add_argument("--seeds", default="0,1,2")
    arguments, extra = parser.parse_known_args()
    found = []
    print(
        "| seed | top-1 | 95 % CI | n | nearest neighbours | minutes | peak MB |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as scratch:
        for seed in map(int, arguments.seeds.split(",")):
            result = run(arguments.data, arguments.recipe, seed, Path(scratch) / str(seed), extra)
            found.append(result["top1"])
            low, high = result["top1_interval"]
            print(
                f"| {seed} | {result['top1']:.2%} | {low:.2%}-{high:.2%} | {result['n']} "
                f"| {result['baselines']['nearest neighbours']:.2%} | {result['minutes']:.1f} | {result['peak_mb']:.0f} |",
                flush=True,
            )
    spread = f" ± {stdev(found):.2%}" if len(found) > 1 else ""
    print(f"| mean of {len(found)} | {mean(found):.2%}{spread} | | | | | |")


if __name__ == "__main__":
    main()
