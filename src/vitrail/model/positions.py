"""Where a token is: none, learned 1-D, learned 2-D, relative, sine-cosine (paper D.4), and resampling to another grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.errors import UsageError
from vitrail.model.tokenizers import Context, Tokens

Grid = tuple[int, int]
Injection = Literal["stem", "every-layer", "shared"]
"""Once after the stem; at the start of each layer, each with its own table; the same table at each layer."""
Interpolation = Literal["aligned", "antialiased"]
"""Bilinear between a table's rows: its corners stay at the corners (official code); or as a picture is resized, between
the centres of its places and averaged where it shrinks (FlexiViT's code, jax.image.resize)."""


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


@dataclass(frozen=True)
class NoPosition(Position):
    """A bag of patches."""

    def build(self, context: Context) -> PositionModule:
        return Nowhere()


@dataclass(frozen=True)
class Learned1D(Position):
    """One learned row per patch in raster order, and one for the class token (the paper's default)."""

    inject: Injection = "stem"
    class_position: bool = True
    interpolation: Interpolation = "aligned"

    def build(self, context: Context) -> PositionModule:
        prefix = context.class_tokens if self.class_position else 0

        def table() -> Table:
            return LearnedTable(prefix, context.grid, context.dim, self.interpolation)

        return Added(self.inject, context.depth, table)


@dataclass(frozen=True)
class Learned2D(Position):
    """A learned row per grid row and per grid column, half of the dimension each, concatenated."""

    inject: Injection = "stem"

    def build(self, context: Context) -> PositionModule:
        return Added(
            self.inject, context.depth, lambda: FactorisedTable(context.class_tokens, context.grid, context.dim)
        )


@dataclass(frozen=True)
class SineCosine(Position):
    """Fixed two-dimensional sines and cosines (big_vision, after MoCo v3); the class token has no position."""

    inject: Injection = "stem"
    temperature: float = 10_000.0

    def build(self, context: Context) -> PositionModule:
        return Added(self.inject, context.depth, lambda: SineCosineTable(context.dim, self.temperature))


@dataclass(frozen=True)
class Relative1D(Position):
    """Every pair of patches has an offset in raster order, and every offset a learned key (paper D.4).

    The original queries times these keys are added to the attention scores. Pairs with a class token have no offset.
    The stem is the first layer, the first place where pairs meet.
    """

    inject: Injection = "shared"

    def build(self, context: Context) -> PositionModule:
        return RelativeKeys(self.inject, context)


class Nowhere(PositionModule):
    """Adds nothing."""

    def at(self, grid: Grid) -> None:
        pass


class Table(nn.Module, ABC):
    """Rows to add: `prefix` for the class token, then one per patch."""

    prefix = 0

    @abstractmethod
    def forward(self, grid: Grid) -> Float[Tensor, "positions dim"]:
        """Rows for the class token, if it has one, and for every patch of `grid`."""

    @abstractmethod
    def at(self, grid: Grid) -> None:
        """Bakes the table for another grid."""


class Added(PositionModule):
    """Adds the rows of a table at the stem, or at the start of every layer."""

    def __init__(self, inject: Injection, depth: int, table: Callable[[], Table]) -> None:
        super().__init__()
        self.inject = inject
        self.tables = nn.ModuleList(table() for _ in range(depth if inject == "every-layer" else 1))

    def add(self, tokens: Tokens, layer: int | None = None) -> Tokens:
        if (layer is None) != (self.inject == "stem"):
            return tokens
        table = self.tables[layer if self.inject == "every-layer" and layer is not None else 0]
        rows = table(tokens.grid).to(tokens.values.dtype)
        front, patches = rows[: table.prefix], rows[table.prefix :]
        # Registers stand between the class token and the patches and have no position.
        front = F.pad(front, (0, 0, 0, tokens.prefix - len(front)))
        if tokens.kept is None:
            return tokens.to(tokens.values + torch.cat([front, patches]))
        front = front.expand(len(tokens.values), -1, -1)
        return tokens.to(tokens.values + torch.cat([front, patches[tokens.kept]], dim=1))

    def at(self, grid: Grid) -> None:
        for table in self.tables:
            assert isinstance(table, Table)
            table.at(grid)


class LearnedTable(Table):
    """One row per patch of a known grid; any other grid is resampled."""

    def __init__(self, prefix: int, grid: Grid, dim: int, interpolation: Interpolation) -> None:
        super().__init__()
        self.prefix, self.grid, self.interpolation = prefix, grid, interpolation
        self.rows = nn.Parameter(torch.randn(prefix + grid[0] * grid[1], dim) * 0.02)

    def forward(self, grid: Grid) -> Float[Tensor, "positions dim"]:
        if grid == self.grid:
            return self.rows
        patches = resample(self.rows[self.prefix :], self.grid, grid, self.interpolation)
        return torch.cat([self.rows[: self.prefix], patches])

    def at(self, grid: Grid) -> None:
        with torch.no_grad():
            self.rows = nn.Parameter(self(grid).clone())
        self.grid = grid


class FactorisedTable(Table):
    """Row and column tables of half the dimension each."""

    def __init__(self, prefix: int, grid: Grid, dim: int) -> None:
        super().__init__()
        if dim % 2:
            raise UsageError("VT003", f"2-D positions need an even dimension, got {dim}", "a multiple of 2")
        self.prefix = prefix
        self.front = nn.Parameter(torch.randn(prefix, dim) * 0.02) if prefix else None
        self.vertical = nn.Parameter(torch.randn(grid[0], dim // 2) * 0.02)
        self.horizontal = nn.Parameter(torch.randn(grid[1], dim // 2) * 0.02)

    def forward(self, grid: Grid) -> Float[Tensor, "positions dim"]:
        down, across = resample_line(self.vertical, grid[0]), resample_line(self.horizontal, grid[1])
        half = down.shape[1]
        pairs = [down[:, None].expand(-1, grid[1], half), across[None].expand(grid[0], -1, half)]
        patches = rearrange(torch.cat(pairs, dim=-1), "r k d -> (r k) d")
        return patches if self.front is None else torch.cat([self.front, patches])

    def at(self, grid: Grid) -> None:
        with torch.no_grad():
            self.vertical = nn.Parameter(resample_line(self.vertical, grid[0]).clone())
            self.horizontal = nn.Parameter(resample_line(self.horizontal, grid[1]).clone())


class SineCosineTable(Table):
    """Computed for whatever grid is asked; holds nothing."""

    def __init__(self, dim: int, temperature: float) -> None:
        super().__init__()
        if dim % 4 or dim < 8:
            raise UsageError("VT003", f"sine-cosine positions need a dimension of 8, 12, 16 ..., got {dim}")
        self.dim, self.temperature = dim, temperature
        self.register_buffer("device", torch.empty(0), persistent=False)  # follows the model to its device

    def forward(self, grid: Grid) -> Float[Tensor, "positions dim"]:
        device = self.get_buffer("device").device
        quarter = self.dim // 4
        steps = torch.arange(quarter, device=device, dtype=torch.float64) / (quarter - 1)
        rates = self.temperature**-steps
        rows, cols = (torch.arange(side, device=device, dtype=torch.float64) for side in grid)
        down = rearrange(rows[:, None] * rates, "r w -> r 1 w").expand(-1, grid[1], -1)
        across = rearrange(cols[:, None] * rates, "k w -> 1 k w").expand(grid[0], -1, -1)
        waves = torch.cat([across.sin(), across.cos(), down.sin(), down.cos()], dim=-1)
        return rearrange(waves, "r k d -> (r k) d").float()

    def at(self, grid: Grid) -> None:
        pass


class RelativeKeys(PositionModule):
    """Scores q.r for every offset in -(n-1)..n-1, picked for every pair of patches."""

    def __init__(self, inject: Injection, context: Context) -> None:
        super().__init__()
        self.inject = inject
        offsets = 2 * context.grid[0] * context.grid[1] - 1
        self.keys = nn.ParameterList(
            nn.Parameter(torch.randn(context.heads, offsets, context.dim // context.heads) * 0.02)
            for _ in range(context.depth if inject == "every-layer" else 1)
        )

    def bias(self, queries: Tensor, tokens: Tokens, layer: int) -> Float[Tensor, "batch heads tokens tokens"] | None:
        if self.inject == "stem" and layer > 0:
            return None
        keys = self.keys[layer if self.inject == "every-layer" else 0]
        places = tokens.grid[0] * tokens.grid[1]
        keys = rearrange(
            resample_line(rearrange(keys, "h o d -> o (h d)"), 2 * places - 1), "o (h d) -> h o d", h=len(keys)
        )
        scores = torch.einsum("bhqd,hod->bhqo", queries[:, :, tokens.prefix :], keys.to(queries.dtype))
        scores = scores * queries.shape[-1] ** -0.5  # scaled like the product it is added to
        place = torch.arange(places, device=queries.device)[None] if tokens.kept is None else tokens.kept
        offset = place[:, :, None] - place[:, None, :] + places - 1
        picked = scores.gather(3, offset[:, None].expand(len(queries), queries.shape[1], -1, -1))
        return F.pad(picked, (tokens.prefix, 0, tokens.prefix, 0))

    def at(self, grid: Grid) -> None:
        with torch.no_grad():
            for index, keys in enumerate(self.keys):
                line = resample_line(rearrange(keys, "h o d -> o (h d)"), 2 * grid[0] * grid[1] - 1)
                self.keys[index] = nn.Parameter(rearrange(line, "o (h d) -> h o d", h=len(keys)).clone())


def resample(
    rows: Float[Tensor, "positions dim"], old: Grid, new: Grid, interpolation: Interpolation = "aligned"
) -> Float[Tensor, "new_positions dim"]:
    """A table in raster order on another grid, differentiably.

    "aligned" equals scipy.ndimage.zoom(order=1) of the official code to 6e-8, up and down.
    """
    grid, aligned = rearrange(rows, "(r k) d -> 1 d r k", r=old[0]), interpolation == "aligned"
    grid = F.interpolate(grid.float(), size=new, mode="bilinear", align_corners=aligned, antialias=not aligned)
    return rearrange(grid, "1 d r k -> (r k) d").to(rows.dtype)


def resample_line(rows: Float[Tensor, "positions dim"], length: int) -> Float[Tensor, "length dim"]:
    """A one-dimensional table at another length: linear with aligned ends."""
    if len(rows) == length:
        return rows
    line = F.interpolate(rearrange(rows, "n d -> 1 d n").float(), size=length, mode="linear", align_corners=True)
    return rearrange(line, "1 d n -> n d").to(rows.dtype)


POSITIONS: dict[str, type[Position]] = {
    "none": NoPosition,
    "learned-1d": Learned1D,
    "learned-2d": Learned2D,
    "relative-1d": Relative1D,
    "sine-cosine": SineCosine,
}
