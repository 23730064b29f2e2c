"""Images to tokens, by patches or by a CNN stem, and `Tokens`, which is what travels between the parts of a model."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitrail.errors import DataError
from vitrail.model.initialisation import lecun_normal_
from vitrail.model.trunks import PostActivation, Trunk
from vitrail.model.work import Work


@dataclass(frozen=True)
class Context:
    """What an axis value may know of the model it is built for."""

    dim: int
    heads: int
    hidden: int
    depth: int
    grid: tuple[int, int]
    class_tokens: int = 0  # how many prefix tokens carry a position of their own
    registers: int = 0  # how many carry none
    layer: int = 0

    @property
    def tokens(self) -> int:
        """Length of the whole sequence."""
        return self.class_tokens + self.registers + math.prod(self.grid)


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

    def only(self, places: Int[Tensor, "batch kept"]) -> Tokens:
        """Those patches alone, in this order, behind the prefix; `places` count the patches that are there."""
        rows = places[:, :, None].expand(-1, -1, self.values.shape[2])
        values = torch.cat([self.values[:, : self.prefix], self.patches.gather(1, rows)], dim=1)
        kept = places if self.kept is None else self.kept.gather(1, places)
        behind = torch.arange(self.prefix, device=places.device).expand(len(places), -1)
        sizes = None if self.sizes is None else self.sizes.gather(1, torch.cat([behind, places + self.prefix], dim=1))
        return replace(self, values=values, kept=kept, sizes=sizes)

    def first(self, count: int | None) -> Tokens:
        """The leading `count` tokens of the prefix alone, no patch; None leaves all."""
        if count is None:
            return self
        assert count <= self.prefix, (count, self.prefix)
        nothing = torch.empty(self.values.shape[0], 0, dtype=torch.int64, device=self.values.device)
        sizes = None if self.sizes is None else self.sizes[:, :count]
        return Tokens(self.values[:, :count], self.grid, count, nothing, sizes)

    def prepended(self, rows: Float[Tensor, "count dim"]) -> Tokens:
        """The same learned rows put in front of every sequence."""
        front = rows.expand(self.values.shape[0], -1, -1)  # len() would fix the batch of a traced model
        return replace(self, values=torch.cat([front, self.values], dim=1), prefix=self.prefix + len(rows))


class Tokenizer(ABC):
    """Axis: how an image becomes tokens.

    Attributes:
        patch: (height, width) of a token, in pixels of the image.
        before: what stands before the encoder, for people.
    """

    patch: tuple[int, int]
    channels: int
    before: ClassVar[str] = ""

    @abstractmethod
    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(rows, cols) for an image of (height, width); DataError where it does not fit."""

    @abstractmethod
    def build(self, context: Context) -> nn.Module:
        """A module from images, batch channels height width, to Tokens."""

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """Residual units before the tokens."""

    @abstractmethod
    def work(self, image_size: tuple[int, int], dim: int) -> Work:
        """What one image costs."""

    @abstractmethod
    def live(self, image_size: tuple[int, int]) -> int:
        """About how many float32 values of one image are in memory at a time, without a gradient."""


@dataclass(frozen=True)
class LinearPatches(Tokenizer):
    """Patches flattened and projected by one matrix E (paper eq. 1)."""

    patch: tuple[int, int] = (16, 16)
    channels: int = 3
    bias: bool = True

    def __post_init__(self) -> None:
        if min(*self.patch, self.channels) < 1:
            raise DataError("VT030", f"patch {self.patch} with {self.channels} channels", "positive numbers")

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        return _divided(image_size, self.patch)

    def build(self, context: Context) -> nn.Module:
        return PatchProjection(self, context.dim)

    @property
    def num_layers(self) -> int:
        return 0

    def work(self, image_size: tuple[int, int], dim: int) -> Work:
        values = math.prod(image_size) * self.channels
        return Work(values * dim, values)

    def live(self, image_size: tuple[int, int]) -> int:
        return 2 * math.prod(image_size) * self.channels  # as pixels and as patches


@dataclass(frozen=True)
class ConvolutionalStem(Tokenizer):
    """A hybrid: patches of a trunk's last feature map are projected instead of the image's (paper 3.1).

    `patch` is in pixels of the image: with a trunk that divides the sides by 16, 16x16 takes every place of its map by
    itself and 32x32 takes them in squares of four.
    """

    patch: tuple[int, int] = (16, 16)
    channels: int = 3
    trunk: Trunk = PostActivation(())
    before: ClassVar[str] = "ResNet stem and "

    def __post_init__(self) -> None:
        stride = self.trunk.stride
        if min(*self.patch, self.channels) < 1 or any(side % stride for side in self.patch):
            raise DataError(
                "VT030", f"patch {self.patch} with {self.channels} channels over a trunk that divides the sides by {stride}",
                f"positive numbers, and patch sides that are multiples of {stride}",
            )  # fmt: skip

    @property
    def on_the_map(self) -> LinearPatches:
        """The same patches in places of the trunk's last map."""
        rows, cols = (side // self.trunk.stride for side in self.patch)
        return LinearPatches((rows, cols), self.trunk.dim)

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        return _divided(image_size, self.patch)

    def build(self, context: Context) -> nn.Module:
        return ConvolutionalProjection(self, context.dim)

    @property
    def num_layers(self) -> int:
        return sum(self.trunk.stages)

    def work(self, image_size: tuple[int, int], dim: int) -> Work:
        rows, cols = (side // self.trunk.stride for side in image_size)
        return self.trunk.work(self.channels, image_size) + self.on_the_map.work((rows, cols), dim)

    def live(self, image_size: tuple[int, int]) -> int:
        return self.trunk.live(self.channels, image_size)


class PatchProjection(nn.Module):
    """The matrix E. A patch is flattened as (row, column, channel), as the official kernels are stored."""

    def __init__(self, config: LinearPatches, dim: int) -> None:
        super().__init__()
        self.config = config
        self.project = nn.Linear(math.prod(config.patch) * config.channels, dim, bias=config.bias)
        lecun_normal_(self.project.weight, self.project.in_features)
        if config.bias:
            nn.init.zeros_(self.project.bias)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Tokens:
        check_channels(images, self.config.channels)
        rows, cols = self.config.grid((images.shape[2], images.shape[3]))
        patches = rearrange(images, "b c (r p) (k q) -> b (r k) (p q c)", r=rows, k=cols)
        return Tokens(self.project(patches), (rows, cols))


class ConvolutionalProjection(nn.Module):
    """The trunk, then the matrix E on patches of its last map."""

    def __init__(self, config: ConvolutionalStem, dim: int) -> None:
        super().__init__()
        self.config = config
        self.trunk = config.trunk.build(config.channels)
        self.patches = PatchProjection(config.on_the_map, dim)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Tokens:
        check_channels(images, self.config.channels)
        self.config.grid((images.shape[2], images.shape[3]))
        return self.patches(self.trunk(images)[-1])


def check_channels(images: Float[Tensor, "batch channels height width"], channels: int) -> None:
    """DataError where the images are not what the model reads."""
    if images.shape[1] != channels:
        raise DataError(
            "VT031",
            f"the images have {images.shape[1]} channels (shape {tuple(images.shape)})",
            f"batch, {channels} channels, height, width",
            "convert the images, or build the model with its channels set to theirs",
        )


def resample_kernels(
    kernels: Float[Tensor, "height width channels dim"], patch: tuple[int, int]
) -> Float[Tensor, "new_height new_width channels dim"]:
    """Patch kernels for another patch size (FlexiViT, arXiv 2212.08013, "PI-resize").

    Let B enlarge or shrink a patch bilinearly. The new kernel is the pseudo-inverse of B' times the old one, so that for
    patches that were enlarged the tokens stay what they were. Bilinear without antialiasing, as the official code does.
    """
    old = (kernels.shape[0], kernels.shape[1])
    if old == patch:
        return kernels
    basis = rearrange(torch.eye(math.prod(old), dtype=torch.float64), "n (p q) -> n 1 p q", p=old[0])
    resized = F.interpolate(basis, size=patch, mode="bilinear", align_corners=False)
    inverse = torch.linalg.pinv(rearrange(resized, "n 1 p q -> n (p q)")).to(kernels.device)
    values = inverse @ rearrange(kernels.double(), "p q c d -> (p q) (c d)")
    return rearrange(values, "(p q) (c d) -> p q c d", p=patch[0], c=kernels.shape[2]).to(kernels.dtype)


def _divided(image_size: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    for side, step in zip(image_size, patch, strict=True):
        if side < step or side % step:
            raise _not_divisible(image_size, patch)
    return image_size[0] // patch[0], image_size[1] // patch[1]


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


TOKENIZERS: dict[str, type[Tokenizer]] = {"linear": LinearPatches, "convolutional": ConvolutionalStem}
