"""From a path to a checkpoint and back: the formats, asked in turn."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from einops import rearrange

from vitrail.checkpoints import big_vision_npz, bit_npz, native, official_npz
from vitrail.checkpoints.arrays import CheckpointError, NpzArrays
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.errors import UsageError, VitrailError, nearest
from vitrail.model.tokenizers import LinearPatches, resample_kernels
from vitrail.model.vit import ViTConfig

FORMATS: tuple[ModuleType, ...] = (native, official_npz, big_vision_npz, bit_npz)


def read(path: str | os.PathLike[str], image_size: tuple[int, int] | None = None) -> Checkpoint:
    """Weights of any known format; a run folder stands for its best checkpoint.

    Args:
        path: a run folder, a model folder, or a file.
        image_size: (height, width). Where the file's own size cannot be told (a number of positions that is no
            square, or no positions), it states it; otherwise the positions are resampled to it.

    Raises:
        VitrailError: nothing there, unknown format, or a file that does not fit its model.
    """
    place = resolve(Path(path))
    for module in FORMATS:
        if module.recognises(place):
            return at_size(module.to_native(place, image_size), image_size)
    if place.suffix == ".npz" and place.is_file():
        listed = ", ".join(list(NpzArrays(place))[:5]) or "none"
        raise CheckpointError(
            "VT075", f"{place} holds no model that Vitrail knows; its arrays: {listed}",
            "the names of vision_transformer, big_vision or BiT",
        )  # fmt: skip
    raise CheckpointError(
        "VT077",
        f"{place} is of no format that Vitrail reads",
        "a run folder, a model folder (config.json, model.safetensors, preprocessor_config.json) or an .npz of Google's",
    )


def save(model: Any, path: str | os.PathLike[str], format: str | None = None) -> Path:
    """Writes a checkpoint, or a loaded model.

    Args:
        model: what `read` or `vitrail.load` gave.
        path: of a model folder, or of an .npz where it ends so.
        format: the name of a format; None is the one the model came from, or else the first that can hold it.

    Raises:
        CheckpointError: VT074, no format of this kind has a place for the model, with the reasons; VT077, there is no
            such format.
    """
    checkpoint = model if isinstance(model, Checkpoint) else model.checkpoint
    target = Path(path)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise VitrailError("VT064", f"{target} exists already", "a new name", "choose another name or remove it first")
    _writer(checkpoint, target, format).from_native(checkpoint, target)
    return target


def _writer(checkpoint: Checkpoint, path: Path, wanted: str | None) -> ModuleType:
    names = {module.NAME: module for module in FORMATS}
    if wanted is not None:
        if wanted not in names or (names[wanted] is native) == (path.suffix == ".npz"):
            kind = ".npz files" if path.suffix == ".npz" else "folders"
            raise CheckpointError("VT077", f"{wanted!r} is no format of {kind} such as {path}", nearest(wanted, names))
        return names[wanted]
    if path.suffix != ".npz":
        return native
    reasons = {module.NAME: module.obstacles(checkpoint.config) for module in FORMATS if module is not native}
    fitting = [name for name, listed in reasons.items() if not listed]
    if not fitting:
        told = "; ".join(f"{name} cannot hold {', '.join(listed)}" for name, listed in reasons.items())
        raise CheckpointError("VT074", f"{path}: {told}", "a plain model", "save a model folder: a path without .npz")
    own = checkpoint.provenance.get("format")
    return names[own if own in fitting else fitting[0]]


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


def at_size(
    checkpoint: Checkpoint, image_size: tuple[int, int] | None = None, patch: tuple[int, int] | None = None
) -> Checkpoint:
    """The same model for another image size or other patches: positions are resampled, preprocessing follows.

    Args:
        checkpoint: the model.
        image_size: (height, width); None keeps it.
        patch: (height, width) of other linear patches, to which the kernels are resized (FlexiViT); None keeps them.

    Raises:
        UsageError: VT003, other patches for a model that does not cut the image into linear ones.
    """
    wanted = image_size or checkpoint.config.image_size
    checkpoint = _with_patch(checkpoint, patch)
    if wanted == checkpoint.config.image_size:
        return checkpoint
    model = checkpoint.build().at(wanted)
    preprocessing = replace(checkpoint.preprocessing, image_size=wanted)
    return replace(checkpoint, config=model.config, weights=model.state_dict(), preprocessing=preprocessing)


def _with_patch(checkpoint: Checkpoint, patch: tuple[int, int] | None) -> Checkpoint:
    """The same grid of larger or smaller patches, and so a larger or smaller image."""
    config = checkpoint.config
    if patch is None or (isinstance(config, ViTConfig) and getattr(config.tokenizer, "patch", None) == patch):
        return checkpoint
    if not isinstance(config, ViTConfig) or not isinstance(config.tokenizer, LinearPatches):
        raise UsageError(
            "VT003", f"patches of {patch} for {config}", "a ViT with linear patches, whose kernels can be resized"
        )
    (rows, cols), (height, _) = config.grid, config.tokenizer.patch
    tokenizer, image_size = replace(config.tokenizer, patch=patch), (rows * patch[0], cols * patch[1])
    name, channels = "tokenizer.project.weight", tokenizer.channels
    old = rearrange(checkpoint.weights[name], "d (p q c) -> p q c d", p=height, c=channels)
    new = rearrange(resample_kernels(old, patch), "p q c d -> d (p q c)").contiguous()
    return replace(
        checkpoint,
        config=replace(config, tokenizer=tokenizer, image_size=image_size),
        weights={**checkpoint.weights, name: new},
        preprocessing=replace(checkpoint.preprocessing, image_size=image_size),
    )
