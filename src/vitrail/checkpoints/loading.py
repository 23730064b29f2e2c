"""From a path to a checkpoint and back: the formats, asked in turn."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from vitrail.checkpoints import native, official_npz
from vitrail.checkpoints.arrays import CheckpointError
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.errors import VitrailError

FORMATS: tuple[ModuleType, ...] = (native, official_npz)


def read(path: str | os.PathLike[str], image_size: tuple[int, int] | None = None) -> Checkpoint:
    """Weights of any known format; a run folder stands for its best checkpoint.

    Args:
        path: a run folder, a model folder, or a file.
        image_size: (height, width). Where the file's own size cannot be told (a number of positions that is no
            square), it states it; otherwise the positions are resampled to it.

    Raises:
        VitrailError: nothing there, unknown format, or a file that does not fit its model.
    """
    place = resolve(Path(path))
    for module in FORMATS:
        if module.recognises(place):
            options: dict[str, Any] = {"image_size": image_size} if module is official_npz else {}
            return at_size(module.to_native(place, **options), image_size)
    raise CheckpointError(
        "VT077",
        f"{place} is of no format that Vitrail reads",
        "a run folder, a model folder (config.json, model.safetensors, preprocessor_config.json) or an official .npz",
    )


def save(model: Any, path: str | os.PathLike[str]) -> Path:
    """Writes a checkpoint, or a loaded model, as a model folder, or as the official .npz where `path` ends so."""
    checkpoint = model if isinstance(model, Checkpoint) else model.checkpoint
    target = Path(path)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise VitrailError("VT064", f"{target} exists already", "a new name", "choose another name or remove it first")
    (official_npz if target.suffix == ".npz" else native).from_native(checkpoint, target)
    return target


def resolve(path: Path) -> Path:
    """A run folder's best checkpoint; any other path as it is."""
    if not path.exists():
        raise CheckpointError(
            "VT078",
            f"{path} does not exist",
            "a run folder, a model folder or an .npz file",
            "vitrail demo makes a first one, runs/demo",
        )
    steps = path / "checkpoints"
    if not steps.is_dir():
        return path
    pointer = steps / "best" if (steps / "best").is_file() else steps / "latest"
    if not pointer.is_file():
        raise CheckpointError("VT079", f"{path} has no finished checkpoint yet", "a run that saved at least once")
    step = steps / Path(pointer.read_text().strip()).name
    if not step.is_dir():
        raise CheckpointError("VT079", f"{pointer} names {step.name}, which is not there", "a folder of this run")
    return step


def at_size(checkpoint: Checkpoint, image_size: tuple[int, int] | None) -> Checkpoint:
    """The same model for another image size: its positions are resampled, its preprocessing follows."""
    if image_size is None or image_size == checkpoint.config.image_size:
        return checkpoint
    model = checkpoint.build().at(image_size)
    preprocessing = replace(checkpoint.preprocessing, image_size=image_size)
    return replace(checkpoint, config=model.config, weights=model.state_dict(), preprocessing=preprocessing)
