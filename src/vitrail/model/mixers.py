"""How tokens exchange information: multi-head self-attention, or the Mixer's MLP along the sequence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.errors import UsageError
from vitrail.model.geometry import OnGrid, PositionModule, resample
from vitrail.model.initialisation import lecun_normal_
from vitrail.model.quadratic import QuadraticScores
from vitrail.model.tokenizers import Context, Tokens
from vitrail.model.work import Work


class Mixer(ABC):
    """Axis: what mixes the tokens inside a block.

    Attributes:
        attends: whether it does so by attention, whose maps can be captured.
        splits: whether the heads share the dimensions between them, which their number must then divide.
        network: what a network of it is called.
    """

    attends: ClassVar[bool] = True
    splits: ClassVar[bool] = True
    network: ClassVar[str] = "Vision Transformer"

    @abstractmethod
    def build(self, context: Context) -> nn.Module:
        """A module from (Tokens, position) to new values of the same shape, or of the `leading` tokens alone."""

    @abstractmethod
    def work(self, context: Context) -> Work:
        """What one layer costs for one image."""


@dataclass(frozen=True)
class Attention(Mixer):
    """Multi-head self-attention (paper eq. 5-8).

    Attributes:
        bias: of all four matrices.
        input_bias: of queries, keys and values, where `bias` is there at all.
        key_bias: of the keys alone, which without rotations no softmax can see (BEiT, DINOv3 have none).
    """

    bias: bool = True
    input_bias: bool = True
    key_bias: bool = True

    def build(self, context: Context) -> nn.Module:
        return MultiHeadAttention(context, self)

    def work(self, context: Context) -> Work:
        tokens, dim = context.tokens, context.dim
        return Work(4 * tokens * dim**2 + 2 * tokens**2 * dim, 4 * tokens * dim)  # kept: q, k, v and the mixture


@dataclass(frozen=True)
class TokenMLP(Mixer):
    """A dense layer along the sequence, GELU and another one, the same for every channel (MLP-Mixer, arXiv 2105.01601).

    It knows a token by its place, so positions are not needed. The layers belong to one grid; on another one they are
    resampled as positions are, and what is summed over more patches weighs less. No official code does that.
    """

    hidden: int = 384
    gelu: Literal["tanh", "erf"] = "tanh"
    attends: ClassVar[bool] = False
    splits: ClassVar[bool] = False
    network: ClassVar[str] = "MLP-Mixer"

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise UsageError("VT003", f"{self}", "one hidden unit or more")

    def build(self, context: Context) -> nn.Module:
        return TokenPerceptron(self, context)

    def work(self, context: Context) -> Work:
        return Work(2 * context.tokens * self.hidden * context.dim, 2 * self.hidden * context.dim)


@dataclass(frozen=True)
class QuadraticAttention(Mixer):
    """Attention to places alone, with scores quadratic in the offset (Cordonnier et al., arXiv 1911.03584, section 3).

    There are no queries and no keys. Each head averages the tokens themselves, at their full width, with its own
    Gaussian weights; one layer reads all heads side by side and another follows it, as in their code. With centres on a
    3x3 grid and narrow Gaussians this is a 3x3 convolution, their theorem 1. Their dropout of attention weights (0.1) is
    left out. `isotropic`: round Gaussians, as in the paper's table; otherwise of any shape, their general form.
    """

    isotropic: bool = True
    splits: ClassVar[bool] = False

    def build(self, context: Context) -> nn.Module:
        return QuadraticMixture(context, self.isotropic)

    def work(self, context: Context) -> Work:
        tokens, dim, heads = context.tokens, context.dim, context.heads
        patches = context.grid[0] * context.grid[1]
        products = 5 * heads * patches**2 + heads * tokens**2 * dim + (heads + 1) * tokens * dim**2
        return Work(
            products, (heads + 2) * tokens * dim
        )  # kept: tokens as one matrix, averages, what the last layer reads


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


class AttentionModule(nn.Module, ABC):
    """What can be captured: a mixer that records its weights while it has a request.

    Attributes:
        gates: a factor for what each head says, before the heads are read together; None is 1 for all of them.
    """

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.heads, self.layer = context.heads, context.layer
        self.request: CaptureRequest | None = None
        self.gates: Float[Tensor, " heads"] | None = None


class MultiHeadAttention(AttentionModule):
    """Queries, keys and values are one fused matrix; `context` lets the queries attend to another sequence."""

    def __init__(self, context: Context, config: Attention = Attention()) -> None:
        super().__init__(context)
        dim, biased = context.dim, config.bias and config.input_bias
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=biased and config.key_bias)
        self.query_value_bias = nn.Parameter(torch.zeros(2 * dim)) if biased and not config.key_bias else None
        self.project = nn.Linear(dim, dim, bias=config.bias)
        # Three square matrices that happen to be stored as one: each has its own fan.
        for part in (*self.query_key_value.weight.chunk(3), self.project.weight):
            nn.init.xavier_uniform_(part)
        for linear in (self.query_key_value, self.project):
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(
        self,
        tokens: Tokens,
        position: PositionModule | None = None,
        context: Tokens | None = None,
        leading: int | None = None,
    ) -> Float[Tensor, "batch answers dim"]:
        queries, keys, values = self._project(tokens, context)
        bias = None
        if position is not None:
            queries, keys = position.rotate(queries, keys, tokens, self.layer)
            bias = position.bias(queries, tokens, self.layer)
        weights = None if self.request is None else self._record(self.request, queries, keys, bias, context or tokens)
        if weights is not None:
            mixed = weights[:, :, :leading] @ values
        else:
            bias = None if bias is None else bias[:, :, :leading]
            mixed = F.scaled_dot_product_attention(queries[:, :, :leading], keys, values, attn_mask=bias)
        if self.gates is not None:
            mixed = mixed * self.gates.to(mixed)[:, None, None]
        return self.project(rearrange(mixed, "b h n d -> b n (h d)"))

    def weights(self, tokens: Tokens, context: Tokens | None = None) -> Float[Tensor, "batch heads queries tokens"]:
        """What every head would attend to, without positions; rows sum to 1."""
        queries, keys, _ = self._project(tokens, context)
        return _weights(queries, keys, None)

    def input_bias(self) -> Float[Tensor, " three_dim"] | None:
        """Of queries, keys and values, one behind the other; zeros for keys that have none."""
        bias: Tensor | None = self.query_key_value.bias
        if self.query_value_bias is None:
            return bias
        return F.pad(self.query_value_bias.view(2, -1), (0, 0, 0, 1))[[0, 2, 1]].flatten()

    def _project(self, tokens: Tokens, context: Tokens | None) -> Sequence[Tensor]:
        dim, weight, bias = self.project.in_features, self.query_key_value.weight, self.input_bias()
        if context is None:
            fused = F.linear(tokens.values, weight, bias)
            return rearrange(fused, "b n (three h d) -> three b h n d", three=3, h=self.heads).unbind(0)
        query_bias, context_bias = (None, None) if bias is None else (bias[:dim], bias[dim:])
        queries = F.linear(tokens.values, weight[:dim], query_bias)
        keys, values = F.linear(context.values, weight[dim:], context_bias).chunk(2, dim=-1)
        return [rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in (queries, keys, values)]

    def _record(
        self, request: CaptureRequest, queries: Tensor, keys: Tensor, bias: Tensor | None, attended: Tokens
    ) -> Float[Tensor, "batch heads queries tokens"] | None:
        """Computes the weights that were asked for, and no others; None: the fused path mixes the values as ever.

        So one layer of a large model at high resolution fits into memory, and recording changes no answer. Only where
        gradients are kept and all weights are asked for do they mix the values themselves, so that they have gradients.
        """
        heads = slice(None) if request.heads is None else list(request.heads)
        rows = slice(None) if request.queries is None else list(request.queries)
        _check_queries(request.queries, queries.shape[2])
        part = None if bias is None else bias.expand(len(queries), self.heads, -1, -1)[:, heads][:, :, rows]
        weights = _weights(queries[:, heads][:, :, rows], keys[:, heads], part)
        request.record(AttentionMap(self.layer, weights, request.heads, request.queries, attended))
        return weights if weights.requires_grad and request.heads is None and request.queries is None else None


class QuadraticMixture(AttentionModule):
    """Averages of all tokens, one a head, read together by `values`; then `project`."""

    def __init__(self, context: Context, isotropic: bool) -> None:
        super().__init__(context)
        self.scores = QuadraticScores(context.heads, isotropic)
        self.values = nn.Linear(context.heads * context.dim, context.dim)
        self.project = nn.Linear(context.dim, context.dim)
        for linear in (self.values, self.project):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self, tokens: Tokens, position: PositionModule | None = None, leading: int | None = None
    ) -> Float[Tensor, "batch answers dim"]:
        weights = self.scores(tokens).softmax(dim=-1)
        if self.request is not None:
            self._record(self.request, weights, tokens)
        weights = weights[:, :, :leading].to(tokens.values.dtype)
        if len(weights) == 1:  # the same for all images: one matrix product, whatever the batch
            averages = torch.einsum("hqk,bkd->bqhd", weights[0], tokens.values)
        else:
            averages = torch.einsum("bhqk,bkd->bqhd", weights, tokens.values)
        if self.gates is not None:
            averages = averages * self.gates.to(averages)[:, None]
        return self.project(self.values(rearrange(averages, "b q h d -> b q (h d)")))

    def _record(self, request: CaptureRequest, weights: Tensor, tokens: Tokens) -> None:
        heads = slice(None) if request.heads is None else list(request.heads)
        rows = slice(None) if request.queries is None else list(request.queries)
        _check_queries(request.queries, weights.shape[2])
        asked = weights[:, heads][:, :, rows].expand(len(tokens.values), -1, -1, -1)
        request.record(AttentionMap(self.layer, asked, request.heads, request.queries, tokens))


class TokenPerceptron(OnGrid):
    """`expand` and `contract` know every token of the sequence: prefix first, then the patches of `grid`."""

    def __init__(self, config: TokenMLP, context: Context) -> None:
        super().__init__()
        self.approximate = {"tanh": "tanh", "erf": "none"}[config.gelu]
        self.prefix, self.grid = context.class_tokens + context.registers, context.grid
        self.expand = nn.Linear(context.tokens, config.hidden)
        self.contract = nn.Linear(config.hidden, context.tokens)
        for linear in (self.expand, self.contract):
            lecun_normal_(linear.weight, linear.in_features)
            nn.init.zeros_(linear.bias)

    def forward(
        self, tokens: Tokens, position: PositionModule | None = None, leading: int | None = None
    ) -> Float[Tensor, "batch answers dim"]:
        if tokens.kept is not None or tokens.sizes is not None or tokens.prefix != self.prefix:
            raise UsageError(
                "VT003", f"an MLP along the sequence met {tokens.values.shape[1]} of {tokens.grid} patches",
                f"every patch by itself, and {self.prefix} tokens before them", "drop or merge no tokens in this model",
            )  # fmt: skip
        expand, contract, bias = self._on(tokens.grid)
        hidden = F.linear(rearrange(tokens.values, "b n d -> b d n"), expand, self.expand.bias)
        mixed = F.linear(F.gelu(hidden, approximate=self.approximate), contract, bias)
        return rearrange(mixed, "b d n -> b n d")[:, :leading]

    def at(self, grid: tuple[int, int]) -> None:
        with torch.no_grad():
            expand, contract, bias = (array.clone() for array in self._on(grid))
        self.expand.weight, self.contract.weight = nn.Parameter(expand), nn.Parameter(contract)
        self.contract.bias = nn.Parameter(bias)
        self.grid, self.expand.in_features, self.contract.out_features = grid, expand.shape[1], len(contract)

    def _on(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of `expand`, weights and bias of `contract` for a grid."""
        expand, contract, bias = self.expand.weight, self.contract.weight, self.contract.bias
        if grid == self.grid:
            return expand, contract, bias
        share = self.grid[0] * self.grid[1] / (grid[0] * grid[1])
        read = self._resampled(expand.T, grid, share).T
        return read, self._resampled(contract, grid), self._resampled(bias[:, None], grid)[:, 0]

    def _resampled(
        self, rows: Float[Tensor, "tokens width"], grid: tuple[int, int], share: float = 1.0
    ) -> Float[Tensor, "new_tokens width"]:
        return torch.cat([rows[: self.prefix], share * resample(rows[self.prefix :], self.grid, grid)])


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


MIXERS: dict[str, type[Mixer]] = {"attention": Attention, "quadratic": QuadraticAttention, "token-mlp": TokenMLP}
