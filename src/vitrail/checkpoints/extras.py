"""Preprocessing and class names for formats that hold arrays only: a little JSON beside the arrays."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, replace
from pathlib import Path

from vitrail import configuration
from vitrail.checkpoints.arrays import CheckpointError
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.errors import VitrailError
from vitrail.preprocessing import Preprocessing

LIMIT = 65_535  # bytes, of a zip file's comment


@dataclass(frozen=True)
class Extras:
    """What belongs to a model and is no array; plain numbered class names (None) are not worth their bytes."""

    preprocessing: Preprocessing
    classes: tuple[str, ...] | None
    multi_label: bool

    def applied(self, path: Path, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint with them.

        Raises:
            CheckpointError: VT076, they belong to another model.
        """
        classes = checkpoint.classes if self.classes is None else self.classes
        family, own = checkpoint.preprocessing, self.preprocessing
        if len(classes) != len(checkpoint.classes) or (own.channels, own.image_size) != (
            family.channels,
            family.image_size,
        ):
            raise CheckpointError(
                "VT076", f"{path}: its comment has {len(classes)} class names and images of {own.image_size}, "
                f"its arrays {len(checkpoint.classes)} classes and {family.image_size}", "parts of one model",
            )  # fmt: skip
        return replace(checkpoint, preprocessing=own, classes=classes, multi_label=self.multi_label)


def write_extras(path: Path, checkpoint: Checkpoint) -> bytes:
    """The extras of a checkpoint as bytes.

    Raises:
        CheckpointError: VT074, the class names are too long.
    """
    numbered = tuple(f"class {index}" for index in range(len(checkpoint.classes)))
    found = Extras(
        checkpoint.preprocessing, None if checkpoint.classes == numbered else checkpoint.classes, checkpoint.multi_label
    )
    content = json.dumps({"vitrail": dataclasses.asdict(found)}, ensure_ascii=False).encode()
    if len(content) > LIMIT:
        raise CheckpointError(
            "VT074", f"{path}: preprocessing and class names take {len(content):,} bytes", f"at most {LIMIT:,}",
            "save a model folder instead",
        )  # fmt: skip
    return content


def read_extras(path: Path, content: bytes) -> Extras | None:
    """What `write_extras` wrote; None where the file is not Vitrail's own.

    Raises:
        CheckpointError: VT076, it begins like ours and cannot be read.
    """
    if not content.startswith(b'{"vitrail"'):
        return None
    try:
        return configuration.decode(Extras, json.loads(content)["vitrail"], {})
    except (ValueError, TypeError, RecursionError, VitrailError) as error:
        raise CheckpointError("VT076", f"{path}: its comment cannot be read: {error}", "a whole file") from error
