"""A backbone made fast for inference on a processor: the same answers, from weights that oneDNN has laid out once.

PyTorch gives float32 products to MKL, which leaves half of AVX-512 unused on AMD's processors, lays bfloat16 weights out
anew at every call, and passes over memory once more for GELU and for each residual. Here linear layers and convolutions
keep their weights as oneDNN wants them; GELU and the residual sum are done while a product is written; LayerScale and
standardised kernels are computed once; attention takes its quicker way (quick_attention.py). The operators are those
that torch.compile uses. A part that is not in `_WAYS` stays as it is.

`packed` copies: weights that change afterwards need another one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.deployment.quick_attention import attended
from vitrail.model.backbone import Backbone
from vitrail.model.block import EncoderBlock, GatedPerceptron, MultiLayerPerceptron
from vitrail.model.geometry import PositionModule
from vitrail.model.mixers import MultiHeadAttention, TokenPerceptron
from vitrail.model.positions import Added, Nowhere
from vitrail.model.tokenizers import PatchProjection, Tokens, check_channels
from vitrail.model.trunks import StandardisedConvolution, TrunkModule, edges
from vitrail.model.vit import ViT

Precision = Literal["float32", "bfloat16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SLOPE = 1.702  # of the quick GELU: x sigmoid(1.702 x), which is SiLU of 1.702 x over 1.702


def packed(backbone: Backbone, precision: Precision = "float32") -> Backbone:
    """A copy of `backbone` for inference alone: normalised float32 images in, float32 answers out.

    In float32 they are the plain module's to 1e-5, in bfloat16 to its rounding. Where this PyTorch has no oneDNN, or the
    model is on an accelerator, the copy is a plain one, in float32.
    """
    taken = [part for part in backbone.modules() if type(part) in _WAYS] if can_pack(backbone) else []
    # What is packed is shared with the copy for a moment, so that the packed weights are all that is new.
    shared = {id(parameter): parameter for part in taken for parameter in part.parameters()}
    model = copy.deepcopy(backbone, shared).eval()
    if taken:
        dtype = DTYPES[precision]
        if isinstance(model, ViT):
            model.blocks[-1] = _last(model, dtype)
        _replace(model, dtype)
    return model.requires_grad_(False)


def can_pack(backbone: nn.Module) -> bool:
    """Whether this PyTorch has the operators, and the model is where they work."""
    operators = all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight"))
    on_processor = all(parameter.device.type == "cpu" for parameter in backbone.parameters())
    return operators and on_processor and torch.backends.mkldnn.is_available()


def _replace(module: nn.Module, dtype: torch.dtype) -> None:
    for name, part in module.named_children():
        if type(part) in _WAYS:
            setattr(module, name, _WAYS[type(part)](part, dtype))
        elif not isinstance(part, Quick):
            _replace(part, dtype)


def _last(model: ViT, dtype: torch.dtype) -> QuickBlock:
    """It answers the pool in float32, and asks only for those tokens that the pool reads.

    Where positions act on pairs of tokens, the queries of all are needed to tell theirs.
    """
    alone = model.pool.leading is not None and type(model.position) in (Nowhere, Added)
    return QuickBlock(model.blocks[-1], dtype, torch.float32, alone)  # type: ignore[arg-type]


class Quick(nn.Module):
    """What has been packed. `dtype`: what it computes in; it answers in the type that it was asked in."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype


class Dense(Quick):
    """values weight' + bias, and what `after` says of it, in one pass; all in `dtype`."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, after: str = "none") -> None:
        super().__init__(dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype).contiguous())
        self.bias = None if bias is None else bias.detach().to(dtype, copy=True)
        self.after = _AFTER[after]

    def forward(self, values: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch out"]:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(values, self.weight, self.bias, *self.after)
        return found

    def onto(self, values: Float[Tensor, "*batch dim"], other: Tensor, how: str = "add") -> Float[Tensor, "*batch out"]:
        """The same added to `other`, or multiplied by it ("mul")."""
        found: Tensor = torch.ops.mkldnn._linear_pointwise.binary(values, other, self.weight, self.bias, how)
        return found


_AFTER: dict[str, tuple[str, list[float], str]] = {
    "none": ("none", [], ""), "erf": ("gelu", [], "none"), "tanh": ("gelu", [], "tanh"), "silu": ("swish", [], "")
}  # fmt: skip


def _ending(linear: nn.Linear, scale: Tensor | None, dtype: torch.dtype, factor: float = 1.0) -> Dense:
    """The last layer of a residual branch, its LayerScale in the weights; `factor` is of what it reads."""
    rows = torch.ones_like(linear.weight[:, 0]) if scale is None else scale
    return Dense(linear.weight * (factor * rows[:, None]), None if linear.bias is None else linear.bias * rows, dtype)


class QuickAttention(Quick):
    """`MultiHeadAttention`. `alone`: the queries have a layer of their own, for where they are not of all tokens."""

    def __init__(
        self, plain: MultiHeadAttention, dtype: torch.dtype, scale: Tensor | None = None, alone: bool = True
    ) -> None:
        super().__init__(dtype)
        self.heads, self.layer, self.alone = plain.heads, plain.layer, alone
        weight, bias = plain.query_key_value.weight, plain.input_bias()
        first = len(weight) // 3 if alone else len(weight)
        self.ask = Dense(weight[:first], None if bias is None else bias[:first], dtype)
        self.tell = Dense(weight[first:], None if bias is None else bias[first:], dtype) if alone else None
        self.project = _ending(plain.project, scale, dtype)

    def forward(
        self,
        tokens: Tokens,
        position: PositionModule | None = None,
        context: Tokens | None = None,
        leading: int | None = None,
    ) -> Float[Tensor, "batch answers dim"]:
        return self.project(self._mixed(tokens, position, context, leading)).to(tokens.values.dtype)

    def onto(self, tokens: Tokens, rest: Tensor, position: PositionModule, leading: int | None) -> Tensor:
        """What the tokens read, added to `rest`."""
        return self.project.onto(self._mixed(tokens, position, None, leading), rest)

    def _mixed(
        self, tokens: Tokens, position: PositionModule | None, context: Tokens | None, leading: int | None
    ) -> Float[Tensor, "batch answers dim"]:
        """What the projection reads."""
        queries, keys, values = self._parts(tokens, context, leading)
        bias = None
        if position is not None:
            queries, keys = position.rotate(queries, keys, tokens, self.layer)
            bias = position.bias(queries, tokens, self.layer)
            bias = None if bias is None else bias.to(queries.dtype)[:, :, :leading]
        return attended(queries[:, :, :leading], keys, values, bias)

    def _parts(self, tokens: Tokens, context: Tokens | None, leading: int | None) -> tuple[Tensor, ...]:
        """Queries, keys and values, batch heads tokens head_dim: views, as einops gives them, without its look-ups."""
        values = tokens.values.to(self.dtype)
        if self.tell is None:
            return self._heads(self.ask(values), 3)
        told = self.tell(values if context is None else context.values.to(self.dtype))
        return *self._heads(self.ask(values[:, :leading].contiguous()), 1), *self._heads(told, 2)

    def _heads(self, fused: Float[Tensor, "batch tokens fused"], parts: int) -> tuple[Tensor, ...]:
        return fused.view(*fused.shape[:2], parts, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


class QuickMixer(Quick):
    """Any other mixer, by the plain module in float32."""

    def __init__(self, plain: nn.Module, dtype: torch.dtype, scale: Tensor | None = None) -> None:
        super().__init__(dtype)
        self.plain = copy.deepcopy(plain)
        self.scale = None if scale is None else scale.detach().clone()

    def onto(self, tokens: Tokens, rest: Tensor, position: PositionModule, leading: int | None) -> Tensor:
        mixed = self.plain(tokens.to(tokens.values.float()), position, leading=leading)
        return rest + (mixed if self.scale is None else mixed * self.scale).to(rest.dtype)


class QuickTokenPerceptron(QuickMixer):
    """`TokenPerceptron` on its own grid; on another one the plain module answers."""

    def __init__(self, plain: TokenPerceptron, dtype: torch.dtype, scale: Tensor | None = None) -> None:
        super().__init__(plain, dtype, scale)
        gelu = {"tanh": "tanh", "none": "erf"}[plain.approximate]
        self.grid = plain.grid
        self.expand = Dense(plain.expand.weight, plain.expand.bias, dtype, gelu)
        self.contract = Dense(plain.contract.weight, plain.contract.bias, dtype)

    def onto(self, tokens: Tokens, rest: Tensor, position: PositionModule, leading: int | None) -> Tensor:
        if tokens.kept is not None or tokens.grid != self.grid:
            return super().onto(tokens, rest, position, leading)
        columns = rearrange(tokens.values, "b n d -> b d n").contiguous()
        mixed = rearrange(self.contract(self.expand(columns)), "b d n -> b n d")[:, :leading]
        return rest + (mixed if self.scale is None else mixed * self.scale.to(mixed.dtype))


class QuickPerceptron(Quick):
    """`MultiLayerPerceptron`: GELU is done while the first product is written."""

    def __init__(self, plain: MultiLayerPerceptron, dtype: torch.dtype, scale: Tensor | None = None) -> None:
        super().__init__(dtype)
        slope, after = (SLOPE, "silu") if plain.gelu == "quick" else (1.0, plain.gelu)
        self.expand = Dense(plain.expand.weight * slope, plain.expand.bias * slope, dtype, after)
        self.contract = _ending(plain.contract, scale, dtype, 1 / slope)

    def forward(self, values: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return self.contract(self.expand(values.to(self.dtype))).to(values.dtype)

    def onto(self, values: Float[Tensor, "*batch dim"], rest: Tensor) -> Float[Tensor, "*batch dim"]:
        """What it makes of `values`, added to `rest`."""
        return self.contract.onto(self.expand(values), rest)


class QuickGated(Quick):
    """`GatedPerceptron`: SiLU and the product with the content are done while the two products are written."""

    def __init__(self, plain: GatedPerceptron, dtype: torch.dtype, scale: Tensor | None = None) -> None:
        super().__init__(dtype)
        (gate, content), (gate_bias, content_bias) = plain.expand.weight.chunk(2), plain.expand.bias.chunk(2)
        self.gate, self.content = Dense(gate, gate_bias, dtype, "silu"), Dense(content, content_bias, dtype)
        self.contract = _ending(plain.contract, scale, dtype)

    def onto(self, values: Float[Tensor, "*batch dim"], rest: Tensor) -> Float[Tensor, "*batch dim"]:
        """What it makes of `values`, added to `rest`."""
        return self.contract.onto(self.content.onto(values, self.gate(values), "mul"), rest)


class QuickBlock(Quick):
    """`EncoderBlock`: the residual sums are done while the products are written.

    `answer`: the type of its answer; `alone`: see `QuickAttention`.
    """

    def __init__(
        self, plain: EncoderBlock, dtype: torch.dtype, answer: torch.dtype | None = None, alone: bool = False
    ) -> None:
        super().__init__(dtype)
        self.layer, self.answer = plain.layer, answer or dtype
        self.mixer_norm, self.mlp_norm = copy.deepcopy(plain.mixer_norm), copy.deepcopy(plain.mlp_norm)
        scale = plain.mixer_branch.scale
        if type(plain.mixer) is MultiHeadAttention:
            self.mixer: Any = QuickAttention(plain.mixer, dtype, scale, alone)
        else:
            self.mixer = _MIXERS.get(type(plain.mixer), QuickMixer)(plain.mixer, dtype, scale)
        self.mlp: Any = _FEED_FORWARDS[type(plain.mlp)](plain.mlp, dtype, plain.mlp_branch.scale)

    def forward(self, tokens: Tokens, position: PositionModule, leading: int | None = None) -> Tokens:
        tokens = position.add(tokens.to(tokens.values.to(self.dtype)), self.layer)
        rest = tokens.first(leading)
        normed = tokens.to(self.mixer_norm(tokens.values))
        values = self.mixer.onto(normed, rest.values.contiguous(), position, leading)
        return rest.to(self.mlp.onto(self.mlp_norm(values), values).to(self.answer))


_MIXERS: dict[type[nn.Module], Callable[..., Quick]] = {TokenPerceptron: QuickTokenPerceptron}
_FEED_FORWARDS: dict[type[nn.Module], Callable[..., Quick]] = {
    MultiLayerPerceptron: QuickPerceptron, GatedPerceptron: QuickGated
}  # fmt: skip


class QuickPatches(Quick):
    """`PatchProjection`, its weights in the order of the pixels: the rows of a patch are copied whole."""

    def __init__(self, plain: PatchProjection, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self.config = plain.config
        rows, channels = plain.config.patch[0], plain.config.channels
        weight = rearrange(plain.project.weight, "d (p q c) -> d (c p q)", p=rows, c=channels)
        self.project = Dense(weight, plain.project.bias, dtype)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Tokens:
        check_channels(images, self.config.channels)
        rows, cols = self.config.grid((images.shape[2], images.shape[3]))
        patches = rearrange(images.to(self.dtype), "b c (r p) (k q) -> b (r k) (c p q)", r=rows, k=cols)
        return Tokens(self.project(patches.contiguous()).float(), (rows, cols))


class QuickConvolution(Quick):
    """`StandardisedConvolution`, its kernels standardised once; in `dtype` throughout."""

    def __init__(self, plain: StandardisedConvolution, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self.side, self.stride, self.padding = plain.side, plain.stride, plain.numerics.padding
        self.kernels = plain.standardised().detach().to(dtype)

    def forward(self, images: Float[Tensor, "batch inputs _ _"]) -> Float[Tensor, "batch outputs rows cols"]:
        rows, cols = (edges(side, (self.side, self.stride), self.padding) for side in images.shape[2:])
        images = images.to(self.dtype)
        if rows[0] == rows[1] and cols[0] == cols[1]:
            return F.conv2d(images, self.kernels, stride=self.stride, padding=(rows[0], cols[0]))
        return F.conv2d(F.pad(images, (*cols, *rows)), self.kernels, stride=self.stride)


class QuickTrunk(Quick):
    """`TrunkModule`, whose maps are float32 again."""

    def __init__(self, plain: TrunkModule, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self.plain = plain
        _replace(plain, dtype)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> list[Float[Tensor, "batch dim rows cols"]]:
        return [level.float() for level in self.plain(images)]


_WAYS: dict[type[nn.Module], Callable[..., Quick]] = {
    EncoderBlock: QuickBlock, MultiHeadAttention: QuickAttention, MultiLayerPerceptron: QuickPerceptron,
    PatchProjection: QuickPatches, TrunkModule: QuickTrunk, StandardisedConvolution: QuickConvolution,
}  # fmt: skip
