"""`vitrail.explain`: one picture, one model, one question; the answer says what it can and cannot tell."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float

from vitrail.errors import UsageError, VitrailError
from vitrail.images import Picture, picture_of
from vitrail.inspection.attention import Gaze, Query, attending, attention, default_query, parse_query
from vitrail.inspection.caveats import Setting, caveats, evenness, tells
from vitrail.inspection.overlay import Box, patch_box
from vitrail.inspection.rollout import rollout
from vitrail.model.backbone import Backbone
from vitrail.model.vit import ViT
from vitrail.preprocessing import Preprocessing

DEFINITIONS = {
    "attention": "softmax(q k / sqrt(d)), Dosovitskiy et al., arXiv 2010.11929, eq. 6",
    "rollout": "product over layers of 0.5 A + 0.5 I, A the mean of the heads with rows that sum to 1; "
    "Abnar & Zuidema, arXiv 2005.00928, section 3",
}
_TOP = 5


@dataclass(frozen=True)
class Patch:
    """One patch of the map: its place on the grid, its weight, its pixels in the original picture."""

    row: int
    col: int
    weight: float
    box: Box


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where a query looks.

    Attributes:
        method: rollout through all layers, or the attention of one layer.
        map: weights of the patches in their places, rows cols, float32; they sum to 1 over the patches, without the
            prefix. All zero where the whole weight lies on the prefix.
        prefix_share: part of the query's weight, of 1, that stays on class token and registers and so is not in `map`.
        prefix: those tokens in words, such as "1 class token and 4 registers"; empty where there are none.
        layer: counted from 0; None for rollout.
        heads: those that were averaged; None for all.
        query: "class", "mean", "probe", or the patch as (row, col).
        box: what the model saw of the picture: left, top, right, bottom in its pixels.
        class_specific: whether another class would have another map.
        definition: equation and paper.
        tells: what the map shows.
        caveats: what it cannot tell.
    """

    method: Literal["rollout", "attention"]
    map: Float[np.ndarray, "rows cols"]
    prefix_share: float
    prefix: str
    layer: int | None
    heads: tuple[int, ...] | None
    query: Query
    box: Box
    class_specific: bool
    definition: str
    tells: str
    caveats: tuple[str, ...]

    @property
    def top(self) -> tuple[Patch, ...]:
        """The patches with the largest weights, at most five, largest first."""
        order = np.argsort(-self.map, axis=None, kind="stable")[:_TOP]
        places = [divmod(int(place), self.map.shape[1]) for place in order]
        return tuple(
            Patch(row, col, float(self.map[row, col]), patch_box(self.box, self.map.shape, row, col))
            for row, col in places
        )

    @property
    def evenness(self) -> str:
        """The one of the caveats that says that the map has no shape; empty where it has one."""
        return evenness(self.map, self.spread)

    @property
    def spread(self) -> float:
        """As many patches, looked at evenly, would be as spread out: 1 for a single one; exp of the entropy."""
        return spread_of(self.map)


def explain(
    model: Any,
    picture: str | os.PathLike[str] | bytes | Picture,
    *,
    layer: int | None = None,
    heads: Sequence[int] | None = None,
    query: Query | str | None = None,
) -> Explanation:
    """Where a model looks in a picture: attention rollout, or with `layer` the attention of that layer.

    Args:
        model: what `vitrail.load` gives.
        picture: path, bytes of a file, or uint8 array height width channels.
        layer: negative ones count from the end.
        heads: of that layer; None averages over all.
        query: "class", "mean", "probe" or (row, col); None is what the head reads (in a layer, where there is no probe,
            the mean).

    Raises:
        DataError: the picture cannot be read.
        UsageError: VT040 to VT043; no such layer, head or query, no attention, no model to look into.
    """
    module, preprocessing = _opened(model)
    if heads is not None and layer is None:
        raise UsageError(
            "VT040", "rollout averages all heads", "a layer for the heads", "name the layer too: --layer -1, or layer=-1"
        )  # fmt: skip
    if query is None:
        query = default_query(module.pool.reads, in_layer=layer is not None)
    elif isinstance(query, str):
        query = parse_query(query)
    pixels = picture_of(picture, preprocessing.channels)
    images = torch.from_numpy(preprocessing(pixels))[None].to(next(module.parameters()).device)
    images = preprocessing.normalise(images)
    if layer is None:
        gaze = rollout(module, images, query)
    else:
        gaze = attention(module, images, layer, heads, query)
    if not bool(torch.isfinite(gaze.weights).all()):
        raise VitrailError(
            "VT044", "the attention is not a number", "finite weights", "the model's weights are damaged: save it again"
        )
    return _explanation(module, gaze, layer, heads, query, preprocessing.window(pixels.shape[:2]))


def spread_of(weights: Float[np.ndarray, "rows cols"]) -> float:
    """exp of the entropy of weights that sum to 1; 0 where there are none."""
    positive = weights[weights > 0].astype(np.float64)
    return float(np.exp(-(positive * np.log(positive)).sum())) if len(positive) else 0.0


def _opened(model: Any) -> tuple[ViT, Preprocessing]:
    """The module, also out of `torch.compile`, and its preprocessing."""
    module = getattr(model, "module", None)
    module = getattr(module, "_orig_mod", module)
    preprocessing = getattr(model, "preprocessing", None)
    if not isinstance(module, Backbone) or not isinstance(preprocessing, Preprocessing):
        name = type(model).__name__
        raise UsageError(
            "VT043", f"attention cannot be read from a {name}", "what vitrail.load gives: a ViT with its preprocessing",
            "an exported or scripted model has no attention left to read: load the checkpoint that it came from",
        )  # fmt: skip
    return attending(module), preprocessing


def _explanation(
    module: ViT, gaze: Gaze, layer: int | None, heads: Sequence[int] | None, query: Query, box: Box
) -> Explanation:
    size = module.config.size
    setting = Setting(
        query=query,
        layer=None if layer is None else layer % size.depth,
        heads=None if heads is None else tuple(head % size.heads for head in heads),
        reads=module.pool.reads,
        depth=size.depth,
        num_heads=size.heads,
        class_tokens=module.config.pool.class_tokens,
        registers=module.config.pool.registers,
    )
    weights, prefix_share = gaze.maps[0], float(gaze.prefix_share[0])
    method: Literal["rollout", "attention"] = "rollout" if layer is None else "attention"
    return Explanation(
        method=method,
        map=weights,
        prefix_share=prefix_share,
        prefix=setting.prefix,
        layer=setting.layer,
        heads=setting.heads,
        query=query,
        box=box,
        class_specific=False,
        definition=DEFINITIONS[method],
        tells=tells(setting),
        caveats=caveats(setting, weights, spread_of(weights), prefix_share),
    )
