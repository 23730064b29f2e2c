"""Time to 90 % on Fashion-MNIST: Vitrail's recipe beside timm in a plain loop and Hugging Face's Trainer, one architecture.

    python benchmarks/training.py race --seeds 0,1,2

4 px patches, 96 dimensions, 4 layers, 28 px, batch 128, moved by up to 1 px and mirrored. Vitrail trains with Muon over 8
epochs, the peers with AdamW and cosine over 16, at each of `--rates`; the best counts. Peers use the precision in which
their steps are shorter here. Four times an epoch the 10,000 test pictures are looked at, while the clocks stand still.
A run is a process of its own; its time is that of its processor, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from peers import PEERS, Shape
from vitrail.data import fashion
from vitrail.data.delivery import training_batches
from vitrail.recipes.asked import Asked, plan_run
from vitrail.recipes.assembly import Machine, checked_pictures, trainer_of
from vitrail.training.memory import Usage, freed_kept

SHAPE = Shape(96, 4, 3, 4, 28, 10, channels=1, hidden=192)
BATCH, AIM = 128, 0.9
EPOCHS = {"vitrail": 8, "timm": 16, "transformers": 16}


class Arrays(Dataset):
    """The training pictures in memory, each moved by up to a pixel and mirrored half of the time."""

    def __init__(self) -> None:
        self.images, self.labels = fashion.full()["train"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        down, right, mirrored = (int(value) for value in torch.randint(0, 6, (3,)))
        padded = np.pad(self.images[index], 1, mode="edge")[down % 3 :, right % 3 :][:28, :28]
        pixels = padded[:, ::-1] if mirrored < 3 else padded
        values = torch.from_numpy(np.ascontiguousarray(pixels)).float().div_(127.5).sub_(1)
        return {"pixel_values": values[None], "labels": int(self.labels[index])}


class Judge:
    """Looks at the test pictures from time to time, and knows the processor time of all that was not looking."""

    def __init__(self, every: int) -> None:
        images, labels = fashion.full()["test"]
        self.images, self.labels = torch.tensor(images)[:, None].float() / 127.5 - 1, torch.tensor(labels)
        self.every, self.looked, self.began = every, 0.0, time.process_time()

    def __call__(self, step: int, model: nn.Module) -> bool:
        if step % self.every:
            return True
        now, hits = time.process_time(), 0
        model.eval()
        with torch.no_grad():
            for images, labels in zip(self.images.split(500), self.labels.split(500), strict=True):
                answer = model(images)
                hits += int((getattr(answer, "logits", answer).argmax(1) == labels).sum())
        model.train()
        top1 = hits / len(self.labels)
        print(json.dumps({"step": step, "seconds": now - self.began - self.looked, "top1": top1}), flush=True)
        self.looked += time.process_time() - now
        return top1 < AIM


def ours(seed: int, precision: str, judge: Judge, total: int) -> None:
    settings = {
        "model.block.mlp.gelu": "erf", "model.pool": "class-token", "training.seed": str(seed), "training.precision": precision,
        "training.epochs": str(total * BATCH / 60_000), "training.batch_size": str(BATCH),
    }  # fmt: skip
    usage = Usage.begin()
    source, run = plan_run("fashion-mnist", Asked("fashion-mnist", None, None, (28, 28), settings))
    run = run.changed({"objective.label_smoothing": "0.0"})
    with tempfile.TemporaryDirectory() as scratch:
        machine = Machine("cpu", threads=torch.get_num_threads())
        trainer = trainer_of(run, source, checked_pictures(source, run), machine, Path(scratch), True, usage)
        judge.began = time.process_time()
        with freed_kept():
            for batch in training_batches(trainer.parts.batches, 0, total, 0):
                trainer._update(batch)
                if not judge(trainer.step, trainer.parts.objective.backbone):
                    return


def racer(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    epoch = 60_000 // BATCH
    total, judge = EPOCHS[arguments.name] * epoch, Judge(arguments.steps or epoch // 4)
    if arguments.name == "vitrail":
        ours(arguments.seed, arguments.precision, judge, total)
        return
    data, half = Arrays(), arguments.precision == "bfloat16"
    judge.began = time.process_time()

    def after(step: int, model: nn.Module) -> bool:
        return judge(step, model) and step != arguments.steps

    PEERS[arguments.name](SHAPE, data, BATCH, arguments.rate, total, half, "cpu", after)


def raced(name: str, precision: str, rate: float, seed: int, threads: int, steps: int = 0) -> list[dict[str, float]]:
    """What a process of its own told: step, processor seconds, top-1."""
    command = [
        sys.executable, __file__, "--name", name, "--precision", precision, "--rate", str(rate), "--seed", str(seed),
        "--threads", str(threads), "--steps", str(steps),
    ]  # fmt: skip
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def race(arguments: argparse.Namespace) -> None:
    print("| | precision | rate | seed | seconds to 90 % | epochs | best top-1 |\n|---|---|---|---|---|---|---|")
    for name in ("vitrail", *PEERS):
        precision = "bfloat16"
        if name != "vitrail":
            short = {
                kind: raced(name, kind, 1e-3, 0, arguments.threads, 20)[0]["seconds"]
                for kind in ("float32", "bfloat16")
            }
            precision = min(short, key=short.__getitem__)
        for rate in (0.0,) if name == "vitrail" else arguments.rates:
            for seed in arguments.seeds:
                found = raced(name, precision, rate, seed, arguments.threads)
                last = f"not in {found[-1]['seconds']:.0f} | {EPOCHS[name]}"
                epochs = {one["step"]: one["step"] * BATCH / 60_000 for one in found}
                times = (f"{one['seconds']:.0f} | {epochs[one['step']]:.2f}" for one in found if one["top1"] >= AIM)
                reached = next(times, last)
                shown = "recipe" if name == "vitrail" else f"{rate:g}"
                print(
                    f"| {name} | {precision} | {shown} | {seed} | {reached} | {max(one['top1'] for one in found):.2%} |",
                    flush=True,
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", choices=EPOCHS)
    parser.add_argument("--precision")
    parser.add_argument("--rate", type=float)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--steps", type=int)
    racer(parser.parse_args())
