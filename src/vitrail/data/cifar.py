"""CIFAR-10 and CIFAR-100, binary version (Krizhevsky 2009): records of label bytes and 3,072 pixels, planes first.

The python version is the same pictures as pickles, which are programs: Vitrail opens none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from einops import rearrange

from vitrail.data.listed import Images, Labels, Laid, lines_of
from vitrail.errors import DataError

NAME = "CIFAR, binary version"
ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar.html"
SIDE, PIXELS = 32, 3 * 32 * 32
MOST = 100_000  # records of a file; the official ones have 10,000 and 50,000


@dataclass(frozen=True)
class _Version:
    """Attributes: labels: bytes before the pixels, the last of which counts."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    labels: int
    classes: int
    archive: str
    pickles: tuple[str, ...]


_TEN = _Version(
    tuple(f"data_batch_{number}.bin" for number in range(1, 6)), ("test_batch.bin",), "batches.meta.txt", 1, 10,
    "cifar-10-binary.tar.gz", ("data_batch_1", "test_batch", "batches.meta"),
)  # fmt: skip
_HUNDRED = _Version(
    ("train.bin",), ("test.bin",), "fine_label_names.txt", 2, 100, "cifar-100-binary.tar.gz", ("train", "test", "meta")
)
_VERSIONS = (_TEN, _HUNDRED)


def recognises(folder: Path) -> bool:
    return any(_binary(folder, version) or _pickled(folder, version) for version in _VERSIONS)


def open(folder: Path) -> Laid:
    """The official train and test images under their official names; val is held out of train.

    Raises:
        DataError: VT112, only the pickles are there; VT113, a file is missing, cut off or of other classes.
    """
    version = next((version for version in _VERSIONS if _binary(folder, version)), None)
    if version is None:
        kept = next(version for version in _VERSIONS if _pickled(folder, version))
        raise DataError(
            "VT112", f"{folder} holds CIFAR-{kept.classes} as Python pickles, which run code when they are opened",
            f"the binary version: {', '.join((*kept.train[:1], *kept.test, kept.names))}",
            f"{kept.archive} of {ADDRESS} has the same pictures",
        )  # fmt: skip
    classes = tuple(name for _, name in lines_of(folder / version.names))
    if len(classes) != version.classes or len(set(classes)) != len(classes):
        raise DataError(
            "VT113", f"{folder / version.names} names {len(set(classes))} classes", f"{version.classes} different ones"
        )
    # Sources sort their classes; these files do so already, but who knows for a copy.
    order = sorted(classes)
    place = np.array([order.index(name) for name in classes])
    splits = {name: _records([folder / file for file in files], version, place)
              for name, files in (("train", version.train), ("test", version.test))}  # fmt: skip
    origin = dict.fromkeys(splits, "the official one")
    return Laid(arrays=splits, classes=tuple(order), origin=origin)


def _binary(folder: Path, version: _Version) -> bool:
    return (folder / version.names).is_file() and (folder / version.test[0]).is_file()


def _pickled(folder: Path, version: _Version) -> bool:
    return not _binary(folder, version) and all((folder / name).is_file() for name in version.pickles)


def _records(files: Sequence[Path], version: _Version, place: Labels) -> tuple[Images, Labels]:
    width = version.labels + PIXELS
    found = []
    for file in files:
        if not file.is_file():
            raise DataError("VT113", f"{file} is missing", ", ".join(version.train + version.test))
        size = file.stat().st_size
        if not size or size % width or size > MOST * width:
            raise DataError(
                "VT113", f"{file} has {size:,} bytes", f"1 to {MOST:,} records of {width:,} bytes",
                f"unpack {version.archive} again",
            )  # fmt: skip
        found.append(np.fromfile(file, np.uint8).reshape(-1, width))
    records = np.concatenate(found)
    labels = records[:, version.labels - 1]
    if labels.max() >= version.classes:
        raise DataError("VT113", f"{files[0].parent}: a label is {labels.max()}", f"0 to {version.classes - 1}")
    images = rearrange(records[:, version.labels :], "n (c h w) -> n h w c", c=3, h=SIDE)
    return np.ascontiguousarray(images), place[labels].astype(np.int64)
