"""One graph for several image sizes: the weights once, and the positions of every size baked beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.export import Dim

from vitrail.errors import UsageError
from vitrail.model.backbone import Backbone
from vitrail.model.geometry import Grid, PositionModule
from vitrail.model.mixers import MultiHeadAttention
from vitrail.model.positions import Added, NormAfter, Nowhere, Table
from vitrail.model.resnet import ResNet
from vitrail.model.tokenizers import PatchProjection
from vitrail.model.vit import ViT

Size = tuple[int, int]


class ListedTables(Table):
    """The rows of every listed grid, each baked by PyTorch; the grid of the images says which.

    Of a grid that is not listed they are not numbers, so that no such answer can be taken for one.
    """

    def __init__(self, table: Table, grids: Sequence[Grid]) -> None:
        super().__init__()
        rows = [table(grid).detach().float() for grid in grids]
        self.prefix, dim = table.prefix, rows[0].shape[1]
        self.largest = tuple(max(sides) for sides in zip(*grids, strict=True))
        patches = torch.full((len(grids) + 1, *self.largest, dim), torch.nan)
        for place, (grid, found) in enumerate(zip(grids, rows, strict=True)):
            patches[place, : grid[0], : grid[1]] = found[self.prefix :].view(*grid, dim)
        self.register_buffer("front", rows[0][: self.prefix].clone())  # the same on every grid
        self.register_buffer("patches", patches.flatten(0, 2))
        self.register_buffer("grids", torch.tensor([*grids, (0, 0)]))

    def forward(self, grid: Grid) -> Float[Tensor, "positions dim"]:
        front, patches, grids = (self.get_buffer(name) for name in ("front", "patches", "grids"))
        asked = torch.stack([torch.scalar_tensor(side, dtype=torch.int64) for side in grid])
        unlike = (grids != asked).any(dim=1)[:-1].long()
        place = torch.cat([unlike, unlike.new_zeros(1)]).argmin(
            dim=0, keepdim=True
        )  # the first; the last where none is
        down, across = (torch.arange(side) for side in grid)  # gathered: slices would ask how their memory lies
        rows = (place * self.largest[0] + down)[:, None] * self.largest[1] + across
        return torch.cat([front, patches[rows.flatten()]])

    def at(self, grid: Grid) -> None:
        """It is at all of its grids."""


def listed(backbone: Backbone, sizes: Sequence[Size]) -> tuple[Backbone, dict[int, Any]]:
    """A model in evaluation mode for all these sizes, changed in place, and which sides of the images are dynamic.

    Raises:
        UsageError: VT156, its layers belong to one grid.
    """
    if isinstance(backbone, ResNet):
        raise _refused(backbone, "the padding of its convolutions belongs to one size")
    if not isinstance(backbone, ViT) or not isinstance(backbone.tokenizer, PatchProjection):
        raise _refused(backbone, "the padding of its stem belongs to one size")
    if not all(isinstance(block.mixer, MultiHeadAttention) for block in backbone.blocks):
        raise _refused(backbone, "its layers mix the places of one grid")
    grids = [backbone.config.tokenizer.grid(size) for size in sizes]
    if min(side for grid in grids for side in grid) < 2:
        raise _refused(backbone, "a grid of one row or column is another graph")
    _list(backbone, backbone.position, grids)
    dynamic: dict[int, Any] = {}
    for dimension, (name, sides) in enumerate(zip(("rows", "columns"), zip(*grids, strict=True), strict=True)):
        if len(set(sides)) > 1:
            step = backbone.config.stride[dimension]
            dynamic[2 + dimension] = step * Dim(name, min=min(sides), max=max(sides))
    return backbone, dynamic


def _list(backbone: Backbone, position: PositionModule, grids: Sequence[Grid]) -> None:
    if isinstance(position, NormAfter):
        _list(backbone, position.inner, grids)
    elif isinstance(position, Added):
        for place, table in enumerate(position.tables):
            assert isinstance(table, Table)
            position.tables[place] = ListedTables(table, grids)
    elif not isinstance(position, Nowhere):
        raise _refused(backbone, "its positions act on pairs of tokens")


def _refused(backbone: Backbone, why: str) -> UsageError:
    return UsageError(
        "VT156", f"a {backbone.config.words} cannot hold several image sizes in one file: {why}", "one size",
        "one file for each: --image-size 224 --out ...",
    )  # fmt: skip
