"""Time and memory of loading a ViT-L/16 in every format that holds it, beside reading each byte through safetensors.

python benchmarks/loading.py                     # some 3 minutes and 10 GB of disk, below the folder for temporary files
python benchmarks/loading.py --model ViT-S/16 --rounds 3

Random weights of ViT-L/16 at 224 px, 1000 classes: 1.2 GB. Each figure is the median of processes that take turns, the
file in the page cache. Time runs from the call to a built model with every value read (finite values are checked), in a
process that has imported everything. The reader sums every tensor of the same values' .safetensors file where it lies,
the copier reads it into memory. A file whose queries, keys and values are apart needs room for a quarter. Memory is what
the peak of the resident size grows by, pages that are mapped from the file included, over the size of the file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.loading import FORMATS, read
from vitrail.model.block import MLP
from vitrail.model.positions import Learned1D
from vitrail.model.sizes import named
from vitrail.model.vit import ViTConfig, build
from vitrail.preprocessing import Preprocessing

INTERPOLATIONS = ("aligned", "bicubic", "bicubic-aligned", "bicubic-antialiased")


def written(folder: Path, model: str) -> dict[str, Path]:
    """The same random weights in every format that holds a ViT of this size, and as a .pth."""
    plain = named(model)
    assert isinstance(plain, ViTConfig)
    weights = build(plain, 0).state_dict()
    weights["head.linear.weight"] = torch.randn_like(weights["head.linear.weight"])
    classes = tuple(f"class {index}" for index in range(1000))
    found: dict[str, Path] = {}
    for module in FORMATS:
        for form in ("tanh", "erf"):
            for interpolation in INTERPOLATIONS:
                position, block = Learned1D(interpolation=interpolation), replace(plain.block, mlp=MLP(form))
                for epsilon in (1e-6, 1e-12):
                    block = replace(block, norm=replace(block.norm, epsilon=epsilon))
                    config = replace(plain, position=position, block=block)
                    if module.NAME in found or module.obstacles(config):
                        continue
                    path = folder / f"{module.NAME}{module.CONTAINERS[0]}"
                    module.from_native(Checkpoint(config, weights, Preprocessing(), classes), path)
                    found[module.NAME] = path
    if "torchvision" in found:
        from safetensors.torch import load_file

        found["torchvision .pth"] = folder / "torchvision.pth"
        torch.save({"model": load_file(found["torchvision"])}, found["torchvision .pth"])
    return found


def weights_of(path: Path) -> Path:
    return path / "model.safetensors" if path.is_dir() else path


def resident(field: str) -> int:
    """Bytes of this process: VmRSS now, or VmHWM, the peak since it was forgotten."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measure(what: str, path: Path) -> None:
    """In a process of its own: prints seconds and growth of the resident size."""
    from safetensors import safe_open

    torch.set_num_threads(1)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before, start = resident("VmRSS"), time.perf_counter()
    if what == "reader":
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                file.get_tensor(name).sum().item()
    elif what == "copier":
        with safe_open(str(path), framework="pt") as file:
            kept = [file.get_tensor(name).clone() for name in file.keys()]  # noqa: SIM118
        assert kept
    else:
        read(path).build()
    print(time.perf_counter() - start, resident("VmHWM") - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-L/16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.measure[0], Path(asked.measure[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = written(Path(folder), asked.model)
        plain = weights_of(paths["vitrail"])
        jobs = {"reader": plain, "copier": plain, **paths}
        found: dict[str, list[tuple[float, int]]] = {name: [] for name in jobs}
        for number in range(asked.rounds + 1):  # the first fills the page cache and does not count
            for name, path in jobs.items():
                what = name if name in ("reader", "copier") else "load"
                command = [sys.executable, __file__, "--measure", what, str(path)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                seconds, growth = done.stdout.split()
                if number:
                    found[name].append((float(seconds), int(growth)))
        reader, copier = (median(seconds for seconds, _ in found[name]) for name in ("reader", "copier"))
        print(f"| {asked.model} | file | time | over the reader's | over the copier's | memory over the file's size |")
        print("|---|---|---|---|---|---|")
        for name, figures in found.items():
            size = weights_of(jobs[name]).stat().st_size
            seconds, growth = (median(values) for values in zip(*figures, strict=True))
            ratios = f"{seconds / reader:.2f} | {seconds / copier:.2f} | {growth / size:.2f}"
            print(f"| {name} | {size / 1e6:,.0f} MB | {seconds:.2f} s | {ratios} |")


if __name__ == "__main__":
    main()
