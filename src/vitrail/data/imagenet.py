"""ImageNet (ILSVRC 2012) as it is usually unpacked: train/WNID/, and val/WNID/ or val/ with a list of what is true.

A class is "WNID name" where a file beside says names, else the WNID alone: sorted, they stand in the order of the
official index, 0 to 999. The official validation images are the test split, as in every paper; val is held out of train.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from vitrail.data.listed import Laid, checked, folders_in, lines_of, pictures_in
from vitrail.data.tables import Row
from vitrail.errors import DataError

NAME = "ImageNet"
WNID = re.compile(r"n\d{8}")
# LOC_*.txt and .csv are Kaggle's; synset_words.txt and val.txt Caffe's; the long one TensorFlow's.
WORDS = ("LOC_synset_mapping.txt", "synset_words.txt", "words.txt", "synsets.txt")
TRUTHS = ("LOC_val_solution.csv", "val.txt", "imagenet_2012_validation_synset_labels.txt")
DEVKIT = "ILSVRC2012_validation_ground_truth.txt"
_KAGGLE = Path("Data") / "CLS-LOC"  # the pictures there, the lists above or beside ILSVRC/


def recognises(folder: Path) -> bool:
    pictures = _pictures_folder(folder)
    return _of_wnids(pictures / "train") and (pictures / "val").is_dir()


def open(folder: Path) -> Laid:
    """Rows of train and test.

    Raises:
        DataError: VT113, val is flat and nothing says what its pictures show; VT017, pictures of a list are missing.
    """
    pictures = _pictures_folder(folder)
    named = {wnid: f"{wnid} {name}" for wnid, name in names_of(folder).items()}
    rows = list(_of_folders(folder, pictures / "train", "train", named))
    wnids = sorted({path.name for path in folders_in(pictures / "train") if WNID.fullmatch(path.name)})
    if _of_wnids(pictures / "val"):
        rows += _of_folders(folder, pictures / "val", "test", named)
        how = f"{_KAGGLE / 'val' if pictures != folder else 'val'}/, the official validation images"
    else:
        truth = _truth(folder, pictures)
        rows += _flat(folder, pictures / "val", truth, wnids, named)
        how = f"the official validation images, by {truth.name}"
    return Laid(checked(rows, str(folder)), origin={"train": "train/ less the held-out part", "test": how})


def names_of(folder: Path) -> dict[str, str]:
    """WNID to name, of the first file of names in or above the folder; empty without one.

    Raises:
        DataError: VT113, the file is damaged.
    """
    for place in (folder, folder.parent):
        for file in WORDS:
            if (path := place / file).is_file():
                return dict(names_in(path))
    return {}


def names_in(path: Path) -> Iterator[tuple[str, str]]:
    """WNID and name of each line of a file of names, in its order; a line may hold a WNID alone.

    Raises:
        DataError: VT113, a line does not begin with a WNID.
    """
    for number, line in lines_of(path):
        wnid, name = line[:9], line[9:].strip()
        if not WNID.fullmatch(wnid) or (line[9:] and not line[9].isspace()):
            raise DataError("VT113", f"{path}, line {number}: {line[:80]!r}", "a line such as n01440764 tench")
        yield wnid, name.split(",")[0].strip()


def _pictures_folder(folder: Path) -> Path:
    return folder / _KAGGLE if (folder / _KAGGLE / "train").is_dir() else folder


def _of_wnids(folder: Path) -> bool:
    names = [path.name for path in folders_in(folder)]
    return len(names) > 1 and all(WNID.fullmatch(name) for name in names)


def _of_folders(root: Path, folder: Path, split: str, named: dict[str, str]) -> Iterator[Row]:
    for classes in folders_in(folder):
        label = (named.get(classes.name, classes.name).strip(),)
        for identity, path in pictures_in(root, classes):
            yield Row(identity, path, label, split)


def _truth(folder: Path, pictures: Path) -> Path:
    places = (folder, folder.parent, folder.parent.parent, pictures, pictures / "val")
    for name in TRUTHS:
        if found := next((place / name for place in places if (place / name).is_file()), None):
            return found
    if any((place / DEVKIT).is_file() for place in places):
        raise DataError(
            "VT113", f"{pictures / 'val'} is flat, and {DEVKIT} numbers the classes as the development kit does, in an "
            "order that only its meta.mat tells", f"val/WNID/ folders, or one of {', '.join(TRUTHS)}",
        )  # fmt: skip
    raise DataError(
        "VT113", f"{pictures / 'val'} holds pictures in no folders, and nothing says what they show",
        f"val/WNID/ folders, or one of {', '.join(TRUTHS)} beside train/ and val/",
    )  # fmt: skip


def _flat(root: Path, folder: Path, truth: Path, wnids: list[str], named: dict[str, str]) -> Iterator[Row]:
    """The pictures of a flat val/ in the order of the list of truth."""
    present = {
        os.path.splitext(os.path.basename(path))[0]: (identity, path) for identity, path in pictures_in(root, folder)
    }
    answers = dict(_answers(truth, sorted(present), wnids))
    if lacking := sorted(set(present) ^ set(answers)):
        raise DataError(
            "VT113", f"{truth} and {folder} do not name the same pictures: {len(lacking):,} are in one only, such as "
            f"{', '.join(lacking[:3])}", "a line for each picture, and a picture for each line",
        )  # fmt: skip
    for stem, wnid in sorted(answers.items()):
        identity, path = present[stem]
        yield Row(identity, path, (named.get(wnid, wnid).strip(),), "test")


def _answers(truth: Path, stems: list[str], wnids: list[str]) -> Iterator[tuple[str, str]]:
    """Picture and WNID of each line."""
    known = set(wnids)
    lines = list(lines_of(truth))
    if truth.name == TRUTHS[2] and len(lines) != len(stems):
        raise DataError("VT113", f"{truth} has {len(lines):,} lines for {len(stems):,} pictures", "a line a picture")
    for place, (number, line) in enumerate(lines):
        if truth.name == TRUTHS[0]:  # ImageId,PredictionString: a WNID and boxes, perhaps again
            if number == 1 and line.startswith("ImageId"):
                continue
            stem, _, rest = line.partition(",")
            wnid = rest.split()[0] if rest.split() else ""
        elif truth.name == TRUTHS[1]:
            name, _, word = line.rpartition(" ")
            stem = os.path.splitext(os.path.basename(name.strip()))[0]
            by_number = word.isascii() and word.isdecimal() and int(word[:9]) < len(wnids)
            wnid = wnids[int(word)] if by_number else word
        else:
            stem, wnid = stems[place], line
        if wnid not in known or not stem:
            raise DataError(
                "VT113", f"{truth}, line {number}: {line[:80]!r}", "a picture and a class that train/ has, by WNID or index"
            )  # fmt: skip
        yield stem, wnid
