"""What every building block of training does at a small budget: the plain run beside the same run with one block more.

    python benchmarks/ablation.py fashion-mini --epochs 6 --seeds 0,1 --out fashion.jsonl --teacher RUN
    python benchmarks/ablation.py clipart.csv --epochs 5 --seeds 0,1 --out clipart.jsonl --teacher RUN
    python benchmarks/ablation.py clipart.csv --weights WEIGHTS --image-size 42 --epochs 1 --out tuned.jsonl

Plain is the recipe from-scratch without label smoothing; with --weights, fine-tune by AdamW. Every run has the same
number of steps and is judged after its last one, on the test split. Each run is a line of --out, and one that is there
is not run again: with more seeds the command goes on. The table at the end has, for each block, top-1 over the seeds,
how much more than plain with a 95 % interval (images drawn again, paired, averaged over the seeds: the spread of
seeds is not in it), mean accuracy of the classes, top-1 on the validation split, and processor time as a ratio to plain.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitrail.data.batches import Pictures
from vitrail.data.mixing import CutMix, Mixup
from vitrail.data.order import Balanced, Repeated
from vitrail.data.sources import Source
from vitrail.data.transforms import RandAugment, RandomErasing, Transform
from vitrail.deployment.classifier import Classifier
from vitrail.evaluation.accuracy import outcome
from vitrail.evaluation.significance import bootstrap
from vitrail.memory import Usage
from vitrail.model.heads import LinearHead, TwoHeads
from vitrail.model.pools import DistilledToken
from vitrail.model.vit import ViTConfig
from vitrail.objectives.averaging import Averaged
from vitrail.objectives.distillation import Distillation
from vitrail.objectives.sharpness import SharpnessAware
from vitrail.objectives.supervised import Supervised, balanced_weights
from vitrail.recipes.asked import Asked, plan_run
from vitrail.recipes.assembly import Machine, checked_pictures, checkpoint_of, trainer_of
from vitrail.recipes.run import Run
from vitrail.training.optimizer import SGD, AdamW, LayerDecay, Lion
from vitrail.training.schedule import Linear
from vitrail.training.thrift import Growth, Thrift
from vitrail.training.tuning import Frozen, HeadOnly, LoRA

Change = Callable[[Run], Run]


def changed(**parts: Any) -> Change:
    return lambda run: replace(run, **parts)


def block(**parts: Any) -> Change:
    def change(run: Run) -> Run:
        assert isinstance(run.model, ViTConfig)
        return replace(run, model=replace(run.model, block=replace(run.model.block, **parts)))

    return change


def head(bias: float) -> Change:
    return lambda run: replace(
        run, model=replace(run.model, head=LinearHead(run.model.head.classes, bias)), objective=Supervised("sigmoid")
    )


def two_tokens(teacher: str) -> Change:
    """DeiT's: a second token with a head of its own, which learns the teacher's answers."""
    return lambda run: replace(
        run, objective=Distillation(teacher, "hard"),
        model=replace(run.model, pool=DistilledToken(), head=TwoHeads(run.model.head.classes)),
    )  # fmt: skip


def transform(*more: Transform) -> Change:
    return lambda run: replace(
        run, augmentation=replace(run.augmentation, transforms=(*run.augmentation.transforms, *more))
    )


def augmentation(**parts: Any) -> Change:
    return lambda run: replace(run, augmentation=replace(run.augmentation, **parts))


FROM_SCRATCH: dict[str, Change] = {
    "plain": changed(),
    "label smoothing 0.1": changed(objective=Supervised(label_smoothing=0.1)),
    "dropout 0.1": block(dropout=0.1),
    "DropPath 0.1": block(drop_path=0.1),
    "RandAugment 2, 10": transform(RandAugment(2, 10.0)),
    "random erasing 0.25": transform(RandomErasing()),
    "mixup 0.2": augmentation(mixup=Mixup(0.2)),
    "CutMix 1.0": augmentation(cutmix=CutMix(1.0)),
    "repeated augmentation 3": changed(sampling=Repeated(3)),
    "average 0.99": changed(objective=Averaged(Supervised(), 0.99)),
    "patch dropout 0.25": changed(thrift=Thrift(patch_dropout=0.25)),
    "images that grow": changed(thrift=Thrift(growth=Growth())),
    "recomputed blocks": changed(thrift=Thrift(recompute=True)),
    "SAM 0.05": changed(objective=SharpnessAware(Supervised(), 0.05)),
    "balanced sampling": changed(sampling=Balanced()),
    "class weights": lambda run: run,  # made by `blocks`, which knows the counts
    "no mirror, no shift or crop": augmentation(transforms=()),
    "sigmoid": head(0.0),
    "sigmoid, head bias -6.9": head(-6.9),
    "no clipping of the gradient": lambda run: replace(run, training=replace(run.training, clip=None)),
    "linear schedule": changed(schedule=Linear()),
    "AdamW 0.003 for Muon": changed(optimizer=AdamW(3e-3, 0.05)),
    "Lion 0.0003 for Muon": changed(optimizer=Lion(3e-4, 0.5)),
    "SGD 0.1 for Muon": changed(optimizer=SGD(0.1, weight_decay=1e-4)),
}
TUNED: dict[str, Change] = {
    "plain": changed(),
    "layer-wise decay 0.75, rate times 5": changed(optimizer=LayerDecay(AdamW(5e-4, 0.05), 0.75)),
    "first 6 blocks frozen": changed(tuning=Frozen(layers=6)),
    "LoRA 8 on query, value; rate times 10": changed(tuning=LoRA(), optimizer=AdamW(1e-3, 0.05)),
    "head alone; rate times 10": changed(tuning=HeadOnly(), optimizer=AdamW(1e-3, 0.05)),
    "SGD 0.01": changed(optimizer=SGD(0.01)),
    "label smoothing 0.1": changed(objective=Supervised(label_smoothing=0.1)),
    "DropPath 0.1": block(drop_path=0.1),
    "mixup 0.2": augmentation(mixup=Mixup(0.2)),
}


def blocks(source: Source, tuned: bool, teacher: str | None) -> dict[str, Change]:
    """Every block by name; those that need a teacher only where there is one."""
    if tuned:
        return TUNED
    counts = source.split("train").targets.sum(axis=0)
    weighted = Supervised(class_weights=balanced_weights([int(count) for count in counts]))
    taught: dict[str, Change] = {}
    if teacher is not None:
        taught = {
            "distillation, soft": changed(objective=Distillation(teacher, "soft", 2.0)),
            "distillation, hard": changed(objective=Distillation(teacher, "hard")),
            "distillation, hard, DeiT's token": two_tokens(teacher),
        }
    return {**FROM_SCRATCH, "class weights": changed(objective=weighted), **taught}


def trained(run: Run, source: Source, pictures: dict[str, Pictures]) -> dict[str, Any]:
    """One run as a line of the file; which images it got right is kept bit by bit."""
    with tempfile.TemporaryDirectory() as scratch:
        trainer = trainer_of(run, source, pictures, Machine("cpu", threads=1), Path(scratch), True, Usage.begin())
        start = time.process_time()
        trainer.fit()
        seconds = time.process_time() - start
        model = Classifier(checkpoint_of(run, source, trainer.parts.objective.backbone))
    found, held = outcome(model, pictures["test"]), outcome(model, pictures["val"])
    right, truth = found.order[:, 0] == found.targets.argmax(axis=1), found.targets.argmax(axis=1)
    classes = [float(right[truth == index].mean()) for index in np.unique(truth)]
    return {
        "n": len(right), "top1": float(right.mean()), "classes": mean(classes), "val": held.summary()["top1"],
        "seconds": round(seconds, 1), "right": np.packbits(right).tobytes().hex(),
    }  # fmt: skip


def hits(line: dict[str, Any]) -> NDArray[np.float64]:
    return np.unpackbits(np.frombuffer(bytes.fromhex(line["right"]), np.uint8))[: line["n"]].astype(np.float64)


def table(lines: Sequence[dict[str, Any]]) -> None:
    """Every block that was run, against plain with the same seeds."""
    plain = {line["seed"]: line for line in lines if line["block"] == "plain"}
    print("| block | seeds | top-1 | more than plain | 95 % CI | of the classes | val | time |")
    print("|---|---|---|---|---|---|---|---|")
    for name in dict.fromkeys(line["block"] for line in lines):
        mine = [line for line in lines if line["block"] == name and line["seed"] in plain]
        shares = [line["top1"] for line in mine]
        spread = f" ± {stdev(shares):.1%}" if len(mine) > 1 else ""
        differences = np.mean([hits(line) - hits(plain[line["seed"]]) for line in mine], axis=0)
        low, high = bootstrap(differences[:, None])[:, 0]
        beside = f"{differences.mean():+.1%} | {low:+.1%} to {high:+.1%}" if name != "plain" else "|"
        ratio = mean(line["seconds"] / plain[line["seed"]]["seconds"] for line in mine)
        classes, held = (mean(line[key] for line in mine) for key in ("classes", "val"))
        print(
            f"| {name} | {len(mine)} | {mean(shares):.1%}{spread} | {beside} | {classes:.1%} | {held:.1%} | {ratio:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a built-in set, a folder or a CSV")
    parser.add_argument("--epochs", type=float, default=5.0)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--out", type=Path, required=True, help="one line a run; goes on where it is there")
    parser.add_argument("--teacher", help="a run or weights, for distillation")
    parser.add_argument("--weights", help="fine-tune these, with the blocks of fine-tuning")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--set", nargs="*", default=[], help="KEY=VALUE of the plain run")
    parser.add_argument("--blocks", help="only these, by the beginnings of their names, with commas; plain always")
    arguments = parser.parse_args()
    size = (arguments.image_size,) * 2 if arguments.image_size else None
    settings = {"training.epochs": str(arguments.epochs), "training.evaluations": "1"}
    settings |= dict(pair.split("=", 1) for pair in arguments.set)
    source, run = plan_run(arguments.data, Asked(None, None, arguments.weights, size, settings))
    plain = replace(run, objective=Supervised())
    if arguments.weights:
        plain = replace(plain, optimizer=AdamW(1e-4, 0.05))
    chosen = blocks(source, arguments.weights is not None, arguments.teacher)
    if arguments.blocks:
        wanted = ("plain", *arguments.blocks.split(","))
        chosen = {name: change for name, change in chosen.items() if name.startswith(wanted)}
    lines = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    pictures = checked_pictures(source, plain)
    of = {name: str(value) for name, value in vars(arguments).items() if name not in ("out", "seeds", "blocks")}
    if strange := [line for line in lines if line["of"] != of]:
        raise SystemExit(f"{arguments.out} holds runs of other arguments, {strange[0]['of']}: name another file")
    for seed in map(int, arguments.seeds.split(",")):
        for name, change in chosen.items():
            if any((line["block"], line["seed"]) == (name, seed) for line in lines):
                continue
            seeded = replace(plain, training=replace(plain.training, seed=seed))
            lines.append({"of": of, "block": name, "seed": seed, **trained(change(seeded), source, pictures)})
            with arguments.out.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    table(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
