"""Images to tokens, and `Tokens`, which is what travels between the parts of a model."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitrail.errors import DataError


@dataclass(frozen=True)
class Context:
    """What an axis value may know of the model it is built for."""

    dim: int
    heads: int
    hidden: int
    depth: int
    grid: tuple[int, int]
    class_tokens: int = 0  # how many prefix tokens carry a position of their own
    layer: int = 0


@dataclass(frozen=True)
class Tokens:
    """A batch of token sequences and their geometry.

    Attributes:
        values: the sequences, prefix first, then the patches in raster order.
        grid: (rows, cols) of the full patch grid.
        prefix: how many leading tokens are class, distillation or register tokens.
        kept: place of each remaining patch on the grid when some were dropped; None when all are there.
        sizes: how many patches each token stands for after merging; None when each stands for one.
    """

    values: Float[Tensor, "batch tokens dim"]
    grid: tuple[int, int]
    prefix: int = 0
    kept: Int[Tensor, "batch patches"] | None = None
    sizes: Float[Tensor, "batch tokens"] | None = None

    @property
    def patches(self) -> Float[Tensor, "batch patches dim"]:
        """The tokens that stand for parts of the image."""
        return self.values[:, self.prefix :]

    def to(self, values: Float[Tensor, "batch tokens dim"]) -> Tokens:
        """The same geometry with other values."""
        return replace(self, values=values)

    def prepended(self, rows: Float[Tensor, "count dim"]) -> Tokens:
        """The same learned rows put in front of every sequence."""
        front = rows.expand(len(self.values), -1, -1)
        return replace(self, values=torch.cat([front, self.values], dim=1), prefix=self.prefix + len(rows))


class Tokenizer(ABC):
    """Axis: how an image becomes tokens."""

    channels: int

    @abstractmethod
    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(rows, cols) for an image of (height, width); DataError where it does not fit."""

    @abstractmethod
    def build(self, context: Context) -> nn.Module:
        """A module from images, batch channels height width, to Tokens."""


@dataclass(frozen=True)
class LinearPatches(Tokenizer):
    """Patches flattened and projected by one matrix E (paper eq. 1)."""

    patch: tuple[int, int] = (16, 16)
    channels: int = 3

    def __post_init__(self) -> None:
        if min(*self.patch, self.channels) < 1:
            raise DataError("VT030", f"patch {self.patch} with {self.channels} channels", "positive numbers")

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        for side, step in zip(image_size, self.patch, strict=True):
            if side < step or side % step:
                raise _not_divisible(image_size, self.patch)
        return image_size[0] // self.patch[0], image_size[1] // self.patch[1]

    def build(self, context: Context) -> nn.Module:
        return PatchProjection(self, context.dim)


class PatchProjection(nn.Module):
    """The matrix E. A patch is flattened as (row, column, channel), as the official kernels are stored."""

    def __init__(self, config: LinearPatches, dim: int) -> None:
        super().__init__()
        self.config = config
        self.project = nn.Linear(math.prod(config.patch) * config.channels, dim)
        fan_in = self.project.in_features
        # flax's lecun_normal: a normal cut at two standard deviations, widened so that its variance is 1 / fan_in.
        spread = fan_in**-0.5 / 0.87962566103423978
        nn.init.trunc_normal_(self.project.weight, std=spread, a=-2 * spread, b=2 * spread)
        nn.init.zeros_(self.project.bias)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Tokens:
        if images.shape[1] != self.config.channels:
            raise DataError(
                "VT031",
                f"the images have {images.shape[1]} channels (shape {tuple(images.shape)})",
                f"batch, {self.config.channels} channels, height, width",
                "convert the images, or build the model with tokenizer.channels set to theirs",
            )
        rows, cols = self.config.grid((images.shape[2], images.shape[3]))
        patches = rearrange(images, "b c (r p) (k q) -> b (r k) (p q c)", r=rows, k=cols)
        return Tokens(self.project(patches), (rows, cols))


def _not_divisible(image_size: tuple[int, int], patch: tuple[int, int]) -> DataError:
    def around(side: int, step: int) -> list[int]:
        return sorted({max(step, side // step * step), (side // step + 1) * step} if side % step else {side})

    heights, widths = (around(side, step) for side, step in zip(image_size, patch, strict=True))
    sizes = ", ".join(f"{height}x{width}" for height in heights for width in widths)
    return DataError(
        "VT032",
        f"an image of {image_size[0]}x{image_size[1]} (height x width) is not divided by patches of {patch[0]}x{patch[1]}",
        "sides that are multiples of the patch's",
        f"use one of the nearest valid sizes: {sizes}",
    )


TOKENIZERS: dict[str, type[Tokenizer]] = {"linear": LinearPatches}
