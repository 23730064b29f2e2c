"""Where half the bytes are worth it."""

from __future__ import annotations

from typing import Literal

MIN_DIM = 192  # smaller models are trained long, and each digit counts (docs/performance.md has the gain by width)


def best_precision(dim: int) -> Literal["float32", "bfloat16"]:
    """bfloat16 on an accelerator, and for wide models on a processor that multiplies it natively; else float32."""
    import torch

    native = torch.cuda.is_bf16_supported() if torch.cuda.is_available() else _cpu_multiplies_bfloat16()
    wide = torch.cuda.is_available() or dim >= MIN_DIM
    return "bfloat16" if native and wide else "float32"


def processor(*names: str) -> set[str]:
    """The words of a line of /proc/cpuinfo that begins with one of `names`; none where there is no such file."""
    try:
        with open("/proc/cpuinfo") as file:
            return set(next((line for line in file if line.startswith(names)), "").split())
    except OSError:
        return set()


def _cpu_multiplies_bfloat16() -> bool:
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & processor("flags", "Features"))
