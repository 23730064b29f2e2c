"""What looking inside costs: ViT-B/16 at 224 px, random weights, float32, on the processor.

    python benchmarks/inspection.py
    python benchmarks/inspection.py --model ViT-S/16 --repeats 3

Times are processor time of one thread, medians of interleaved rounds: what else the computer does hardly counts, and with two
idle cores it takes no longer. Ratios are of the same rounds. Memory is the growth of the process's peak
while a quantity looks at three times as many images as before, one image at a time (CKA: four).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch

from vitrail.inspection.cka import cka
from vitrail.inspection.distance import attention_distance
from vitrail.inspection.heads import head_ablation
from vitrail.inspection.lens import logit_lens
from vitrail.inspection.norms import token_norms
from vitrail.inspection.rollout import rollout
from vitrail.model.sizes import named
from vitrail.model.vit import ViT, build


def pictures(count: int, side: int, batch: int = 1) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(0, count, batch):
        yield torch.randn(batch, 3, side, side, generator=generator)


def labelled(images: Iterator[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return ((batch, torch.zeros(len(batch))) for batch in images)


MEMORY: dict[str, Callable[[ViT, int, int], object]] = {  # model, images, side
    "attention distance": lambda model, count, side: attention_distance(model, pictures(count, side)),
    "token norms": lambda model, count, side: token_norms(model, pictures(count, side)),
    "logit lens": lambda model, count, side: logit_lens(model, labelled(pictures(count, side))),
    "head ablation": lambda model, count, side: head_ablation(model, labelled(pictures(count, side))),
    "CKA": lambda model, count, side: cka(model, pictures(count, side, 4)),
}


def model_of(name: str, side: int) -> ViT:
    model = build(named(name, image_size=(side, side)), seed=0).eval()
    torch.nn.init.normal_(model.head.linear.weight, std=0.02)
    return model


def timed(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            found[name].append(time.process_time() - start)
    return {name: seconds[1:] for name, seconds in found.items()}  # the first round warms up


def times(name: str, side: int, repeats: int) -> None:
    model, images = model_of(name, side), next(pictures(1, side))
    tokens = model.embed(images)
    layer = model.blocks[0]

    def captured(**request: object) -> None:
        with model.capture("attention", layers=[0], **request):
            layer(tokens, model.position)

    def forward() -> None:
        model(images)

    with torch.inference_mode():
        calls: dict[str, Callable[[], object]] = {
            "a layer": lambda: layer(tokens, model.position),
            "a layer, all its attention captured": captured,
            "a layer, the class token's row captured": lambda: captured(queries=[0]),
            "forward": forward,
            "rollout": lambda: rollout(model, images),
            "attention distance of an image": lambda: attention_distance(model, images),
            "logit lens of an image": lambda: logit_lens(model, [(images, torch.zeros(1))]),
        }
        found = timed(calls, repeats)
    print("| | processor s | times |\n|---|---|---|")
    for key, seconds in found.items():
        base = "a layer" if key.startswith("a layer") else "forward"
        ratio = median(one / other for one, other in zip(seconds, found[base], strict=True))
        print(f"| {key} | {median(seconds):.4f} | {ratio:.2f} x {base} |")


def growth(case: str) -> dict[str, float]:
    """MiB of the peak after 4 images, and how much 12 more add; a small model, whose weights do not hide it."""
    model = model_of("ViT-Ti/16", 224)
    peaks = []
    for count in (4, 12):
        MEMORY[case](model, count, 224)
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        peaks.append(int(line.split()[1]) / 1024)
    return {"peak": peaks[0], "more": peaks[1] - peaks[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B/16")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--case", choices=MEMORY, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        print(json.dumps(growth(asked.case)))
        return
    torch.set_num_threads(1)
    print(f"{asked.model} at {asked.image_size} px, torch {torch.__version__}, one thread")
    times(asked.model, asked.image_size, asked.repeats)
    print("\nViT-Ti/16, 4 images and then 12 of 224 px\n| | peak MiB | more MiB |\n|---|---|---|")
    for case in MEMORY:
        done = subprocess.run([sys.executable, __file__, "--case", case], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        found = json.loads(done.stdout)
        print(f"| {case} | {found['peak']:.0f} | {found['more']:.1f} |", flush=True)


if __name__ == "__main__":
    main()
