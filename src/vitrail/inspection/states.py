"""What a model makes of its images on the way: their tokens after every layer, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from vitrail.errors import DataError, VitrailError
from vitrail.model.backbone import Backbone
from vitrail.model.tokenizers import Tokens
from vitrail.model.vit import ViT

Images = Float[Tensor, "batch channels height width"] | Iterable[Float[Tensor, "batch channels height width"]]
"""Normalised images: one batch, or any number of them, each looked at once and not kept."""

_BATCH = 32  # images at a time, where they come as one tensor


def batches(images: Images) -> Iterator[Float[Tensor, "batch channels height width"]]:
    """The images in batches.

    Raises:
        DataError: VT131, there is none.
    """
    found = False
    for batch in images.split(_BATCH) if isinstance(images, Tensor) else images:
        if len(batch):
            found = True
            yield batch
    if not found:
        raise DataError("VT131", "there is no image to look at", "one image or more", "look at the folder or the split")


def depth_names(model: Backbone, count: int) -> tuple[str, ...]:
    """What `states` gave `count` of: the embedded tokens and every layer, or the stages of a ResNet."""
    if isinstance(model, ViT):
        return ("embedding", *(f"layer {layer}" for layer in range(count - 1)))
    return tuple(f"stage {stage}" for stage in range(count))


def states(model: Backbone, images: Float[Tensor, "batch channels height width"]) -> Iterator[Tokens]:
    """The tokens of one batch before the first layer and after each, none of them normed; of a ResNet its maps.

    Only one of them need be kept at a time.
    """
    if not isinstance(model, ViT):
        yield from model.features(images)
        return
    tokens = model.embed(images)
    yield tokens
    for block in model.blocks:
        tokens = block(tokens, model.position)
        yield tokens


def checked(name: str, values: Any) -> Any:
    """An array of results.

    Raises:
        VitrailError: VT132, some are not numbers.
    """
    if not np.isfinite(values).all():
        raise VitrailError(
            "VT132", f"{name}: some values are not finite", "finite values",
            "the model's weights are damaged, or too large for its precision: save it again, or load it in float32",
        )  # fmt: skip
    return values


def same_grid(tokens: Tokens, grid: tuple[int, int] | None) -> tuple[int, int]:
    """The grid of these tokens, which must be that of the ones before.

    Raises:
        DataError: VT131, another one.
    """
    if grid is not None and tokens.grid != grid:
        raise DataError(
            "VT131", f"images of mixed sizes: {grid} patches, then {tokens.grid}", "one size for all",
            "prepare them with the model's own preprocessing, or look at each size by itself",
        )  # fmt: skip
    return tokens.grid
