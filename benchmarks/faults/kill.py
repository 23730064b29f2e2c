"""Kills a run again and again, at random instants; in the end it must be the run that nobody disturbed.

    python benchmarks/faults/kill.py [--trials 50] [--seed 0] [--steps 60] [--setups "plain;averaged"]

Every trial starts the same command until it ends by itself. Each start is killed with signal 9 after a time drawn
uniformly from half the length of the undisturbed run, so that kills hit the loading, the steps, the evaluations, the
judging and, since a state is saved after every third step, often a save. The trials take turns with everything that has
a state of its own: optimizers, moving averages, distillation, sampling, mixing, patch dropout, LoRA. Compared are the
SHA-256 of weights, of all that a run goes on from, of the best weights and predictions, and which state is called latest
and best. The processes are forked from one that has imported PyTorch: a start takes a tenth of a second, and the kills
hit the run itself. A run that ends before its first kill is started anew. Prints a line per trial and `50/50`; status 1
where a trial differs.
"""

from __future__ import annotations

import argparse
import atexit
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # the first step of an optimizer would import it, for two seconds in every start
from PIL import Image

from vitrail.recipes import execute
from vitrail.recipes.execute import Asked, Machine, train

BATCH, PER_EPOCH = 8, 4  # 32 of the 40 pictures are for training
MODEL = {
    "model.size.dim": "16", "model.size.depth": "1", "model.size.heads": "2", "model.size.hidden": "16",
    "model.block.dropout": "0.1",
}  # fmt: skip
MIXUP = {"augmentation.mixup": '{"alpha": 0.2}'}


@dataclass(frozen=True)
class Setup:
    """One kind of tiny run.

    Attributes:
        settings: TEACHER stands for the folder of a finished run.
        tuned: it starts from the teacher's weights.
    """

    settings: Mapping[str, str] = field(default_factory=lambda: MODEL | MIXUP)
    tuned: bool = False


SETUPS = {
    "plain": Setup(),
    "averaged": Setup(MODEL | {"objective": "averaged", "optimizer": "adamw"}),
    "sharpness-aware": Setup(MODEL | {"objective": "sharpness-aware", "optimizer": "sgd"}),
    "averaged sharpness-aware": Setup(MODEL | {"objective": '{"type": "averaged", "objective": {"type": "sharpness-aware"}}'}),
    "lion, repeated": Setup(MODEL | {"optimizer": "lion", "sampling": "repeated"}),
    "adamw, balanced": Setup(MODEL | MIXUP | {"optimizer": "adamw", "sampling": "balanced"}),
    "layer-decay, cutmix": Setup(MODEL | {"optimizer": "layer-decay", "augmentation.cutmix": '{"alpha": 1.0}'}),
    "adafactor, patch dropout": Setup(MODEL | {"optimizer": "adafactor", "thrift.patch_dropout": "0.5"}),
    "distillation": Setup(MODEL | {"objective": '{"type": "distillation", "teacher": "TEACHER"}'}),
    "bfloat16 buffer": Setup(MODEL | {"optimizer": '{"type": "sgd", "buffer": "bfloat16"}', "training.micro_batch": "3"}),
    "lora": Setup({"tuning": '{"type": "lora", "rank": 2}', "model.block.dropout": "0.1"}, tuned=True),
}  # fmt: skip
PLAIN = SETUPS["plain"]


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


def command(data: Path, steps: int, setup: Setup = PLAIN) -> Asked:
    """`steps` updates, a state after every third; a setup's teacher is the run `warm` beside the pictures."""
    teacher = str(data.parent / "warm")
    settings = {"training.precision": "float32", "training.micro_batch": "null"}  # not what this computer would choose
    settings |= {key: text.replace("TEACHER", teacher) for key, text in setup.settings.items()}
    settings |= {"training.batch_size": str(BATCH), "training.epochs": str(steps / PER_EPOCH)}
    settings |= {"training.evaluations": str(max(1, steps // 3))}
    return Asked(weights=teacher if setup.tuned else None, settings=settings)


def tiny(data: Path, out: Path, steps: int, workers: int = 0, setup: Setup = PLAIN) -> None:
    """A run from beginning to end, or from where it stands."""
    train(str(data), out, command(data, steps, setup), Machine("cpu", workers, threads=1), quiet=True)


def without_pages() -> None:
    """The runs of this program write no report: it takes most of a tiny run's time, and nothing of it is compared."""
    execute.describe = lambda folder: None


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


def differing(expected: Mapping[str, str], run: Path) -> list[str]:
    """What of a run is not as it should be."""
    found = digests(run)
    return [name for name in expected if found[name] != expected[name]]


def forked(work: Callable[[], object]) -> int:
    """The process that does `work` and nothing else; its status is what that returns, or 1 where it fails."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        status = int(work() or 0)  # type: ignore[call-overload]
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def ended(child: int, number: int | None = None, seconds: float = 0.0) -> int:
    """The exit status of a process, negative for a signal; sends it signal `number` after `seconds`."""
    timer = threading.Timer(seconds, os.kill, (child, number))
    if number is not None:
        timer.start()
    _, status = os.waitpid(child, 0)
    timer.cancel()
    if number is not None:
        timer.join()
    return os.waitstatus_to_exitcode(status)


def whole(work: Callable[[], object]) -> float:
    """Does `work` in a process of its own, undisturbed; the seconds it took."""
    start = time.monotonic()
    if ended(forked(work)) != 0:
        raise SystemExit("the run failed by itself; its message is above")
    return time.monotonic() - start


@cache
def workshop() -> Path:
    """A folder until the program ends: pictures in `data`, a teacher in `warm`, whose run has loaded what is loaded once."""
    torch.set_num_threads(1)  # before the first fork: a child has none of its parent's threads
    place = tempfile.TemporaryDirectory()
    atexit.register(place.cleanup)
    data = write_pictures(Path(place.name) / "data")
    whole(lambda: tiny(data, Path(place.name) / "warm", 12))
    return Path(place.name)


def new_folder(stem: str) -> Path:
    """A name in the workshop that is not taken."""
    return workshop() / f"{stem}-{len(list(workshop().iterdir()))}"


@cache
def undisturbed(name: str, steps: int) -> tuple[float, dict[str, str]]:
    """How long a setup's run takes that nobody disturbs, in seconds, and its digests."""
    data, out = workshop() / "data", new_folder("whole")
    length = whole(lambda: tiny(data, out, steps, 0, SETUPS[name]))
    print(f"undisturbed, {name}: {steps} steps in {length:.1f} s", flush=True)
    return length, digests(out)


def saved_step(run: Path) -> int:
    """The step of the state that `latest` names, 0 where there is none."""
    latest = run / "checkpoints" / "latest"
    return int(latest.read_text().strip().removeprefix("step-")) if latest.exists() else 0


def trial(name: str, steps: int, out: Path, luck: random.Random) -> list[int]:
    """Starts and kills a run until it ends; the steps that had been saved when the kills came."""
    length, _ = undisturbed(name, steps)
    reached: list[int] = []
    run = partial(tiny, workshop() / "data", out, steps, 0, SETUPS[name])
    while not reached:
        while status := ended(forked(run), signal.SIGKILL, luck.uniform(0, length / 2)):
            if status != -signal.SIGKILL:
                raise SystemExit("the run failed by itself; its message is above")
            reached.append(saved_step(out))
        if not reached:  # it came to its end first, and so was not tried: once more, and sooner
            shutil.rmtree(out)
            length /= 2
    return reached


def verdict(good: int, trials: int, what: str) -> int:
    """Prints the last line of a script; its exit status."""
    print(f"{what}: {good}/{trials}", flush=True)
    return 0 if good == trials else 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--setups", default=";".join(SETUPS), help="separated by ;")
    asked = parser.parse_args(arguments)
    luck, good, kills = random.Random(asked.seed), 0, 0
    names = asked.setups.split(";")
    for number in range(asked.trials):
        name, out = names[number % len(names)], new_folder("killed")
        reached = trial(name, asked.steps, out, luck)
        differs = differing(undisturbed(name, asked.steps)[1], out)
        kills += len(reached)
        good += bool(reached) and not differs
        told = f"differs: {', '.join(differs)}" if differs else "same"
        print(f"trial {number + 1:2d}, {name}: killed after steps {', '.join(map(str, reached))}: {told}", flush=True)
    return verdict(good, asked.trials, f"{kills} kills, runs that ended as the undisturbed one")


if __name__ == "__main__":
    sys.exit(main())
