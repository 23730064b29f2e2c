"""`vitrail train FOLDER` without further flags, on folders it has never seen: does it beat nearest neighbours?

    python benchmarks/folders.py digits clipart --seeds 0,1,2

digits: scikit-learn's 1,797 scanned digits of 8x8 px, written out as PNG files in ten folders.
clipart: the ten largest named categories of Debian's openclipart-png (24 px to 16,000 px, alpha, palettes, imbalance,
near-duplicates). Every seed holds out other images and starts from other weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

import numpy as np
from PIL import Image

CLIPART = Path("/usr/share/openclipart/png")


def write_digits(folder: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        place = folder / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).round().astype(np.uint8)).save(place / f"{index:04d}.png")


def write_clipart(folder: Path) -> None:
    if not CLIPART.is_dir():
        raise SystemExit("clipart needs Debian's openclipart-png: apt-get install openclipart-png")
    sizes = {place: sum(1 for _ in place.rglob("*.png")) for place in CLIPART.iterdir() if place.name != "unsorted"}
    for place in sorted(sizes, key=sizes.__getitem__, reverse=True)[:10]:
        shutil.copytree(place, folder / place.name)


def train(folder: Path, out: Path, seed: int) -> dict:
    command = [
        sys.executable,
        "-m",
        "vitrail",
        "train",
        str(folder),
        "--seed",
        str(seed),
        "--set",
        f"data.split_seed={seed}",
    ]
    done = subprocess.run([*command, "--out", str(out), "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{folder.name}: exit status {done.returncode}\n{done.stdout}")
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", choices=["digits", "clipart"])
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.folders:
            folder = Path(scratch) / name
            {"digits": write_digits, "clipart": write_clipart}[name](folder)
            print(f"| {name} | this model | nearest neighbours | majority | n |\n|---|---|---|---|---|")
            found = []
            for seed in map(int, arguments.seeds.split(",")):
                result = train(folder, Path(scratch) / f"{name}-{seed}", seed)
                row = result["top1"], result["baselines"]["nearest neighbours"], result["baselines"]["majority class"]
                found.append(row)
                print(
                    f"| seed {seed} | " + " | ".join(f"{value:.1%}" for value in row) + f" | {result['n']} |",
                    flush=True,
                )
            print(
                "| mean | " + " | ".join(f"{mean(column):.1%}" for column in zip(*found, strict=True)) + " | |",
                flush=True,
            )


if __name__ == "__main__":
    main()
