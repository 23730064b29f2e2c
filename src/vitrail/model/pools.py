"""Tokens to one vector per image: class token, global average, attention pooling. The pool owns the final norm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.model.block import MLP, Norm
from vitrail.model.mixers import MultiHeadAttention
from vitrail.model.tokenizers import Context, Tokens
from vitrail.model.work import Work


class Pool(ABC):
    """Axis: how an image becomes one vector. Registers are extra learned tokens that are thrown away at the end."""

    class_tokens: int
    registers: int

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

    def build(self, context: Context, norm: Norm) -> PoolModule:
        return TokenPool(context, norm, self.registers)

    def work(self, context: Context) -> Work:
        return Work()


@dataclass(frozen=True)
class GlobalAverage(Pool):
    """The mean over the patches, after the norm; there is no class token."""

    registers: int = 0
    class_tokens = 0

    def build(self, context: Context, norm: Norm) -> PoolModule:
        return AveragePool(context, norm, self.registers)

    def work(self, context: Context) -> Work:
        return Work()


@dataclass(frozen=True)
class AttentionPool(Pool):
    """Multi-head attention pooling, MAP ("Scaling Vision Transformers", and its code): a learned probe asks the tokens."""

    registers: int = 0
    class_tokens = 0

    def build(self, context: Context, norm: Norm) -> PoolModule:
        return ProbePool(context, norm, self.registers)

    def work(self, context: Context) -> Work:
        tokens, dim = context.tokens, context.dim
        return Work(2 * tokens * dim**2 + 2 * dim**2 + 2 * tokens * dim + 2 * dim * context.hidden)


class PoolModule(nn.Module, ABC):
    """Prefix tokens, final norm, pooling.

    Attributes:
        reads: the class token, the mean of the patches, or what a learned probe asks for.
    """

    reads: ClassVar[Literal["class", "mean", "probe"]]

    def __init__(self, context: Context, norm: Norm, class_tokens: int, registers: int) -> None:
        super().__init__()
        self.norm = norm.build(context.dim)
        self.class_token = nn.Parameter(torch.zeros(1, context.dim)) if class_tokens else None
        self.registers = nn.Parameter(torch.randn(registers, context.dim) * 0.02) if registers else None

    def prepend(self, tokens: Tokens) -> Tokens:
        """Class token first, then the registers, then the patches."""
        if self.registers is not None:
            tokens = tokens.prepended(self.registers)
        if self.class_token is not None:
            tokens = tokens.prepended(self.class_token)
        return tokens

    @abstractmethod
    def forward(self, tokens: Tokens) -> Float[Tensor, "batch dim"]:
        """One vector per image."""

    @abstractmethod
    def weights(self, tokens: Tokens) -> Float[Tensor, "batch tokens"]:
        """How much each token counts in that vector; the weights of an image sum to 1."""


class TokenPool(PoolModule):
    reads = "class"

    def __init__(self, context: Context, norm: Norm, registers: int) -> None:
        super().__init__(context, norm, class_tokens=1, registers=registers)

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch dim"]:
        return self.norm(tokens.values[:, 0])

    def weights(self, tokens: Tokens) -> Float[Tensor, "batch tokens"]:
        weights = tokens.values.new_zeros(tokens.values.shape[:2])
        weights[:, 0] = 1
        return weights


class AveragePool(PoolModule):
    reads = "mean"

    def __init__(self, context: Context, norm: Norm, registers: int) -> None:
        super().__init__(context, norm, class_tokens=0, registers=registers)

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch dim"]:
        normed = self.norm(tokens.patches)
        if tokens.sizes is None:
            return normed.mean(dim=1)
        return (normed * self.weights(tokens)[:, tokens.prefix :, None]).sum(dim=1)

    def weights(self, tokens: Tokens) -> Float[Tensor, "batch tokens"]:
        weights = tokens.values.new_ones(tokens.values.shape[:2]) if tokens.sizes is None else tokens.sizes.clone()
        weights[:, : tokens.prefix] = 0
        return weights / weights.sum(dim=1, keepdim=True)


class ProbePool(PoolModule):
    reads = "probe"

    def __init__(self, context: Context, norm: Norm, registers: int) -> None:
        super().__init__(context, norm, class_tokens=0, registers=registers)
        self.probe = nn.Parameter(torch.empty(1, context.dim))
        nn.init.xavier_uniform_(self.probe)
        self.attention = MultiHeadAttention(context)
        self.mlp_norm = norm.build(context.dim)
        self.mlp = MLP().build(context)

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch dim"]:
        probe, attended = self._asked(tokens)
        pooled = self.attention(probe, context=attended)
        return (pooled + self.mlp(self.mlp_norm(pooled)))[:, 0]

    def weights(self, tokens: Tokens) -> Float[Tensor, "batch tokens"]:
        """The probe's attention, averaged over its heads."""
        return self.attention.weights(*self._asked(tokens)).mean(dim=1)[:, 0]

    def _asked(self, tokens: Tokens) -> tuple[Tokens, Tokens]:
        attended = Tokens(self.norm(tokens.values), tokens.grid, tokens.prefix)
        return Tokens(self.probe.expand(len(tokens.values), -1, -1), (1, 1)), attended


POOLS: dict[str, type[Pool]] = {"class-token": ClassToken, "global-average": GlobalAverage, "attention": AttentionPool}
