"""How much memory this process takes, and how much it may take. No torch."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # M_... of malloc.h
_KEPT = 2**30 - 1  # blocks up to this size come from the heap; the C library has the number as an int, doubled
_LENT = 2**25  # where the C library's own rule ends, which follows what was freed


def resident_bytes() -> int:
    """Resident size of this process now; where the system does not tell (no /proc), its largest so far."""
    return _status("VmRSS") or _largest()


def peak_bytes() -> int:
    """Largest resident size of this process since `reset_peak`, or since it began.

    On Linux not `ru_maxrss`: a child inherits that from the process that started it.
    """
    return _status("VmHWM") or _largest()


def reset_peak() -> None:
    """Lets `peak_bytes` begin anew, where the system can (Linux)."""
    try:
        (PROC / "self" / "clear_refs").write_text("5")  # proc(5): resets the peak resident size, and no more
    except OSError:
        return


def share_heap() -> None:
    """From now on threads take memory from one heap, where the C library can be told so (glibc).

    Otherwise each thread that decodes pictures has one of its own, whose gaps no one else can use: some tens of
    megabytes, more or fewer by chance.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


@contextmanager
def freed_kept() -> Iterator[None]:
    """Within it freed memory stays with the process, where the C library can be told so (glibc).

    Otherwise each large activation is asked of the system anew at every step and given back after it, page by page: some
    100,000 page faults and a tenth of the time of a step (docs/performance.md). For steps alone, which ask for the same
    again and again: pictures that are read, and batches of other sizes, would only leave gaps.
    """
    _keep(_KEPT)
    try:
        yield
    finally:
        _keep(_LENT)


def _keep(size: int) -> None:
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, size)
        library.mallopt(_TRIM_THRESHOLD, 2 * size)


def give_back() -> None:
    """Returns freed memory to the system, where the C library can (glibc); else the next stage grows beside its gaps."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def available_bytes() -> int | None:
    """What this process may still take before the system swaps, or kills it; None where the system does not tell.

    The least of the free memory, of the room in each control group above this process (containers), and of `ulimit -v`.
    """
    rooms = [room for room in (_kilobytes(PROC / "meminfo", "MemAvailable"), *_group_rooms()) if room is not None]
    with suppress(ImportError):
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            rooms.append(max(0, limit - (_status("VmSize") or 0)))
    return min(rooms, default=None)


@dataclass(frozen=True)
class Usage:
    """What a run takes from its beginning on: time, and the growth of this process's resident size."""

    resident: int = field(default_factory=resident_bytes)
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def begin(cls) -> Usage:
        share_heap()
        reset_peak()
        return cls()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def growth(self) -> int:
        """Largest resident size since the beginning, less the resident size at the beginning."""
        return max(0, peak_bytes() - self.resident)

    def facts(self) -> dict[str, float]:
        """For status.json."""
        return {
            "seconds": round(self.seconds, 2), "peak_memory_bytes": peak_bytes(), "memory_growth_bytes": self.growth,
        }  # fmt: skip


def _largest() -> int:
    try:
        import resource  # Windows has none
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status(name: str) -> int | None:
    return _kilobytes(PROC / "self" / "status", name)


def _kilobytes(path: Path, name: str) -> int | None:
    """The line "Name:   123 kB" of a file of /proc, in bytes."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _group_rooms() -> list[int]:
    """Limit less use of every control group that holds this process."""
    files = {"cgroup2": ("memory.max", "memory.current"), "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes")}
    rooms = (_room(folder, *files[kind]) for kind, folder in control_groups("memory"))
    return [room for room in rooms if room is not None]


def control_groups(controller: str) -> Iterator[tuple[str, Path]]:
    """The folder of every control group that holds this process, inner ones first: ("cgroup2" or the controller, folder)."""
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, place = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            kind, root = "cgroup2", CGROUPS
        elif controller in controllers.split(","):
            kind, root = controller, CGROUPS / controller
        else:
            continue
        group = root / place.lstrip("/")
        for folder in (group, *group.parents):
            yield kind, folder
            if folder == root:
                break


def _room(group: Path, limit: str, used: str) -> int | None:
    """None where there is no limit ("max", or a number beyond all memory)."""
    try:
        most, now = (group / limit).read_text().strip(), int((group / used).read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if not most.isdecimal() or int(most) >= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        return None
    # Files that were read count as used, and are let go of when the room is needed.
    files = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
    return max(0, int(most) - now + files)
