"""Stories of runs that never were: what a run folder would hold, made to measure."""

from dataclasses import replace

import numpy as np

from vitrail.evaluation.predictions import Predictions
from vitrail.report.gallery import Tile, webp
from vitrail.report.story import Story

CLASSES = ("ash", "beech", "cedar")


def predictions(wrong=(), probability=0.9, count=300, classes=CLASSES):
    """`count` images of the classes in turn; `wrong` are (index, predicted class)."""
    labels = tuple(classes[index % len(classes)] for index in range(count))
    said = list(labels)
    for index, name in wrong:
        said[index] = name
    hit = np.array([one == other for one, other in zip(labels, said, strict=True)])
    rank = np.where(hit, 1, 2)
    files = tuple(f"test/{index}.png" for index in range(count))
    loss = np.where(hit, 0.1, 3.0)
    return Predictions(files, labels, tuple(said), np.full(count, probability), loss, rank)


def story(tmp_path, found=None, **changes):
    found = predictions([(index, "beech") for index in range(0, 90, 3)]) if found is None else found
    hits, total = int(found.hit.sum()), len(found)
    top1 = hits / total
    summary = {
        "n": total, "top1": top1, "top1_interval": [top1 - 0.03, min(1.0, top1 + 0.03)], "loss": 0.5, "split": "given",
        "baselines": [{"name": "nearest neighbours", "top1": 0.5, "interval": [0.45, 0.55], "how": "5 nearest",
                       "only_model": 150, "only_baseline": 20}],
        "train": {"n": 1000, "top1": top1 + 0.04, "top1_interval": [top1, 1.0]},
    }  # fmt: skip
    data = {"source": "trees", "classes": list(CLASSES), "counts": {"train": dict.fromkeys(CLASSES, 500)},
            "origin": {}, "examination": {"seen": 1500, "of": 1500, "problems": []}}  # fmt: skip
    whole = Story(
        tmp_path / "run", "vitrail train trees --out run --epochs 10\n", data=data, status={"status": "done"}, summary=summary,
        predictions=found, config={"run": {"training": {"epochs": 10.0}}, "machine": {"workers": 0}},
    )  # fmt: skip
    return replace(whole, **changes)


def with_summary(whole, **changes):
    return replace(whole, summary={**whole.summary, **changes})


def problem(kind, severity="error", fix="vitrail data split trees --out split.csv", members=()):
    group = [{"id": name, "split": split, "label": "ash"} for name, split in members]
    return {"kind": kind, "severity": severity, "title": f"2 pictures: {kind}", "why": "It matters.", "fix": fix,
            "count": 1, "groups": [group] if group else [],
            "leaked": {"test": [name for name, split in members if split == "test"]} if kind == "leak" else {}}  # fmt: skip


def with_problems(whole, *problems):
    examination = {"seen": 1, "of": 1, "problems": list(problems)}
    return replace(whole, data={**whole.data, "examination": examination})


def rich(tmp_path):
    """A story with something in every section."""
    wrong = [(index, CLASSES[(index + 1) % 3]) for index in range(0, 120, 2)]
    picture = webp(np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8))
    tiles = [
        Tile(kind, f"test/{index}.png", "test", "ash", "beech", 0.8, picture=picture, overlay=picture, pixelated=True)
        for kind in ("worst", "pair", "suspect")
        for index in range(5)
    ] + [Tile("leak", "test/1.png", "test", "ash", group="0", picture=picture)]
    suspects = [
        {"id": f"train/{n}.png", "split": "train", "label": "ash", "suggested": "beech", "doubt": 2.0} for n in range(5)
    ]
    records = [{"step": n, "epoch": n / 10, "train/loss": 2 / (1 + n), "train/top1": 0.5, "lr": 0.1, "images_per_second": 90.0,
                "data_wait": 0.5, "memory": 10**8} for n in range(1, 100)]  # fmt: skip
    records += [{"step": n, "epoch": n / 10, "val/top1": 0.5, "val/loss": 1.0} for n in (50, 99)]
    size = {"dim": 16, "depth": 1, "heads": 2, "hidden": 16}
    config = {"run": {"training": {"epochs": 10.0}, "model": {"size": size, "image_size": [8, 8]}},
        "origin": {"training.epochs": "recipe"},
              "why": ["because"], "cost": {"parameters": 1000, "flops_per_image": 10**6, "tokens": 17}}  # fmt: skip
    whole = story(
        tmp_path, predictions(wrong), gallery=tuple(tiles), suspects=tuple(suspects), records=tuple(records), config=config,
        environment={"processor": "one", "packages": {"torch": "2"}}, missing=("nothing but this line",),
    )  # fmt: skip
    return with_problems(
        whole, problem("leak", members=[("test/1.png", "test"), ("train/2.png", "train")]), problem("tiny", "note")
    )
