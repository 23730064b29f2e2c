"""Memory of looking inside a large model: ViT-L/16 at 384x384 px, random weights, one image, float32, on the processor.

    python benchmarks/explain.py
    python benchmarks/explain.py --model ViT-B/16 --image-size 224

Each row is a process of its own. Growth is the peak of the resident size during the first call, above the size just
before it, which already holds the weights. The last column is the largest difference of the logits with attention being
recorded from those without.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vitrail.inspection.attention import attention
from vitrail.inspection.rollout import rollout
from vitrail.model.sizes import named
from vitrail.model.vit import ViT, build


def keep_everything(model: ViT, images: torch.Tensor) -> int:
    """What a tool does that hooks every layer."""
    with torch.inference_mode(), model.capture("attention") as tape:
        model(images)
    return len(tape)


def forward(model: ViT, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(images)


CASES: dict[str, Callable[[ViT, torch.Tensor], object]] = {
    "forward alone, nothing recorded": forward,
    "class token, first layer, one head": lambda model, images: attention(model, images, 0, [0]),
    "class token, last layer, all heads": lambda model, images: attention(model, images, -1),
    "mean of patches, last layer, all heads": lambda model, images: attention(model, images, -1, query="mean"),
    "rollout": rollout,
    "for comparison: all layers and heads kept": keep_everything,
}
RECORDED = {  # what `model.capture` is asked for in the same case
    "class token, first layer, one head": {"layers": [0], "heads": [0], "queries": [0]},
    "class token, last layer, all heads": {"layers": [-1], "queries": [0]},
    "rollout": {},
}


def resident(field: str) -> float:
    """MiB of VmRSS or VmHWM."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def difference(model: ViT, images: torch.Tensor, request: dict) -> float:
    plain = forward(model, images)
    with torch.inference_mode(), model.capture("attention", **request):
        recorded = model(images)
    assert plain.std() > 0.01, "logits that are all alike would prove nothing"
    return (plain - recorded).abs().max().item()


def measure(case: str, name: str, side: int) -> dict:
    model = build(named(name, image_size=(side, side)), seed=0).eval()
    torch.nn.init.normal_(model.head.linear.weight, std=0.02)  # a new model's head is zero, and so its logits
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    start = time.perf_counter()
    CASES[case](model, images)
    seconds, peak = time.perf_counter() - start, resident("VmHWM")
    found = {"before": before, "growth": peak - before, "seconds": seconds}
    if case in RECORDED:
        found["difference"] = difference(model, images, RECORDED[case])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-L/16")
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        print(json.dumps(measure(asked.case, asked.model, asked.image_size)))
        return
    rows, cols = named(asked.model, image_size=(asked.image_size,) * 2).grid
    print(f"{asked.model} at {asked.image_size} px: {rows * cols} patches; torch {torch.__version__}")
    print("| | growth MiB | seconds | largest difference of logits |\n|---|---|---|---|")
    for case in CASES:
        command = [sys.executable, __file__, "--case", case, "--model", asked.model]
        done = subprocess.run([*command, "--image-size", str(asked.image_size)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        found = json.loads(done.stdout)
        same = f"{found['difference']:.1e}" if "difference" in found else ""
        print(f"| {case} | {found['growth']:.0f} | {found['seconds']:.1f} | {same} |", flush=True)
    print(f"\nBefore each call the process held {found['before']:,.0f} MiB.")


if __name__ == "__main__":
    main()
