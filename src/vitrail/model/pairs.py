"""Positions that act inside attention, on pairs of tokens: relative keys, relative bias, rotation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitrail.errors import UsageError
from vitrail.model.geometry import Grid, Injection, Position, PositionModule, resample, resample_line
from vitrail.model.tokenizers import Context, Tokens


@dataclass(frozen=True)
class Relative1D(Position):
    """Every pair of patches has an offset in raster order, and every offset a learned key (paper D.4).

    The original queries times these keys are added to the attention scores. Pairs with a class token have no offset.
    The stem is the first layer, the first place where pairs meet.
    """

    inject: Injection = "shared"

    def build(self, context: Context) -> PositionModule:
        return RelativeKeys(self.inject, context)


@dataclass(frozen=True)
class RelativeBias(Position):
    """Every offset (down, across) of two patches has a learned number a head, added to their score (BEiT, after Swin).

    Three more numbers stand for what the class token gives, gets and keeps. Another grid resamples the table of offsets
    bilinearly between the centres of its places.
    """

    inject: Injection = "every-layer"

    def build(self, context: Context) -> PositionModule:
        return OffsetBias(self.inject, context)


@dataclass(frozen=True)
class Rotary2D(Position):
    """Queries and keys of patches are turned by their place on the image, whatever its grid (DINOv3, after RoFormer).

    Rows and columns run from -1 to 1 between the image's edges; half of each head turns by the row, half by the column,
    at head_dim / 4 speeds from 2 pi down to 2 pi / `base` a unit. Class token and registers are not turned.
    """

    base: float = 100.0

    def build(self, context: Context) -> PositionModule:
        return Rotation(self.base, context)


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
        place = _places(tokens, queries.device)
        offset = place[:, :, None] - place[:, None, :] + places - 1
        picked = scores.gather(3, offset[:, None].expand(queries.shape[0], queries.shape[1], -1, -1))
        return F.pad(picked, (tokens.prefix, 0, tokens.prefix, 0))

    def at(self, grid: Grid) -> None:
        with torch.no_grad():
            for index, keys in enumerate(self.keys):
                line = resample_line(rearrange(keys, "h o d -> o (h d)"), 2 * grid[0] * grid[1] - 1)
                self.keys[index] = nn.Parameter(rearrange(line, "o (h d) -> h o d", h=len(keys)).clone())


class OffsetBias(PositionModule):
    """`tables`: one row per offset in raster order, then class to patch, patch to class, class to class."""

    def __init__(self, inject: Injection, context: Context) -> None:
        super().__init__()
        if (context.class_tokens, context.registers) != (1, 0):
            raise UsageError(
                "VT003", f"a relative bias with {context.class_tokens} class tokens and {context.registers} registers",
                "one class token and no registers: its table has a place for one",
            )  # fmt: skip
        self.inject, self.grid = inject, context.grid
        rows = math.prod(_offsets(context.grid)) + 3
        count = context.depth if inject == "every-layer" else 1
        self.tables = nn.ParameterList(nn.Parameter(torch.zeros(rows, context.heads)) for _ in range(count))

    def bias(self, queries: Tensor, tokens: Tokens, layer: int) -> Float[Tensor, "batch heads tokens tokens"] | None:
        if self.inject == "stem" and layer > 0:
            return None
        table = self._on(self.tables[layer if self.inject == "every-layer" else 0], tokens.grid).to(queries.dtype)
        return rearrange(table[_pairs(tokens, queries.device)], "b q k h -> b h q k")

    def at(self, grid: Grid) -> None:
        with torch.no_grad():
            for index, table in enumerate(self.tables):
                self.tables[index] = nn.Parameter(self._on(table, grid).clone())
        self.grid = grid

    def _on(self, table: Float[Tensor, "offsets heads"], grid: Grid) -> Float[Tensor, "new_offsets heads"]:
        if grid == self.grid:
            return table
        between = resample(table[:-3], _offsets(self.grid), _offsets(grid), "bilinear")
        return torch.cat([between, table[-3:]])


class Rotation(PositionModule):
    """Turns (first half, second half) of every patch's queries and keys as a complex number of head_dim / 2 parts."""

    def __init__(self, base: float, context: Context) -> None:
        super().__init__()
        head_dim = context.dim // context.heads
        if head_dim % 4:
            raise UsageError("VT003", f"rotary positions with heads of {head_dim} dimensions", "a multiple of 4")
        self.base, self.head_dim = base, head_dim

    def rotate(self, queries: Tensor, keys: Tensor, tokens: Tokens, layer: int) -> tuple[Tensor, Tensor]:
        angles = self._angles(tokens, queries.device)
        wave = angles.cos().to(queries.dtype), angles.sin().to(queries.dtype)
        return _turned(queries, *wave), _turned(keys, *wave)

    def at(self, grid: Grid) -> None:
        pass

    def _angles(self, tokens: Tokens, device: torch.device) -> Float[Tensor, "images 1 tokens half"]:
        """Zero for what stands before the patches."""
        rows, cols = tokens.grid
        place = _places(tokens, device)
        down, across = (place // cols + 0.5) / rows, (place % cols + 0.5) / cols
        speeds = 2 * math.pi / self.base ** torch.arange(0, 1, 4 / self.head_dim, dtype=torch.float32, device=device)
        centres = 2 * torch.stack([down, across], dim=-1) - 1
        angles = rearrange(centres[..., None] * speeds, "b n side speed -> b 1 n (side speed)")
        return F.pad(angles, (0, 0, tokens.prefix, 0))


def _places(tokens: Tokens, device: torch.device) -> Int[Tensor, "images patches"]:
    """Where each patch stands on the grid, in raster order; one row for all images that keep every patch."""
    return torch.arange(math.prod(tokens.grid), device=device)[None] if tokens.kept is None else tokens.kept


def _offsets(grid: Grid) -> Grid:
    """How many offsets there are down and across."""
    return 2 * grid[0] - 1, 2 * grid[1] - 1


def _pairs(tokens: Tokens, device: torch.device) -> Int[Tensor, "images tokens tokens"]:
    """Row of the table of offsets for every pair (asks, is looked at)."""
    rows, cols = tokens.grid
    place = _places(tokens, device)
    down, across = (part[:, :, None] - part[:, None, :] for part in (place // cols, place % cols))
    last = math.prod(_offsets(tokens.grid))
    pairs = F.pad((down + rows - 1) * (2 * cols - 1) + across + cols - 1, (1, 0, 1, 0))
    pairs[:, 0, :], pairs[:, :, 0], pairs[:, 0, 0] = last, last + 1, last + 2
    return pairs


def _turned(
    vectors: Float[Tensor, "batch heads tokens head_dim"], cosine: Tensor, sine: Tensor
) -> Float[Tensor, "batch heads tokens head_dim"]:
    first, second = vectors.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
