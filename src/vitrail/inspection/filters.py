"""What the first layer reads from pixels: the principal components of its filters (paper figure 7, left)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float

from vitrail.errors import UsageError
from vitrail.inspection.states import checked
from vitrail.model.backbone import Backbone
from vitrail.model.tokenizers import PatchProjection
from vitrail.model.trunks import StandardisedConvolution

COUNT = 28  # of the paper


@dataclass(frozen=True, eq=False)
class Filters:
    """Principal components of the filters, the one that explains most first.

    Attributes:
        components: of unit length; a component has no sign of its own, so its largest value is made positive.
        explained: the share of the filters' variance that each accounts for.
        of: what the filters are, in words.
    """

    components: Float[np.ndarray, "count height width channels"]
    explained: Float[np.ndarray, " count"]
    of: str


def embedding_filters(model: Backbone, count: int = COUNT) -> Filters:
    """The first principal components of the filters that read the pixels, fewer where there are fewer.

    Of a ViT these are the columns of the matrix E (one filter of patch size a hidden unit), of a hybrid or a ResNet, whose
    E reads feature maps or which has none, the standardised kernels of its first convolution (7x7, one an output channel).
    They are centred before. Any number of channels, any patch size.

    Raises:
        UsageError: VT130, the model reads pixels in neither way.

    Source: arXiv 2010.11929, figure 7 (left); that they are centred is not said there.
    """
    with torch.inference_mode():
        kernels, of = _kernels(model)
    flat = checked("embedding filters", rearrange(kernels, "n h w c -> n (h w c)"))
    centred = flat - flat.mean(axis=0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    total = float((sizes**2).sum()) or 1.0
    rank = int((sizes > sizes.max(initial=0.0) * 1e-10).sum())  # beyond it directions are of rounding
    count = min(count, rank)
    chosen = directions[:count]
    chosen = chosen * np.sign(np.take_along_axis(chosen, abs(chosen).argmax(axis=1, keepdims=True), axis=1))
    _, height, width, channels = kernels.shape
    components = rearrange(chosen, "n (h w c) -> n h w c", h=height, w=width, c=channels)
    return Filters(components, sizes[:count] ** 2 / total, of)


def _kernels(model: Backbone) -> tuple[Float[np.ndarray, "filters height width channels"], str]:
    """The filters that read pixels, and what they are."""
    for part in model.modules():  # in the order of computation: a hybrid's E comes after its trunk
        if isinstance(part, StandardisedConvolution):
            kernels = part.standardised().detach().double().cpu().numpy()
            return rearrange(kernels, "n c h w -> n h w c"), "kernels of the first convolution"
        if isinstance(part, PatchProjection):
            config = part.config
            weights = part.project.weight.detach().double().cpu().numpy()
            (height, width), channels = config.patch, config.channels
            return rearrange(weights, "n (h w c) -> n h w c", h=height, w=width, c=channels), "patch embedding"
    raise UsageError("VT130", "this model reads its pixels by no filters", "a patch embedding, or a convolution")
