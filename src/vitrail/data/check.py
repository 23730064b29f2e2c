"""The data check: every picture is read once, and what is wrong with the data is said with numbers and a way out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.data.problems import Problem, find_problems
from vitrail.data.record import Record
from vitrail.data.sources import Source
from vitrail.errors import DataError
from vitrail.images import FileFacts, Picture

_READING = 0.7  # share of the time that is given; the rest is for comparing
_GOLDEN = 0.6180339887498949
_BINS = 12

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Examination:
    """What the check found.

    Attributes:
        seen, of: pictures that were read, or tried, and pictures there are.
        sizes: smallest, median and largest [width, height] by area, and a histogram of the shorter side: `edges`, one
            more than `counts`, the last included.
        modes, formats: how the pictures are stored, by Pillow's names; empty where they come from no files.
    """

    seen: int
    of: int
    sizes: dict[str, Any]
    modes: dict[str, int]
    formats: dict[str, int]
    problems: tuple[Problem, ...]

    @property
    def has_errors(self) -> bool:
        return any(problem.severity == "error" for problem in self.problems)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "problems": [asdict(problem) for problem in self.problems]}


class Examiner:
    """Is shown pictures, by any number of threads, and says what they come to.

    Attributes:
        look: split and index to picture, for a second look at those that may be copies; by default they are read again.
    """

    def __init__(self, source: Source) -> None:
        self.record = Record(source)
        self.look: Callable[[str, int], Picture] = lambda split, index: source.splits[split].read(index, 3)

    def see(self, split: str, index: int, picture: Picture | DataError, facts: FileFacts | None = None) -> None:
        """A picture as decoded, uint8 height width channels, or why it could not be."""
        self.record.note(self.record.starts[split] + index, picture, facts)

    def watching(self, split: str) -> Callable[[int, Picture | DataError, FileFacts | None], None]:
        """`see` for the pictures of one split."""
        return partial(self.see, split)

    def copies(self, until: float = np.inf) -> list[NDArray[np.int64]]:
        """Groups of rows, among the pictures seen so far, that are the same or nearly so.

        Args:
            until: when to stop comparing, by `time.monotonic`.
        """
        record = self.record
        return record.prints.groups(lambda row: self.look(*record.place(row)), record.label_of, until)

    def examination(self, until: float = np.inf) -> Examination:
        """What the pictures seen so far come to; `until` as for `copies`."""
        record, groups = self.record, self.copies(until)
        modes, formats = record.files()
        sizes = _sizes(record.sizes[record.readable])
        return Examination(record.seen, len(record), sizes, modes, formats, tuple(find_problems(record, groups)))


def examine(
    source: Source, threads: int = 2, seconds: float | None = None, progress: Progress | None = None
) -> Examination:
    """Reads the pictures of a source and says what is wrong with them.

    Args:
        seconds: reads an evenly spread sample until the time is used up; by default everything is read.
        progress: is told now and then how many pictures of how many were read.
    """
    start = time.monotonic()
    examiner = Examiner(source)
    if seconds is None:
        read_all(examiner, threads, progress)
        return examiner.examination()
    _read(examiner.record, _spread(len(examiner.record)), threads, progress, start + _READING * seconds)
    return examiner.examination(until=start + seconds)


def read_all(examiner: Examiner, threads: int = 2, progress: Progress | None = None) -> None:
    """Shows an examiner every picture of its source."""
    _read(examiner.record, np.arange(len(examiner.record)), threads, progress)


def _read(
    record: Record, order: NDArray[np.int64], threads: int, progress: Progress | None, until: float = np.inf
) -> None:
    rows = iter(order.tolist())  # `next` of a list's iterator is atomic, so that threads may share it

    def work() -> None:
        for row in rows:
            split, index = record.place(row)
            try:
                record.note(row, *record.splits[split].examine(index))
            except DataError as error:
                record.note(row, error, None)
            if time.monotonic() > until:
                return

    with ThreadPoolExecutor(threads) as pool:
        workers = [pool.submit(work) for _ in range(threads)]
        try:
            while wait(workers, timeout=0.5).not_done:
                if progress is not None:
                    progress(record.seen, len(record))
        finally:
            deque(rows, maxlen=0)  # when interrupted, nothing is left for the threads to take
    for worker in workers:
        worker.result()


def _spread(count: int) -> NDArray[np.int64]:
    """All rows, in an order of which every beginning is spread evenly over them (multiples of the golden ratio)."""
    return np.argsort((np.arange(count) * _GOLDEN) % 1)


def _sizes(sizes: NDArray[np.int32]) -> dict[str, Any]:
    if not len(sizes):
        return {}
    order = np.argsort(sizes.prod(axis=1, dtype=np.int64), kind="stable")
    shorter = sizes.min(axis=1)
    edges = np.unique(np.geomspace(shorter.min(), shorter.max() + 1, _BINS + 1).round().astype(np.int64))
    counts, _ = np.histogram(shorter, edges)
    chosen = {"smallest": order[0], "median": order[len(order) // 2], "largest": order[-1]}
    return {name: sizes[row].tolist() for name, row in chosen.items()} | {
        "shorter_side": {"edges": edges.tolist(), "counts": counts.tolist()}
    }
