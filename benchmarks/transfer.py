"""What pre-trained weights are worth on a folder of one's own: neighbours, linear probe and fine-tuning, beside no weights.

    vitrail data split FOLDER --out clipart.csv       # no copy of a training picture is tested on
    python benchmarks/transfer.py clipart.csv --weights WEIGHTS --image-size 56 --tune        # rates, by the validation split
    python benchmarks/transfer.py clipart.csv --weights WEIGHTS --image-size 56 98 --seeds 0,1,2
    python benchmarks/transfer.py clipart.csv --weights small.npz --image-size 64 96x128 --recipe paper-fine-tuning

`clipart`, in the place of the CSV, is folders.py's: the ten largest named categories of openclipart-png, divided so.
All see whole pictures, stretched to the size. Frozen features are what `model.represent` gives; k and penalties are chosen
on the validation split, and the probes then fitted to it too (the protocols of `vitrail eval`). Fine-tuning:
the recipe, judged after its last step. One thread; minutes are of this process's processor.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vitrail.checkpoints.loading import read
from vitrail.data.batches import Pictures
from vitrail.data.division import divide, division_text
from vitrail.data.sources import Source
from vitrail.deployment.classifier import Classifier
from vitrail.evaluation.accuracy import outcome
from vitrail.evaluation.features import Features, features_of
from vitrail.evaluation.neighbours import Neighbours
from vitrail.evaluation.probes import LinearProbe, LogisticProbe
from vitrail.memory import Usage
from vitrail.recipes.asked import Asked, plan_run
from vitrail.recipes.assembly import Machine, checked_pictures, checkpoint_of, trainer_of
from vitrail.recipes.run import Run
from vitrail.statistics import Spread, spread_text, wilson_interval
from vitrail.training.optimizer import SGD, AdamW, LayerDecay, Optimizer

WHOLE = {"preprocessing.fit": "stretch", "preprocessing.crop_share": "1.0", "preprocessing.rounding": "none"}
PROTOCOLS = {"nearest neighbours": Neighbours(), "linear probe": LinearProbe(), "logistic probe": LogisticProbe()}
TRIALS: tuple[Optimizer, ...] = (
    SGD(lr=0.003), SGD(lr=0.01), SGD(lr=0.03), AdamW(1e-4, 0.05), LayerDecay(AdamW(5e-4, 0.05), 0.75),
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One size: the run of a fine-tuning and the pictures that it reads."""

    source: Source
    run: Run
    pictures: dict[str, Pictures]

    @classmethod
    def of(cls, data: str, asked: Asked) -> Task:
        source, run = plan_run(data, asked)
        return cls(source, run, checked_pictures(source, run))


def features(task: Task) -> dict[str, Features]:
    """By split, from the weights as they are."""
    assert task.run.weights is not None
    model = Classifier(read(task.run.weights, task.run.model.image_size))
    model.__dict__["checkpoint"] = replace(model.checkpoint, preprocessing=task.run.preprocessing)
    with torch.autocast("cpu", torch.bfloat16, enabled=task.run.training.precision == "bfloat16"):
        return {name: features_of(model, part, task.source.classes, name) for name, part in task.pictures.items()}


def _right(logits: NDArray[np.float32], targets: NDArray[np.float32]) -> NDArray[np.bool_]:
    return logits.argmax(axis=1) == targets.argmax(axis=1)


def fine_tuned(task: Task, run: Run, split: str) -> NDArray[np.bool_]:
    """Which pictures of a split the run knows after its last step."""
    with tempfile.TemporaryDirectory() as scratch:
        trainer = trainer_of(
            run, task.source, task.pictures, Machine("cpu", threads=1), Path(scratch), True, Usage.begin()
        )
        trainer.fit()
        model = trainer.parts.objective.backbone
    found = outcome(Classifier(checkpoint_of(run, task.source, model)), task.pictures[split])
    return _right(found.logits, found.targets)


def row(name: str, size: tuple[int, int], hits: int, total: int, begun: float) -> float:
    """Prints a row of the table; returns the share."""
    low, high = wilson_interval(hits, total)
    minutes = (time.process_time() - begun) / 60
    print(
        f"| {name} | {size[0]}x{size[1]} | {hits / total:.1%} | {low:.1%}-{high:.1%} | {total} | {minutes:.1f} |",
        flush=True,
    )
    return hits / total


def tune(task: Task, epochs: float) -> None:
    """Every trial, seed 0, judged on the validation split; the test split is not looked at."""
    for optimizer in TRIALS:
        run = replace(task.run, optimizer=optimizer, training=replace(task.run.training, epochs=epochs, evaluations=1))
        begun = time.process_time()
        right = fine_tuned(task, run, "val")
        row(f"val, {optimizer}", run.model.image_size, int(right.sum()), len(right), begun)


def compare(task: Task, seeds: list[int], frozen: bool) -> None:
    """All ways of one size, judged on the test split."""
    size, begun = task.run.model.image_size, time.process_time()
    if frozen:
        parts = features(task)
        for name, protocol in PROTOCOLS.items():
            record = protocol.measure(parts["train"], parts["val"], parts["test"])
            row(f"{name} of frozen features", size, round(record["top1"] * record["n"]), record["n"], begun)
    shares = []
    for seed in seeds:
        run = replace(task.run, training=replace(task.run.training, seed=seed, evaluations=1))
        begun = time.process_time()
        right = fine_tuned(task, run, "test")
        shares.append(row(f"fine-tuned, seed {seed}", size, int(right.sum()), len(right), begun))
    if len(shares) > 1:
        print(f"| fine-tuned, mean | {size[0]}x{size[1]} | {spread_text(Spread.of(shares))} | | | |")


def sides(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def divided(name: str, scratch: Path) -> str:
    """A CSV of the clip art without copies across splits, or what was asked for."""
    if name != "clipart":
        return name
    from folders import write_clipart

    write_clipart(scratch / "clipart")
    path = scratch / "clipart.csv"
    path.write_text(division_text(divide(str(scratch / "clipart")).rows, scratch))
    return str(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--image-size", nargs="+", type=sides, required=True)
    parser.add_argument("--recipe", default="fine-tune")
    parser.add_argument("--tune", action="store_true", help="try optimizers, on the validation split")
    parser.add_argument("--no-frozen", action="store_true", help="leave out what works on frozen features")
    parser.add_argument("--seeds", default="0", help="of the fine-tuning; empty for none")
    parser.add_argument("--set", nargs="*", default=[], help="KEY=VALUE of the run")
    arguments = parser.parse_args()
    settings = {**WHOLE, **dict(pair.split("=", 1) for pair in arguments.set)}
    with tempfile.TemporaryDirectory() as scratch:
        data = divided(arguments.data, Path(scratch))
        print("| how | pixels | top-1 | 95 % CI | n | processor minutes |\n|---|---|---|---|---|---|", flush=True)
        for size in arguments.image_size:
            task = Task.of(data, Asked(arguments.recipe, None, arguments.weights, size, settings))
            if arguments.tune:
                tune(task, task.run.training.epochs)
            else:
                compare(task, [int(seed) for seed in arguments.seeds.split(",") if seed], not arguments.no_frozen)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).parent))
    main()
