"""A run with planted faults, and whether its report leads to each of them.

python benchmarks/faults/planted.py --out planted [--images 6000] [--epochs 20]

Pictures of Fashion-MNIST become a folder with train, val and test; 5 % of all labels are swapped, 40 test pictures are
copied from train (half as they are, half saved again as JPEG), and val has no picture of one class. Then
`vitrail train` runs, and the findings of the report are held against what was planted.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

from vitrail.data import fashion
from vitrail.recipes.execute import Asked, train
from vitrail.report.findings import findings
from vitrail.report.story import read_story

MISSING = "Bag"
LEAKS = 40


def plant(root: Path, images: int, seed: int = 0) -> dict[str, list[str]]:
    """Writes the folder, and returns the ids of what was planted."""
    random = np.random.default_rng(seed)
    pictures, labels = fashion.mini()["train"] if images <= 10_000 else fashion.full(None)["train"]
    chosen = random.permutation(len(labels))[:images]
    splits = np.array(["train"] * 8 + ["val"] + ["test"])[np.arange(images) % 10]
    swapped, where = [], {"train": [], "val": [], "test": []}
    for place, split in zip(chosen, splits, strict=True):
        label = labels[place]
        if split == "val" and fashion.CLASSES[label] == MISSING:
            split = "train"
        if random.uniform() < 0.05:
            label = (label + random.integers(1, 10)) % 10
            if not (split == "val" and fashion.CLASSES[label] == MISSING):
                swapped.append(f"{split}/{_folder(label)}/{place:05d}.png")
            else:
                label = labels[place]
        _save(root / split / _folder(label) / f"{place:05d}.png", pictures[place])
        where[split].append((place, label))
    leaked = []
    for number, index in enumerate(random.choice(len(where["train"]), LEAKS, replace=False)):
        place, label = where["train"][index]
        name = f"test/{_folder(label)}/copy-{place:05d}.{'png' if number % 2 else 'jpg'}"
        _save(root / name, pictures[place])
        leaked.append(name)
    return {"swapped": swapped, "leaked": leaked, "missing": [MISSING]}


def _folder(label: int) -> str:
    return fashion.CLASSES[label].replace("/", " or ")


def _save(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, **({"quality": 90} if path.suffix == ".jpg" else {}))


def check(folder: Path, planted: dict[str, list[str]]) -> None:
    """Prints what the report says of each fault."""
    story = read_story(folder)
    found = {finding.kind: finding for finding in findings(story)}
    with open(folder / "eval" / "suspects.csv", newline="") as file:
        suspects = [row["file"] for row in csv.DictReader(file)]
    swapped = set(planted["swapped"])
    for split in ("train", "val", "test"):
        named = {name for name in suspects if name.startswith(f"{split}/")}
        true = {name for name in swapped if name.startswith(f"{split}/")}
        right = len(named & true)
        print(f"swapped labels, {split:5}: {len(true)} planted, {len(named)} named, {right} rightly: "
              f"precision {right / max(1, len(named)):.2f}, recall {right / max(1, len(true)):.2f}")  # fmt: skip
    print(f"swapped labels, first 24 of the list: {sum(name in swapped for name in suspects[:24])} rightly")
    leaks = {m["id"] for p in story.problems if p["kind"] == "leak" for g in p["groups"] for m in g}
    print(f"duplicates across splits: {len(leaks & set(planted['leaked']))} of {len(planted['leaked'])} planted named, "
          f"{sum(p['count'] for p in story.problems if p['kind'] == 'leak')} groups in all")  # fmt: skip
    for kind in ("labels", "data-leak", "data-missing-class"):
        print(f"{kind}: {found[kind].title if kind in found else 'NOT FOUND'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--epochs", type=float, default=None)
    arguments = parser.parse_args()
    planted = plant(arguments.out / "data", arguments.images)
    (arguments.out / "planted.json").write_text(json.dumps(planted))
    settings = {} if arguments.epochs is None else {"training.epochs": str(arguments.epochs)}
    train(str(arguments.out / "data"), arguments.out / "run", Asked(settings=settings))
    check(arguments.out / "run", planted)


if __name__ == "__main__":
    main()
