"""The explanation methods by name; those that follow attention alone are here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from vitrail.errors import UsageError, nearest
from vitrail.inspection.attention import attending, attention
from vitrail.inspection.gradients import GradCAM, GradientAttention, IntegratedGradients, StemGradCAM
from vitrail.inspection.method import Maps, Method, Need
from vitrail.inspection.occlusion import PixelOcclusion, TokenDrop
from vitrail.inspection.rollout import rollout
from vitrail.model.backbone import Backbone


@dataclass(frozen=True)
class RawAttention(Method):
    """What the head's query attends to in one layer, the mean of the heads.

    Attributes:
        layer: negative ones count from the end.
    """

    layer: int = -1
    name: ClassVar[str] = "attention"
    needs: ClassVar[tuple[Need, ...]] = ("attention",)
    class_specific: ClassVar[bool] = False
    definition: ClassVar[str] = "softmax(q k / sqrt(d)), Dosovitskiy et al., arXiv 2010.11929, eq. 6"
    tells: ClassVar[str] = "which patches what the head reads attends to in one layer, on average over its heads"
    caveats: ClassVar[tuple[str, ...]] = ("Not why this class: the map is the same for every class.",)

    def _maps(self, model: Backbone, images: Tensor, classes: Tensor) -> Maps:
        return Maps(attention(attending(model), images, self.layer).maps.astype(np.float64))


@dataclass(frozen=True)
class Rollout(Method):
    """Attention followed down through all layers."""

    name: ClassVar[str] = "rollout"
    needs: ClassVar[tuple[Need, ...]] = ("attention",)
    class_specific: ClassVar[bool] = False
    definition: ClassVar[str] = (
        "product over layers of 0.5 A + 0.5 I, A the mean of the heads with rows that sum to 1; "
        "Abnar & Zuidema, arXiv 2005.00928, section 3"
    )
    tells: ClassVar[str] = "how much of each patch reaches what the head reads if attention alone moved it"
    caveats: ClassVar[tuple[str, ...]] = ("Not why this class: the map is the same for every class.",)

    def _maps(self, model: Backbone, images: Tensor, classes: Tensor) -> Maps:
        return Maps(rollout(attending(model), images).maps.astype(np.float64))


METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        RawAttention, Rollout, GradientAttention, IntegratedGradients, GradCAM, StemGradCAM, TokenDrop, PixelOcclusion
    )
}  # fmt: skip


def method_named(name: str) -> Method:
    """A method with its usual settings.

    Raises:
        UsageError: VT141, there is none of this name.
    """
    if name not in METHODS:
        raise UsageError("VT141", f"there is no method {name[:80]!r}", nearest(name[:80], METHODS),
                         "known: " + ", ".join(METHODS))  # fmt: skip
    return METHODS[name]()
