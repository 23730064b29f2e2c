"""Grids: what belongs to one, how it is carried to another, and what every position answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.model.tokenizers import Context, Tokens

Grid = tuple[int, int]
Injection = Literal["stem", "every-layer", "shared"]
"""Once after the stem; at the start of each layer, each with its own table; the same table at each layer."""
Interpolation = Literal[
    "aligned", "bilinear", "antialiased", "bicubic", "bicubic-aligned", "bicubic-antialiased", "bicubic-offset"
]  # fmt: skip
"""Between a table's rows. Bilinear: "aligned", its corners stay at the corners (official code); "antialiased", as a
picture is resized, between the centres of its places and averaged where it shrinks (FlexiViT's code, jax.image.resize);
"bilinear", between the centres and never averaged.
Bicubic between the centres ("bicubic", Hugging Face), with the corners at the corners (torchvision), averaged where
it shrinks (timm), or between places scaled as if a tenth of a place more were asked for ("bicubic-offset": DINO's code
guards so against rounding, and its weights and DINOv2's are used with it)."""
_MODES: dict[Interpolation, dict[str, Any]] = {
    "aligned": {"mode": "bilinear", "align_corners": True},
    "bilinear": {"mode": "bilinear", "align_corners": False},
    "antialiased": {"mode": "bilinear", "align_corners": False, "antialias": True},
    "bicubic": {"mode": "bicubic", "align_corners": False},
    "bicubic-aligned": {"mode": "bicubic", "align_corners": True},
    "bicubic-antialiased": {"mode": "bicubic", "align_corners": False, "antialias": True},
    "bicubic-offset": {"mode": "bicubic", "align_corners": False},
}


class OnGrid(nn.Module, ABC):
    """A part of a model whose arrays belong to one grid."""

    @abstractmethod
    def at(self, grid: Grid) -> None:
        """Bakes the arrays for another grid, in place."""


class PositionModule(OnGrid):
    """What the model asks of a position; each answer defaults to nothing. `layer` None means right after the stem."""

    def add(self, tokens: Tokens, layer: int | None = None) -> Tokens:
        """Tokens with their positions added."""
        return tokens

    def rows(self, grid: Grid, layer: int | None = None) -> Float[Tensor, "patches dim"] | None:
        """The embedding of every place of `grid` that `add` adds there, in raster order; None where it adds none."""
        return None

    def bias(self, queries: Tensor, tokens: Tokens, layer: int) -> Float[Tensor, "batch heads tokens tokens"] | None:
        """What is added to the attention scores of a layer before the softmax."""
        return None

    def rotate(self, queries: Tensor, keys: Tensor, tokens: Tokens, layer: int) -> tuple[Tensor, Tensor]:
        """Queries and keys, turned by their positions."""
        return queries, keys


class Position(ABC):
    """Axis: what the model knows of where its tokens are."""

    @abstractmethod
    def build(self, context: Context) -> PositionModule:
        """A module that adds, biases or rotates."""


def resample(
    rows: Float[Tensor, "positions dim"], old: Grid, new: Grid, interpolation: Interpolation = "aligned"
) -> Float[Tensor, "new_positions dim"]:
    """A table in raster order on another grid, differentiably.

    "aligned" equals scipy.ndimage.zoom(order=1) of the official code to 6e-8, up and down.
    """
    grid = rearrange(rows, "(r k) d -> 1 d r k", r=old[0])
    size: dict[str, Any] = {"size": new}
    if interpolation == "bicubic-offset":
        size = {"scale_factor": ((new[0] + 0.1) / old[0], (new[1] + 0.1) / old[1])}
    grid = F.interpolate(grid.float(), **size, **_MODES[interpolation])
    return rearrange(grid, "1 d r k -> (r k) d").to(rows.dtype)


def resample_line(rows: Float[Tensor, "positions dim"], length: int) -> Float[Tensor, "length dim"]:
    """A one-dimensional table at another length: linear with aligned ends."""
    if len(rows) == length:
        return rows
    line = F.interpolate(rearrange(rows, "n d -> 1 d n").float(), size=length, mode="linear", align_corners=True)
    return rearrange(line, "1 d n -> n d").to(rows.dtype)
