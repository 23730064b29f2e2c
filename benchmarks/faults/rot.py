"""Damages a saved state: bits flipped, files cut off, files gone; each must be noticed, and the older state used.

    python benchmarks/faults/rot.py [--flips 1000] [--cuts 200] [--seed 0] [--goes-on 60]

A finished run has states of which the newest is damaged, each time anew: one bit, drawn uniformly from one file after
the other, the manifest and training.json among them; a file cut to a length drawn uniformly from all shorter ones; every
file removed once. Loading must pass over that state, say why, and give the older one. After every so many-th
damage the same command is run, which must end as the undisturbed run did. Prints a line per kind of damage and
`1208/1208`; status 1 where a damage was not noticed.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from kill import differing, ended, forked, new_folder, tiny, undisturbed, verdict, without_pages, workshop

from vitrail.training import state

STEPS = 15

Damage = tuple[str, str, bytes | None]  # kind, file, what it holds then; None for gone


def damages(newest: Path, flips: int, cuts: int, luck: random.Random) -> Iterator[Damage]:
    files = sorted(newest.iterdir())
    for number in range(flips):
        file = files[number % len(files)]
        content = bytearray(file.read_bytes())
        content[luck.randrange(len(content))] ^= 1 << luck.randrange(8)
        yield "bit flipped", file.name, bytes(content)
    for number in range(cuts):
        content = files[number % len(files)].read_bytes()
        yield "cut off", files[number % len(files)].name, content[: luck.randrange(len(content))]
    for file in files:
        yield "gone", file.name, None


def problem(newest: Path, damage: Damage, older: int) -> str | None:
    """What was wrong with the answer to a damage; the state is whole again afterwards."""
    _, name, content = damage
    file = newest / name
    before = file.read_bytes()
    file.write_bytes(content) if content is not None else file.unlink()
    try:
        found, passed = state.load(newest.parent)
    finally:
        file.write_bytes(before)
    if found is None or found.step != older:
        return f"loaded is {found and found.step}"
    told = len(passed) == 1 and passed[0].startswith(f"{newest.name} is not used: ")
    return None if told else f"said is {passed}"


def goes_on(whole: Path, damage: Damage) -> str | None:
    """What is wrong with where the same command ends that finds the state damaged."""
    out, (_, name, content) = new_folder("rotten"), damage
    shutil.copytree(whole, out)
    shutil.rmtree(out / "eval")  # as if it had never been judged
    (out / "status.json").unlink()
    file = out / "checkpoints" / f"step-{STEPS}" / name
    file.write_bytes(content) if content is not None else file.unlink()
    if ended(forked(lambda: tiny(workshop() / "data", out, STEPS))) != 0:
        return "the same command did not go on"
    differs = differing(undisturbed("plain", STEPS)[1], out)
    return f"it ended with another {', '.join(differs)}" if differs else None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--goes-on", type=int, default=60, help="after every so many-th the same command is run to its end"
    )
    asked = parser.parse_args(arguments)
    without_pages()
    out = new_folder("rot")
    ended(forked(partial(tiny, workshop() / "data", out, STEPS)))
    newest = out / "checkpoints" / f"step-{STEPS}"
    found = state.load(newest.parent)[0]
    steps = sorted(int(place.name[5:]) for place in newest.parent.glob("step-*"))
    assert found is not None and found.step == STEPS == steps[-1]
    all_of_them = list(damages(newest, asked.flips, asked.cuts, random.Random(asked.seed)))
    good = dict.fromkeys([kind for kind, _, _ in all_of_them], 0)
    for number, damage in enumerate(all_of_them):
        wrong = problem(newest, damage, steps[-2])
        if wrong is None and number % asked.goes_on == 0:
            wrong = goes_on(out, damage)
        good[damage[0]] += wrong is None
        if wrong:
            print(f"{damage[0]}: {damage[1]}: {wrong}", flush=True)
    for kind, count in good.items():
        print(f"{kind}: {count} of {sum(damage[0] == kind for damage in all_of_them)} noticed", flush=True)
    return verdict(sum(good.values()), len(all_of_them), "damages noticed, and the older state used")


if __name__ == "__main__":
    sys.exit(main())
