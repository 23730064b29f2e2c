"""Tokens to one vector per image: class token, global average, attention pooling. The pool owns the final norm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.model.block import MLP, Gelu, Norm
from vitrail.model.mixers import MultiHeadAttention
from vitrail.model.tokenizers import Context, Tokens
from vitrail.model.work import Work


class Pool(ABC):
    """Axis: how an image becomes one vector. Registers are extra learned tokens that are thrown away at the end.

    `splits`: whether it has heads that share the dimensions between them, which their number must then divide.
    `parts`: how many vectors of the model's width the head reads, one behind the other.
    `leading`: how many leading tokens are read and no others, so that no others are computed last; None: all.
    """

    class_tokens: int
    registers: int
    splits: ClassVar[bool] = False
    parts: ClassVar[int] = 1
    leading: ClassVar[int | None] = None

    @abstractmethod
    def build(self, context: Context, norm: Norm) -> PoolModule:
        """A module that prepends its tokens and, after the blocks, norms and pools."""

    @abstractmethod
    def work(self, context: Context) -> Work:
        """What it costs for one image."""


@dataclass(frozen=True)
class ClassToken(Pool):
    """The first token, normed (paper eq. 4)."""

    registers: int = 0
    class_tokens = 1
    leading: ClassVar[int | None] = 1

    def build(self, context: Context, norm: Norm) -> PoolModule:
        return TokenPool(context, norm, self.registers)

    def work(self, context: Context) -> Work:
        return Work()


@dataclass(frozen=True)
class DistilledToken(Pool):
    """The class token and a distillation token, normed, one behind the other, for two heads (DeiT).

    Attributes:
        alone: only the class token is read; the other one still takes part in the attention.
    """

    registers: int = 0
    alone: bool = False
    class_tokens = 2

    @property
    def parts(self) -> int:  # type: ignore[override]  # follows from the field
        return 1 if self.alone else 2

    @property
    def leading(self) -> int:  # type: ignore[override]  # the same tokens
        return self.parts

    def build(self, context: Context, norm: Norm) -> PoolModule:
        return TokenPool(context, norm, self.registers, 2, self.parts)

    def work(self, context: Context) -> Work:
        return Work()


@dataclass(frozen=True)
class GlobalAverage(Pool):
    """The mean over the patches.

    Attributes:
        class_tokens: 1 where there is a class token that the mean leaves out (MAE, BEiT).
        norm_first: every token is normed, and then the mean is taken; otherwise the mean is normed.
    """

    registers: int = 0
    class_tokens: int = 0
    norm_first: bool = True

    def build(self, context: Context, norm: Norm) -> PoolModule:
        return AveragePool(context, norm, self)

    def work(self, context: Context) -> Work:
        return Work()


@dataclass(frozen=True)
class TokenAndAverage(Pool):
    """The class token and the mean of the patches, normed before, one behind the other (DINOv2's linear classifier)."""

    registers: int = 0
    class_tokens = 1
    parts: ClassVar[int] = 2

    def build(self, context: Context, norm: Norm) -> PoolModule:
        return TokenAndAveragePool(context, norm, self.registers)

    def work(self, context: Context) -> Work:
        return Work()


@dataclass(frozen=True)
class AttentionPool(Pool):
    """Multi-head attention pooling, MAP ("Scaling Vision Transformers", and its code): a learned probe asks the patches.

    `gelu` is of the MLP behind the attention.
    """

    registers: int = 0
    gelu: Gelu = "tanh"
    class_tokens = 0
    splits: ClassVar[bool] = True

    def build(self, context: Context, norm: Norm) -> PoolModule:
        return ProbePool(context, norm, self)

    def work(self, context: Context) -> Work:
        tokens, dim = context.tokens - context.registers, context.dim
        return Work(2 * tokens * dim**2 + 2 * dim**2 + 2 * tokens * dim + 2 * dim * context.hidden)


class PoolModule(nn.Module, ABC):
    """Prefix tokens, final norm, pooling.

    Attributes:
        reads: the class token, the mean of the patches, or what a learned probe asks for.
        leading: as the `Pool` says.
    """

    reads: ClassVar[Literal["class", "mean", "probe"]]
    leading: int | None = None

    def __init__(self, context: Context, norm: Norm, class_tokens: int, registers: int) -> None:
        super().__init__()
        self.norm = norm.build(context.dim)
        self.class_token = nn.Parameter(torch.zeros(class_tokens, context.dim)) if class_tokens else None
        self.registers = nn.Parameter(torch.randn(registers, context.dim) * 0.02) if registers else None

    def prepend(self, tokens: Tokens) -> Tokens:
        """Class token first, then the registers, then the patches."""
        if self.registers is not None:
            tokens = tokens.prepended(self.registers)
        if self.class_token is not None:
            tokens = tokens.prepended(self.class_token)
        return tokens

    def normed(self, tokens: Tokens) -> Float[Tensor, "batch tokens dim"]:
        """The encoded tokens after the final norm, where there is one before pooling."""
        return self.norm(tokens.values)

    @abstractmethod
    def forward(self, tokens: Tokens) -> Float[Tensor, "batch dim"]:
        """One vector per image."""

    @abstractmethod
    def weights(self, tokens: Tokens) -> Float[Tensor, "batch tokens"]:
        """How much each token counts in that vector; the weights of an image sum to 1."""


class TokenPool(PoolModule):
    reads = "class"

    """The class token, or it and the distillation token behind it, which count alike."""

    def __init__(
        self, context: Context, norm: Norm, registers: int, class_tokens: int = 1, count: int | None = None
    ) -> None:
        super().__init__(context, norm, class_tokens, registers)
        self.leading = self.count = count or class_tokens

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch dim"]:
        return self.norm(tokens.values[:, : self.count]).flatten(1)

    def weights(self, tokens: Tokens) -> Float[Tensor, "batch tokens"]:
        weights = tokens.values.new_zeros(tokens.values.shape[:2])
        weights[:, : self.count] = 1 / self.count
        return weights


class AveragePool(PoolModule):
    reads = "mean"

    def __init__(self, context: Context, norm: Norm, config: GlobalAverage) -> None:
        super().__init__(context, norm, config.class_tokens, config.registers)
        self.norm_first = config.norm_first

    def normed(self, tokens: Tokens) -> Float[Tensor, "batch tokens dim"]:
        return self.norm(tokens.values) if self.norm_first else tokens.values

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch dim"]:
        if self.norm_first:
            return _mean(tokens, self.norm(tokens.patches))
        return self.norm(_mean(tokens, tokens.patches))

    def weights(self, tokens: Tokens) -> Float[Tensor, "batch tokens"]:
        return _shares(tokens)


class TokenAndAveragePool(PoolModule):
    reads = "class"

    def __init__(self, context: Context, norm: Norm, registers: int) -> None:
        super().__init__(context, norm, class_tokens=1, registers=registers)

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch dim"]:
        normed = tokens.to(self.norm(tokens.values))
        return torch.cat([normed.values[:, 0], _mean(tokens, normed.patches)], dim=-1)

    def weights(self, tokens: Tokens) -> Float[Tensor, "batch tokens"]:
        """Half on the class token, half on the patches."""
        weights = _shares(tokens) / 2
        weights[:, 0] = 0.5
        return weights


class ProbePool(PoolModule):
    reads = "probe"

    def __init__(self, context: Context, norm: Norm, config: AttentionPool) -> None:
        super().__init__(context, norm, class_tokens=0, registers=config.registers)
        self.probe = nn.Parameter(torch.empty(1, context.dim))
        nn.init.xavier_uniform_(self.probe)
        self.attention = MultiHeadAttention(replace(context, layer=context.depth))  # it comes after the last one
        self.mlp_norm = norm.build(context.dim)
        self.mlp = MLP(config.gelu).build(context)

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch dim"]:
        probe, attended = self._asked(tokens)
        pooled = self.attention(probe, context=attended)
        return (pooled + self.mlp(self.mlp_norm(pooled)))[:, 0]

    def weights(self, tokens: Tokens) -> Float[Tensor, "batch tokens"]:
        """The probe's attention, averaged over its heads; registers are not asked."""
        weights = self.attention.weights(*self._asked(tokens)).mean(dim=1)[:, 0]
        return F.pad(weights, (tokens.prefix, 0))

    def _asked(self, tokens: Tokens) -> tuple[Tokens, Tokens]:
        attended = Tokens(self.norm(tokens.patches), tokens.grid, kept=tokens.kept)
        return Tokens(self.probe.expand(tokens.values.shape[0], -1, -1), (1, 1)), attended


def _shares(tokens: Tokens) -> Float[Tensor, "batch tokens"]:
    """How much each token counts in the mean of the patches; the prefix does not."""
    shares = tokens.values.new_ones(tokens.values.shape[:2]) if tokens.sizes is None else tokens.sizes.clone()
    shares[:, : tokens.prefix] = 0
    return shares / shares.sum(dim=1, keepdim=True)


def _mean(tokens: Tokens, patches: Float[Tensor, "batch patches dim"]) -> Float[Tensor, "batch dim"]:
    """Of values of the patches, by how many of them each token stands for."""
    if tokens.sizes is None:
        return patches.mean(dim=1)
    return (patches * _shares(tokens)[:, tokens.prefix :, None]).sum(dim=1)


POOLS: dict[str, type[Pool]] = {
    "class-token": ClassToken, "distilled-token": DistilledToken, "global-average": GlobalAverage,
    "token-and-average": TokenAndAverage, "attention": AttentionPool,
}  # fmt: skip
