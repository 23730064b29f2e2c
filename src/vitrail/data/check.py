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
        return asdict(self)


class Examiner:
    """Is shown pictures, by any number of threads, and says what they come to."""

    def __init__(self, source: Source) -> None:
        self.record = Record(source)

    def see(self, split: str, index: int, picture: Picture | DataError, facts: FileFacts | None = None) -> None:
        """A picture as decoded, uint8 height width channels, or why it could not be."""
        self.record.note(self.record.starts[split] + index, picture, facts)

    def watching(self, split: str) -> Callable[[int, Picture | DataError, FileFacts | None], None]:
        """`see` for the pictures of one split."""
        return partial(self.see, split)

    def examination(self, look: Callable[[str, int], Picture] | None = None, until: float = np.inf) -> Examination:
        """What has been seen so far comes to.

        Args:
            look: split and index to picture, for those that may be copies; by default they are read again.
            until: when to stop comparing, by `time.monotonic`.
        """
        record = self.record
        again = look or (lambda split, index: record.splits[split].read(index, 3))
        groups = record.prints.groups(lambda row: again(*record.place(row)), record.label_of, until)
        modes, formats = record.files()
        problems = tuple(find_problems(record, groups))
        return Examination(record.seen, len(record), _sizes(record.sizes[record.readable]), modes, formats, problems)


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
    record = examiner.record
    order = np.arange(len(record)) if seconds is None else _spread(len(record))
    end = np.inf if seconds is None else start + _READING * seconds
    rows = iter(order.tolist())  # `next` of a list's iterator is atomic, so that threads may share it

    def read() -> None:
        for row in rows:
            split, index = record.place(row)
            try:
                picture, facts = record.splits[split].examine(index)
                record.note(row, picture, facts)
            except DataError as error:
                record.note(row, error, None)
            if time.monotonic() > end:
                return

    with ThreadPoolExecutor(threads) as pool:
        work = [pool.submit(read) for _ in range(threads)]
        try:
            while wait(work, timeout=0.5).not_done:
                if progress is not None:
                    progress(record.seen, len(record))
        finally:
            deque(rows, maxlen=0)  # when interrupted, nothing is left for the threads to take
    for done in work:
        done.result()
    return examiner.examination(until=np.inf if seconds is None else start + seconds)


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
