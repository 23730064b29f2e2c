"""Asks a run to stop, as a system does that needs the computer: SIGTERM at random instants, until the run ends.

    python benchmarks/faults/terminate.py [--trials 50] [--seed 0] [--steps 60]

Every start of the command line's `vitrail train` gets one signal, after a time drawn uniformly from half the length of
the undisturbed run. It must end with status 130, and where it was training the state of the step that it names must be
there. Compared is the end with the undisturbed run, as in kill.py. Prints a line per trial and `50/50`; status 1 where a
trial differs, was not stopped, or lost a step.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from kill import (
    SETUPS,
    Setup,
    command,
    differing,
    ended,
    forked,
    new_folder,
    saved_step,
    undisturbed,
    verdict,
    workshop,
)

from vitrail import cli

STOPPED = 130


def command_line(out: Path, steps: int, setup: Setup, said: Path, workers: int = 0) -> int:
    """The same run as a user starts it; what it says goes to the file `said`."""
    data = workshop() / "data"
    asked = command(data, steps, setup)
    weights = [] if asked.weights is None else ["--weights", asked.weights]
    settings = [text for pair in asked.settings.items() for text in ("--set", "=".join(pair))]
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        cli.main(["train", str(data), "--out", str(out), "--workers", str(workers), "--quiet", *weights, *settings])
    except SystemExit as left:
        return int(left.code or 0)
    return 1


def stops(name: str, steps: int, out: Path, luck: random.Random) -> tuple[list[int], list[str]]:
    """The steps at which the run was stopped, -1 outside of the training, and what was wrong."""
    length, _ = undisturbed(name, steps)
    stopped, wrong = [], []
    said = out.with_suffix(".txt")
    while status := ended(
        forked(lambda: command_line(out, steps, SETUPS[name], said)), signal.SIGTERM, luck.uniform(0, length / 2)
    ):
        text = said.read_text()
        if status == -signal.SIGTERM and not text:
            continue  # it came before the first line of the program
        if status != STOPPED or "Traceback" in text:
            return stopped, [f"status {status}: {text[-300:]}"]
        at = re.search(r"stopped at step (\d+) of", text)
        stopped.append(int(at[1]) if at else -1)
        if at and saved_step(out) != int(at[1]):
            wrong.append(f"stopped at step {at[1]}, saved is {saved_step(out)}")
    return stopped, wrong


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60)
    asked = parser.parse_args(arguments)
    luck, good, inside, outside = random.Random(asked.seed), 0, 0, 0
    for number in range(asked.trials):
        name, out = list(SETUPS)[number % len(SETUPS)], new_folder("stopped")
        stopped, wrong = stops(name, asked.steps, out, luck)
        if not wrong:
            wrong = [f"differs: {key}" for key in differing(undisturbed(name, asked.steps)[1], out)]
        inside += sum(step >= 0 for step in stopped)
        outside += sum(step < 0 for step in stopped)
        good += bool(stopped) and not wrong
        places = ", ".join("before or after" if step < 0 else str(step) for step in stopped)
        print(f"trial {number + 1:2d}, {name}: stopped at {places}: {'; '.join(wrong) or 'same'}", flush=True)
    return verdict(good, asked.trials, f"{inside} stops while it trained, {outside} before or after, "
                   "runs that ended as the undisturbed one")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
