"""The layouts in which known data sets come, recognised from what lies in a folder.

One module each with NAME, `recognises(folder)`, which looks at names alone, and `open(folder)`, which reads strictly.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from vitrail.data import cifar, imagenet, oxford, vtab
from vitrail.data.listed import Laid
from vitrail.errors import DataError

LAYOUTS: tuple[ModuleType, ...] = (cifar, oxford, vtab, imagenet)


def layout_of(folder: Path) -> ModuleType | None:
    """The layout of a folder, None where it is of none of them.

    Raises:
        DataError: VT113, it is a folder of tasks of VTAB, which are data sets of their own.
    """
    if found := next((layout for layout in LAYOUTS if layout.recognises(folder)), None):
        return found
    tasks, strange = vtab.tasks_in(folder)
    if tasks or strange:
        raise DataError(
            "VT113", f"{folder} holds {len(tasks) + len(strange)} tasks of VTAB-1k, each a data set", "one of them",
            f"name it, such as {folder / (tasks[0].folder.name if tasks else strange[0])}; or measure a model on all: "
            f"vitrail eval MODEL --protocol vtab --data {folder}",
        )  # fmt: skip
    return None


def laid_out(folder: Path) -> Laid | None:
    """What lies in a folder of a known layout; None in any other."""
    layout = layout_of(folder)
    return None if layout is None else layout.open(folder)
