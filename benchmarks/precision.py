"""Where bfloat16 pays: training steps in float32 and bfloat16, interleaved in one run, by width; processor time.

python benchmarks/precision.py
"""

from __future__ import annotations

import time
from statistics import median

import torch
import torch.nn.functional as F

from vitrail.memory import freed_kept
from vitrail.model.heads import LinearHead
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import Size, ViT, ViTConfig, build
from vitrail.training.products import quick_products

SIZES = {
    64: (28, 7, 64),
    96: (28, 4, 64),
    128: (28, 4, 64),
    192: (32, 4, 64),
    384: (224, 16, 8),
    768: (224, 16, 4),
}  # dim: (image, patch, batch)
ROUNDS = 7


def step(model: ViT, images: torch.Tensor, labels: torch.Tensor, bfloat16: bool) -> float:
    start = time.process_time()
    with quick_products("cpu"):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
    model.zero_grad(set_to_none=True)
    return time.process_time() - start


def main() -> None:
    print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print("| width | float32 ms | bfloat16 ms | float32 / bfloat16 |\n|---|---|---|---|")
    with freed_kept():
        for dim, (side, patch, batch) in SIZES.items():
            size = Size(dim, 4, max(1, dim // 32 if dim < 192 else dim // 64), 4 * dim)
            model = build(
                ViTConfig(size, LinearPatches((patch, patch)), head=LinearHead(10), image_size=(side, side)), 0
            )
            images, labels = torch.randn(batch, 3, side, side), torch.randint(10, (batch,))
            times: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(ROUNDS + 1):
                for kind in times:
                    times[kind].append(step(model, images, labels, kind))
            plain, half = (median(times[kind][1:]) for kind in (False, True))
            ratio = median(a / b for a, b in zip(times[False][1:], times[True][1:], strict=True))
            print(f"| {dim} | {1000 * plain:.0f} | {1000 * half:.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
