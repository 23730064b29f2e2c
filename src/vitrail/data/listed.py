"""What a known layout of a data set holds, and reading its lists without trusting them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitrail.data.tables import Row
from vitrail.errors import DataError
from vitrail.images import SUFFIXES, readable_name

MAX_LIST_BYTES = 256 * 2**20
MAX_LINES = 10_000_000
MAX_LINE = 4096  # characters: a path and a label
MAX_CLASSES = 100_000

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Laid:
    """What a layout holds, as rows that name files or as arrays.

    Attributes:
        rows: a picture each; every row says its split.
        arrays: split to images, uint8 count height width channels, and labels, which index `classes`.
        classes: of arrays; of rows those that the layout knows beyond the rows' own labels.
        origin: how each split came about, for people.
    """

    rows: Sequence[Row] = ()
    arrays: Mapping[str, tuple[Images, Labels]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    origin: Mapping[str, str] = field(default_factory=dict)


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of the lines that hold something.

    Raises:
        DataError: VT113, the file is no list: too large, no text, or lines without end.
    """
    try:
        size = path.stat().st_size
        if size > MAX_LIST_BYTES:
            raise DataError("VT113", f"{path} has {size:,} bytes", f"a list of at most {MAX_LIST_BYTES:,}")
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(_short(path, file), 1):
                if number > MAX_LINES:
                    raise DataError("VT113", f"{path} has more than {MAX_LINES:,} lines", "a list of pictures")
                if line.strip():
                    yield number, line.strip()
    except (UnicodeDecodeError, OSError) as error:
        raise DataError("VT113", f"{path} cannot be read as a list: {error}", "text in UTF-8") from error


def _short(path: Path, file: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if len(line) > MAX_LINE:
            raise DataError("VT113", f"{path}, line {number}: {len(line):,} characters", f"at most {MAX_LINE:,}")
        yield line


def labelled_lines(path: Path) -> Iterator[tuple[int, str, int]]:
    """Line number, path and label of a list of "path label" lines; the path may hold blanks.

    Raises:
        DataError: VT113, a line has no label, or one that is no index of a class.
    """
    for number, line in lines_of(path):
        name, _, label = line.rpartition(" ")
        if not name.strip() or not label.isascii() or not label.isdecimal() or int(label) >= MAX_CLASSES:
            raise DataError(
                "VT113", f"{path}, line {number}: {line[:80]!r}", f"a path and the number of a class below {MAX_CLASSES:,}"
            )  # fmt: skip
        yield number, name.strip(), int(label)


def inside(folder: Path, name: str, where: str) -> str:
    """The path that a list names, which must lie in the folder.

    Raises:
        DataError: VT113, it leads elsewhere.
    """
    parts = name.replace("\\", "/").split("/")
    if not name or name.startswith(("/", "\\", "~")) or ".." in parts or "\0" in name or ":" in parts[0]:
        raise DataError("VT113", f"{where} names {name[:80]!r}", f"a path below {folder}")
    return os.path.join(folder, *parts)


def checked(rows: Sequence[Row], what: str) -> Sequence[Row]:
    """Rows whose files are all there.

    Raises:
        DataError: VT017, files are missing, all counted and the first named; VT012, there are no rows.
    """
    if not rows:
        raise DataError("VT012", f"{what} lists no pictures", "at least two classes with images in them")
    if missing := [row.id for row in rows if not os.path.isfile(row.path)]:
        raise DataError(
            "VT017", f"{what} names {len(missing)} files that are not there: {', '.join(missing[:5])}",
            "every picture of the lists", "unpack the pictures again",
        )  # fmt: skip
    return rows


def numbered(label: int, count: int) -> str:
    """The name of a class that only has a number; names sort as numbers do."""
    return f"{label:0{len(str(max(count - 1, 1)))}d}"


def pictures_in(root: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Identity (the path below root) and path of every picture in a folder itself, sorted; hidden ones are left out."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_file())
    below = folder.relative_to(root).as_posix()
    for name in names:
        if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith("."):
            yield readable_name(f"{below}/{name}" if below != "." else name), os.path.join(folder, name)


def folders_in(folder: Path) -> list[Path]:
    """The visible folders in a folder, sorted; none where it is no folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
