"""Troubles in the middle of a run that are neither a kill nor a bad disk, twenty times each.

    python benchmarks/faults/troubles.py [worker] [crash] [hang] [nan] [two] [--trials 20] [--seed 0]

worker  one or two of the data workers are killed with signal 9 at random instants: others take their place, and the run
        ends by itself as the undisturbed one.
crash   one picture kills every worker that reads it: the run ends with VT088, which names the picture.
hang    one picture's reading does not end, with 0 or with 2 workers: the run ends with VT087, which names the picture.
nan     loss or gradient is NaN or infinite at a random step, in one setup after the other: the run ends with VT080, and
        weights, moving averages and optimizers are what they were before that step.
two     a second process begins the same run in the same folder: one of them ends it, the other is refused with VT022, or
        finds it done.

After each the trouble is taken away, and the same command must end as the undisturbed run (compared as in kill.py). Prints
a line per trial and `20/20` for each trouble; status 1 where one is not all.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from kill import (
    PLAIN,
    SETUPS,
    differing,
    ended,
    forked,
    new_folder,
    saved_step,
    tiny,
    undisturbed,
    verdict,
    without_pages,
    workshop,
)
from terminate import command_line

from vitrail.data import delivery
from vitrail.data.batches import Batch, Pictures
from vitrail.data.sources import open_source
from vitrail.errors import VitrailError
from vitrail.training import loop, state
from vitrail.training.loop import Trainer

STEPS = 60
PATIENCE = 0.4  # seconds, where a picture hangs

Trouble = Callable[[int, Path, random.Random], str | None]  # number of the trial, run folder: what is wrong


def goes_on(out: Path, name: str = "plain", workers: int = 0) -> str | None:
    """What is wrong with the end of the same command, without the trouble."""
    if ended(forked(lambda: tiny(workshop() / "data", out, STEPS, workers, SETUPS[name]))) != 0:
        return "the same command did not go on"
    differs = differing(undisturbed(name, STEPS)[1], out)
    return f"differs: {', '.join(differs)}" if differs else None


def refused(out: Path, status: int, expected: int, *words: str) -> str | None:
    """What is wrong with how a process ended, and with what it said."""
    text = out.with_suffix(".txt").read_text()
    missing = [word for word in words if word not in text]
    if status != expected or missing:
        return f"status {status}, said without {missing}: {text[-400:]}"
    found, passed = state.load(out / "checkpoints")
    return None if not passed and (found.step if found else 0) == saved_step(out) else f"the state: {passed}"


def worker(number: int, out: Path, luck: random.Random) -> str | None:
    run, killed, wanted = forked(lambda: tiny(workshop() / "data", out, STEPS, 2)), 0, luck.choice((1, 2))
    while (
        not (out / "metrics.jsonl").exists() and os.waitid(os.P_PID, run, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    ):
        time.sleep(0.001)  # until it trains
    while killed < wanted and os.waitid(os.P_PID, run, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(luck.uniform(0, 0.1))
        children = Path(f"/proc/{run}/task/{run}/children").read_text().split()
        if children:
            os.kill(int(luck.choice(children)), signal.SIGKILL)
            killed += 1
    if status := ended(run):
        return f"status {status}"
    if not killed:
        return "no worker was killed"
    told = (out / "events.log").read_text().count("a data worker was killed")
    print(f"  {killed} killed, {told} replaced", flush=True)
    return goes_on(out)


def some_picture(luck: random.Random) -> str:
    """Of the training split."""
    return luck.choice(open_source(str(workshop() / "data")).split("train").ids)


def with_picture(out: Path, name: str, times: int, workers: int, act: Callable[[], None]) -> int:
    """The command, in which the reading of a picture acts otherwise."""
    read, seen = Pictures.__getitem__, 0
    delivering = False

    def acting(pictures: Pictures, index: int) -> object:
        nonlocal seen
        if pictures.dataset.ids[index] == name and delivering:
            seen += 1
            if seen >= times:
                act()
        return read(pictures, index)

    def watched(*arguments: object, **named: object) -> object:
        nonlocal delivering
        delivering = True
        return delivery.training_batches(*arguments, **named, patience=PATIENCE)  # type: ignore[arg-type]

    Pictures.__getitem__ = acting  # type: ignore[method-assign, assignment]
    loop.training_batches = watched  # type: ignore[assignment]
    return command_line(out, STEPS, PLAIN, out.with_suffix(".txt"), workers)


def crash(number: int, out: Path, luck: random.Random) -> str | None:
    name, times = some_picture(luck), 1  # whoever reads it dies
    act = lambda: os.kill(os.getpid(), signal.SIGSEGV)  # noqa: E731
    status = ended(forked(lambda: with_picture(out, name, times, 2, act)))
    return refused(out, status, 1, "error[VT088]", name, "--workers 0") or goes_on(out)


def hang(number: int, out: Path, luck: random.Random) -> str | None:
    name, times = some_picture(luck), luck.randint(1, 3)  # and not when it is read for the first time
    workers = (0, 2)[number % 2]
    status = ended(forked(lambda: with_picture(out, name, times, workers, lambda: time.sleep(3600))))
    return refused(out, status, 3, "error[VT087]", name, "the same command goes on") or goes_on(out, workers=workers)


def held(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Copies of everything that learns, follows or remembers."""
    tensors = trainer.parts.objective.state_dict() | state.optimizer_tensors(trainer.parts.optimizers)
    return {name: values.clone() for name, values in tensors.items()}


def poisoned(out: Path, name: str, step: int, where: str, value: float) -> int:
    """The command, in which a step's loss or gradient is no number."""
    advance = Trainer.advance

    def acting(trainer: Trainer, batch: Batch) -> dict[str, float]:
        if trainer.step != step:
            return advance(trainer, batch)
        before, objective = held(trainer), trainer.parts.objective
        forward = objective.forward
        if where == "loss":
            objective.forward = lambda part: replace(s := forward(part), loss=s.loss * value)  # type: ignore[method-assign]
        else:
            learns = [values for values in objective.parameters() if values.requires_grad]
            learns[step % len(learns)].register_hook(lambda gradient: gradient * value)
        try:
            return advance(trainer, batch)
        except VitrailError:
            after = held(trainer)
            same = all(torch.equal(after[key], values) for key, values in before.items()) and len(after) == len(before)
            print("nothing has changed" if same else "something has changed", file=sys.stderr)
            raise

    Trainer.advance = acting  # type: ignore[method-assign]
    return command_line(out, STEPS, SETUPS[name], out.with_suffix(".txt"))


def nan(number: int, out: Path, luck: random.Random) -> str | None:
    name, step = list(SETUPS)[number % len(SETUPS)], luck.randrange(STEPS)
    where, value = luck.choice(("loss", "gradient")), luck.choice((float("nan"), float("inf")))
    status = ended(forked(lambda: poisoned(out, name, step, where, value)))
    good = f"the state of step-{step // 3 * 3} is good" if step >= 3 else "no state was saved yet"
    return refused(out, status, 1, "error[VT080]", f"step {step}:", good, "nothing has changed") or goes_on(out, name)


def two(number: int, out: Path, luck: random.Random) -> str | None:
    length, _ = undisturbed("plain", STEPS)
    texts = out.with_suffix(".txt"), out.with_suffix(".second.txt")
    first = forked(lambda: command_line(out, STEPS, PLAIN, texts[0]))
    time.sleep(luck.choice((0, luck.uniform(0, length / 2))))
    second = forked(lambda: command_line(out, STEPS, PLAIN, texts[1]))
    statuses = ended(first), ended(second)
    for status, text in zip(statuses, texts, strict=True):
        if status not in (0, 2) or (status == 2 and "error[VT022]" not in text.read_text()):
            return f"status {status}: {text.read_text()[-300:]}"
    print(f"  statuses {statuses}", flush=True)
    return "none ended" if 0 not in statuses else goes_on(out)


TROUBLES: dict[str, tuple[Trouble, str]] = {
    "worker": (worker, "workers were killed, and the run ended as the undisturbed one"),
    "crash": (crash, "ended with VT088 and the picture's name; the same command went on, bit for bit"),
    "hang": (hang, "ended with VT087 and the picture's name; the same command went on, bit for bit"),
    "nan": (nan, "ended with VT080 and everything unchanged; the same command went on, bit for bit"),
    "two": (two, "one ended as the undisturbed run, the other was refused or found it done"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("troubles", nargs="*", help=", ".join(TROUBLES))
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60)
    asked = parser.parse_args(arguments)
    without_pages()
    global STEPS
    failed, STEPS = 0, asked.steps
    for name in asked.troubles or TROUBLES:
        luck, good = random.Random(asked.seed), 0
        trouble, what = TROUBLES[name]
        for number in range(asked.trials):
            wrong = trouble(number, new_folder(name), luck)
            good += wrong is None
            print(f"trial {number + 1:2d}, {name}: {wrong or 'as it should be'}", flush=True)
        failed |= verdict(good, asked.trials, what)
    return failed


if __name__ == "__main__":
    sys.exit(main())
