"""The pre-norm encoder block: mixer and MLP, each behind a norm and inside a residual (paper eq. 2 and 3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.model.mixers import Attention, Mixer
from vitrail.model.positions import PositionModule
from vitrail.model.tokenizers import Context, Tokens
from vitrail.model.work import Work


@dataclass(frozen=True)
class Norm:
    """LayerNorm. The official family uses 1e-6, PyTorch's default is 1e-5: a family states its own."""

    epsilon: float = 1e-6

    def build(self, dim: int) -> nn.LayerNorm:
        return nn.LayerNorm(dim, eps=self.epsilon)


@dataclass(frozen=True)
class MLP:
    """Two dense layers with a GELU between them, in the tanh form (official) or the exact erf form."""

    gelu: Literal["tanh", "erf"] = "tanh"

    def build(self, context: Context, dropout: float = 0.0) -> nn.Module:
        return MultiLayerPerceptron(context.dim, context.hidden, self.gelu, dropout)


@dataclass(frozen=True)
class Block:
    """What every encoder block is made of.

    Attributes:
        layer_scale: initial value of the learned factor per channel on each residual branch; None for no factor.
        drop_path: probability of leaving out a residual branch in the last block; it grows linearly from 0 in the first.
        dropout: after the attention projection, after GELU and after the second dense layer (paper D.1).
    """

    mixer: Mixer = Attention()
    mlp: MLP = MLP()
    norm: Norm = Norm()
    layer_scale: float | None = None
    drop_path: float = 0.0
    dropout: float = 0.0

    def build(self, context: Context) -> EncoderBlock:
        return EncoderBlock(self, context)

    def work(self, context: Context) -> Work:
        """What one layer costs for one image."""
        tokens, dim, hidden = context.tokens, context.dim, context.hidden
        # Kept: both norms' inputs and outputs, and the hidden values before and after GELU.
        return self.mixer.work(context) + Work(2 * tokens * dim * hidden, tokens * (4 * dim + 2 * hidden))


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

    def forward(self, tokens: Tokens, position: PositionModule) -> Tokens:
        tokens = position.add(tokens, self.layer)
        mixed = self.mixer(tokens.to(self.mixer_norm(tokens.values)), position)
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

    def __init__(self, dim: int, hidden: int, gelu: Literal["tanh", "erf"], dropout: float) -> None:
        super().__init__()
        self.approximate = {"tanh": "tanh", "erf": "none"}[gelu]
        self.dropout = dropout
        self.expand = nn.Linear(dim, hidden)
        self.contract = nn.Linear(hidden, dim)
        for linear in (self.expand, self.contract):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)

    def forward(self, values: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        hidden = F.gelu(self.expand(values), approximate=self.approximate)
        return self.contract(F.dropout(hidden, self.dropout, self.training))


def build_blocks(config: Block, context: Context) -> nn.ModuleList:
    """One block per layer; each knows its place."""
    return nn.ModuleList(config.build(replace(context, layer=layer)) for layer in range(context.depth))
