"""Runs the scripts of this folder and writes what they counted into the tables of docs/reliability.md.

    python benchmarks/faults/all.py [kill] [terminate] [saves] [rot] [worker] [crash] [hang] [nan] [two] [workers]
        [vitrail] [trainer] [fabric] [fabric-random]
    python benchmarks/faults/all.py --short

Without names it runs all of them, which takes about half an hour on one core; the row of each is written when it is done,
with its command and the date, and the others stay as they are. `--short` runs a short form of each within this process,
writes nothing, and prints the last line of each; the tests do that. Status 1 where anything was not as it should be.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import kill
import rot
import saves
import terminate
import troubles

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
LAST = re.compile(r"^(.*): (\d+/\d+)$")


@dataclass(frozen=True)
class Fault:
    """A row: what happens, what a user sees of it, and the script that does it."""

    what: str
    seen: str
    script: str


FAULTS = {
    "kill": Fault("The process is killed at random instants (power, `kill -9`, the system short of memory)",
                  "The same command goes on from the last state; the end has the same bits", "kill.py --trials 50"),
    "terminate": Fault("SIGTERM at random instants (the computer is needed, a job's time is over)",
                       "Status 130; the step that is named is saved; the same command goes on", "terminate.py --trials 50"),
    "saves": Fault("Killed, disk full, or disk error at every single system call of a save",
                   "The new state or the former one is whole; VT060 or VT062 says what to do", "saves.py"),
    "rot": Fault("One bit of a saved state flips, a file is cut off, a file is gone",
                 "The state is passed over, the log says why, the older one is used", "rot.py"),
    "worker": Fault("Data workers are killed", "Others take their place, the log says so; the same bits", "troubles.py worker"),
    "crash": Fault("A picture crashes every worker that decodes it", "VT088 names the picture", "troubles.py crash"),
    "hang": Fault("The reading of a picture does not end", "VT087 names the picture", "troubles.py hang"),
    "nan": Fault("Loss or gradient is NaN or infinite", "VT080 before the update; nothing has changed", "troubles.py nan"),
    "two": Fault("The same command twice at the same time", "One works, the other is refused: VT022", "troubles.py two"),
    "workers": Fault("Another number of data workers (0, 1, 2, 4)", "The same bits", "workers.py"),
}  # fmt: skip

PEERS = ("vitrail", "trainer", "fabric", "fabric-random")

SHORT: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "kill": (kill.main, "--trials 1 --steps 15 --setups averaged"),
    "terminate": (terminate.main, "--trials 1 --steps 15"),
    "saves": (saves.main, "--every 41 --goes-on 9"),
    "rot": (rot.main, "--flips 49 --cuts 14 --goes-on 100"),
    "troubles": (troubles.main, "worker hang nan two --trials 1 --steps 15"),
}


def replaced(page: str, table: str, key: str, rows: list[str]) -> str:
    """The page with the rows of a table that end with `key` replaced, or added at its end."""
    begin, end = page.index(f"<!-- {table} -->"), page.index(f"<!-- end of {table} -->")
    lines = page[begin:end].splitlines()
    places = [number for number, line in enumerate(lines) if f"`{key}`" in line]
    others = [line for number, line in enumerate(lines) if number not in places]
    at = places[0] if places else len(others)
    return page[:begin] + "\n".join([*others[:at], *rows, *others[at:]]) + "\n" + page[end:]


def measure(name: str) -> bool:
    """Runs one script and writes its rows."""
    script = FAULTS[name].script if name in FAULTS else f"peers.py --programs {name} --trials 5"
    command = f"python benchmarks/faults/{script}"
    start = time.monotonic()
    print(f"{command} ...", flush=True)
    done = subprocess.run(
        [sys.executable, *shlex.split(command)[1:]], capture_output=True, text=True, cwd=PAGE.parents[1]
    )
    minutes = (time.monotonic() - start) / 60
    lines = done.stdout.splitlines()
    print(f"  {lines[-1] if lines else done.stderr[-500:]}  ({minutes:.1f} minutes)", flush=True)
    if name in FAULTS:
        found = LAST.match(lines[-1]) if lines else None
        if found is None:
            return False
        fault = FAULTS[name]
        rows = [f"| {fault.what} | {fault.seen} | {found[2]} | {found[1]} | `{command}` | {date.today()} |"]
    else:
        rows = [f"{line} `{command}` | {date.today()} |" for line in lines if line.startswith("| ")]
    PAGE.write_text(replaced(PAGE.read_text(), "faults" if name in FAULTS else "peers", command, rows))
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=", ".join([*FAULTS, *PEERS]))
    parser.add_argument("--short", action="store_true")
    asked = parser.parse_args()
    if asked.short:
        kill.without_pages()
        return max(
            script(shlex.split(SHORT[name][1])) for name, (script, _) in SHORT.items() if name in (asked.names or SHORT)
        )
    well = [measure(name) for name in asked.names or [*FAULTS, *PEERS]]  # all of them, whatever the first gives
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main())
