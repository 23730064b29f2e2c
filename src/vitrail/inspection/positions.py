"""How alike the position embeddings of two places are (paper figures 7 and 10)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float

from vitrail.errors import UsageError
from vitrail.inspection.states import checked
from vitrail.model.backbone import Backbone
from vitrail.model.vit import ViT


@dataclass(frozen=True, eq=False)
class PositionSimilarity:
    """Cosines of position embeddings, -1 to 1.

    Attributes:
        tiles: tiles[r, c] is the map of what the place (r, c) has in common with every place; itself is 1.
        layer: at whose start the embedding is added; None for once, after the stem.
        resampled: from which (rows, cols) the table was resampled; None where it was not.
    """

    tiles: Float[np.ndarray, "rows cols rows cols"]
    layer: int | None
    resampled: tuple[int, int] | None


def position_similarity(
    model: Backbone, image_size: tuple[int, int] | None = None, layer: int | None = None
) -> PositionSimilarity:
    """The cosine of every place's position embedding with every other's; class token and registers are left out.

    Learned tables of one dimension, of two (rows and columns, side by side), and sines and cosines alike: what counts is
    what the model adds to a patch. An embedding of zeros is like no other.

    Args:
        image_size: (height, width) for whose grid; None is that of the model. A learned table is resampled as the model does.
        layer: of models that add positions in every layer; None is the first of them.

    Raises:
        UsageError: VT130, the model adds no position embedding, or not there.
        DataError: VT032, the image size does not fit the patches.

    Source: arXiv 2010.11929, figure 7 (centre); google-research/vision_transformer issue 138.
    """
    if not isinstance(model, ViT):
        raise UsageError(
            "VT130", "a ResNet has no position embedding: its convolutions know where things are by themselves",
            "a ViT or a hybrid",
        )  # fmt: skip
    grid = model.config.tokenizer.grid(image_size or model.config.image_size)
    with torch.inference_mode():
        rows = model.position.rows(grid, layer)
        if rows is None and layer is None:  # nothing after the stem: then in the layers, if at all
            layer = 0
            rows = model.position.rows(grid, layer)
    if rows is None:
        name = type(model.config.position).__name__
        raise UsageError(
            "VT130", f"this model adds no position embedding to its patches there (its positions: {name})",
            "learned positions of one or two dimensions, or sines and cosines",
            "relative positions and rotations act inside attention: the attention distance shows what they do",
        )  # fmt: skip
    table = checked("position embedding", rows.detach().double().cpu().numpy())
    lengths = np.linalg.norm(table, axis=1, keepdims=True)
    units = table / np.where(lengths > 0, lengths, 1)
    tiles = rearrange(units @ units.T, "(r c) (i j) -> r c i j", r=grid[0], i=grid[0])
    return PositionSimilarity(tiles.clip(-1, 1), layer, None if grid == model.config.grid else model.config.grid)
