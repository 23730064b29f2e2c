"""Preprocessing and class names for formats that hold arrays only: a little JSON beside the arrays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitrail import configuration
from vitrail.checkpoints.arrays import CheckpointError
from vitrail.checkpoints.checkpoint import COLDEST, HOTTEST, Checkpoint
from vitrail.errors import VitrailError
from vitrail.model.backbone import BackboneConfig
from vitrail.model.families import AXES
from vitrail.preprocessing import Preprocessing

LIMIT = 65_535  # bytes, of the comment of a zip file; metadata of tensors may be longer


@dataclass(frozen=True)
class Extras:
    """What belongs to a model and is no array.

    Attributes:
        classes: None where they are plainly numbered, which is not worth its bytes.
        model: the whole configuration, in formats whose arrays cannot tell it: heads, GELU form, epsilon.
    """

    preprocessing: Preprocessing
    classes: tuple[str, ...] | None
    multi_label: bool
    model: BackboneConfig | None = None  # of any module
    temperature: float = 1.0

    def __post_init__(self) -> None:
        configuration.require(COLDEST <= self.temperature <= HOTTEST, "temperature", self.temperature, "0.01 to 100")

    def check(self, path: Path, arrays: int, obstacles: Sequence[str]) -> None:
        """Whether the configuration may be used for a file of so many arrays.

        Raises:
            CheckpointError: VT076, it is of another model.
        """
        if self.model is not None and self.model.num_layers > arrays:  # before a table is made for so many
            obstacles = [f"{self.model.num_layers} layers in {arrays} arrays"]
        if obstacles:
            raise CheckpointError(
                "VT076", f"{path}: its comment tells of a model with {', '.join(obstacles)}", "what its format can hold"
            )

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
        return replace(
            checkpoint, preprocessing=own, classes=classes, multi_label=self.multi_label, temperature=self.temperature
        )


def write_extras(path: Path, checkpoint: Checkpoint, model: BackboneConfig[Any] | None = None) -> bytes:
    """The extras of a checkpoint as bytes, with the configuration where it is given.

    Raises:
        CheckpointError: VT074, the class names are too long.
    """
    numbered = tuple(f"class {index}" for index in range(len(checkpoint.classes)))
    classes = None if checkpoint.classes == numbered else checkpoint.classes
    found = Extras(checkpoint.preprocessing, classes, checkpoint.multi_label, model, checkpoint.temperature)
    content = json.dumps({"vitrail": configuration.encode(found, AXES)}, ensure_ascii=False).encode()
    if len(content) > LIMIT and path.suffix == ".npz":
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
        return configuration.decode(Extras, json.loads(content)["vitrail"], AXES)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError, VitrailError) as error:
        raise CheckpointError("VT076", f"{path}: its comment cannot be read: {error}", "a whole file") from error
