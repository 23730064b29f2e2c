"""Attention rollout (Abnar & Zuidema 2020, arXiv 2005.00928): attention followed down through all layers."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.errors import UsageError
from vitrail.inspection.attention import Gaze, Query, attending, check_reads, check_whole, patch_row
from vitrail.model.backbone import Backbone
from vitrail.model.mixers import AttentionMap
from vitrail.model.tokenizers import Tokens
from vitrail.model.vit import ViT

_MAP_VALUES = 2**23  # attention weights that `rollout_maps` holds at a time: 32 MiB


class Fold:
    """The running product of the layers: one matrix an image, whatever the depth.

    Each layer is A = 0.5 mean over heads + 0.5 I, with rows (what one query gives away) that sum to 1.
    """

    product: Tensor
    tokens: Tokens

    def __init__(self) -> None:
        self.layers = 0

    def append(self, entry: AttentionMap) -> None:
        attention = entry.weights.float().mean(dim=1)
        count = attention.shape[-1]
        if attention.shape[-2] != count or (self.layers and attention.shape != self.product.shape):
            raise UsageError(
                "VT041", f"layer {entry.layer} does not attend from all tokens to all tokens",
                "attention between the same tokens in every layer, which rollout multiplies", "ask for a single layer",
            )  # fmt: skip
        attention = 0.5 * attention + 0.5 * torch.eye(count, device=attention.device)
        attention = attention / attention.sum(dim=-1, keepdim=True)
        self.product = attention @ self.product if self.layers else attention
        self.tokens = entry.tokens
        self.layers += 1


def rollout(model: ViT, images: Float[Tensor, "batch channels height width"], query: Query | None = None) -> Gaze:
    """How much of every token reaches `query` through the attention of all layers; heads are averaged.

    Args:
        model: in evaluation mode.
        images: normalised.
        query: None is what the head reads: the class token, the mean over the patches as the pool weighs them, or the
            probe's attention over the rollout.

    Raises:
        UsageError: VT041 a layer without attention, VT042 no such query.
    """
    with torch.inference_mode():
        tokens = model.embed(images)
        check_query(model, tokens, query)
        fold = Fold()
        with model.capture("attention", into=fold):
            tokens = model.encode(tokens)
        if fold.layers < len(model.blocks):
            raise UsageError(
                "VT041", f"only {fold.layers} of {len(model.blocks)} layers mix their tokens by attention",
                "attention in every layer, which rollout multiplies", "ask for a single layer",
            )  # fmt: skip
        check_whole(fold.product, tokens)
        start = _start(model, tokens, query)
        return Gaze(torch.einsum("bq,bqt->bt", start.float(), fold.product), fold.tokens)


def rollout_maps(
    model: Backbone, images: Float[Tensor, "batch channels height width"]
) -> Float[np.ndarray, "batch rows cols"]:
    """The rollout of what the head reads, as maps that sum to 1 each; a few images at a time, so memory stays flat.

    Raises:
        UsageError: VT041 the model has no attention.
    """
    model = attending(model)
    rows, cols = model.config.tokenizer.grid((images.shape[2], images.shape[3]))
    weights = model.config.size.heads * (rows * cols) ** 2
    chunks = images.split(max(1, _MAP_VALUES // weights))
    return np.concatenate([rollout(model, chunk).maps for chunk in chunks])


def check_query(model: ViT, tokens: Tokens, query: Query | None) -> None:
    """Refuses before the work what the model cannot answer."""
    if query == "class" or query == "probe":
        check_reads(query, model.pool.reads)
    elif isinstance(query, tuple):
        patch_row(tokens, query)


def _start(model: ViT, tokens: Tokens, query: Query | None) -> Float[Tensor, "batch tokens"]:
    """How the query weighs the tokens after the last layer."""
    if query is None or query == model.pool.reads:
        return model.pool.weights(tokens)
    weights = tokens.values.new_zeros(tokens.values.shape[:2])
    if isinstance(query, tuple):
        weights[:, patch_row(tokens, query)] = 1
    else:  # the mean, in a model whose head reads something else
        weights[:, tokens.prefix :] = 1 / (tokens.values.shape[1] - tokens.prefix)
    return weights
