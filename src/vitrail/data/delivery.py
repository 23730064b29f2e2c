"""Batches in the order of the steps; where they are made, a process may be killed and a picture may hang."""

from __future__ import annotations

import math
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch.utils.data import DataLoader

from vitrail.data.batches import Batch, StepBatches
from vitrail.errors import DataError, VitrailError

PATIENCE = 120.0  # seconds that one picture may take
DEATHS = 3  # of workers, without a batch in between
WATCHED = 12  # batches that are made here before it is decided whether workers shall make the others
WORTH = 0.2  # of a step: what making a batch must take for that; a worker has a price, in memory and in cores
STARTING = 10.0  # seconds: nor where less than this is left to be made
AHEAD = 4  # batches that each worker makes ahead
_LOOK = 5.0  # seconds between two looks at workers that are awaited
_DEAD, _LATE = "DataLoader worker (pid", "DataLoader timed out"  # how PyTorch's messages begin


def training_batches(
    batches: StepBatches,
    start: int,
    stop: int,
    workers: int | None,
    patience: float = PATIENCE,
    tell: Callable[[str], None] = lambda text: None,
    cores: int = 1,
    lighten: Callable[[], None] = lambda: None,
) -> Iterator[Batch]:
    """Batches of steps start..stop-1 in order. Workers prepare them ahead; their number changes nothing else.

    Without a number the first batches are made here; where that takes a large part of the steps, workers make the others.

    A worker that is killed is replaced: a batch is a function of its step, so that another one makes the same.

    Args:
        patience: seconds without a picture read. Without workers it is looked at between two calls of the decoder, and
            a hanging one noticed after once to twice as long.
        tell: is told of a worker that was killed, and how many there are where that was not said.
        cores: how many workers there may be where their number was not said.
        lighten: is called before workers begin; they keep the memory that this process has then.

    Raises:
        DataError: VT087, reading a picture does not end.
        VitrailError: VT088, the workers are killed again and again.
    """
    batches.reading = torch.full((max(1, workers or cores), 2), -1).share_memory_()
    if workers == 0:
        yield from _made_here(batches, start, stop, patience)
        return
    if workers is None:
        watch = Watch()
        for batch in watch.over(_made_here(batches, start, min(stop, start + WATCHED), patience)):
            yield batch
            start += 1
        workers = watch.workers(stop - start, cores)
        if workers := workers and min(workers, room_for(batch)):
            tell(f"{workers} data worker{'s' * (workers > 1)}: making a batch takes {watch.share:.0%} of a step")
        yield from training_batches(batches, start, stop, workers, patience, tell, lighten=lighten)
        return
    step, deaths = start, 0
    while step < stop:
        lighten()
        try:
            for batch in _made_by_workers(batches, step, stop, workers, patience):
                yield batch
                step, deaths = step + 1, 0
        except (RuntimeError, EOFError, ConnectionError) as error:
            # The last two: one that had just made a batch was gone before it could be fetched.
            if str(error).startswith("Caught") or (
                isinstance(error, RuntimeError) and not str(error).startswith(_DEAD)
            ):
                raise
            deaths += 1
            if deaths == DEATHS:
                raise _killed(batches, step) from error
            tell(f"a data worker was killed, perhaps for want of memory; others go on from step {step}")


class Watch:
    """How long batches take to be made, and to be used."""

    def __init__(self) -> None:
        self.making: list[float] = []
        self.using: list[float] = []

    def over(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            if batch is None:
                return
            made = time.monotonic()
            yield batch
            self.making.append(made - start)
            self.using.append(time.monotonic() - made)

    @property
    def share(self) -> float:
        """Of a step, that making its batch takes."""
        made, used = median(self.making), median(self.using)
        return made / (made + used)

    def workers(self, steps: int, cores: int) -> int:
        return workers_for(median(self.making), median(self.using), steps, cores) if self.making else 0


def workers_for(making: float, using: float, steps: int, cores: int) -> int:
    """As many workers as keep up with the steps, where batches take a large part of these to make; else none.

    Args:
        making, using: seconds of a batch.
        steps: still to come.
        cores: workers at most.
    """
    if cores < 2 or making < WORTH * (making + using) or steps * making < STARTING:
        return 0
    return min(cores, math.ceil(making / using))


def seconds_a_step(making: float, using: float, workers: int, cores: int, busy: int) -> float:
    """Seconds of a step whose next batches are made meanwhile, by cores that a step does not have for itself.

    Args:
        making, using: seconds of a batch.
        busy: cores that using it takes.
    """
    return max(using, making / workers, (making + busy * using) / cores) if workers else making + using


def room_for(batch: Batch) -> int:
    """Workers whose batches fit where processes share memory, which in many containers is 64 MB."""
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:  # no Linux
        return sys.maxsize
    return free // ((AHEAD + 1) * sum(view.nbytes for view in batch.views))


def _made_here(batches: StepBatches, start: int, stop: int, patience: float) -> Iterator[Batch]:
    for step in range(start, stop):
        try:
            with _alarm(batches, patience):
                batch = batches[step]
        except _Late as late:
            raise _hanging(batches, step, patience) from late
        yield batch


class _Late(BaseException):
    """No Exception: whoever reads pictures would take it for a damaged one."""


@contextmanager
def _alarm(batches: StepBatches, patience: float) -> Iterator[None]:
    """Interrupts what goes on inside when no new picture was begun between two looks."""
    if not _in_main_thread():
        yield
        return
    seen = batches.reading.tolist()

    def look(number: int, frame: Any) -> None:
        nonlocal seen
        if seen == batches.reading.tolist():
            raise _Late
        seen = batches.reading.tolist()

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, patience, patience)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _made_by_workers(batches: StepBatches, start: int, stop: int, workers: int, patience: float) -> Iterator[Batch]:
    look = min(_LOOK, patience / 2)
    with warnings.catch_warnings():
        # More workers than cores are slower, not wrong; how many there are is the user's decision.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        loader: DataLoader[Batch] = DataLoader(
            batches,
            batch_size=None,
            sampler=range(start, stop),
            num_workers=workers,
            prefetch_factor=AHEAD,
            timeout=look,
            worker_init_fn=_leave_signals_to_the_parent,
        )
        iterator = iter(loader)
    _DEATHS.take_over()
    for step in range(start, stop):
        seen, looks = batches.reading.tolist(), 0  # counted, not timed: the whole computer may have slept
        while True:
            try:
                with _DEATHS.told():
                    batch = next(iterator)
                break
            except RuntimeError as error:
                if not str(error).startswith(_LATE):
                    raise
            looks = looks + 1 if seen == (now := batches.reading.tolist()) else 0
            seen = now
            if looks * look >= patience:
                raise _hanging(batches, step, patience)
        yield batch


class _Deaths:
    """PyTorch tells of a dead worker by a signal whose handler raises wherever the program is: in the middle of an update.

    Here it is told only where a batch is awaited, which leaves weights whole and lets the run go on.
    """

    def __init__(self) -> None:
        self.waiting = self.came = False
        self.theirs: Any = None

    def take_over(self) -> None:
        """PyTorch's handler is there once there have been workers; it is not given back."""
        found = signal.getsignal(signal.SIGCHLD)
        if callable(found) and found != self._on_signal and _in_main_thread():
            self.theirs, self.came = found, True
            signal.signal(signal.SIGCHLD, self._on_signal)

    @contextmanager
    def told(self) -> Iterator[None]:
        self.waiting = True
        try:
            if self.came:
                self.came = False
                self.theirs(signal.SIGCHLD, None)
            yield
        finally:
            self.waiting = False

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.waiting:
            self.theirs(number, frame)
        else:
            self.came = True


_DEATHS = _Deaths()


def _in_main_thread() -> bool:
    """Only there can signals be caught."""
    return threading.current_thread() is threading.main_thread()


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches every process of the terminal; only the parent may decide what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _being_read(batches: StepBatches, first: int, last: int) -> str:
    """The pictures of these steps that were being read, or have been read last by an idle worker."""
    places = [(step, row) for step, row in batches.reading.tolist() if first <= step <= last]
    names = [
        batches.pictures.dataset.ids[batches.order.of_step(step, batches.batch_size)[0][row]] for step, row in places
    ]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "its pictures"


def _hanging(batches: StepBatches, step: int, patience: float) -> DataError:
    return DataError(
        "VT087",
        f"step {step} waits for {_being_read(batches, step, step)}, whose reading has not ended for {patience:.0f} seconds",
        "a picture in less than that", "look at this file and at the disk that it is on; the same command goes on from "
        "the last saved state",
    )  # fmt: skip


def _killed(batches: StepBatches, step: int) -> VitrailError:
    return VitrailError(
        "VT088", f"data workers were killed {DEATHS} times before step {step} had its pictures; "
        f"last they read {_being_read(batches, step, sys.maxsize)}",
        "workers that live", "where memory is short, fewer of them (--workers 0); or look at this file; the same command goes on "
        "from the last saved state",
    )  # fmt: skip
