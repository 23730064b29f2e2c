"""Where a token is: none, learned 1-D, learned 2-D, relative, sine-cosine (paper D.4), and resampling to another grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.errors import UsageError
from vitrail.model.geometry import (
    Grid,
    Injection,
    Interpolation,
    Position,
    PositionModule,
    resample,
    resample_line,
)
from vitrail.model.pairs import Relative1D, RelativeBias, Rotary2D
from vitrail.model.tokenizers import Context, Tokens


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
class Normed(Position):
    """Another position, and a LayerNorm after it, before the first block (CLIP)."""

    position: Position = Learned1D()
    epsilon: float = 1e-5

    def build(self, context: Context) -> PositionModule:
        return NormAfter(self, context)


@dataclass(frozen=True)
class Both(Position):
    """Two positions at once (a BEiT with a table of places and one of offsets)."""

    first: Position = Learned1D()
    second: Position = RelativeBias()

    def build(self, context: Context) -> PositionModule:
        return Together(self.first.build(context), self.second.build(context))


class Nowhere(PositionModule):
    """Adds nothing."""

    def at(self, grid: Grid) -> None:
        pass


class NormAfter(PositionModule):
    """What the inner position answers; the tokens that enter the first block are normed."""

    def __init__(self, config: Normed, context: Context) -> None:
        super().__init__()
        self.inner = config.position.build(context)
        self.norm = nn.LayerNorm(context.dim, eps=config.epsilon)

    def add(self, tokens: Tokens, layer: int | None = None) -> Tokens:
        tokens = self.inner.add(tokens, layer)
        return tokens.to(self.norm(tokens.values)) if layer is None else tokens

    def rows(self, grid: Grid, layer: int | None = None) -> Float[Tensor, "patches dim"] | None:
        return self.inner.rows(grid, layer)

    def bias(self, queries: Tensor, tokens: Tokens, layer: int) -> Float[Tensor, "batch heads tokens tokens"] | None:
        return self.inner.bias(queries, tokens, layer)

    def rotate(self, queries: Tensor, keys: Tensor, tokens: Tokens, layer: int) -> tuple[Tensor, Tensor]:
        return self.inner.rotate(queries, keys, tokens, layer)

    def at(self, grid: Grid) -> None:
        self.inner.at(grid)


class Together(PositionModule):
    """What both answer."""

    def __init__(self, first: PositionModule, second: PositionModule) -> None:
        super().__init__()
        self.first, self.second = first, second

    def add(self, tokens: Tokens, layer: int | None = None) -> Tokens:
        return self.second.add(self.first.add(tokens, layer), layer)

    def rows(self, grid: Grid, layer: int | None = None) -> Float[Tensor, "patches dim"] | None:
        answers = [part.rows(grid, layer) for part in (self.first, self.second)]
        told = [answer for answer in answers if answer is not None]
        return sum(told[1:], start=told[0]) if told else None

    def bias(self, queries: Tensor, tokens: Tokens, layer: int) -> Float[Tensor, "batch heads tokens tokens"] | None:
        answers = [part.bias(queries, tokens, layer) for part in (self.first, self.second)]
        told = [answer for answer in answers if answer is not None]
        return sum(told[1:], start=told[0]) if told else None

    def rotate(self, queries: Tensor, keys: Tensor, tokens: Tokens, layer: int) -> tuple[Tensor, Tensor]:
        return self.second.rotate(*self.first.rotate(queries, keys, tokens, layer), tokens, layer)

    def at(self, grid: Grid) -> None:
        self.first.at(grid)
        self.second.at(grid)


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

    def rows(self, grid: Grid, layer: int | None = None) -> Float[Tensor, "patches dim"] | None:
        table = self._table(layer)
        return None if table is None else table(grid)[table.prefix :]

    def add(self, tokens: Tokens, layer: int | None = None) -> Tokens:
        table = self._table(layer)
        if table is None:
            return tokens
        rows = table(tokens.grid).to(tokens.values.dtype)
        front, patches = rows[: table.prefix], rows[table.prefix :]
        # Registers stand between the class token and the patches and have no position.
        front = F.pad(front, (0, 0, 0, tokens.prefix - len(front)))
        if tokens.kept is None:
            return tokens.to(tokens.values + torch.cat([front, patches]))
        front = front.expand(tokens.values.shape[0], -1, -1)
        return tokens.to(tokens.values + torch.cat([front, patches[tokens.kept]], dim=1))

    def at(self, grid: Grid) -> None:
        for table in self.tables:
            assert isinstance(table, Table)
            table.at(grid)

    def _table(self, layer: int | None) -> Table | None:
        """What is added there; None for nothing."""
        if (layer is None) != (self.inject == "stem"):
            return None
        table = self.tables[layer if self.inject == "every-layer" and layer is not None else 0]
        assert isinstance(table, Table)
        return table


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


POSITIONS: dict[str, type[Position]] = {
    "none": NoPosition,
    "learned-1d": Learned1D,
    "learned-2d": Learned2D,
    "relative-1d": Relative1D,
    "relative-bias": RelativeBias,
    "rotary-2d": Rotary2D,
    "sine-cosine": SineCosine,
    "normed": Normed,
    "both": Both,
}
