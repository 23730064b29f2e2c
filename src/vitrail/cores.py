"""How many cores this process may use, which in a container are often fewer than the computer has."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

from vitrail.memory import control_groups


def cores() -> int:
    """Cores that this process may use: those it is bound to, and no more than its control groups allow."""
    quotas = [quota for kind, folder in control_groups("cpu") if (quota := _quota(kind, folder)) is not None]
    return max(1, min([_bound(), *map(math.ceil, quotas)]))


def keep_within() -> None:
    """Lets libraries that count the computer's cores (PyTorch, OpenBLAS) begin no more threads than a container has cores.

    They look when they are imported; OMP_NUM_THREADS of the user's own stays.
    """
    if cores() < _bound():
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))


def threads(own: int) -> int:
    """Threads for a library that takes `own` by itself: so many, but no more than cores that may be used.

    PyTorch counts the computer's cores and not a container's quota; with 64 threads on 2 cores a step takes ten times as
    long. What OMP_NUM_THREADS says stays.
    """
    return own if "OMP_NUM_THREADS" in os.environ else min(own, cores())


def reading_threads() -> int:
    """How many pictures are decoded at the same time."""
    return min(4, cores())


def _bound() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
