"""A fault at every system call of a save, one after the other: killed, the disk full, the disk failing.

    python benchmarks/faults/saves.py [--every 1] [--faults KILL,ENOSPC,EIO] [--goes-on 1]

A run stands before its fourth save, which will also remove an older state. That save is done once under `strace`, which
counts its calls; they are all made by one thread. Then it is done again and again from the same folder, each time with
one fault at one call: signal 9 at any of them; "no space left" or "input/output error" as the answer of any that can
answer so. After each, a whole state must be there, the new one or the one before; a process that was not killed must
have saved, or ended with an error of Vitrail's that says what to do; nothing of the folder may keep the same command from
going on, and what it ends with must be what the undisturbed run ends with. Prints a line per kind of call and
`570/570`; status 1 where anything differs. Needs strace (Debian: apt install strace) and the right to trace one's own child.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kill import PLAIN, differing, ended, forked, new_folder, tiny, undisturbed, verdict, without_pages, workshop

from vitrail.errors import VitrailError
from vitrail.training import state
from vitrail.training.loop import Trainer

STEPS, SAVE = 15, 4  # states of steps 3, 6, 9, 12 and 15
SAVED, ENDED, BROKEN = 0, 7, 8  # how the process ends: it saved, an error of Vitrail's, another error
READING = {"read", "pread64", "lseek", "getdents64", "fcntl", "ioctl", "newfstatat", "fstat", "lstat", "stat", "statx"}
TRACED = "trace=%file,%desc"
FAULTS = {"KILL": "signal=KILL", "ENOSPC": "error=ENOSPC", "EIO": "error=EIO"}


class Reached(BaseException):
    """The run has come to the save that is looked at."""


@dataclass(frozen=True)
class Standing:
    """A run before a save: its live parts, and a copy of its folder as it was then."""

    trainer: Trainer
    copy: Path

    def again(self) -> Path:
        """The folder as it was; the copy's lock is nobody's."""
        shutil.rmtree(self.trainer.folder, ignore_errors=True)
        shutil.copytree(self.copy, self.trainer.folder)
        return self.trainer.folder


def standing() -> Standing:
    """Runs up to the save; everything the run held is let go."""
    saves, save, found = 0, Trainer._save, list[Trainer]()

    def counting(trainer: Trainer) -> float:
        nonlocal saves
        saves += 1
        if saves == SAVE:
            found.append(trainer)
            raise Reached
        return save(trainer)

    Trainer._save = counting  # type: ignore[method-assign]
    try:
        tiny(workshop() / "data", new_folder("saving"), STEPS)
    except Reached:
        pass
    finally:
        Trainer._save = save  # type: ignore[method-assign]
    trainer = found[0]
    return Standing(trainer, Path(shutil.copytree(trainer.folder, new_folder("standing"))))


def saving(trainer: Trainer, go: int) -> int:
    """What is traced: one save, and how it ended."""
    os.read(go, 1)
    try:
        trainer._save()
        return SAVED
    except VitrailError as error:
        print(f"{error.code} {error}", file=sys.stderr)
        return ENDED if error.fix else BROKEN
    finally:
        os.write(2, b"the save is over\n")  # the mark where counting ends


def traced(trainer: Trainer, *options: str) -> tuple[int, str]:
    """How a save ends that strace disturbs, and what strace wrote down; -f would show a second thread."""
    ready, go = os.pipe()
    child = forked(partial(saving, trainer, ready))
    tracer = subprocess.Popen(
        ["strace", "-f", "-p", str(child), "-s", "64", *(text for option in options for text in ("-e", option))],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert tracer.stderr is not None
    said = tracer.stderr.readline()
    if "attached" not in said:
        os.kill(child, 9)
        raise SystemExit(f"strace cannot trace here: {said}")
    os.write(go, b"g")
    written = tracer.stderr.read()
    status = ended(child)
    tracer.wait()
    os.close(ready)
    os.close(go)
    return status, written


def calls(trainer: Trainer) -> Counter[str]:
    """The system calls of a save that touch files, by name, in their number."""
    status, written = traced(trainer, TRACED)
    lines = written.split('"the save is over')[0].splitlines()[
        1:-1
    ]  # from the read that waits to the write of the mark
    if status != SAVED or any(line.startswith("[pid") for line in lines):
        raise SystemExit(f"the save failed by itself, or more than one thread made it\n{written[-2000:]}")
    return Counter(found[1] for line in lines if (found := re.match(r"(\w+)\(", line)))


def faults(counted: Counter[str], kinds: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    """(fault, call, the how many-th), in order."""
    for kind in kinds:
        for name, count in counted.items():
            if kind != "ENOSPC" or name not in READING:
                yield from ((kind, name, number + 1) for number in range(count))


def wrong(standing: Standing, kind: str, name: str, number: int, goes_on: bool) -> str | None:
    """What went wrong with a fault, if anything."""
    folder = standing.again()
    new, former = standing.trainer.step, standing.trainer.step - 3
    status, written = traced(standing.trainer, f"inject={name}:{FAULTS[kind]}:when={number}")
    if "(INJECTED)" not in written and "SIGKILL" not in written:
        return "no fault came"
    if status not in ({-9} if kind == "KILL" else {SAVED, ENDED}):
        return f"the process ended with {status}"
    found, passed = state.load(folder / "checkpoints")
    if found is None or found.step not in (new, former) or (status == SAVED and found.step != new):
        return f"the newest whole state is {found and found.step}; {passed}"
    if not goes_on:
        return None
    if ended(forked(lambda: tiny(workshop() / "data", folder, STEPS, 0, PLAIN))) != 0:
        return "the same command did not go on"
    differs = differing(undisturbed("plain", STEPS)[1], folder)
    return f"differs: {', '.join(differs)}" if differs else None


def silenced(work: Callable[[], Any]) -> Any:
    """The traced processes write what they say of the fault, and the mark, to nowhere."""
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        return work()
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="every so many-th fault only")
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument(
        "--goes-on", type=int, default=1, help="after every so many-th the same command is run to its end"
    )
    asked = parser.parse_args(arguments)
    without_pages()
    undisturbed("plain", STEPS)
    run = standing()
    run.again()
    counted = silenced(partial(calls, run.trainer))
    print("a save:", ", ".join(f"{count} {name}" for name, count in counted.items()), flush=True)
    chosen = list(faults(counted, asked.faults.split(",")))[:: asked.every]
    good: Counter[str] = Counter()
    for index, (kind, name, number) in enumerate(chosen):
        problem = silenced(partial(wrong, run, kind, name, number, index % asked.goes_on == 0))
        good[kind] += problem is None
        if problem:
            print(f"{kind} at {name} {number}: {problem}", flush=True)
    for kind in good:
        print(f"{kind}: {good[kind]} of {sum(fault == kind for fault, _, _ in chosen)} calls", flush=True)
    return verdict(good.total(), len(chosen), f"{counted.total()} calls, no state lost")


if __name__ == "__main__":
    sys.exit(main())
