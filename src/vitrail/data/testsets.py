"""Sets that only measure models of ImageNet: A, R, V2, Sketch, ObjectNet, and the validation images themselves.

They are read from the local copy as it was unpacked; which classes they have is what their folders are called. Nothing
is known of them beforehand: no list of classes is in this package.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vitrail.data.imagenet import WNID
from vitrail.data.listed import folders_in, lines_of, pictures_in
from vitrail.data.sources import Dataset, only_test
from vitrail.data.tables import Row
from vitrail.errors import DataError
from vitrail.files import read_json
from vitrail.images import Picture

MAPPINGS = ("folder_to_objectnet_label.json", "objectnet_to_imagenet_1k.json", "pytorch_to_imagenet_2012_id.json",
            "imagenet_to_label_2012_v2")  # fmt: skip
BORDER = 2  # pixels of ObjectNet's red frame, which its authors ask to cut off
_VALIDATION = re.compile(r"_val_(\d{8})(?:\D|$)")
_NUMBERED = re.compile(r"\d{1,5}")


@dataclass(frozen=True)
class TestSet:
    """Pictures to measure on, and how their classes are called.

    Attributes:
        images: every picture; targets in the order of `classes`.
        classes: names of folders; named by: WordNet identity, place in ImageNet's own order, or a name.
        indices: of each class its places in ImageNet's order, where the set brings a table that says so.
        left_out: classes that ImageNet does not have.
    """

    __test__ = False  # no test of pytest's
    name: str
    images: Dataset
    classes: tuple[str, ...]
    named_by: Literal["wnid", "index", "name", "table"]
    indices: tuple[tuple[int, ...], ...] = ()
    left_out: tuple[str, ...] = ()


def open_test_set(text: str) -> TestSet:
    """A folder of class folders, or ObjectNet's folder with images/ and mappings/.

    Raises:
        DataError: VT011, there is no such folder; VT012, no class folders; VT117, ObjectNet without its tables.
    """
    root = Path(text)
    if not root.is_dir():
        raise DataError("VT011", f"{text} is no folder", "a folder of class folders", "unpack the set")
    if (root / "images").is_dir() and (root / "mappings").is_dir():
        return _objectnet(text, root)
    # One folder around the classes, as archives have it: sketch/, imagenet-r/.
    inner = root
    while len(only := folders_in(inner)) == 1 and not WNID.fullmatch(only[0].name):
        inner = only[0]
    rows = list(_rows(root, inner, {}))
    if not rows:
        raise DataError("VT012", f"{text} has no class folders with pictures in them", "one folder a class")
    source = only_test(text, rows)
    how: Literal["wnid", "index", "name"] = (
        "wnid" if all(WNID.fullmatch(name) for name in source.classes)
        else "index" if all(_NUMBERED.fullmatch(name) for name in source.classes) else "name"
    )  # fmt: skip
    return TestSet(text, source.split("test"), source.classes, how)


def _rows(root: Path, folder: Path, among: Mapping[str, object]) -> Iterator[Row]:
    """Pictures of class folders, of all of them or those among the named."""
    for classes in folders_in(folder):
        if not among or classes.name in among:
            for identity, path in pictures_in(root, classes):
                yield Row(identity, path, (classes.name,), "test")


def _objectnet(text: str, root: Path) -> TestSet:
    """The classes that it shares with ImageNet, by the tables that it brings."""
    table, strange = _objectnet_table(root / "mappings")
    rows = list(_rows(root, root / "images", table))
    if not rows:
        raise DataError(
            "VT012", f"{root / 'images'} has no folder that the tables of mappings/ name", "one folder a class"
        )
    source = only_test(text, rows)
    read = source.split("test").read

    def framed(index: int, channels: int) -> Picture:
        picture = read(index, channels)
        inside = picture[BORDER:-BORDER, BORDER:-BORDER]
        return inside if inside.size else picture

    images = replace(source.split("test"), read=framed, read_file=None, measure=None)
    found = {folder.name for folder in folders_in(root / "images")}
    left_out = tuple(sorted(found & set(strange)))
    return TestSet(text, images, source.classes, "table", tuple(table[name] for name in source.classes), left_out)


def _objectnet_table(folder: Path) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Folder to places in ImageNet's order, and folders of classes that ImageNet does not have."""
    labels, shared, places = (_object(folder / name) for name in MAPPINGS[:3])
    names = [line for _, line in lines_of(folder / MAPPINGS[3])]
    index_of_line = {line: index for index, line in places.items()}
    try:
        index_of_name = {name: int(index_of_line[line]) for line, name in enumerate(names)}
        found = {directory: tuple(sorted(index_of_name[name] for name in str(shared[label]).split("; ")))
                 for directory, label in labels.items() if label in shared}  # fmt: skip
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(
            "VT117", f"the tables of {folder} do not fit each other: {error!r}", "the files of the archive"
        ) from error
    return found, [directory for directory, label in labels.items() if label not in shared]


def _object(path: Path) -> dict[str, object]:
    if not path.is_file():
        raise DataError(
            "VT117", f"{path} is missing", f"ObjectNet's own tables: {', '.join(MAPPINGS)}", "unpack mappings/ too"
        )
    found = read_json(path, 2**20)
    if not isinstance(found, dict):
        raise DataError("VT117", f"{path} is no table", "the file of the archive")
    return found


def open_validation(text: str) -> tuple[Dataset, list[int]]:
    """ImageNet's validation images, in class folders or flat, and the number that stands in each one's name, from 1.

    Args:
        text: the folder of them, or one with val/ in it.

    Raises:
        DataError: VT118, no picture is called as the official ones are.
    """
    root = Path(text)
    place = next((root / name for name in ("val", "Data/CLS-LOC/val") if (root / name).is_dir()), root)
    if not place.is_dir():
        raise DataError("VT011", f"{text} is no folder", "ImageNet's validation images", "unpack them")
    every = [pair for folder in (place, *folders_in(place)) for pair in pictures_in(root, folder)]
    named = [(int(match[1]), *pair) for pair in every if (match := _VALIDATION.search(Path(pair[1]).stem))]
    if not named or len({number for number, *_ in named}) != len(named):
        raise DataError(
            "VT118", f"{place} has {len(every):,} pictures, {len(named):,} of them named as the official ones, "
            f"with {len({number for number, *_ in named}):,} different numbers", "ILSVRC2012_val_00000001.JPEG and so on: "
            "the numbers in the names tell which line of real.json is whose",
        )  # fmt: skip
    rows = [Row(identity, path, ("image",), "test") for _, identity, path in sorted(named)]
    return only_test(text, rows).split("test"), sorted(number for number, *_ in named)
