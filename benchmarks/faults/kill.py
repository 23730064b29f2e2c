"""Kills a run again and again, at random instants; in the end it must be the run that nobody disturbed.

    python benchmarks/faults/kill.py [--trials 20] [--seed 0] [--steps 60]

Every trial starts the same command until it ends by itself. Each start is killed with signal 9 after a time drawn
uniformly from half the length of the undisturbed run, so that kills hit the loading, the steps, the evaluations, the
judging and, since a state is saved after every third step, often a save. Compared are the SHA-256 of weights, optimizer
and predictions, and which state is called latest and best. The processes are forked from one that has imported PyTorch:
a start takes a tenth of a second, and the kills hit the run itself. Prints a line per trial and `20/20`; status 1 where
a trial differs, or was not killed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # the first step of an optimizer would import it, for two seconds in every start
from PIL import Image

from vitrail.recipes.execute import Asked, Machine, train

SETTINGS = {
    "model.size.dim": "16", "model.size.depth": "1", "model.size.heads": "2", "model.size.hidden": "16",
    "model.block.dropout": "0.1", "augmentation.mixup": '{"alpha": 0.2}', "training.batch_size": "8",
}  # fmt: skip


def write_pictures(root: Path) -> Path:
    """Forty grey pictures of 8 px in two classes that are not told apart at once."""
    generator = np.random.default_rng(0)
    for number, name in enumerate(("dark below", "light below")):
        (root / name).mkdir(parents=True)
        for index in range(20):
            picture = generator.integers(0, 200, (8, 8), dtype=np.uint8)
            picture[4:] += np.uint8(number * 40)
            Image.fromarray(picture).save(root / name / f"{index:02d}.png")
    return root


def tiny(data: Path, out: Path, steps: int, workers: int = 0) -> None:
    """`steps` updates of a batch of 8; 32 of the 40 pictures are for training."""
    settings = SETTINGS | {"training.epochs": str(steps / 4), "training.evaluations": str(max(1, steps // 3))}
    train(str(data), out, Asked(settings=settings), Machine("cpu", workers, threads=1), quiet=True)


def digests(run: Path) -> dict[str, str]:
    """What a resumed run must have in common with the undisturbed one."""
    pointers = {name: (run / "checkpoints" / name).read_text().strip() for name in ("latest", "best")}
    latest, best = (run / "checkpoints" / step for step in pointers.values())
    files = {
        "weights": latest / "model.safetensors",
        "optimizer": latest / "training.safetensors",
        "best": best / "model.safetensors",
        "predictions": run / "eval" / "test" / "predictions.csv",
    }
    return pointers | {f"{key} hash": hashlib.sha256(file.read_bytes()).hexdigest() for key, file in files.items()}


def attempt(data: Path, out: Path, steps: int, seconds: float | None) -> bool:
    """Starts the command in a process of its own and kills it after `seconds`; whether it came to its end."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            tiny(data, out, steps)
            status = 0
        finally:
            os._exit(status)
    if seconds is not None:
        timer = threading.Timer(seconds, os.kill, (child, signal.SIGKILL))
        timer.start()
    _, status = os.waitpid(child, 0)
    if seconds is not None:
        timer.cancel()
        timer.join()
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("the run failed by itself; its message is above")
    return os.WIFEXITED(status)


def trial(data: Path, out: Path, steps: int, length: float, luck: random.Random) -> list[str]:
    """The steps that had been saved when the kills came."""
    reached: list[str] = []
    while not attempt(data, out, steps, luck.uniform(0, length / 2)):
        latest = out / "checkpoints" / "latest"
        reached.append(latest.read_text().strip().removeprefix("step-") if latest.exists() else "0")
    return reached


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60)
    asked = parser.parse_args()
    torch.set_num_threads(1)  # before the first fork: a child has none of its parent's threads
    luck, good, kills = random.Random(asked.seed), 0, 0
    with tempfile.TemporaryDirectory() as place:
        data = write_pictures(Path(place) / "data")
        attempt(data, Path(place) / "warm", 3, None)
        start = time.monotonic()
        attempt(data, Path(place) / "whole", asked.steps, None)
        length = time.monotonic() - start
        expected = digests(Path(place) / "whole")
        print(
            f"undisturbed: {asked.steps} steps in {length:.1f} s, weights {expected['weights hash'][:12]}", flush=True
        )
        for number in range(asked.trials):
            out = Path(place) / f"trial-{number}"
            reached = trial(data, out, asked.steps, length, luck)
            kills += len(reached)
            found = digests(out)
            differing = [name for name in expected if found[name] != expected[name]]
            good += bool(reached) and not differing
            verdict = f"differs: {', '.join(differing)}" if differing else "same"
            print(f"trial {number + 1:2d}: killed after steps {', '.join(reached)}: {verdict}", flush=True)
    print(f"{kills} kills, runs that ended as the undisturbed one: {good}/{asked.trials}")
    return 0 if good == asked.trials else 1


if __name__ == "__main__":
    sys.exit(main())
