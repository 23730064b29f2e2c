"""From one weight format to another, with the proof that it is the same model."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import torch
from torch import Tensor

from vitrail.checkpoints.arrays import CheckpointError
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.loading import at_size, check_free, read, read_trained, writer
from vitrail.files import explained

IMAGES = 2
LARGEST = 1e-6  # relative to the largest logit; the same numbers in the same order differ by nothing


@dataclass(frozen=True)
class Conversion:
    """What was written.

    Attributes:
        difference: largest difference of the logits of random images, relative to the largest logit; 0 is bit-equal.
        changed: what the new file says otherwise, for people: preprocessing, names of classes.
    """

    path: Path
    format: str
    difference: float
    changed: tuple[str, ...]


def convert(
    source: Path,
    target: Path,
    format: str | None = None,
    image_size: tuple[int, int] | None = None,
    family: str | None = None,
) -> Conversion:
    """Writes `target`, which appears when it was read back and gave the same logits.

    Args:
        source: whatever `read` reads.
        target: a file or a folder that is not there yet.
        format: the name of a format; None is the source's where it can be, or the first that fits.
        image_size: (height, width) that the new file is for; None keeps every array as it is.
        family: what the source is, where its names do not tell.

    Raises:
        CheckpointError: VT074, the format has no place for the model; VT067, the written file is another model.
    """
    check_free(target)
    checkpoint = read_trained(source, image_size, family)
    prepared, trained, changed = checkpoint.preprocessing, checkpoint.config.image_size, []
    if prepared.image_size != trained and image_size is None:
        changed.append(
            f"pictures are prepared at {_px(trained)}, the size of the positions, not {_px(prepared.image_size)}"
        )
    checkpoint = replace(checkpoint, preprocessing=replace(prepared, image_size=trained))
    checkpoint = at_size(checkpoint, image_size)
    module = writer(checkpoint, target, format)
    draft = target.with_name(f".{uuid4().hex[:8]}.{target.name}")
    try:
        module.from_native(checkpoint, draft)
        written = read(draft)
        difference = largest_difference(checkpoint, written)
        if not difference <= LARGEST:
            raise CheckpointError(
                "VT067", f"{target} would be another model: its logits differ by {difference:.1e} of the largest",
                "the same logits", "nothing was written; this is a fault of Vitrail's, please report it",
            )  # fmt: skip
        with explained(target):
            draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True) if draft.is_dir() else draft.unlink(missing_ok=True)
    if checkpoint.temperature != 1 and module.NAME != "vitrail":
        changed.append(
            f"the temperature {checkpoint.temperature:.4g} is kept for Vitrail; other programs do not read it, and their "
            "probabilities are of the plain logits"
        )
    return Conversion(target, module.NAME, difference, tuple(changed + _changes(checkpoint, written)))


def largest_difference(first: Checkpoint, second: Checkpoint) -> float:
    """Of the logits of random images, relative to the largest of them."""
    size = (IMAGES, first.config.channels, *first.config.image_size)
    images = torch.randn(size, generator=torch.Generator().manual_seed(0))
    a, b = _logits(first, images), _logits(second, images)
    if a.shape != b.shape:
        return float("inf")
    return float((a - b).abs().max() / a.abs().max().clamp(min=torch.finfo(a.dtype).tiny))


def _logits(checkpoint: Checkpoint, images: Tensor) -> Tensor:
    # Matrix products differ in their last bits with the place of a matrix in memory, and a mapped file's is any.
    checkpoint = replace(checkpoint, weights={name: tensor.clone() for name, tensor in checkpoint.weights.items()})
    with torch.inference_mode():
        return checkpoint.build()(images)


def _px(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]} px"


def _changes(first: Checkpoint, second: Checkpoint) -> list[str]:
    found = []
    if first.config != second.config:
        before, after = (getattr(checkpoint.config, "position", None) for checkpoint in (first, second))
        found.append(f"at other image sizes its positions are those of the format: {after} instead of {before}")
    if first.preprocessing != second.preprocessing:
        found.append(f"preprocessing: {second.preprocessing} instead of {first.preprocessing}")
    if first.classes != second.classes:
        found.append(
            f"names of classes: {', '.join(second.classes[:3])} ... instead of {', '.join(first.classes[:3])} ..."
        )
    if first.temperature != second.temperature:
        found.append(
            f"the temperature of its probabilities: {second.temperature:.4g} instead of {first.temperature:.4g}"
        )
    if first.multi_label != second.multi_label:
        found.append("whether several classes may be true at once")
    return found
