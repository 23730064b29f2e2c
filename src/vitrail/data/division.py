"""Dividing pictures into train, val and test so that no copy of a training picture is tested on.

Splits that are there are kept, and repaired: train gives up copies of held-out pictures, and some pictures of classes that
val or test lack. Labels that a person found wrong are corrected on the way.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitrail.data.check import Examiner, Progress, read_all
from vitrail.data.sources import BUILT_IN, Dataset, Source, from_rows, rows_of, stratified
from vitrail.data.tables import Row, bounded, csv_text
from vitrail.errors import DataError, UsageError, nearest
from vitrail.images import readable_name


@dataclass(frozen=True)
class Division:
    """Where every picture goes.

    Attributes:
        rows: those that can be read, with their split.
        left_out: ids of those that cannot.
        together: groups of copies, each in one split.
        given: the data had splits of their own, which were kept.
        copies: ids of the pictures that a split gave up because a later one has copies of them.
        moved: how many pictures of each class went from train to a split that had none, by "class to split".
    """

    rows: tuple[Row, ...]
    left_out: tuple[str, ...]
    together: int
    given: bool = False
    copies: tuple[str, ...] = ()
    moved: Mapping[str, int] = field(default_factory=dict)


def divide(
    data: str, val: float = 0.1, test: float = 0.1, seed: int = 0, labels: Mapping[str, str] | None = None,
    threads: int = 2, progress: Progress | None = None,
) -> Division:  # fmt: skip
    """Stratified shares of the pictures of a folder or CSV; same and nearly same pictures stay together.

    Where the data have splits of their own, these are kept: test keeps its pictures and val all that test has no copies
    of; train loses what either has copies of, and gives to val and test the usual share of classes that they lack.

    Args:
        val, test: shares of the pictures, copies counted once; `test` may be 0. For data without splits.
        seed: decides who is held out.
        labels: right labels by id, several joined by ";"; pictures with an empty one are left out.

    Raises:
        UsageError: VT002, shares that leave no room.
        DataError: VT029, a built-in set; VT012, too few pictures; VT017 and VT018, labels that do not fit the data.
    """
    if not (0 < val < 1 and 0 <= test < 1 and val + test < 1):
        raise UsageError(
            "VT002", f"--val {val} and --test {test}", "shares that leave something to train on, val above 0"
        )
    if data.split(":")[0] in BUILT_IN:
        raise DataError(
            "VT029", f"{data} is a built-in set with its own splits", "a folder of pictures, or a CSV that lists them",
            f"vitrail data check {data} shows copies that are in several splits",
        )  # fmt: skip
    rows = _relabelled(data, rows_of(data), labels or {})
    given = any(row.split in ("val", "test") for row in rows)
    # Without a test split val stands for both; and a split by this program needs a train split to take from.
    rows = [replace(row, split=(row.split or "train") if given else None) for row in rows]
    source = from_rows(data, rows)
    examiner = Examiner(source)
    read_all(examiner, threads, progress)
    # The record has the pictures split by split.
    rows = [row for name in examiner.record.splits for row in rows if (row.split or "train") == name]
    groups, unreadable = examiner.copies(), sorted(examiner.record.errors)
    left_out = tuple(rows[row].id for row in unreadable)
    if given:
        return _repaired(source, rows, groups, unreadable, seed)
    unit = np.arange(len(rows))
    for group in groups:
        unit[group] = group[0]
    unit[unreadable] = -1
    splits = _split_of_units(source.splits["train"], unit, val, test, seed)
    divided = tuple(
        replace(row, split=splits[number]) for row, number in zip(rows, unit.tolist(), strict=True) if number >= 0
    )
    return Division(divided, left_out, len(groups))


def read_labels(path: Path) -> dict[str, str]:
    """Right labels by picture from a list such as eval/suspects.csv: the columns `file` and `suggested`.

    Raises:
        DataError: VT016, the list cannot be read or lacks a column.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if missing := {"file", "suggested"} - set(reader.fieldnames or ()):
                raise DataError(
                    "VT016", f"{path} has no column {' and '.join(map(repr, sorted(missing)))}",
                    "a list such as RUN/eval/suspects.csv: file, and in suggested the right label",
                )  # fmt: skip
            return {row["file"] or "": (row["suggested"] or "").strip() for row in bounded(reader)}
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise DataError("VT016", f"{path} cannot be read: {error}", "a CSV file in UTF-8") from error


def _relabelled(data: str, rows: Sequence[Row], labels: Mapping[str, str]) -> list[Row]:
    """The rows with these labels; the list was written by a person, so that every name is looked at."""
    known, classes = {row.id for row in rows}, {label for row in rows for label in row.labels}
    if strange := sorted(set(labels) - known):
        names = ", ".join(map(readable_name, strange[:3]))
        raise DataError(
            "VT017", f"{len(strange)} pictures of the list are not in {data}, such as {names}",
            "the names that the run's eval/suspects.csv gives", "the data that the run was trained on",
        )  # fmt: skip
    right = {name: tuple(sorted(filter(None, map(str.strip, text.split(";"))))) for name, text in labels.items()}
    for label in sorted({label for several in right.values() for label in several} - classes):
        raise DataError(
            "VT018", f"the list has the label {label!r}, which {data} does not have", nearest(label, classes)
        )
    return [replace(row, labels=right.get(row.id, row.labels)) for row in rows if row.id not in right or right[row.id]]


def _repaired(
    source: Source, rows: Sequence[Row], groups: Sequence[NDArray[np.int64]], unreadable: Sequence[int], seed: int
) -> Division:
    """Splits of their own, without what is in two of them, and with every class in each where train can spare it."""
    order = list(source.splits)
    place = np.array([order.index(row.split or "train") for row in rows])
    unit, kept = np.arange(len(rows)), np.ones(len(rows), dtype=bool)
    for group in groups:
        last = place[group].max()
        kept[group[place[group] < last]] = False
        unit[group[place[group] == last]] = group[place[group] == last][0]
    copies = tuple(rows[row].id for row in np.flatnonzero(~kept).tolist())
    kept[list(unreadable)] = False
    targets = np.concatenate([source.splits[name].targets for name in order])
    moved: dict[str, int] = {}
    for number, name in enumerate(order[1:], start=1):
        share = (place == number).sum() / ((place == number) | (place == 0)).sum()
        for index in np.flatnonzero(targets[kept & (place == number)].sum(axis=0) == 0).tolist():
            mine = kept & (place == 0) & (targets[:, index] > 0)
            firsts = np.unique(unit[mine])
            chosen = Dataset(
                tuple(rows[first].id for first in firsts.tolist()), targets[firsts], source.splits["train"].read
            )
            held, _ = stratified(chosen, float(share), seed, name)
            going = kept & (place == 0) & np.isin(unit, firsts[held])
            place[going] = number
            if going.any():
                moved[f"{source.classes[index]} to {name}"] = int(going.sum())
    divided = tuple(replace(rows[row], split=order[place[row]]) for row in np.flatnonzero(kept).tolist())
    return Division(divided, tuple(rows[row].id for row in unreadable), len(groups), True, copies, moved)


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
