"""What the data check keeps of every picture: a few hundred bytes, whatever its size."""

from __future__ import annotations

from threading import Lock

import numpy as np
from numpy.typing import NDArray

from vitrail.data.fingerprints import Fingerprints, reduced
from vitrail.data.sources import Dataset, Source
from vitrail.errors import DataError
from vitrail.images import FileFacts, Picture

SEEN, BAD, GREY, BLANK, TRANSPARENT, TURNED, EMPTY = (1 << bit for bit in range(7))
_GREY_LEVELS = 12  # what compression may make of a grey picture stored in colour


class Record:
    """One row per picture, the splits one after the other; threads may fill in different rows at once.

    Attributes:
        splits: the data sets by name; test only where it is not val.
        split_of: per row the number of its split.
        label_of: per row the number of its labels; pictures with the same labels have the same number.
        labels: the labels by number, as text.
        sizes: width and height as seen.
        flags: SEEN, BAD, GREY, BLANK, TRANSPARENT, TURNED, EMPTY (see-through from edge to edge).
        errors: by row, why a picture cannot be read.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.splits = source.own_splits
        counts = [len(split) for split in self.splits.values()]
        total = sum(counts)
        self.starts = dict(zip(self.splits, np.cumsum([0, *counts]).tolist(), strict=False))
        self.split_of = np.repeat(np.arange(len(counts), dtype=np.uint8), counts)
        self.label_of, self.labels = _labels(source.classes, list(self.splits.values()))
        self.sizes = np.zeros((total, 2), dtype=np.int32)
        self.flags = np.zeros(total, dtype=np.uint8)
        self.errors: dict[int, DataError] = {}
        self.prints = Fingerprints(total)
        self._kind_of = np.zeros(total, dtype=np.uint8)
        self._kinds: dict[tuple[str, str], int] = {("", ""): 0}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.flags)

    def note(self, row: int, picture: Picture | DataError, facts: FileFacts | None) -> None:
        """Writes down a picture as it was decoded, uint8 height width channels, or why it could not be."""
        if isinstance(picture, DataError):
            self.errors[row] = picture
            self.flags[row] = SEEN | BAD
            return
        small = reduced(picture)
        flags = SEEN
        flags |= BLANK if _is_blank(picture, small) else 0
        flags |= GREY if _is_grey(picture, small) else 0
        if facts is not None:
            flags |= TRANSPARENT if facts.transparent else 0
            flags |= TURNED if facts.turned else 0
            flags |= EMPTY if facts.empty else 0
            self._kind_of[row] = self._number((facts.format, facts.mode))
        if not flags & BLANK:  # blank pictures are one statement, not a thousand copies of each other
            self.prints.add(row, picture, small)
        self.sizes[row] = picture.shape[1], picture.shape[0]
        self.flags[row] = flags

    def has(self, flag: int) -> NDArray[np.bool_]:
        return (self.flags & flag) != 0

    @property
    def readable(self) -> NDArray[np.int64]:
        """Rows that were read."""
        return np.flatnonzero(self.has(SEEN) & ~self.has(BAD))

    @property
    def seen(self) -> int:
        return int(self.has(SEEN).sum())

    def place(self, row: int) -> tuple[str, int]:
        """Split and index of a row."""
        name = list(self.splits)[self.split_of[row]]
        return name, row - self.starts[name]

    def member(self, row: int) -> dict[str, str]:
        name, index = self.place(row)
        return {"id": self.splits[name].ids[index], "split": name, "label": self.labels[self.label_of[row]]}

    def files(self) -> tuple[dict[str, int], dict[str, int]]:
        """How many pictures have each mode and each format, the most common first."""
        counts = np.bincount(self._kind_of[self.readable], minlength=len(self._kinds))
        modes: dict[str, int] = {}
        formats: dict[str, int] = {}
        for (form, mode), number in self._kinds.items():
            if form and counts[number]:
                modes[mode] = modes.get(mode, 0) + int(counts[number])
                formats[form] = formats.get(form, 0) + int(counts[number])
        return tuple(dict(sorted(d.items(), key=lambda item: -item[1])) for d in (modes, formats))  # type: ignore[return-value]

    def class_counts(self) -> dict[str, NDArray[np.int64]]:
        """Per split the number of pictures of every class, less those that cannot be read."""
        counts = {name: split.targets.sum(axis=0).astype(np.int64) for name, split in self.splits.items()}
        for row in self.errors:
            name, index = self.place(row)
            counts[name] -= self.splits[name].targets[index].astype(np.int64)
        return counts

    def rows_of_class(self, split: str, index: int, limit: int) -> NDArray[np.int64]:
        return np.flatnonzero(self.splits[split].targets[:, index])[:limit] + self.starts[split]

    def _number(self, kind: tuple[str, str]) -> int:
        if kind not in self._kinds:
            with self._lock:
                self._kinds.setdefault(kind, min(len(self._kinds), 255))
        return self._kinds[kind]


def _labels(classes: tuple[str, ...], splits: list[Dataset]) -> tuple[NDArray[np.int64], list[str]]:
    targets = [split.targets for split in splits]
    if all((part.sum(axis=1) == 1).all() for part in targets):
        return np.concatenate([part.argmax(axis=1) for part in targets]), list(classes)
    numbers: dict[bytes, int] = {}
    rows = [numbers.setdefault(np.packbits(row > 0).tobytes(), len(numbers)) for part in targets for row in part]
    names = []
    for packed in numbers:
        bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=len(classes))
        names.append(";".join(classes[index] for index in bits.nonzero()[0]))
    return np.array(rows, dtype=np.int64), names


def _is_blank(picture: Picture, small: Picture) -> bool:
    """One colour from edge to edge; the small picture spares most pictures the look at every pixel."""
    return bool((small == small[0, 0]).all() and (picture == picture[0, 0]).all())


def _is_grey(picture: Picture, small: Picture) -> bool:
    if picture.shape[2] == 1:
        return True
    if int(np.ptp(small.astype(np.int16), axis=2).max()) > _GREY_LEVELS // 2:
        return False
    step = max(1, min(picture.shape[:2]) // 128)
    return int(np.ptp(picture[::step, ::step].astype(np.int16), axis=2).max()) <= _GREY_LEVELS
