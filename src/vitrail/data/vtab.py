"""VTAB-1k (Zhai 2019) as it is usually unpacked: TASK/images/..., and lists of "path label" lines beside.

Nineteen tasks in three groups; each has 800 images to train on, 200 to choose by, and a test set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vitrail.data.listed import Laid, checked, folders_in, inside, labelled_lines, numbered
from vitrail.data.tables import Row
from vitrail.errors import DataError

NAME = "VTAB-1k"
GROUPS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "Natural": {
        "Caltech101": ("caltech101", "caltech"), "CIFAR-100": ("cifar", "cifar100"), "DTD": ("dtd",),
        "Flowers102": ("oxfordflowers102", "flowers102", "flowers"), "Pets": ("oxfordiiitpet", "oxfordiiitpets", "pets"),
        "Sun397": ("sun397",), "SVHN": ("svhn", "svhncropped"),
    },
    "Specialized": {
        "Camelyon": ("patchcamelyon", "camelyon"), "EuroSAT": ("eurosat",), "Resisc45": ("resisc45",),
        "Retinopathy": ("diabeticretinopathy", "diabeticretinopathydetection", "retinopathy"),
    },
    "Structured": {
        "Clevr-Count": ("clevrcount",), "Clevr-Dist": ("clevrdist", "clevrdistance"), "DMLab": ("dmlab",),
        "dSpr-Loc": ("dspritesloc", "dsprloc", "dspriteslocation"), "dSpr-Ori": ("dspritesori", "dsprori", "dspritesorientation"),
        "KITTI-Dist": ("kitti", "kittidist", "kittidistance"), "sNORB-Azim": ("smallnorbazi", "snorbazim", "smallnorbazimuth"),
        "sNORB-Elev": ("smallnorbele", "snorbelev", "smallnorbelevation"),
    },
}  # fmt: skip
"""Group, task as table 9 of the paper calls it, and the names of its folder in lower case without signs."""
TUNE, CHOOSE, WHOLE, TEST = "train800.txt", "val200.txt", "train800val200.txt", "test.txt"
_SPLITS = {"train": TUNE, "val": CHOOSE, "test": TEST}


@dataclass(frozen=True)
class Task:
    """One of the nineteen, where it lies on this computer."""

    name: str
    group: str
    folder: Path


def recognises(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (TUNE, TEST))


def open(folder: Path) -> Laid:
    """train800 as train, val200 as val, and test. A class may lack images among the 800, as in the official draw.

    Raises:
        DataError: VT113, a list is damaged, pictures stand in two of them, or the thousand are not the two parts.
    """
    found = {split: _listed(folder, name) for split, name in _SPLITS.items() if (folder / name).is_file()}
    if "val" not in found:
        raise DataError("VT113", f"{folder} has no {CHOOSE}", f"{TUNE}, {CHOOSE} and {TEST}")
    _check(folder, found)
    count = max(label for listed in found.values() for label in listed.values()) + 1
    rows = [Row(name, inside(folder, name, str(folder / _SPLITS[split])), (numbered(label, count),), split)
            for split, listed in found.items() for name, label in listed.items()]  # fmt: skip
    classes = tuple(numbered(label, count) for label in range(count))
    return Laid(checked(rows, str(folder)), classes=classes, origin=dict(_SPLITS))


def tasks_in(root: Path) -> tuple[list[Task], list[str]]:
    """The tasks among the folders of a folder, in the order of the paper, and the names of folders that are none.

    Raises:
        DataError: VT116, two folders are of the same task.
    """
    by_name = {
        name: (task, group) for group, tasks in GROUPS.items() for task, names in tasks.items() for name in names
    }
    found: dict[str, Task] = {}
    strange = []
    for folder in folders_in(root):
        if not recognises(folder):
            continue
        key = "".join(sign for sign in folder.name.lower() if sign.isalnum())
        if key not in by_name:
            strange.append(folder.name)
            continue
        task, group = by_name[key]
        if task in found:
            raise DataError(
                "VT116",
                f"{folder} and {found[task].folder} are both {task}",
                "one folder a task",
                "move one of them away",
            )
        found[task] = Task(task, group, folder)
    return [found[task] for tasks in GROUPS.values() for task in tasks if task in found], strange


def missing(found: list[Task]) -> list[str]:
    """The official tasks that are not among them."""
    known = {task.name for task in found}
    return [task for tasks in GROUPS.values() for task in tasks if task not in known]


def _listed(folder: Path, name: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for number, path, label in labelled_lines(folder / name):
        if found.setdefault(path, label) != label:
            raise DataError("VT113", f"{folder / name}, line {number}: {path} has two labels", "one label a picture")
    if not found:
        raise DataError("VT113", f"{folder / name} lists no pictures", 'lines such as "images/test/000001.jpg 3"')
    return found


def _check(folder: Path, found: Mapping[str, Mapping[str, int]]) -> None:
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        if both := sorted(set(found[first]) & set(found[second])):
            raise DataError(
                "VT113", f"{folder}: {len(both)} pictures stand in {_SPLITS[first]} and in {_SPLITS[second]}, such as "
                f"{both[0]}", "every picture in one list",
            )  # fmt: skip
    if (folder / WHOLE).is_file() and _listed(folder, WHOLE) != {**found["train"], **found["val"]}:
        raise DataError(
            "VT113", f"{folder / WHOLE} is not {TUNE} and {CHOOSE} together", "the same pictures with the same labels"
        )
