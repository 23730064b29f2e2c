"""What the tokens of one layer look at (paper eq. 6), as maps on the patch grid."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vitrail.errors import UsageError, nearest
from vitrail.model.backbone import Backbone
from vitrail.model.capture import Layer
from vitrail.model.mixers import AttentionMap
from vitrail.model.tokenizers import Tokens
from vitrail.model.vit import ViT

Query = Literal["class", "mean", "probe"] | tuple[int, int]
"""Who looks: the class token, all patches on average, the probe of attention pooling, or the patch at (row, col)."""


@dataclass(frozen=True)
class Gaze:
    """How one query of each image weighs the tokens.

    Attributes:
        weights: the weights of an image sum to 1 over all tokens, prefix included.
        tokens: the sequence that is looked at; only its geometry matters.
    """

    weights: Float[Tensor, "batch tokens"]
    tokens: Tokens

    @property
    def prefix_share(self) -> Float[np.ndarray, " batch"]:
        """Which part of the weight lies on class token and registers, and so on no place of the image."""
        return self._numbers()[:, : self.tokens.prefix].sum(axis=1)

    @property
    def maps(self) -> Float[np.ndarray, "batch rows cols"]:
        """The weights of the patches in their places, scaled to sum to 1 over the patches.

        Patches that the model dropped have none. Where all the weight lies on the prefix, a map is zero everywhere.
        """
        rows, cols = self.tokens.grid
        patches = self._numbers()[:, self.tokens.prefix :]
        if self.tokens.kept is not None:
            placed = np.zeros((len(patches), rows * cols))
            np.put_along_axis(placed, self.tokens.kept.cpu().numpy(), patches, axis=1)
            patches = placed
        total = patches.sum(axis=1, keepdims=True)
        shares = patches / np.where(total > 0, total, 1)
        return rearrange(shares, "b (r k) -> b r k", r=rows).astype(np.float32)

    def _numbers(self) -> Float[np.ndarray, "batch tokens"]:
        return self.weights.float().cpu().numpy().astype(np.float64)


def attention(
    model: ViT,
    images: Float[Tensor, "batch channels height width"],
    layer: Layer = -1,
    heads: Sequence[int] | None = None,
    query: Query | None = None,
) -> Gaze:
    """What `query` attends to in one layer, averaged over `heads`; the layers above are not run.

    Args:
        model: in evaluation mode.
        images: normalised.
        layer: negative ones count from the end; "pool" is the attention of attention pooling, whose probe alone asks.
        heads: None averages over all.
        query: None is the class token, or the mean over the patches where there is none.

    Raises:
        UsageError: VT040 no such layer or head, VT041 no attention, VT042 no such query.
    """
    with torch.inference_mode():
        tokens = model.embed(images)
        if layer == "pool":
            return _pooling(model, tokens, heads, query)
        look = _Look()
        rows = _rows(model, tokens, query)
        # Made first, because it knows which layers there are.
        capture = model.capture("attention", layers=[layer], heads=heads, queries=rows, into=look)
        below = model.blocks[: int(layer) % len(model.blocks) + 1]
        with capture:
            for block in below:
                tokens = block(tokens, model.position)
    check_whole(look.weights, tokens)
    return Gaze(look.weights, look.tokens)


def _pooling(model: ViT, tokens: Tokens, heads: Sequence[int] | None, query: Query | None) -> Gaze:
    """What the probe attends to: patches alone, so there is no prefix."""
    check_reads("probe", model.pool.reads)
    if query not in (None, "probe"):
        raise UsageError("VT042", f"in attention pooling no {query} asks", "probe", "leave out the query")
    look = _Look()
    capture = model.capture("attention", layers=["pool"], heads=heads, into=look)
    tokens = model.encode(tokens)
    with capture:
        model.pool(tokens)
    return Gaze(look.weights, look.tokens)


def attending(model: Backbone) -> ViT:
    """The model, if it has encoder layers to look into.

    Raises:
        UsageError: VT041, in its own words why there is no attention.
    """
    if not isinstance(model, ViT):
        model.capture("attention")
        raise AssertionError("a backbone without encoder layers refuses to be captured")
    return model


class _Look:
    """Averages heads and queries as soon as they are computed."""

    weights: Tensor
    tokens: Tokens

    def append(self, entry: AttentionMap) -> None:
        self.weights, self.tokens = entry.weights.float().mean(dim=(1, 2)), entry.tokens


def _rows(model: ViT, tokens: Tokens, query: Query | None) -> list[int]:
    """The places of a query in the sequence of an encoder layer."""
    reads = model.pool.reads
    if query is None:
        query = default_query(reads, in_layer=True)
    if query == "mean":
        return list(range(tokens.prefix, tokens.values.shape[1]))
    if query == "class":
        check_reads(query, reads)
        return [0]
    if query == "probe":
        raise UsageError(
            "VT042", "the probe of attention pooling is no token of a layer: it looks once, after the last one",
            "class, mean, or a patch as ROW,COL", "leave out the layer: rollout starts at the probe",
        )  # fmt: skip
    return [patch_row(tokens, query)]


def default_query(reads: Literal["class", "mean", "probe"], in_layer: bool) -> Query:
    """What the head reads; in a layer, where there is no probe yet, the mean of the patches instead."""
    return "mean" if in_layer and reads == "probe" else reads


def parse_query(text: str) -> Query:
    """ "class", "mean", "probe", or the patch "ROW,COL".

    Raises:
        UsageError: VT042 anything else.
    """
    if text in ("class", "mean", "probe"):
        return text  # type: ignore[return-value]
    if match := re.fullmatch(r"(-?\d{1,6}),(-?\d{1,6})", text, re.ASCII):
        return int(match[1]), int(match[2])
    raise UsageError(
        "VT042", f"there is no query {text[:80]!r}", nearest(text[:80], ["class", "mean", "probe", "ROW,COL"]),
        "0,0 is the patch at the top left",
    )  # fmt: skip


def check_reads(query: Literal["class", "probe"], reads: str) -> None:
    """Refuses a query that this model does not have."""
    if query == reads:
        return
    missing = {"class": "class token", "probe": "probe: it has no attention pooling"}[query]
    has = {
        "class": "the class token",
        "mean": "the mean of the patches",
        "probe": "a probe that attends to the patches",
    }
    raise UsageError(
        "VT042", f"this model has no {missing}", f"its head reads {has[reads]}",
        f"leave out the query, or ask for {reads if reads != 'probe' else 'mean'}, or for a patch as ROW,COL",
    )  # fmt: skip


def check_whole(weights: Float[Tensor, "batch tokens ..."], tokens: Tokens) -> None:
    """Refuses attention within parts of the image, whose places on the grid its maps do not tell."""
    if weights.shape[:2] != tokens.values.shape[:2]:
        raise UsageError(
            "VT041", f"attention over {weights.shape[1]} of {tokens.values.shape[1]} tokens", "attention over all",
            "a model with attention in windows cannot be shown as one map",
        )  # fmt: skip


def patch_row(tokens: Tokens, patch: tuple[int, int]) -> int:
    """Where the patch at (row, col) stands in a whole sequence."""
    (row, col), (rows, cols) = patch, tokens.grid
    if tokens.kept is not None:
        raise UsageError(
            "VT042", "this model drops patches, and other ones in every image", "class or mean", "ask for one of them"
        )
    if not (0 <= row < rows and 0 <= col < cols):
        raise UsageError(
            "VT042", f"there is no patch {row},{col}", f"rows 0 to {rows - 1} and columns 0 to {cols - 1}",
            "the patch at the top left is 0,0",
        )  # fmt: skip
    return tokens.prefix + row * cols + col
