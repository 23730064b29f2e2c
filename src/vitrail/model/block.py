"""The pre-norm encoder block: mixer and MLP, each behind a norm and inside a residual (paper eq. 2 and 3)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.model.geometry import PositionModule
from vitrail.model.mixers import Attention, Mixer
from vitrail.model.tokenizers import Context, Tokens
from vitrail.model.work import Work


@dataclass(frozen=True)
class Norm:
    """LayerNorm. The official family uses 1e-6, PyTorch's default is 1e-5: a family states its own."""

    epsilon: float = 1e-6

    def build(self, dim: int) -> nn.LayerNorm:
        return nn.LayerNorm(dim, eps=self.epsilon)


Gelu = Literal["tanh", "erf", "quick"]
"""tanh approximation (official code, SigLIP), the exact function (most PyTorch families), x sigmoid(1.702 x) (CLIP)."""


class FeedForward(ABC):
    """Axis: what every token goes through by itself, after the mixer."""

    @abstractmethod
    def build(self, context: Context, dropout: float = 0.0) -> nn.Module:
        """A module from values to values, last dimension `dim`."""

    @abstractmethod
    def work(self, context: Context) -> Work:
        """What one layer costs for one image."""


@dataclass(frozen=True)
class MLP(FeedForward):
    """Two dense layers with a GELU between them."""

    gelu: Gelu = "tanh"

    def build(self, context: Context, dropout: float = 0.0) -> nn.Module:
        return MultiLayerPerceptron(context.dim, context.hidden, self.gelu, dropout)

    def work(self, context: Context) -> Work:
        tokens, dim, hidden = context.tokens, context.dim, context.hidden
        return Work(2 * tokens * dim * hidden, 2 * tokens * hidden)  # kept: before and after GELU


@dataclass(frozen=True)
class SwiGLU(FeedForward):
    """silu(x G) * (x U), and a dense layer back (arXiv 2002.05202; the giant DINOv2 and large DINOv3)."""

    def build(self, context: Context, dropout: float = 0.0) -> nn.Module:
        return GatedPerceptron(context.dim, context.hidden, dropout)

    def work(self, context: Context) -> Work:
        tokens, dim, hidden = context.tokens, context.dim, context.hidden
        return Work(3 * tokens * dim * hidden, 4 * tokens * hidden)  # kept: both parts, silu and the product


@dataclass(frozen=True)
class Block:
    """What every encoder block is made of.

    Attributes:
        layer_scale: initial value of the learned factor per channel on each residual branch; None for no factor.
        drop_path: probability of leaving out a residual branch in the last block; it grows linearly from 0 in the first.
        dropout: after the attention projection, after GELU and after the second dense layer (paper D.1).
    """

    mixer: Mixer = Attention()
    mlp: FeedForward = MLP()
    norm: Norm = Norm()
    layer_scale: float | None = None
    drop_path: float = 0.0
    dropout: float = 0.0

    def build(self, context: Context) -> EncoderBlock:
        return EncoderBlock(self, context)

    def work(self, context: Context) -> Work:
        """What one layer costs for one image."""
        norms = Work(kept=4 * context.tokens * context.dim)  # inputs and outputs
        return self.mixer.work(context) + self.mlp.work(context) + norms

    def spared(self, context: Context, leading: int | None) -> int:
        """Values that the last layer does not keep where only `leading` tokens are read after it."""
        unread = 0 if leading is None else context.tokens - leading
        return unread * (3 * context.dim + self.mlp.work(context).kept // context.tokens)


class EncoderBlock(nn.Module):
    """z' = MSA(LN(z)) + z; z = MLP(LN(z')) + z'."""

    def __init__(self, config: Block, context: Context) -> None:
        super().__init__()
        rate = config.drop_path * context.layer / max(1, context.depth - 1)
        self.layer = context.layer
        self.mixer_norm = config.norm.build(context.dim)
        self.mixer = config.mixer.build(context)
        self.mixer_branch = Branch(context.dim, config.layer_scale, rate, config.dropout)
        self.mlp_norm = config.norm.build(context.dim)
        self.mlp = config.mlp.build(context, config.dropout)
        self.mlp_branch = Branch(context.dim, config.layer_scale, rate, config.dropout)

    def forward(self, tokens: Tokens, position: PositionModule, leading: int | None = None) -> Tokens:
        """All tokens, or the `leading` ones alone: those attend to all, and nobody computes what is read no more."""
        tokens = position.add(tokens, self.layer)
        mixed = self.mixer(tokens.to(self.mixer_norm(tokens.values)), position, leading=leading)
        tokens = tokens.first(leading)
        tokens = tokens.to(tokens.values + self.mixer_branch(mixed))
        return tokens.to(tokens.values + self.mlp_branch(self.mlp(self.mlp_norm(tokens.values))))


class Branch(nn.Module):
    """The end of a residual branch: dropout, LayerScale, DropPath; each may be absent."""

    def __init__(self, dim: int, layer_scale: float | None, drop_path: float, dropout: float) -> None:
        super().__init__()
        self.dropout, self.drop_path = dropout, drop_path
        self.scale = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))

    def forward(self, values: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        values = F.dropout(values, self.dropout, self.training)
        if self.scale is not None:
            values = values * self.scale
        if self.training and self.drop_path > 0:
            kept = torch.rand(len(values), 1, 1, device=values.device) >= self.drop_path
            values = values * (kept / (1 - self.drop_path)).to(values.dtype)
        return values


class MultiLayerPerceptron(nn.Module):
    """Dense, GELU, dense."""

    def __init__(self, dim: int, hidden: int, gelu: Gelu, dropout: float) -> None:
        super().__init__()
        self.gelu, self.activate, self.dropout = gelu, _GELUS[gelu], dropout
        self.expand = nn.Linear(dim, hidden)
        self.contract = nn.Linear(hidden, dim)
        for linear in (self.expand, self.contract):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)

    def forward(self, values: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        hidden = self.activate(self.expand(values))
        return self.contract(F.dropout(hidden, self.dropout, self.training))


class GatedPerceptron(nn.Module):
    """Dense to gate and content, one times the other, dense. `expand` holds the rows of the gate first."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.expand = nn.Linear(dim, 2 * hidden)
        self.contract = nn.Linear(hidden, dim)
        for part in (*self.expand.weight.chunk(2), self.contract.weight):
            nn.init.xavier_uniform_(part)
        for linear in (self.expand, self.contract):
            nn.init.normal_(linear.bias, std=1e-6)

    def forward(self, values: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        gate, content = self.expand(values).chunk(2, dim=-1)
        return self.contract(F.dropout(F.silu(gate) * content, self.dropout, self.training))


def _quick_gelu(values: Tensor) -> Tensor:
    return values * torch.sigmoid(1.702 * values)


_GELUS: dict[Gelu, Callable[[Tensor], Tensor]] = {
    "tanh": partial(F.gelu, approximate="tanh"), "erf": F.gelu, "quick": _quick_gelu
}  # fmt: skip


def build_blocks(config: Block, context: Context) -> nn.ModuleList:
    """One block per layer; each knows its place."""
    return nn.ModuleList(config.build(replace(context, layer=layer)) for layer in range(context.depth))


FEED_FORWARDS: dict[str, type[FeedForward]] = {"mlp": MLP, "swiglu": SwiGLU}
