"""Does `--plan` tell the truth? Five runs, each planned just before it runs, in processes of their own.

    python benchmarks/plan.py

Time is that of the whole run, from its first look at the data to its report; memory is the growth of the resident size,
from the same moment to its peak. Both stand in the run's status.json. The aims: time within 25 %, memory within 10 %,
the plan itself within 10 s. `clipart` and `tiny` need Debian's openclipart-png.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from folders import CLIPART, write_digits

# Name -> what follows `vitrail train`; {place} is the scratch folder.
RUNS = {
    "demo": "fashion-mini --recipe demo --epochs 8",
    "digits": "{place}/digits --epochs 40",
    "clipart": "{place}/clipart --epochs 10",
    "tiny": "{place}/few --model ViT-Ti/16 --batch-size 16 --epochs 2 --set training.evaluations=2",
    "fine-tune": "fashion-mini --weights {place}/runs/demo --batch-size 256 --set training.micro_batch=64 --epochs 5",
}


def write_pictures(place: Path) -> None:
    write_digits(place / "digits")
    if CLIPART.is_dir():
        for name in ("people", "geography", "shapes", "office"):
            shutil.copytree(CLIPART / name, place / "clipart" / name)
        for name in ("geography", "office"):
            shutil.copytree(CLIPART / name, place / "few" / name)


def vitrail(words: list[str]) -> tuple[str, float]:
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "vitrail", "train", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"vitrail train {' '.join(words)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout, time.monotonic() - start


def compare(name: str, place: Path) -> str:
    out = place / "runs" / name
    words = [*RUNS[name].format(place=place).split(), "--out", str(out)]
    shutil.rmtree(out, ignore_errors=True)
    answer, waited = vitrail([*words, "--plan", "--json"])
    plan = json.loads(answer)
    vitrail([*words, "--quiet"])
    status = json.loads((out / "status.json").read_text())
    cells = [name, f"{waited:.1f} s"]
    for planned, real, unit, scale in (
        (plan["seconds"], status["seconds"], "s", 1), (plan["memory_bytes"], status["memory_growth_bytes"], "MB", 1e6),
    ):  # fmt: skip
        cells += [f"{planned / scale:.1f} {unit}", f"{real / scale:.1f} {unit}", f"{planned / real:.2f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", default=list(RUNS), help=f"of {', '.join(RUNS)}; fine-tune needs demo")
    parser.add_argument("--keep", type=Path, help="a folder for pictures and runs, instead of a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = arguments.keep or Path(scratch)
        if not (place / "digits").exists():
            write_pictures(place)
        print("| run | plan took | time planned | real | ratio | memory planned | real | ratio |")
        print("|---|---|---|---|---|---|---|---|")
        for name in arguments.runs:
            print(compare(name, place), flush=True)


if __name__ == "__main__":
    main()
