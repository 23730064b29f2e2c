"""What a file of weights is, and what of it does not fit, without failing at the first trouble."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vitrail.checkpoints.arrays import Misfit
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.listing import listing
from vitrail.checkpoints.loading import format_of, native_of, opened, resolve
from vitrail.errors import VitrailError


@dataclass(frozen=True)
class Examination:
    """What was found at a path.

    Attributes:
        files: that hold the arrays, with their SHA-256.
        size: of these files together, in bytes.
        arrays: how many there are, and how many of each type of number.
        values: how many numbers the weights have, without what was left out.
        objects: name -> what is beside the arrays in a pickle and was not made.
        format: None where no format knows the names.
        checkpoint: at the size of its training; None where the arrays do not fit.
        problem: why not; `misfits` has every line of it where arrays are missing, extra, misshapen or unreadable.
    """

    path: Path
    files: Mapping[str, str]
    size: int
    arrays: int
    kinds: Mapping[str, int]
    objects: Mapping[str, str]
    names: tuple[str, ...]
    format: str | None = None
    checkpoint: Checkpoint | None = None
    problem: VitrailError | None = None

    @property
    def misfits(self) -> tuple[str, ...]:
        return self.problem.lines if isinstance(self.problem, Misfit) else ()


def examine(path: Path, image_size: tuple[int, int] | None = None, family: str | None = None) -> Examination:
    """Opens a path and reads the model in it.

    Args:
        path: a run folder, a model folder, or a file.
        image_size: (height, width) of the training, where the file cannot tell it.
        family: what the weights are, where their names do not tell.

    Raises:
        VitrailError: nothing there, or no file of arrays at all.
    """
    place = resolve(path)
    found = listing(opened(place, family))
    arrays, name, checkpoint, problem = found.weights.arrays, None, None, None
    try:
        name = format_of(found).NAME
        checkpoint = native_of(found, image_size)
    except VitrailError as error:
        problem = error
    return Examination(
        place,
        {file.name: _digest(file) for file in arrays.files},
        sum(file.stat().st_size for file in arrays.files),
        len(arrays),
        dict(Counter(arrays.kinds[own] for own in found.names.values())),
        arrays.others,
        tuple(found.names),
        name,
        checkpoint,
        problem,
    )


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
