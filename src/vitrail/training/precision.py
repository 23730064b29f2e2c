"""Where half the bytes are worth it."""

from __future__ import annotations

import time
from typing import Literal

MIN_DIM = 192  # smaller models are trained long, and each digit counts (docs/performance.md has the gain by width)


def best_precision(dim: int) -> Literal["float32", "bfloat16"]:
    """bfloat16 on an accelerator, and for wide models on a processor that multiplies it natively; else float32."""
    import torch

    native = torch.cuda.is_bf16_supported() if torch.cuda.is_available() else _cpu_multiplies_bfloat16()
    wide = torch.cuda.is_available() or dim >= MIN_DIM
    return "bfloat16" if native and wide else "float32"


def products_a_second(precision: str) -> float:
    """Floating point operations of a small matrix product, halved for all that a step does besides."""
    import torch

    values = torch.ones(512, 512, dtype=torch.bfloat16 if precision == "bfloat16" else torch.float32)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        values @ values
        times.append(time.perf_counter() - start)
    return 512**3 / min(times)


def processor(*names: str) -> set[str]:
    """The words of a line of /proc/cpuinfo that begins with one of `names`; none where there is no such file."""
    try:
        with open("/proc/cpuinfo") as file:
            return set(next((line for line in file if line.startswith(names)), "").split())
    except OSError:
        return set()


def _cpu_multiplies_bfloat16() -> bool:
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & processor("flags", "Features"))
