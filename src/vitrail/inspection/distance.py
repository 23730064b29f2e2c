"""Mean attention distance (paper 4.5 and D.7, figures 7 and 11): how far away, in pixels, each head looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.errors import UsageError
from vitrail.inspection.attention import attending
from vitrail.inspection.states import Images, batches, checked
from vitrail.model.backbone import Backbone
from vitrail.model.mixers import AttentionMap
from vitrail.model.tokenizers import Tokens


@dataclass(frozen=True, eq=False)
class AttentionDistance:
    """In pixels of the images that the model reads, averaged over queries and then over images.

    Attributes:
        paper: for each query patch the sum over the other patches of attention times distance. Class token and registers
            are left out, and what they are given simply lacks, as in the authors' own code: the more a head looks at the
            class token, the nearer it seems. Rows are layers.
        renormalised: the same with the attention to patches scaled to sum to 1. A query that gives all its attention to
            the prefix has none.
        patch_share: which part of the patches' attention lies on patches at all.
        even: what a head would have that looks at all patches alike, renormalised.
        images: how many there were.
    """

    paper: Float[np.ndarray, "layers heads"]
    renormalised: Float[np.ndarray, "layers heads"]
    patch_share: Float[np.ndarray, "layers heads"]
    even: float
    images: int


def attention_distance(model: Backbone, images: Images) -> AttentionDistance:
    """The mean attention distance of every head; one layer of one batch is held at a time.

    A patch is as far from another as its token's pitch says: the patch of a ViT, the total stride of a hybrid.

    Args:
        model: in evaluation mode.
        images: normalised, as many as one likes: batches of batch channels height width.

    Raises:
        UsageError: VT041, the model has no attention, or not in every layer or not over all tokens.
        DataError: VT131, there is no image.
        VitrailError: VT132, the attention is not a number.

    Source: arXiv 2010.11929, figure 7; the authors' computation in google-research/vision_transformer issue 162.
    """
    model = attending(model)
    sums = _Sums(len(model.blocks), model.config.size.heads, model.config.stride)
    with torch.inference_mode():
        for batch in batches(images):
            sums.layers = 0
            with model.capture("attention", into=sums):
                model.encode(model.embed(batch))
            if sums.layers < len(model.blocks):
                raise UsageError(
                    "VT041", f"only {sums.layers} of {len(model.blocks)} layers mix their tokens by attention",
                    "attention in every layer", "ask for a single layer: inspection.attention",
                )  # fmt: skip
            sums.images += len(batch)
    paper, renormalised, share, even = (values / sums.images for values in sums.totals)
    return AttentionDistance(checked("attention distance", paper), renormalised, share, float(even[0, 0]), sums.images)


class _Sums:
    """Over images; told each layer's maps as soon as they are there."""

    def __init__(self, layers: int, heads: int, stride: tuple[int, int]) -> None:
        self.totals = np.zeros((4, layers, heads))
        self.stride, self.layers, self.images = stride, 0, 0

    def append(self, entry: AttentionMap) -> None:
        prefix, (queries, tokens) = entry.tokens.prefix, entry.weights.shape[2:]
        if queries != tokens or tokens != entry.tokens.values.shape[1]:
            raise UsageError(
                "VT041",
                f"layer {entry.layer} does not attend from all tokens to all tokens",
                "attention between all of them",
            )
        apart = distances(entry.tokens, self.stride).to(entry.weights.device)
        among = entry.weights[:, :, prefix:, prefix:].float()
        share = among.sum(dim=-1)
        moved = torch.einsum("bhqk,bqk->bhq", among, apart.expand(len(among), -1, -1))
        scaled = moved / share.clamp(min=torch.finfo(share.dtype).tiny)
        even = apart.mean().expand(entry.weights.shape[1]) * len(among)
        found = [part.double().mean(dim=-1).sum(dim=0) for part in (moved, scaled, share)] + [even.double()]
        self.totals[:, entry.layer] += torch.stack(found).cpu().numpy()
        self.layers += 1


def distances(tokens: Tokens, stride: tuple[int, int]) -> Float[Tensor, "images patches patches"]:
    """Between the middles of every two patches, in pixels; one for all images that keep every patch."""
    rows, cols = tokens.grid
    place: Any = torch.arange(rows * cols)[None] if tokens.kept is None else tokens.kept.cpu()
    down, across = place // cols * float(stride[0]), place % cols * float(stride[1])
    return torch.hypot(down[:, :, None] - down[:, None, :], across[:, :, None] - across[:, None, :])
