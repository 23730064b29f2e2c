"""From a path to a checkpoint and back: the formats, asked in turn."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from einops import rearrange

from vitrail.checkpoints import (
    beit,
    big_vision_npz,
    bit_npz,
    clip,
    dinov2,
    dinov3,
    hf_beit,
    hf_clip,
    hf_dino,
    hf_vit,
    native,
    official_npz,
    timm,
    torchvision,
)
from vitrail.checkpoints.arrays import CheckpointError
from vitrail.checkpoints.carried import carried_temperature
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.containers import FOLDER, OPENERS, Weights, open_weights
from vitrail.checkpoints.listing import Listing, listing
from vitrail.errors import UsageError, VitrailError, nearest
from vitrail.model.tokenizers import LinearPatches, resample_kernels
from vitrail.model.vit import ViTConfig

FORMATS: tuple[ModuleType, ...] = (
    native,
    official_npz,
    big_vision_npz,
    bit_npz,
    torchvision,
    timm,
    dinov2,
    dinov3,
    clip,
    beit,
    hf_vit,
    hf_dino,
    hf_beit,
    hf_clip,
)


def read(
    path: str | os.PathLike[str], image_size: tuple[int, int] | None = None, family: str | None = None
) -> Checkpoint:
    """Weights of any known format; a run folder stands for its best checkpoint.

    Args:
        path: a run folder, a model folder, or a file.
        image_size: (height, width). Where the file's own size cannot be told (a number of positions that is no
            square, or no positions), it states it; otherwise the positions are resampled to it.
        family: what the weights are, where several families have the same names: a row of `families.FAMILIES`.

    Raises:
        VitrailError: nothing there, unknown format, or a file that does not fit its model.
        UsageError: VT046, the file is of a format that has no such family.
    """
    checkpoint = read_trained(path, image_size, family)
    return at_size(checkpoint, image_size or checkpoint.preprocessing.image_size)


def read_trained(
    path: str | os.PathLike[str], image_size: tuple[int, int] | None = None, family: str | None = None
) -> Checkpoint:
    """The same with every array as it is in the file, whatever size its own preprocessing prepares."""
    found = listing(opened(Path(path), family))
    return native_of(found, image_size)


def native_of(found: Listing, image_size: tuple[int, int] | None = None) -> Checkpoint:
    """The model of what was found, with what its folder says of probabilities.

    Raises:
        VitrailError: VT073 to VT076, it does not fit.
    """
    checkpoint = format_of(found).to_native(found, image_size)
    temperature = carried_temperature(found.weights)
    return checkpoint if temperature is None else replace(checkpoint, temperature=temperature)


def opened(path: Path, family: str | None = None) -> Weights:
    """What lies at a path, and what it is said to be."""
    return replace(open_weights(resolve(path)), family=family)


def format_of(found: Listing) -> ModuleType:
    """The format whose names these are.

    Raises:
        CheckpointError: VT075, none that Vitrail knows.
        UsageError: VT046, it has no such family as was asked for.
    """
    for module in FORMATS:
        if module.recognises(found):
            _check_family(module, found)
            return module
    arrays, kind = ", ".join(list(found.names)[:5]) or "none", found.config.get("model_type")
    said = f"; its config.json says {str(kind)[:50]!r}" if kind else "; it has no config.json"
    said = said if found.path.is_dir() else ""
    raise CheckpointError(
        "VT075", f"{found.path} holds no model that Vitrail knows; its arrays: {arrays}{said}",
        f"a model of {', '.join(module.NAME for module in FORMATS)}",
    )  # fmt: skip


def _check_family(module: ModuleType, found: Listing) -> None:
    known = (module.NAME, *getattr(module, "FAMILIES", ()))
    if (family := found.weights.family) is not None and family not in known:
        raise UsageError(
            "VT046", f"{found.path} is {module.NAME}, which {family!r} is not", f"one of {', '.join(known)}",
            "leave the family out: what the file tells is used",
        )  # fmt: skip


def save(model: Any, path: str | os.PathLike[str], format: str | None = None) -> Path:
    """Writes a checkpoint, or a loaded model.

    Args:
        model: what `read` or `vitrail.load` gave.
        path: of a file that ends in .npz or .safetensors, or else of a model folder.
        format: the name of a format; None is the one the model came from, or else the first that can hold it.

    Raises:
        CheckpointError: VT074, no format of this kind has a place for the model, with the reasons and the formats that
            have; VT077, there is no such format.
    """
    checkpoint = model if isinstance(model, Checkpoint) else model.checkpoint
    target = Path(path)
    check_free(target)
    writer(checkpoint, target, format).from_native(checkpoint, target)
    return target


def check_free(target: Path) -> None:
    """Raises VT064 where something is there already; an empty folder is nothing."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise VitrailError("VT064", f"{target} exists already", "a new name", "choose another name or remove it first")


def writer(checkpoint: Checkpoint, path: Path, wanted: str | None = None) -> ModuleType:
    """The format in which a checkpoint goes to a path; see `save`."""
    container = path.suffix if path.suffix in OPENERS else FOLDER
    writers = {module.NAME: module for module in FORMATS if container in module.CONTAINERS}
    if not writers or (wanted is not None and wanted not in writers):
        kind = f"{container} files" if container else "folders"
        hint = (
            nearest(wanted, writers) if wanted and writers else "a name that ends in .safetensors or .npz, or a folder"
        )
        what = f"{wanted!r} is no format of {kind}" if wanted else f"no format is written as {kind}"
        raise CheckpointError("VT077", f"{what} such as {path}", hint)
    if wanted is None and container == FOLDER:
        return native
    tried = writers if wanted is None else {wanted: writers[wanted]}
    reasons = {name: module.obstacles(checkpoint.config) for name, module in tried.items()}
    fitting = [name for name, listed in reasons.items() if not listed]
    if not fitting:
        told = "; ".join(f"{name} cannot hold {', '.join(listed)}" for name, listed in reasons.items())
        holding = [module.NAME for module in FORMATS if not module.obstacles(checkpoint.config)]
        raise CheckpointError(
            "VT074",
            f"{path}: {told}",
            "a model of that family",
            f"one of the formats that hold it: {', '.join(holding)}",
        )
    own = checkpoint.provenance.get("format")
    return writers[own if own in fitting else fitting[0]]


def resolve(path: Path) -> Path:
    """A run folder's best checkpoint; any other path as it is."""
    if not path.exists():
        raise CheckpointError(
            "VT078",
            f"{path} does not exist",
            "a run folder, a model folder or a file of weights",
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
    if image_size is None and wanted == checkpoint.config.image_size:
        return checkpoint
    preprocessing = replace(checkpoint.preprocessing, image_size=wanted)
    if wanted == checkpoint.config.image_size:  # its pictures may yet be prepared for another size, as DINOv2's are
        return replace(checkpoint, preprocessing=preprocessing)
    model = checkpoint.build().at(wanted)
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
