"""Residual trunks with standardised convolutions and group norm, as BiT (arXiv 1912.11370) and the hybrids use them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.errors import UsageError
from vitrail.model.initialisation import lecun_normal_
from vitrail.model.work import Work

GROUPS = 32  # of group norm
MAX_STAGES = 8  # each halves the sides
Sides = tuple[int, int]


@dataclass(frozen=True)
class Numerics:
    """The numbers in which the codes of the families differ.

    Attributes:
        divisor: a kernel is divided by its deviation plus epsilon, or by the root of its variance plus epsilon.
        kernel_epsilon, norm_epsilon: of the kernels and of group norm.
        padding: "same" is XLA's: only as much as is needed, the odd one at the end. "symmetric" is the same at both
            ends, half of the kernel.
        border: what max-pooling meets beyond the edge: nothing, or zeros.
    """

    divisor: Literal["deviation", "variance"]
    kernel_epsilon: float
    norm_epsilon: float
    padding: Literal["same", "symmetric"]
    border: Literal["nothing", "zeros"] = "nothing"


HYBRID = Numerics("deviation", 1e-5, 1e-6, "same")  # vit_jax models_resnet.py, big_vision bit.py
BIT = Numerics("variance", 1e-10, 1e-5, "symmetric", "zeros")  # big_transfer; big_vision bit_paper.py has no zeros


@dataclass(frozen=True)
class Unit:
    """Shapes of one residual unit: channels, and places of the map before and after its stride."""

    inputs: int
    width: int
    before: int
    after: int

    @property
    def stride(self) -> int:
        return 2 if self.after < self.before else 1

    @property
    def projects(self) -> bool:
        """Whether the shortcut is a convolution."""
        return self.inputs != 4 * self.width or self.after < self.before


class Trunk(ABC):
    """Axis: how an image becomes feature maps. The root divides the sides by 4, each stage after the first by 2.

    Attributes:
        stages: residual units of each stage; none at all leaves the root alone.
        width: channels of the root; 64 times the width factor.
    """

    stages: tuple[int, ...]
    width: int
    numerics: Numerics

    @property
    def stride(self) -> int:
        """Pixels of the image per place of the last map."""
        return 4 * 2 ** max(0, len(self.stages) - 1)

    @property
    def dim(self) -> int:
        """Channels of the last map."""
        return 4 * self.width * 2 ** (len(self.stages) - 1) if self.stages else self.width

    @abstractmethod
    def build(self, channels: int) -> TrunkModule:
        """A module from images of so many channels to feature maps."""

    @abstractmethod
    def kept(self, unit: Unit) -> int:
        """Values of one image that a unit keeps for the backward pass."""

    def work(self, channels: int, image_size: Sides) -> Work:
        """What one image costs."""
        total = Work(49 * channels * self.width * _places(image_size, 1), self._root_kept(channels, image_size))
        for unit in _units(self, image_size):
            products = unit.before * unit.inputs * unit.width + unit.after * (9 + 4) * unit.width**2
            products += unit.after * unit.inputs * 4 * unit.width if unit.projects else 0
            total += Work(products, self.kept(unit))
        return total

    def live(self, channels: int, image_size: Sides) -> int:
        """About how many values of one image are in memory at a time, without a gradient: the largest part's."""
        return max([self._root_kept(channels, image_size), *map(self.kept, _units(self, image_size))])

    def _root_kept(self, channels: int, image_size: Sides) -> int:
        """The images, three maps of the first convolution (itself, ReLU, padded), the pooled map and its indices."""
        half, quarter = (_places(image_size, times) for times in (1, 2))
        return channels * math.prod(image_size) + self.width * (3 * half + 3 * quarter)


@dataclass(frozen=True)
class PostActivation(Trunk):
    """Norm and ReLU after each convolution (ResNet v1): the trunk of the hybrids and of the paper's ResNet code."""

    stages: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    numerics: Numerics = HYBRID

    def __post_init__(self) -> None:
        _check(self)

    def build(self, channels: int) -> TrunkModule:
        return TrunkModule(self, PostActivationRoot(self, channels), PostActivationUnit, nn.Identity())

    def kept(self, unit: Unit) -> int:
        wide = 3 if unit.projects else 2  # expansion, output, shortcut
        return unit.width * ((1 + unit.stride) * unit.before + 2 * unit.after + 4 * wide * unit.after)


@dataclass(frozen=True)
class PreActivation(Trunk):
    """Norm and ReLU before each convolution (ResNet v2): BiT as in its paper."""

    stages: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    numerics: Numerics = BIT

    def __post_init__(self) -> None:
        _check(self)

    def build(self, channels: int) -> TrunkModule:
        last = nn.Sequential(group_norm(self.dim, self.numerics), nn.ReLU())
        return TrunkModule(self, PreActivationRoot(self, channels), PreActivationUnit, last)

    def kept(self, unit: Unit) -> int:
        return unit.before * unit.inputs + unit.width * (2 * unit.before + 2 * unit.after + 4 * unit.after)


class TrunkModule(nn.Module):
    """Root, stages of units, and what follows the last of them."""

    def __init__(self, config: Trunk, root: nn.Module, unit: type[nn.Module], last: nn.Module) -> None:
        super().__init__()
        self.root = root
        self.stages = nn.ModuleList()
        inputs = config.width
        for index, count in enumerate(config.stages):
            width, units = config.width * 2**index, nn.Sequential()
            for place in range(count):
                units.append(unit(config.numerics, inputs, width, 2 if index > 0 and place == 0 else 1))
                inputs = 4 * width
            self.stages.append(units)
        self.last = last

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> list[Float[Tensor, "batch dim rows cols"]]:
        """One map per stage, fine to coarse; the root's where there are no stages."""
        maps = [self.root(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return [*maps[1:-1], self.last(maps[-1])]


class PostActivationRoot(nn.Module):
    """7x7 convolution of stride 2, norm, ReLU, 3x3 max-pool of stride 2."""

    def __init__(self, config: Trunk, channels: int) -> None:
        super().__init__()
        self.numerics = config.numerics
        self.convolve = StandardisedConvolution(config.numerics, channels, config.width, (7, 2))
        self.norm = group_norm(config.width, config.numerics)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim rows cols"]:
        return max_pool(F.relu(self.norm(self.convolve(images))), self.numerics)


class PreActivationRoot(nn.Module):
    """The same without norm and ReLU, which the first unit brings."""

    def __init__(self, config: Trunk, channels: int) -> None:
        super().__init__()
        self.numerics = config.numerics
        self.convolve = StandardisedConvolution(config.numerics, channels, config.width, (7, 2))

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim rows cols"]:
        return max_pool(self.convolve(images), self.numerics)


class PostActivationUnit(nn.Module):
    """relu(norm(shortcut x) + norm(expand relu(norm(convolve relu(norm(reduce x)))))); the last norm starts at zero."""

    def __init__(self, numerics: Numerics, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.reduce = StandardisedConvolution(numerics, inputs, width, (1, 1))
        self.reduce_norm = group_norm(width, numerics)
        self.convolve = StandardisedConvolution(numerics, width, width, (3, stride))
        self.convolve_norm = group_norm(width, numerics)
        self.expand = StandardisedConvolution(numerics, width, 4 * width, (1, 1))
        self.expand_norm = group_norm(4 * width, numerics)
        nn.init.zeros_(self.expand_norm.weight)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != 4 * width or stride > 1:
            projection = StandardisedConvolution(numerics, inputs, 4 * width, (1, stride))
            self.shortcut = nn.Sequential(projection, group_norm(4 * width, numerics))

    def forward(self, values: Float[Tensor, "batch inputs _ _"]) -> Float[Tensor, "batch outputs rows cols"]:
        branch = F.relu(self.reduce_norm(self.reduce(values)))
        branch = F.relu(self.convolve_norm(self.convolve(branch)))
        return F.relu(self.shortcut(values) + self.expand_norm(self.expand(branch)))


class PreActivationUnit(nn.Module):
    """y = relu(norm(x)); (shortcut y, or x) + expand relu(norm(convolve relu(norm(reduce y))))."""

    def __init__(self, numerics: Numerics, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.reduce_norm = group_norm(inputs, numerics)
        self.reduce = StandardisedConvolution(numerics, inputs, width, (1, 1))
        self.convolve_norm = group_norm(width, numerics)
        self.convolve = StandardisedConvolution(numerics, width, width, (3, stride))
        self.expand_norm = group_norm(width, numerics)
        self.expand = StandardisedConvolution(numerics, width, 4 * width, (1, 1))
        self.shortcut: nn.Module | None = None
        if inputs != 4 * width or stride > 1:
            self.shortcut = StandardisedConvolution(numerics, inputs, 4 * width, (1, stride))

    def forward(self, values: Float[Tensor, "batch inputs _ _"]) -> Float[Tensor, "batch outputs rows cols"]:
        active = F.relu(self.reduce_norm(values))
        branch = F.relu(self.convolve_norm(self.reduce(active)))
        branch = self.expand(F.relu(self.expand_norm(self.convolve(branch))))
        return branch + (values if self.shortcut is None else self.shortcut(active))


class StandardisedConvolution(nn.Module):
    """A convolution without bias whose kernels have mean 0 and variance 1, per output channel (arXiv 1903.10520).

    `shape` is (side of the kernel, stride). The statistics are of float32, whatever the weights are kept in.
    """

    def __init__(self, numerics: Numerics, inputs: int, outputs: int, shape: tuple[int, int]) -> None:
        super().__init__()
        self.numerics, (self.side, self.stride) = numerics, shape
        self.weight = nn.Parameter(torch.empty(outputs, inputs, self.side, self.side))
        self.baked = False
        lecun_normal_(self.weight, inputs * self.side**2)

    def forward(self, images: Float[Tensor, "batch inputs _ _"]) -> Float[Tensor, "batch outputs rows cols"]:
        kernels = self.standardised().to(self.weight.dtype)
        rows, cols = (edges(side, (self.side, self.stride), self.numerics.padding) for side in images.shape[2:])
        if rows[0] == rows[1] and cols[0] == cols[1]:  # then no padded copy is needed
            return F.conv2d(images, kernels, stride=self.stride, padding=(rows[0], cols[0]))
        return F.conv2d(F.pad(images, (*cols, *rows)), kernels, stride=self.stride)

    def standardised(self) -> Float[Tensor, "outputs inputs side side"]:
        """The kernels as they are used."""
        if self.baked:
            return self.weight
        weight, numerics = self.weight.float(), self.numerics
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
        if numerics.divisor == "deviation":
            return (weight - mean) / (variance.sqrt() + numerics.kernel_epsilon)
        return (weight - mean) * (variance + numerics.kernel_epsilon).rsqrt()

    def bake(self) -> None:
        """Holds the standardised kernels themselves, in float32, for a model that learns no more."""
        self.weight, self.baked = nn.Parameter(self.standardised().detach(), requires_grad=False), True


def group_norm(channels: int, numerics: Numerics) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=numerics.norm_epsilon)


def max_pool(images: Float[Tensor, "batch dim _ _"], numerics: Numerics) -> Float[Tensor, "batch dim rows cols"]:
    """3x3, stride 2."""
    rows, cols = (edges(side, (3, 2), numerics.padding) for side in images.shape[2:])
    beyond = 0.0 if numerics.border == "zeros" else -math.inf
    return F.max_pool2d(F.pad(images, (*cols, *rows), value=beyond), 3, stride=2)


def edges(side: int, shape: tuple[int, int], padding: Literal["same", "symmetric"]) -> tuple[int, int]:
    """How many rows are put (before, after) `side` rows, for a kernel of `shape` (side, stride)."""
    kernel, stride = shape
    if padding == "symmetric":
        return kernel // 2, kernel // 2
    total = max(0, (math.ceil(side / stride) - 1) * stride + kernel - side)
    return total // 2, total - total // 2


def _places(image_size: Sides, times: int) -> int:
    """Of a map after so many strides of two, each of which rounds up."""
    return math.prod(math.ceil(side / 2**times) for side in image_size)


def _units(trunk: Trunk, image_size: Sides) -> Iterator[Unit]:
    inputs, before = trunk.width, _places(image_size, 2)
    for index, count in enumerate(trunk.stages):
        width, after = trunk.width * 2**index, _places(image_size, 2 + index)
        for _ in range(count):
            yield Unit(inputs, width, before, after)
            inputs, before = 4 * width, after


def _check(trunk: Trunk) -> None:
    stages, width = trunk.stages, trunk.width
    if len(stages) > MAX_STAGES or min(stages, default=1) < 1 or width < 1 or width % GROUPS:
        raise UsageError(
            "VT003", f"a trunk of stages {stages} and width {width}",
            f"at most {MAX_STAGES} stages of one unit or more, and a width that is a multiple of {GROUPS} (group norm)",
        )  # fmt: skip


TRUNKS: dict[str, type[Trunk]] = {"post-activation": PostActivation, "pre-activation": PreActivation}
