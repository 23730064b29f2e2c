"""`vitrail.explain`: one picture, one model, one question; the answer says what it can and cannot tell."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from vitrail.errors import UsageError, VitrailError, nearest
from vitrail.images import Picture, picture_of
from vitrail.inspection.attention import Gaze, Query, attending, attention, default_query, parse_query
from vitrail.inspection.caveats import Setting, caveats, evenness, tells
from vitrail.inspection.gradients import FAR
from vitrail.inspection.method import Method
from vitrail.inspection.methods import METHODS, RawAttention, Rollout, method_named
from vitrail.inspection.opening import opened
from vitrail.inspection.overlay import Box, patch_box
from vitrail.inspection.rollout import rollout
from vitrail.model.backbone import Backbone
from vitrail.model.vit import ViT

_TOP = 5
_AGAINST = 0.25  # of the weight of a map that is signed


@dataclass(frozen=True)
class Patch:
    """One patch of the map: its place on the grid, its weight, its pixels in the original picture."""

    row: int
    col: int
    weight: float
    box: Box


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where a query looks, or what speaks for a class.

    Attributes:
        method: a name of `vitrail.inspection.methods`.
        map: weights of the patches in their places, rows cols, float32; they sum to 1 over the patches, without the
            prefix. All zero where the whole weight lies on the prefix, or nothing speaks for the class.
        prefix_share: part of the query's weight, of 1, that stays on class token and registers and so is not in `map`.
        prefix: those tokens in words, such as "1 class token and 4 registers"; empty where there are none.
        layer: counted from 0; None for rollout.
        heads: those that were averaged; None for all.
        query: "class", "mean", "probe", or the patch as (row, col); None where a class is asked and no token.
        box: what the model saw of the picture: left, top, right, bottom in its pixels.
        class_specific: whether another class would have another map.
        target: the class that is explained; None where the map is the same for all.
        values: what the method says of each patch before it becomes weights, rows cols, float64; where it is signed, in
            logits, negative numbers speak against the class and have no weight in `map`.
        gap: by which share of it the numbers miss the sum that the method promises; None where it promises none.
        definition: equation and paper.
        tells: what the map shows.
        caveats: what it cannot tell.
    """

    method: str
    map: Float[np.ndarray, "rows cols"]
    prefix_share: float
    prefix: str
    layer: int | None
    heads: tuple[int, ...] | None
    query: Query | None
    box: Box
    class_specific: bool
    target: str | None
    values: Float[np.ndarray, "rows cols"]
    gap: float | None
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
    method: str | Method | None = None,
    target: str | int | None = None,
    layer: int | None = None,
    heads: Sequence[int] | None = None,
    query: Query | str | None = None,
) -> Explanation:
    """Where a model looks in a picture, or what speaks for a class; attention rollout by default.

    Args:
        model: what `vitrail.load` gives.
        picture: path, bytes of a file, or uint8 array height width channels.
        method: a name of `vitrail.inspection.methods`; None is rollout, or with `layer` the attention of that layer.
        target: the class to explain, by name or number; None is the most probable one.
        layer: negative ones count from the end.
        heads: of that layer; None averages over all.
        query: "class", "mean", "probe" or (row, col); None is what the head reads (in a layer, where there is no probe,
            the mean).

    Raises:
        DataError: the picture cannot be read.
        UsageError: VT040 to VT043, no such layer, head or query, no attention, no model to look into; VT045 no classes;
            VT140 no such class, VT141 no such method or a question that it does not answer, VT142 not on this model.
    """
    chosen = _chosen(method, layer, heads, query, target)
    module, preprocessing = opened(model)
    chosen.admit(module)
    classes = tuple(getattr(model, "classes", ()))
    wanted = None if target is None else class_index(classes, target)
    pixels = picture_of(picture, preprocessing.channels)
    images = torch.from_numpy(preprocessing(pixels))[None].to(next(module.parameters()).device)
    images = preprocessing.normalise(images)
    box = preprocessing.window(pixels.shape[:2])
    if isinstance(chosen, (Rollout, RawAttention)):
        return _looked(attending(module), images, chosen, heads, query, box)
    with torch.inference_mode():
        best = int(module(images)[0].argmax())
    index = best if wanted is None else wanted
    found = chosen.maps(module, images, torch.tensor([index], device=images.device))
    gap = None if found.gap is None else float(found.gap[0])
    shares = positive_shares(found.values[0])
    return Explanation(
        method=chosen.name, map=shares, prefix_share=0.0, prefix="", layer=None, heads=None, query=None, box=box,
        class_specific=True, target=classes[index] if index < len(classes) else str(index), values=found.values[0],
        gap=gap, definition=chosen.definition, tells=chosen.tells,
        caveats=(*chosen.caveats, *_of_hybrids(module, chosen), *_of_numbers(found.values[0], shares, gap, index == best)),
    )  # fmt: skip


def class_index(classes: Sequence[str], target: str | int) -> int:
    """The place of a class by its name or its number.

    Raises:
        UsageError: VT140, there is none.
    """
    if isinstance(target, str) and target in classes:
        return list(classes).index(target)
    if isinstance(target, int) and 0 <= target < len(classes):
        return target
    hint = nearest(str(target)[:80], classes) if len(classes) < 5000 else f"one of {len(classes):,} classes"
    raise UsageError(
        "VT140", f"the model has no class {str(target)[:80]!r}", hint, "names are spelt as predict prints them"
    )


def positive_shares(values: Float[np.ndarray, "rows cols"]) -> Float[np.ndarray, "rows cols"]:
    """What speaks for the class, scaled to sum to 1; all zero where nothing does."""
    positive = values.clip(min=0)
    total = positive.sum()
    return (positive / (total if total > 0 else 1)).astype(np.float32)


def _chosen(
    method: str | Method | None, layer: int | None, heads: Sequence[int] | None, query: object, target: object
) -> Method:
    """The method, and whether it answers such a question."""
    if method is None:
        method = Rollout() if layer is None else RawAttention(layer)
    chosen = method_named(method) if isinstance(method, str) else method
    if isinstance(chosen, RawAttention) and layer is not None:
        chosen = RawAttention(layer)
    if isinstance(chosen, Rollout) and heads is not None:
        raise UsageError(
            "VT040", "rollout averages all heads", "a layer for the heads", "name the layer too: --layer -1, or layer=-1"
        )  # fmt: skip
    asked = {"layer": layer, "heads": heads, "query": query}
    if isinstance(chosen, Rollout):
        del asked["query"]
    given = [name for name, value in asked.items() if value is not None]
    if given and not isinstance(chosen, RawAttention):
        raise UsageError("VT141", f"{chosen.name} has no {given[0]} to choose", "attention, which has",
                         "leave it out, or --method attention")  # fmt: skip
    if target is not None and not chosen.class_specific:
        others = ", ".join(name for name, kind in METHODS.items() if kind.class_specific)
        raise UsageError("VT141", f"{chosen.name} is the same for every class: it cannot explain {str(target)[:80]!r}",
                         "a method that asks for a class", f"one of {others}")  # fmt: skip
    return chosen


def _of_hybrids(module: Backbone, method: Method) -> Iterator[str]:
    if "tokens" in method.needs and hasattr(getattr(module, "tokenizer", None), "trunk"):
        yield "The trunk showed a patch's pixels to its neighbours' tokens too, and those stay."


def _of_numbers(
    values: Float[np.ndarray, "rows cols"], shares: Float[np.ndarray, "rows cols"], gap: float | None, best: bool
) -> Iterator[str]:
    """Warnings that the numbers themselves give."""
    if not best:
        yield "This class is not the model's answer."
    if not shares.any():
        yield "No patch speaks for this class: the map is empty."
    against, weight = values.clip(max=0), np.abs(values).sum()
    if weight > 0 and -against.sum() >= _AGAINST * weight:
        yield (
            f"{int((against < 0).sum())} of {values.size} patches speak against the class, with "
            f"{-100 * against.sum() / weight:.0f} % of all weight; the map shows those that speak for it."
        )
    if gap is not None and gap > FAR:
        yield f"The numbers miss the sum that they should have by {100 * gap:.0f} % of it."
    if even := evenness(shares, spread_of(shares)):
        yield even


def spread_of(weights: Float[np.ndarray, "rows cols"]) -> float:
    """exp of the entropy of weights that sum to 1; 0 where there are none."""
    positive = weights[weights > 0].astype(np.float64)
    return float(np.exp(-(positive * np.log(positive)).sum())) if len(positive) else 0.0


def _looked(
    module: ViT, images: torch.Tensor, method: Rollout | RawAttention, heads: Sequence[int] | None,
    query: Query | str | None, box: Box,
) -> Explanation:  # fmt: skip
    """By attention alone, from a query that can be chosen."""
    layer = method.layer if isinstance(method, RawAttention) else None
    if query is None:
        query = default_query(module.pool.reads, in_layer=layer is not None)
    elif isinstance(query, str):
        query = parse_query(query)
    if layer is None:
        gaze = rollout(module, images, query)
    else:
        gaze = attention(module, images, layer, heads, query)
    if not bool(torch.isfinite(gaze.weights).all()):
        raise VitrailError(
            "VT044", "the attention is not a number", "finite weights", "the model's weights are damaged: save it again"
        )
    return _explanation(module, gaze, layer, heads, query, box)


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
    method = Rollout if layer is None else RawAttention
    return Explanation(
        method=method.name,
        map=weights,
        prefix_share=prefix_share,
        prefix=setting.prefix,
        layer=setting.layer,
        heads=setting.heads,
        query=query,
        box=box,
        class_specific=False,
        target=None,
        values=weights.astype(np.float64),
        gap=None,
        definition=method.definition,
        tells=tells(setting),
        caveats=caveats(setting, weights, spread_of(weights), prefix_share),
    )
