"""Lists of (picture, labels, split): read from folders and CSV files, written as split.csv."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from vitrail.errors import DataError, nearest
from vitrail.images import SUFFIXES, readable_name

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
MAX_ROWS = 50_000_000
RUN_FILES = ("config.json", "data.json", "environment.json")  # by which a run folder is known


@dataclass(frozen=True, slots=True)
class Row:
    """One picture; `id` is its path as the source writes it, `split` None where the source does not say."""

    id: str
    path: str  # a Path takes five times the memory
    labels: tuple[str, ...]
    split: str | None


def rows_of_folder(root: Path) -> list[Row]:
    """A folder of class folders, or of split folders (train, val, test and their usual other names) of class folders."""
    folders = _visible_folders(root)
    split_folders = {
        folder: SPLIT_NAMES[folder.name.lower()] for folder in folders if folder.name.lower() in SPLIT_NAMES
    }
    if split_folders and len(split_folders) == len(folders) and "train" not in split_folders.values():
        raise DataError(
            "VT014", f"{root} has {' and '.join(folder.name for folder in folders)}, and no training images",
            "a folder train beside them, or one folder per class",
        )  # fmt: skip
    if "train" in split_folders.values():
        rows = [row for folder, split in split_folders.items() for row in _rows_of_classes(root, folder, split)]
        empty = [
            folder.name for folder in split_folders if not any(p.suffix.lower() in SUFFIXES for p in folder.rglob("*"))
        ]
        if rows and empty:
            raise DataError(
                "VT012", f"{root} has no pictures in {' and '.join(empty)}/", "pictures in every split that has a folder",
                "put them there, or remove the empty folder: part of train is then held out",
            )  # fmt: skip
    else:
        rows = _rows_of_classes(root, root, None)
    if rows:
        return rows
    loose = sum(1 for path in root.iterdir() if path.suffix.lower() in SUFFIXES)
    found = (
        f"{loose} loose pictures and no class folders" if loose else f"{len(folders)} folders and no pictures in them"
    )
    raise DataError(
        "VT012", f"{root} has {found}", "one folder per class with pictures in it, e.g. cats/1.jpg, dogs/1.jpg",
        "sort the pictures into folders, or list them in a CSV with the columns path,label",
    )  # fmt: skip


def read_csv(path: Path) -> list[Row]:
    """Columns `path`, `label` and perhaps `split`; paths are relative to the file; several labels stand between `;`.

    Raises:
        DataError: a missing column, or files that are not there, all counted and the first ones named.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            for needed in ("path", "label"):
                if needed not in columns:
                    raise DataError(
                        "VT016", f"{path} has no column {needed!r}; its columns are {', '.join(columns) or 'none'}",
                        "a first line path,label or path,label,split", nearest(needed, columns) if columns else "",
                    )  # fmt: skip
            rows = [_row(path, record) for record in bounded(reader)]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise DataError(
            "VT016", f"{path} cannot be read as CSV: {error}", "text in UTF-8 with the columns path,label"
        ) from error
    if missing := [row.id for row in rows if not os.path.isfile(row.path)]:
        raise DataError(
            "VT017", f"{path} names {len(missing)} files that are not there: {', '.join(missing[:5])}",
            f"paths relative to {path.parent}", "correct the paths or remove those lines",
        )  # fmt: skip
    return rows


def csv_text(rows: Iterable[tuple[str, str, str]]) -> str:
    """split.csv: path,label,split."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "split"))
    writer.writerows(rows)
    return text.getvalue()


def _row(path: Path, record: dict[str, str | None]) -> Row:
    name, label, split = (str(record.get(key) or "").strip() for key in ("path", "label", "split"))
    if split and split.lower() not in SPLIT_NAMES:
        raise DataError("VT018", f"{path}: unknown split {split!r}", nearest(split, SPLIT_NAMES))
    labels = tuple(sorted({part.strip() for part in label.split(";") if part.strip()}))
    return Row(name, os.fspath(path.parent / name), labels, SPLIT_NAMES[split.lower()] if split else None)


def bounded(reader: Iterable[dict[str, str | None]]) -> Iterator[dict[str, str | None]]:
    """The lines of a table, refused where there are far too many of them."""
    for number, record in enumerate(reader):
        if number >= MAX_ROWS:
            raise DataError("VT016", f"the CSV has more than {MAX_ROWS:,} lines", "a smaller file")
        yield record


def _rows_of_classes(root: Path, folder: Path, split: str | None) -> list[Row]:
    """Of every class folder; pictures that a training run wrote below it are none of its."""
    runs = {root: False}

    def of_a_run(place: Path) -> bool:
        if place not in runs:
            runs[place] = of_a_run(place.parent) or all((place / name).is_file() for name in RUN_FILES)
        return runs[place]

    return [
        Row(readable_name(path.relative_to(root).as_posix()), os.fspath(path), (readable_name(classes.name),), split)
        for classes in _visible_folders(folder)
        for path in sorted(classes.rglob("*"))
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not _hidden(path.relative_to(root))
        and not of_a_run(path.parent)
    ]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _visible_folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
