"""What the processor gives: how many cores, which in a container are often fewer than the computer has, and how fast."""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from pathlib import Path

from vitrail.training.memory import control_groups


def cores() -> int:
    """Cores that this process may use: those it is bound to, and no more than its control groups allow."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for kind, folder in control_groups("cpu") if (quota := _quota(kind, folder)) is not None]
    return max(1, min([bound, *map(math.ceil, quotas)]))


def reading_threads() -> int:
    """How many pictures are decoded at the same time."""
    return min(4, cores())


def threads() -> int:
    """Threads for PyTorch: as many as it takes by itself, but no more than cores that may be used.

    PyTorch counts the computer's cores and not a container's quota; with 64 threads on 2 cores a step takes ten times as
    long. What OMP_NUM_THREADS says stays.
    """
    import torch

    own = torch.get_num_threads()
    return own if "OMP_NUM_THREADS" in os.environ else min(own, cores())


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


def _quota(kind: str, folder: Path) -> float | None:
    """Cores that a control group may use at the same time; None where there is no limit."""
    with suppress(OSError, ValueError):
        if kind == "cgroup2":
            most, period = (folder / "cpu.max").read_text().split()
        else:
            most, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        if most != "max" and int(most) > 0 and int(period) > 0:
            return int(most) / int(period)
    return None
