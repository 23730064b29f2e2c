"""What a folder says of its model beside the arrays: Hugging Face's preprocessor_config.json and timm's config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from vitrail import configuration
from vitrail.checkpoints.arrays import CheckpointError
from vitrail.checkpoints.checkpoint import COLDEST, HOTTEST, Checkpoint
from vitrail.checkpoints.containers import CALIBRATION, Weights
from vitrail.checkpoints.families import crop_share
from vitrail.errors import VitrailError
from vitrail.images import Interpolation
from vitrail.preprocessing import Preprocessing

RESAMPLE: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
MAX_SIDE = 16_384


def carried_preprocessing(found: Weights, family: Preprocessing) -> Preprocessing:
    """The family's preprocessing, with what the folder's own files say instead.

    Raises:
        CheckpointError: VT076, what they say is of no use.
    """
    with_reason = _Reader(found.path)
    if "vitrail" in found.processor:
        return with_reason(lambda: configuration.decode(Preprocessing, found.processor["vitrail"], {}))
    if found.processor:
        return with_reason(lambda: _of_huggingface(found.processor, family))
    if timm := found.config.get("pretrained_cfg"):
        return with_reason(lambda: _of_timm(timm, family))
    return family


def carried_size(found: Weights) -> tuple[int, int] | None:
    """(height, width) of the training, where the folder's config.json says it.

    Raises:
        CheckpointError: VT076, it is no size.
    """
    timm = found.config.get("pretrained_cfg") or {}
    said = found.config.get("image_size") or (timm.get("input_size") if isinstance(timm, Mapping) else None)
    return None if said is None else _Reader(found.path)(lambda: _size(said))


def carried_temperature(found: Weights) -> float | None:
    """What logits are divided by before they become probabilities, where the folder's calibration.json says it.

    Raises:
        CheckpointError: VT076, it is no temperature.
    """
    if not found.calibration:
        return None
    said = found.calibration.get("temperature")
    if isinstance(said, bool) or not isinstance(said, (int, float)) or not COLDEST <= said <= HOTTEST:
        raise CheckpointError(
            "VT076", f"{found.path}: its {CALIBRATION} says temperature = {str(said)[:60]!r}",
            f"a number from {COLDEST} to {HOTTEST:.0f}", "vitrail eval RUN --protocol calibration --set store=true writes it",
        )  # fmt: skip
    return float(said)


def calibration_files(checkpoint: Checkpoint) -> dict[str, Any]:
    """calibration.json of a folder; none where logits are taken as they are."""
    return {} if checkpoint.temperature == 1 else {CALIBRATION: {"temperature": checkpoint.temperature}}


def carried_classes(found: Weights, count: int) -> tuple[str, ...] | None:
    """Names of the classes, where the folder's config.json has one for each."""
    names = found.config.get("id2label")
    if isinstance(names, Mapping):
        names = [names.get(str(index)) for index in range(count)]
    else:
        names = found.config.get("label_names")
    if not isinstance(names, Sequence) or len(names) != count or not all(isinstance(name, str) for name in names):
        return None
    numbered = all(name == f"LABEL_{index}" for index, name in enumerate(names))  # what transformers writes for "none"
    return None if numbered else tuple(cast(Sequence[str], names))


class _Reader:
    """Calls a function whose failure is the folder's fault."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, read: Any) -> Any:
        try:
            return read()
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, VitrailError) as error:
            raise CheckpointError(
                "VT076", f"{self.path}: what it says of its preprocessing cannot be used: {error!r}",
                "the JSON that its program wrote",
            ) from error  # fmt: skip


def _of_huggingface(said: Mapping[str, Any], family: Preprocessing) -> Preprocessing:
    found, size, crop = family, said.get("size"), said.get("crop_size")
    if said.get("do_resize", True) and size is not None:
        cuts = bool(said.get("do_center_crop", False)) and crop is not None
        resized, by_edge = _size(size), _by_shortest_edge(said, size)
        window = _size(crop) if cuts else resized
        if by_edge and window[0] != window[1]:
            raise ValueError(f"a window of {window} of a picture that is resized by its shortest edge")
        found = replace(
            found, image_size=window, fit="crop" if by_edge else "stretch", rounding="down",
            crop_share=min(1.0, *(part / whole for part, whole in zip(window, resized, strict=True))),
        )  # fmt: skip
    if said.get("resample") is not None:
        found = replace(found, interpolation=RESAMPLE[said["resample"]])
    scale = 255 * float(said.get("rescale_factor", 1 / 255)) if said.get("do_rescale", True) else 255.0
    if not said.get("do_normalize", True):
        return replace(found, mean=(0.0,) * found.channels, std=(1 / scale,) * found.channels)
    found = _normalised(found, said.get("image_mean"), said.get("image_std"))
    mean, std = (tuple(value / scale for value in values) for values in (found.mean, found.std))
    return replace(found, mean=mean, std=std) if abs(scale - 1) > 1e-6 else found


def _by_shortest_edge(said: Mapping[str, Any], size: Any) -> bool:
    """A number alone, as older files have it, is the shortest edge for some of their classes and a square for others."""
    kind = str(said.get("image_processor_type") or said.get("feature_extractor_type"))
    return "shortest_edge" in size if isinstance(size, Mapping) else kind.startswith(("CLIP", "Bit", "Siglip"))


def _of_timm(said: Mapping[str, Any], family: Preprocessing) -> Preprocessing:
    found = replace(family, rounding="nearest")
    if said.get("input_size") is not None:
        found = replace(found, image_size=_size(said["input_size"]))
    if said.get("interpolation") in RESAMPLE.values():
        found = replace(found, interpolation=said["interpolation"])
    if said.get("crop_pct") is not None:
        found = replace(found, crop_share=crop_share(found.image_size, float(said["crop_pct"])))
    if said.get("crop_mode") in ("center", "squash"):
        found = replace(found, fit="crop" if said["crop_mode"] == "center" else "stretch")
    return _normalised(found, said.get("mean"), said.get("std"))


def _normalised(found: Preprocessing, mean: Any, std: Any) -> Preprocessing:
    if mean is None or std is None:
        return found
    means, stds = (tuple(float(value) for value in values) for values in (mean, std))
    return replace(found, channels=len(means), mean=means, std=stds)


def _size(said: Any) -> tuple[int, int]:
    """Of 224, [224, 320], [3, 224, 320], {"height": 224, "width": 320} or {"shortest_edge": 224}."""
    if isinstance(said, Mapping):
        said = said.get("shortest_edge") or (said["height"], said["width"])
    sides = (said, said) if isinstance(said, int) else tuple(said)[-2:]
    if len(sides) != 2 or not all(type(side) is int and 0 < side <= MAX_SIDE for side in sides):
        raise ValueError(f"{said!r} is no size in pixels")
    return sides[0], sides[1]
