"""A ViT, a hybrid and a ResNet of like size on Fashion-MNIST, each with its own recipe, over several seeds, side by side.

python benchmarks/backbones.py --tune             # the rates of each family, by the validation split; some 10 minutes
python benchmarks/backbones.py --seeds 0,1,2      # the table, with the rates that were found; some 30 minutes

All read the pictures at 32 px, which three halvings divide, and are trained by the recipe fashion-mnist (shift, mirror,
batch 128, label smoothing 0.1) for the same number of epochs, on one thread. Times are of this process's processor, so
that other work on the machine does not count. `--data fashion-mini --epochs 1` is a quick look.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from vitrail.data.batches import Pictures
from vitrail.data.sources import Source
from vitrail.deployment.classifier import Classifier
from vitrail.evaluation.accuracy import outcome
from vitrail.memory import Usage
from vitrail.model.sizes import cost
from vitrail.recipes.asked import Asked, plan_run
from vitrail.recipes.assembly import Machine, checked_pictures, checkpoint_of, trainer_of
from vitrail.recipes.run import Run
from vitrail.training.optimizer import SGD, AdamW, Muon, Optimizer

ENCODER = {
    "model.size.dim": "128", "model.size.heads": "4", "model.size.hidden": "256",
    "model.pool": "global-average", "model.tokenizer.patch": "[8,8]",
}  # fmt: skip
# Name -> what --model and --set say.
BACKBONES: dict[str, tuple[str, dict[str, str]]] = {
    "ViT": ("ViT-Ti/8", {**ENCODER, "model.size.depth": "4"}),
    "hybrid": ("R26+ViT-S/32", {**ENCODER, "model.size.depth": "3",
                                "model.tokenizer.trunk.stages": "[1,1]", "model.tokenizer.trunk.width": "32"}),
    "ResNet": ("R50x1", {"model.trunk.stages": "[2,2,1]", "model.trunk.width": "32"}),
}  # fmt: skip
MUON = tuple(Muon(lr=rate, adam_lr=rate / 10) for rate in (0.01, 0.02, 0.04))
ADAMW = tuple(AdamW(lr=rate) for rate in (1e-3, 3e-3, 1e-2))
MOMENTUM = tuple(SGD(lr=rate, weight_decay=1e-4) for rate in (0.03, 0.1, 0.3))
# Two optimizers and three rates for each, and one rate more where the largest was the best.
TRIALS: dict[str, tuple[Optimizer, ...]] = {
    "ViT": (*MUON, *ADAMW),
    "hybrid": (*MUON, *ADAMW),
    "ResNet": (*ADAMW, AdamW(lr=3e-2), *MOMENTUM, SGD(lr=1.0, weight_decay=1e-4)),
}
# The best of the trials; of the ResNet's, AdamW and SGD at 0.3 are one picture apart.
CHOSEN: dict[str, Optimizer] = {"ViT": MUON[1], "hybrid": MUON[0], "ResNet": ADAMW[2]}


def made(name: str, data: str, epochs: float, seed: int) -> tuple[Source, Run]:
    """The run of one backbone, without its optimizer."""
    model, settings = BACKBONES[name]
    training = {"training.epochs": str(epochs), "training.seed": str(seed), "training.evaluations": "1"}
    precision = {"training.precision": "float32"}  # all the same
    return plan_run(data, Asked("fashion-mnist", model, None, (32, 32), {**settings, **training, **precision}))


def trained(run: Run, source: Source, pictures: dict[str, Pictures], split: str) -> dict[str, Any]:
    """Top-1 on a split after the last step, its interval, and processor minutes of training and its one validation."""
    with tempfile.TemporaryDirectory() as scratch:
        trainer = trainer_of(run, source, pictures, Machine("cpu", threads=1), Path(scratch), True, Usage.begin())
        start = time.process_time()
        trainer.fit()
        seconds = time.process_time() - start
        model = trainer.parts.objective.backbone
    summary = outcome(Classifier(checkpoint_of(run, source, model)), pictures[split]).summary()
    images = trainer.total * run.training.batch_size
    return {**summary, "minutes": seconds / 60, "speed": images / seconds}


def tune(data: str, epochs: float, names: list[str]) -> None:
    """Every trial of every backbone, seed 0, judged on the validation split; the test split is not looked at."""
    print("| backbone | optimizer | top-1 on val | n | processor minutes |\n|---|---|---|---|---|", flush=True)
    for name in names:
        source, run = made(name, data, epochs, 0)
        pictures = checked_pictures(source, run)
        for optimizer in TRIALS[name]:
            found = trained(replace(run, optimizer=optimizer), source, pictures, "val")
            score, minutes = found["top1"], found["minutes"]
            print(f"| {name} | {optimizer} | {score:.2%} | {found['n']} | {minutes:.1f} |", flush=True)


def table(data: str, epochs: float, names: list[str], seeds: list[int]) -> None:
    """Every backbone with every seed, judged on the test split."""
    print("| backbone | parameters | MFLOP | seed | top-1 | 95 % CI | n | processor minutes | images/s |", flush=True)
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    scores: dict[str, list[float]] = {name: [] for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for seed in seeds:  # the backbones in turn, so that a busy hour does not meet one alone
        for name in names:
            source, run = made(name, data, epochs, seed)
            run = replace(run, optimizer=CHOSEN[name])
            found, counted = trained(run, source, checked_pictures(source, run), "test"), cost(run.model)
            scores[name].append(found["top1"])
            times[name].append(found["minutes"])
            low, high = found["top1_interval"]
            print(
                f"| {name} | {counted.parameters:,} | {counted.flops / 1e6:.1f} | {seed} | {found['top1']:.2%} "
                f"| {low:.2%}-{high:.2%} | {found['n']} | {found['minutes']:.1f} | {found['speed']:.0f} |", flush=True,
            )  # fmt: skip
    for name in names:
        several = len(seeds) > 1
        spread = f" ± {stdev(scores[name]):.2%}" if several else ""
        half = _half_width(scores[name]) if several else math.nan
        interval = f"± {half:.2%} (t, over seeds)" if several else ""
        print(f"| {name}, mean | | | n = {len(seeds)} | {mean(scores[name]):.2%}{spread} | {interval} "
              f"| | {mean(times[name]):.1f} | |", flush=True)  # fmt: skip


def _half_width(values: list[float]) -> float:
    """Half of the 95 % confidence interval of a mean, by Student's t; for 2 to 6 values."""
    quantile = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}[len(values)]
    return quantile * stdev(values) / math.sqrt(len(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--tune", action="store_true", help="try the rates, on the validation split")
    parser.add_argument("--epochs", type=float, help="default 3; with --tune 0.5")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--backbones", default=",".join(BACKBONES))
    arguments = parser.parse_args()
    names, seeds = arguments.backbones.split(","), [int(seed) for seed in arguments.seeds.split(",")]
    if unknown := [name for name in names if name not in BACKBONES]:
        sys.exit(f"there is no {unknown[0]} here: {', '.join(BACKBONES)}")
    if arguments.tune:
        tune(arguments.data, arguments.epochs or 0.5, names)
    else:
        table(arguments.data, arguments.epochs or 3.0, names, seeds)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
