"""Dividing pictures into train, val and test so that no copy of a training picture is tested on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitrail.data.check import Examiner, Progress, read_all
from vitrail.data.sources import BUILT_IN, Dataset, from_rows, rows_of, stratified
from vitrail.data.tables import Row, csv_text
from vitrail.errors import DataError, UsageError
from vitrail.images import readable_name


@dataclass(frozen=True)
class Division:
    """Where every picture goes.

    Attributes:
        rows: those that can be read, with their split.
        left_out: ids of those that cannot.
        together: groups of copies, each in one split.
    """

    rows: tuple[Row, ...]
    left_out: tuple[str, ...]
    together: int


def divide(
    data: str, val: float = 0.1, test: float = 0.1, seed: int = 0, threads: int = 2, progress: Progress | None = None
) -> Division:
    """Stratified shares of the pictures of a folder or CSV; same and nearly same pictures stay together.

    Args:
        val, test: shares of the pictures, copies counted once; `test` may be 0.
        seed: decides who is held out.

    Raises:
        UsageError: VT002, shares that leave no room.
        DataError: VT029, the data have splits already; VT012, too few pictures.
    """
    if not (0 < val < 1 and 0 <= test < 1 and val + test < 1):
        raise UsageError(
            "VT002", f"--val {val} and --test {test}", "shares that leave something to train on, val above 0"
        )
    rows = [] if data.split(":")[0] in BUILT_IN else rows_of(data)
    if not rows or any(row.split for row in rows):
        raise DataError(
            "VT029", f"{data} has its own splits", "pictures that are not divided yet",
            f"vitrail data check {data} shows copies that are in several splits",
        )  # fmt: skip
    source = from_rows(data, rows)
    examiner = Examiner(source)
    read_all(examiner, threads, progress)
    groups = examiner.copies()
    unit = np.arange(len(rows))
    for group in groups:
        unit[group] = group[0]
    unit[list(examiner.record.errors)] = -1
    splits = _split_of_units(source.splits["train"], unit, val, test, seed)
    divided = tuple(
        replace(row, split=splits[number]) for row, number in zip(rows, unit.tolist(), strict=True) if number >= 0
    )
    return Division(divided, tuple(rows[row].id for row in sorted(examiner.record.errors)), len(groups))


def division_text(rows: Sequence[Row], folder: Path) -> str:
    """The CSV that `vitrail train` reads, to lie in `folder`; paths below it are relative, others absolute.

    Raises:
        DataError: VT029, a path or a label that such a file cannot hold.
    """
    here = os.path.abspath(folder)
    lines = []
    for row in rows:
        path = os.path.abspath(row.path)
        name = os.path.relpath(path, here) if path.startswith(os.path.join(here, "")) else path
        labels = ";".join(row.labels)
        parts = [part for label in row.labels for part in label.split(";")]
        if name != name.strip() or not _is_utf8(name) or parts != [label.strip() for label in row.labels]:
            raise DataError(
                "VT029", f"a CSV file cannot hold the path {readable_name(name)!r} with the label {labels!r}",
                "names in UTF-8 without spaces at their ends, classes without a semicolon", "rename the file or its folder",
            )  # fmt: skip
        lines.append((name, labels, row.split or "train"))
    return csv_text(lines)


def _split_of_units(train: Dataset, unit: NDArray[np.int64], val: float, test: float, seed: int) -> dict[int, str]:
    """The split of every group of copies, by its first row; a group has all labels of its pictures."""
    firsts = np.unique(unit[unit >= 0])
    targets = np.zeros((len(firsts), train.targets.shape[1]), dtype=np.float32)
    np.maximum.at(targets, np.searchsorted(firsts, unit[unit >= 0]), train.targets[unit >= 0])
    left = Dataset(tuple(train.ids[first] for first in firsts), targets, train.read)
    splits, remaining = dict.fromkeys(firsts.tolist(), "train"), firsts
    for name, share in (("test", test), ("val", val / (1 - test))):
        if not share:
            continue
        held, kept = stratified(left, share, seed, name)
        if not len(held):
            raise DataError(
                "VT012", f"{len(remaining)} different pictures are too few to hold some out for {name}",
                "three pictures of a class or more",
            )  # fmt: skip
        splits.update(dict.fromkeys(remaining[held].tolist(), name))
        left, remaining = left.subset(kept), remaining[kept]
    return splits


def _is_utf8(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False
