"""docs/parity.md: how far every family is from its home library, and which format can hold which model.

    python benchmarks/parity.py > docs/parity.md

Everything is measured when the command runs; a row whose oracle is not there says so and makes the command fail.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import re
import sys
import tempfile
from datetime import date
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import parity_table
import samples
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.loading import FORMATS, read, save

WITH_ROWS = ("test_huggingface", "test_timm", "test_original_names", "test_torchvision", "test_quadratic")
for tests in WITH_ROWS:
    importlib.import_module(tests)

HEAD = """# Parity

How far a model that Vitrail loads is from the same file in its home library: small models with random weights, large
enough that a wrong GELU or epsilon shows, float32 on one thread. Differences are the largest over all values, relative
to the largest value; the bound is 1e-5; 0 says that every bit is equal. Made by `python benchmarks/parity.py`, {date},
{versions}.

"–": the oracle has no such value. The official arrays have one more grid, that of the ViT with a class token; DINO, DINOv2,
DINOv3 and CLIP as released are held to their own resampling at other sizes in tests/test_original_names.py. MoCo v3 and
BEiT as released have one size, ResNets need no positions, and a Mixer has one grid. Where an oracle says "whose arithmetic
it shares", the home's code cannot be installed here, and timm's network, which its authors used or which is the same, is asked.
"""


def versions() -> str:
    found = [f"Python {platform.python_version()}", f"PyTorch {torch.__version__}"]
    for package in ("transformers", "timm"):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {package}")
    return ", ".join(found)


def differences() -> bool:
    """Prints the first table; whether every row was measured and holds."""
    print("\n## Against the home library\n")
    print("| family | format | oracle | logits | hidden states | logits at another size |\n|---|---|---|---|---|---|")
    holds = True
    for name, measure in parity_table.ROWS.items():
        try:
            row = parity_table.Row(*measure())
        except Exception as error:  # a missing oracle must show in the table and not end it
            print(f"| {name} | | not measured: {type(error).__name__}: {error} | | | |")
            holds = False
            continue
        measured = (row.logits, row.hidden, row.resized)
        shown = ["–" if value is None else "0" if value == 0 else f"{value:.1e}" for value in measured]
        print(f"| {row.family} | {row.format} | {row.oracle} | {' | '.join(shown)} |")
        holds = holds and max(value or 0.0 for value in measured) <= parity_table.BOUND
    return holds


def conversions() -> bool:
    """Prints the second table: what every format makes of every other's models."""
    print("\n## From format to format\n")
    print("Rows: sample models of each format. Cells: the largest relative difference of the logits after writing and "
          "reading, 0 where every bit is equal; or the parts of the model that the format has no place for.\n")  # fmt: skip
    holds = True
    names = [module.NAME for module in FORMATS]
    print(f"| | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for own, cases in samples.HELD.items():
        for case, config in cases.items():
            checkpoint = samples.checkpoint_of(config)
            cells = []
            for module in FORMATS:
                if obstacles := module.obstacles(config):
                    parts = sorted({part_of(obstacle) for obstacle in obstacles})
                    cells.append("no: " + ", ".join(parts[:3]) + (" ..." if len(parts) > 3 else ""))
                    continue
                difference = converted(checkpoint, module)
                cells.append("0" if difference == 0 else f"{difference:.1e}")
                holds = holds and difference <= parity_table.BOUND
            print(f"| {own}: {case} | {' | '.join(cells)} |")
    return holds


def part_of(obstacle: str) -> str:
    """ "block.mlp.gelu='erf'" to "gelu", "pool ClassToken(...)" to "pool"."""
    return re.split(r"[= (,]", re.sub(r"^an? ", "", obstacle))[0].split(".")[-1]


def converted(checkpoint: Checkpoint, module: object) -> float:
    """Difference of the logits after writing in a format and reading."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"weights{module.CONTAINERS[0]}"
        save(checkpoint, path, format=module.NAME)
        again = read(path)
        images = torch.randn(2, checkpoint.config.channels, *checkpoint.config.image_size)
        with torch.no_grad():
            first, second = checkpoint.build()(images), again.build()(images)
    return 0.0 if torch.equal(first, second) else parity_table.relative(second, first)


def main() -> None:
    torch.set_num_threads(1)
    print(HEAD.format(date=date.today(), versions=versions()))
    holds = [differences(), conversions()]
    sys.exit(0 if all(holds) else 1)


if __name__ == "__main__":
    main()
