"""Explanations by trying: what the class loses when a part of the image goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor

from vitrail.errors import UsageError
from vitrail.inspection.method import Maps, Method, Need, cells, scores
from vitrail.inspection.removal import Painting, Removal, TokenDropping, all_but_one
from vitrail.model.backbone import Backbone


@dataclass(frozen=True)
class TokenDrop(Method):
    """The logit of the class with all tokens, less that without one; exact, and as slow as the image has tokens."""

    name: ClassVar[str] = "token-drop"
    needs: ClassVar[tuple[Need, ...]] = ("class", "tokens")
    signed: ClassVar[bool] = True
    definition: ClassVar[str] = (
        "logit(all tokens) - logit(all but this one), the others keeping their positions: leave-one-out, as in "
        "Zeiler & Fergus, arXiv 1311.2901, section 4.2, with nothing put in the token's place"
    )
    tells: ClassVar[str] = "by how much the class's logit falls when this one patch is left out"
    caveats: ClassVar[tuple[str, ...]] = (
        "One patch at a time: of two that say the same neither is missed, and of a pair needed together both are.",
    )

    def _maps(self, model: Backbone, images: Tensor, classes: Tensor) -> Maps:
        return left_out(TokenDropping(), model, images, classes)


@dataclass(frozen=True)
class PixelOcclusion(Method):
    """The same with the pixels of one part painted in the mean colour: for models that cannot run on fewer tokens."""

    name: ClassVar[str] = "pixel-occlusion"
    needs: ClassVar[tuple[Need, ...]] = ("class",)
    signed: ClassVar[bool] = True
    definition: ClassVar[str] = (
        "logit(picture) - logit(picture with this part in the mean colour); Zeiler & Fergus, arXiv 1311.2901, section 4.2"
    )
    tells: ClassVar[str] = "by how much the class's logit falls when this part is painted over"
    caveats: ClassVar[tuple[str, ...]] = (
        "The painted part is something new, not nothing: a grey square can speak for or against a class itself.",
        "One part at a time: of two that say the same neither is missed.",
    )

    def _maps(self, model: Backbone, images: Tensor, classes: Tensor) -> Maps:
        return left_out(Painting(), model, images, classes)


def left_out(removal: Removal, model: Backbone, images: Tensor, classes: Tensor) -> Maps:
    """What each image's class loses without each part."""
    grid = cells(model, images)
    count = grid[0] * grid[1]
    if count < 2:
        raise UsageError("VT142", "the image has one part alone, and nothing is left without it", "two parts or more")
    with torch.inference_mode():
        whole = scores(model, images, classes)
        without = removal.logits(model, images, all_but_one(len(images), count, images.device))
        lost = whole[:, None] - without.gather(2, classes[:, None, None].expand(-1, count, 1))[..., 0]
    return Maps(rearrange(lost, "b (r k) -> b r k", r=grid[0]).double().cpu().numpy())
