"""Oxford-IIIT Pets (Parkhi 2012) and Oxford Flowers-102 (Nilsback 2008), as the University of Oxford packs them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitrail.data.listed import Laid, checked, inside, lines_of, numbered
from vitrail.data.matfile import read_mat
from vitrail.data.tables import Row
from vitrail.errors import DataError

NAME = "Oxford-IIIT Pets, Oxford Flowers-102"
MOST_FLOWERS = 1_000_000
_PET = re.compile(r"([A-Za-z][A-Za-z_]*)_(\d+)")
_SETS = {"train": "trnid", "val": "valid", "test": "tstid"}


def recognises(folder: Path) -> bool:
    return _are_pets(folder) or _are_flowers(folder)


def open(folder: Path) -> Laid:
    """Pets: trainval.txt (val is held out of it) and test.txt. Flowers: the three official sets.

    Raises:
        DataError: VT113, a list is damaged; VT017, it names pictures that are not there.
    """
    return _pets(folder) if _are_pets(folder) else _flowers(folder)


def _are_pets(folder: Path) -> bool:
    lists = folder / "annotations"
    return (folder / "images").is_dir() and all((lists / name).is_file() for name in ("trainval.txt", "test.txt"))


def _are_flowers(folder: Path) -> bool:
    return (folder / "jpg").is_dir() and all((folder / name).is_file() for name in ("imagelabels.mat", "setid.mat"))


def _pets(folder: Path) -> Laid:
    """Lines "Abyssinian_100 1 1 1": the name tells the breed, the first number is the breed's."""
    breeds: dict[int, str] = {}
    rows = []
    known = _listed_pets(folder / "annotations" / "list.txt")
    for split, file in (("train", "trainval.txt"), ("test", "test.txt")):
        path = folder / "annotations" / file
        for number, line in lines_of(path):
            if line.startswith("#"):
                continue
            words = line.split()
            match = _PET.fullmatch(words[0])
            if not match or len(words) < 2 or not words[1].isascii() or not words[1].isdecimal():
                raise DataError("VT113", f"{path}, line {number}: {line[:80]!r}", "a line such as Abyssinian_100 1 1 1")
            breed = int(words[1][:6])
            if breeds.setdefault(breed, match[1]) != match[1] or known.get(words[0], breed) != breed:
                raise DataError(
                    "VT113", f"{path}, line {number}: {words[0]} is of class {breed}, elsewhere "
                    f"{breeds[breed]}, class {known.get(words[0], breed)}", "one number a breed, the same in every list",
                )  # fmt: skip
            name = f"images/{words[0]}.jpg"
            rows.append(Row(name, inside(folder, name, str(path)), (match[1],), split))
    return Laid(checked(rows, f"{folder}/annotations"), origin={"train": "annotations/trainval.txt less the held-out part",
                                                                 "test": "annotations/test.txt"})  # fmt: skip


def _listed_pets(path: Path) -> dict[str, int]:
    """Picture to class as list.txt has it; where there is none, nothing is compared with it."""
    if not path.is_file():
        return {}
    lines = (line.split() for _, line in lines_of(path) if not line.startswith("#"))
    return {
        words[0]: int(words[1][:6]) for words in lines if len(words) > 1 and words[1].isascii() and words[1].isdecimal()
    }


def _flowers(folder: Path) -> Laid:
    """imagelabels.mat holds a class of 1 to 102 for each of jpg/image_00001.jpg and so on, setid.mat the three sets."""
    labels = _whole(folder / "imagelabels.mat", "labels", 100_000)
    sets = {split: _whole(folder / "setid.mat", name, len(labels)) for split, name in _SETS.items()}
    if len(labels) > MOST_FLOWERS:
        raise DataError("VT113", f"{folder}/imagelabels.mat has {len(labels):,} labels", f"at most {MOST_FLOWERS:,}")
    every = np.concatenate(list(sets.values()))
    if len(np.unique(every)) != len(every):
        raise DataError("VT113", f"{folder}/setid.mat names a picture twice", "three sets that share no picture")
    classes = int(labels.max())
    rows = []
    for split, numbers in sets.items():
        for number in numbers:
            name = f"jpg/image_{number:05d}.jpg"
            label = numbered(int(labels[number - 1]), classes + 1)
            rows.append(Row(name, inside(folder, name, "setid.mat"), (label,), split))
    return Laid(
        checked(rows, str(folder / "setid.mat")), origin={split: f"setid.mat, {name}" for split, name in _SETS.items()}
    )


def _whole(path: Path, name: str, most: int) -> NDArray[np.int64]:
    """One row of positive whole numbers."""
    found = read_mat(path)
    if name not in found:
        raise DataError("VT113", f"{path} has no matrix {name!r}; it has {', '.join(sorted(found)[:10]) or 'none'}",
                        "the official file")  # fmt: skip
    values = found[name].reshape(-1)
    if not len(values) or not (np.isfinite(values).all() and (values == np.floor(values)).all()):
        raise DataError("VT113", f"{path}: {name} is empty, or not of whole numbers", "the official file")
    if values.min() < 1 or values.max() > most:
        raise DataError(
            "VT113", f"{path}: {name} has numbers from {values.min():.0f} to {values.max():.0f}", f"1 to {most:,}"
        )
    return values.astype(np.int64)
