"""How tokens exchange information: multi-head self-attention."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.errors import UsageError
from vitrail.model.tokenizers import Context, Tokens

if TYPE_CHECKING:
    from vitrail.model.positions import PositionModule


class Mixer(ABC):
    """Axis: what mixes the tokens inside a block."""

    @abstractmethod
    def build(self, context: Context) -> nn.Module:
        """A module from (Tokens, position) to new values of the same shape."""


@dataclass(frozen=True)
class Attention(Mixer):
    """Multi-head self-attention (paper eq. 5-8)."""

    bias: bool = True

    def build(self, context: Context) -> nn.Module:
        return MultiHeadAttention(context, bias=self.bias)


@dataclass(frozen=True)
class AttentionMap:
    """Attention weights of one layer together with the geometry they belong to.

    Attributes:
        weights: rows sum to 1 over the last dimension.
        heads, queries: the indices that were asked for; None means all of them.
        tokens: the sequence that was attended to; only its geometry matters.
    """

    layer: int
    weights: Float[Tensor, "batch heads queries tokens"]
    heads: tuple[int, ...] | None
    queries: tuple[int, ...] | None
    tokens: Tokens


@dataclass(frozen=True)
class CaptureRequest:
    """What an attention module should record during its next forward passes, and who is told."""

    record: Callable[[AttentionMap], None]
    heads: tuple[int, ...] | None = None
    queries: tuple[int, ...] | None = None


class MultiHeadAttention(nn.Module):
    """Queries, keys and values are one fused matrix; `context` lets the queries attend to another sequence."""

    def __init__(self, context: Context, bias: bool = True) -> None:
        super().__init__()
        self.heads, self.layer = context.heads, context.layer
        self.query_key_value = nn.Linear(context.dim, 3 * context.dim, bias=bias)
        self.project = nn.Linear(context.dim, context.dim, bias=bias)
        self.request: CaptureRequest | None = None
        # Three square matrices that happen to be stored as one: each has its own fan.
        for part in (*self.query_key_value.weight.chunk(3), self.project.weight):
            nn.init.xavier_uniform_(part)
        for linear in (self.query_key_value, self.project):
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(
        self, tokens: Tokens, position: PositionModule | None = None, context: Tokens | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        queries, keys, values = self._project(tokens, context)
        bias = None
        if position is not None:
            queries, keys = position.rotate(queries, keys, tokens, self.layer)
            bias = position.bias(queries, tokens, self.layer)
        if self.request is not None:
            mixed = self._captured(self.request, queries, keys, values, bias, context or tokens)
        else:
            mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        return self.project(rearrange(mixed, "b h n d -> b n (h d)"))

    def weights(self, tokens: Tokens, context: Tokens | None = None) -> Float[Tensor, "batch heads queries tokens"]:
        """What every head would attend to, without positions; rows sum to 1."""
        queries, keys, _ = self._project(tokens, context)
        return _weights(queries, keys, None)

    def _project(self, tokens: Tokens, context: Tokens | None) -> Sequence[Tensor]:
        if context is None:
            fused = self.query_key_value(tokens.values)
            return rearrange(fused, "b n (three h d) -> three b h n d", three=3, h=self.heads).unbind(0)
        dim = self.project.in_features
        weight, bias = self.query_key_value.weight, self.query_key_value.bias
        query_bias, context_bias = (None, None) if bias is None else (bias[:dim], bias[dim:])
        queries = F.linear(tokens.values, weight[:dim], query_bias)
        keys, values = F.linear(context.values, weight[dim:], context_bias).chunk(2, dim=-1)
        return [rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in (queries, keys, values)]

    def _captured(
        self,
        request: CaptureRequest,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        bias: Tensor | None,
        attended: Tokens,
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """Records the weights that were asked for, and computes no others: the fused path mixes the values as ever.

        So one layer of a large model at high resolution fits into memory, and recording changes no answer. Only where
        gradients are kept and all weights are asked for do they mix the values themselves, so that they have gradients.
        """
        heads = slice(None) if request.heads is None else list(request.heads)
        rows = slice(None) if request.queries is None else list(request.queries)
        _check_queries(request.queries, queries.shape[2])
        part = None if bias is None else bias.expand(len(queries), self.heads, -1, -1)[:, heads][:, :, rows]
        weights = _weights(queries[:, heads][:, :, rows], keys[:, heads], part)
        request.record(AttentionMap(self.layer, weights, request.heads, request.queries, attended))
        if weights.requires_grad and request.heads is None and request.queries is None:
            return weights @ values
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)


def _weights(queries: Tensor, keys: Tensor, bias: Tensor | None) -> Float[Tensor, "batch heads queries tokens"]:
    """softmax(q k / sqrt(head_dim) + bias), paper eq. 6. The queries are scaled, because the scores are far larger."""
    scores = queries * queries.shape[-1] ** -0.5 @ keys.transpose(-2, -1)
    return (scores if bias is None else scores + bias).softmax(dim=-1)


def _check_queries(queries: tuple[int, ...] | None, count: int) -> None:
    for query in queries or ():
        if not -count <= query < count:
            raise UsageError(
                "VT040",
                f"queries: there is no token {query} among {count}",
                f"{-count} to {count - 1}",
                "class token and registers come first, then the patches row by row",
            )


MIXERS: dict[str, type[Mixer]] = {"attention": Attention}
