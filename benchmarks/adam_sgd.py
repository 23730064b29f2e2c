"""Table 7 in small: a ResNet pre-trained with Adam and with SGD, then fine-tuned on other classes; several seeds.

python benchmarks/adam_sgd.py --seeds 0,1,2       # some 11 processor minutes a seed, one thread
python benchmarks/adam_sgd.py --data fashion-mini --epochs 2 --seeds 0

The paper: R50x1 on JFT-300M, Adam 77.54 %, SGD 78.24 % on ImageNet after fine-tuning, the mean of five sets 89.33 and
88.79 %; Adam was used for all of its ResNets. Here: seven classes of Fashion-MNIST to pre-train on, and three others
(Sneaker, Bag, Ankle boot), of 50 training images each, to fine-tune on with SGD, as in table 4. Each optimizer has its
rate from a grid on held-out pictures (vitrail train --lr).
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from statistics import mean, stdev

from PIL import Image

from vitrail.data.sources import open_source

OTHERS = ("Sneaker", "Bag", "Ankle boot")
SHOTS = 50
NETWORK = [
    "--model",
    "R50x1",
    "--image-size",
    "32",
    "--set",
    "model.trunk.stages=[2,2,1]",
    "--set",
    "model.trunk.width=32",
]
# Name -> optimizer, and the rates that are tried: Adam with decoupled decay as in table 3, SGD with momentum as BiT's.
OPTIMIZERS = {
    "Adam": (["--set", "optimizer=adamw", "--set", "optimizer.weight_decay=0.1"], "0.001,0.003,0.01"),
    "SGD": (["--set", "optimizer=sgd", "--set", "optimizer.weight_decay=0.0001"], "0.03,0.1,0.3"),
}


def written(data: str, folder: Path) -> tuple[Path, Path]:
    """Two lists of pictures: the seven classes with all their images, the three others with 50 training images each."""
    source = open_source(data)
    rows: dict[bool, list[tuple[str, str, str]]] = {True: [], False: []}
    for split in ("train", "test"):
        members, taken = source.split(split), Counter[str]()
        (folder / split).mkdir(parents=True)
        for index, target in enumerate(members.targets.argmax(axis=1)):
            label = source.classes[int(target)]
            taken[label] += 1
            if label in OTHERS and split == "train" and taken[label] > SHOTS:
                continue
            path = folder / split / f"{index:05d}.png"
            Image.fromarray(members.read(index, 1).squeeze()).save(path)
            rows[label in OTHERS].append((str(path.relative_to(folder)), label, split))
    paths = folder / "seven.csv", folder / "three.csv"
    for path, chosen in zip(paths, (rows[False], rows[True]), strict=True):
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("path", "label", "split"), *chosen])
    return paths


def train(data: Path, out: Path, *flags: str) -> float:
    """Top-1 on the test images."""
    command = [sys.executable, "-m", "vitrail", "train", str(data), "--out", str(out), "--json", *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}")
    return float(json.loads(done.stdout)["top1"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--epochs", default="4")
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in OPTIMIZERS}
    print("| optimizer | seed | pre-training, 7 classes | fine-tuned, 3 others |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        seven, three = written(arguments.data, Path(scratch) / "data")
        for seed in arguments.seeds.split(","):
            for name, (settings, rates) in OPTIMIZERS.items():
                start, end = (Path(scratch) / f"{name}-{seed}-{part}" for part in ("first", "second"))
                length = ["--epochs", arguments.epochs, "--batch-size", "128", "--set", "grid.share=0.25"]
                first = train(seven, start, *NETWORK, *settings, *length, "--lr", rates, "--seed", seed)
                tuning = ["--epochs", "60", "--batch-size", "32", "--lr", "0.001,0.003,0.01,0.03"]
                second = train(three, end, "--weights", str(start), *tuning, "--seed", seed)
                found[name].append((first, second))
                print(f"| {name} | {seed} | {first:.2%} | {second:.2%} |", flush=True)
    for name, pairs in found.items():
        cells = [f"{mean(c):.2%}" + (f" ± {stdev(c):.2%}" if len(c) > 1 else "") for c in zip(*pairs, strict=True)]
        print(f"| {name}, mean | n = {len(pairs)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
