"""The products of a step by the fastest way of this processor; what is computed stays what the model says.

PyTorch has several ways to the same product, and on a processor takes a slow one in two places (docs/performance.md):

- the gradient of fused attention in bfloat16 runs at 1/20 of the speed of matrix products, so that attention, 6 % of the
  operations of a ViT-Ti, takes half of its step. Here it is three and five plain products, a few heads at a time; the
  weights of attention are kept for the gradient of short sequences, and of long ones computed again;
- float32 products go to MKL, which on AMD's processors leaves half of AVX-512 unused; oneDNN does not.

The model is not touched: `quick_products` is a context in which `F.linear` and `F.scaled_dot_product_attention` find these
ways by themselves, whatever module calls them, and all other calls pass. Without it the plain ones answer, equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from vitrail.training.precision import processor

SCORES = 2**20  # of attention at a time: 2 MiB, which stay in the cache
# Keys up to which the weights of attention are kept for the gradient: 2 heads tokens² bytes an image and layer.
KEPT = 256


def quick_products(device: str) -> AbstractContextManager[Any]:
    """For forward and backward of a step; does nothing on an accelerator."""
    return QuickProducts() if torch.device(device).type == "cpu" else nullcontext()


def same_again() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """For torch.utils.checkpoint, now and when it computes again: then the ways that are taken now are taken too."""
    active = [mode for mode in _get_current_function_mode_stack() if isinstance(mode, QuickProducts)]
    return nullcontext(), QuickProducts() if active else nullcontext()


class QuickProducts(TorchFunctionMode):
    """Sends the calls that have a quicker way to it."""

    def __torch_function__(
        self, call: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        quick = _WAYS.get(call)
        answer = None if quick is None or not torch.is_grad_enabled() else quick(*args, **(named or {}))
        return call(*args, **(named or {})) if answer is None else answer


def _linear(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    if torch.compiler.is_compiling():  # it has its own ways, and does not take this operator from us
        return None
    plain = values.dtype == weight.dtype == torch.float32 and values.device.type == "cpu"
    if plain and values.numel() and not torch.is_autocast_enabled("cpu") and _onednn_is_quicker():
        return Product.apply(values, weight, bias)
    return None


def _attention(
    queries: Tensor, keys: Tensor, values: Tensor, attn_mask: Tensor | None = None, *rest: Any, **more: Any
) -> Tensor | None:
    if attn_mask is not None or rest or more or queries.ndim != 4 or queries.device.type != "cpu":
        return None
    if torch.is_autocast_enabled("cpu"):
        queries, keys, values = (part.to(torch.get_autocast_dtype("cpu")) for part in (queries, keys, values))
    return Mixture.apply(queries, keys, values) if queries.dtype == torch.bfloat16 else None


_WAYS: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    F.linear: _linear, F.scaled_dot_product_attention: _attention
}  # fmt: skip


@cache
def _onednn_is_quicker() -> bool:
    """By the processor alone and not by the clock, so that a run that goes on computes the same bits."""
    known = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return known and hasattr(torch.ops.mkldnn, "_linear_pointwise") and "AuthenticAMD" in processor("vendor_id")


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left right' + bias, by oneDNN; the operator is the one that torch.compile uses."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return found


class Product(torch.autograd.Function):
    """values weight' + bias in float32."""

    @staticmethod
    def forward(
        ctx: Any, values: Float[Tensor, "*batch dim"], weight: Float[Tensor, "out dim"], bias: Tensor | None
    ) -> Float[Tensor, "*batch out"]:
        ctx.save_for_backward(values, weight)
        return _product(values, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "*batch out"]) -> tuple[Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        of_values, of_weight, of_bias = ctx.needs_input_grad
        return (
            _product(rows, weight.t()).view(values.shape) if of_values else None,
            _product(values.reshape(len(rows), -1).t(), rows.t()).t() if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


class Mixture(torch.autograd.Function):
    """softmax(queries keys' / sqrt(head_dim)) values, of any number of queries, keys and values in bfloat16.

    With P the weights of attention and G the gradient of the answer, D = P * (G values' - rowsum(P * G values')) is that of
    the scores, and D keys, D' queries and P' G are those of queries, keys and values.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Float[Tensor, "batch heads queries head_dim"],
        keys: Float[Tensor, "batch heads tokens head_dim"],
        values: Float[Tensor, "batch heads tokens head_dim"],
    ) -> Float[Tensor, "batch heads queries head_dim"]:
        parts = [part.flatten(0, 1).contiguous() for part in (queries, keys, values)]
        ctx.shape = queries.shape[:2]
        mixed = torch.empty_like(parts[0])
        kept = parts[0].new_empty(len(parts[0]), queries.shape[2], keys.shape[2]) if keys.shape[2] <= KEPT else None
        for few, (q, k, v) in _portions(*parts):
            weights = _weights(q, k, None if kept is None else kept[few])
            torch.bmm(weights, v, out=mixed[few])
        ctx.save_for_backward(*parts, kept)
        return mixed.unflatten(0, ctx.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "batch heads queries head_dim"]) -> tuple[Tensor, ...]:
        *parts, kept = ctx.saved_tensors
        of_mixed = gradient.flatten(0, 1).contiguous()
        of_queries, of_keys, of_values = found = [torch.empty_like(part) for part in parts]
        scale = parts[0].shape[-1] ** -0.5
        for few, (q, k, v) in _portions(*parts):
            weights, given = _weights(q, k) if kept is None else kept[few], of_mixed[few]
            torch.bmm(weights.transpose(1, 2), given, out=of_values[few])
            asked = torch.bmm(given, v.transpose(1, 2))
            scores = torch.ops.aten._softmax_backward_data(asked, weights, -1, weights.dtype).mul_(scale)
            torch.bmm(scores, k, out=of_queries[few])
            torch.bmm(scores.transpose(1, 2), q, out=of_keys[few])
        return tuple(part.unflatten(0, ctx.shape) for part in found)


def _weights(
    queries: Float[Tensor, "few queries head_dim"],
    keys: Float[Tensor, "few tokens head_dim"],
    into: Tensor | None = None,
) -> Float[Tensor, "few queries tokens"]:
    nothing = queries.new_empty(1, 1, 1)
    scale = queries.shape[-1] ** -0.5
    scores = torch.baddbmm(nothing, queries, keys.transpose(1, 2), beta=0, alpha=scale)
    return torch.softmax(scores, dim=-1) if into is None else torch.softmax(scores, dim=-1, out=into)


def _portions(queries: Tensor, keys: Tensor, values: Tensor) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """As many heads at a time as there is room for their scores."""
    size = max(1, SCORES // (queries.shape[1] * keys.shape[1]))
    for start in range(0, len(queries), size):
        few = slice(start, start + size)
        yield few, (queries[few], keys[few], values[few])
