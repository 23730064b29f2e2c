"""Attention for inference on a processor, by the quicker of its ways; which one that is depends on the precision.

softmax(queries keys' / sqrt(head_dim) + bias) values, in which PyTorch's fused attention reaches a third of the speed of
matrix products in float32 and a sixth in bfloat16 (docs/performance.md). In bfloat16 there are plain products here, some
images at a time so that their scores stay in the cache; the scores become powers in place, whose sums divide the answer
and not the weights. That needs no largest score as long as the sums stay in the range of the numbers, which is looked
at; where they leave it, fused attention answers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SCORES = 2**19  # of attention at a time: 1 MiB of bfloat16, a core's second cache
LOWEST, HIGHEST = 1e-20, 1e20  # sums of powers between which nothing has vanished or overflowed

Heads = Float[Tensor, "batch heads tokens head_dim"]


def attended(
    queries: Float[Tensor, "batch heads queries head_dim"],
    keys: Heads,
    values: Heads,
    bias: Float[Tensor, "#batch heads queries tokens"] | None = None,
) -> Float[Tensor, "batch queries dim"]:
    """What each query reads, the heads side by side."""
    if bias is None and queries.dtype == torch.bfloat16 and queries.shape[2] > 1:
        return _by_powers(queries, keys, values)
    mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
    return mixed.transpose(1, 2).flatten(2)


def _by_powers(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """For all heads of some images at a time."""
    batch, heads, count, head_dim = queries.shape
    mixed = queries.new_empty(batch, count, heads, head_dim)
    size = max(1, SCORES // (heads * count * keys.shape[2]))
    nothing, scale = queries.new_empty(1, 1, 1), head_dim**-0.5
    for start in range(0, batch, size):
        few = slice(start, start + size)
        q, k, v = (part[few].flatten(0, 1).contiguous() for part in (queries, keys, values))
        scores = torch.baddbmm(nothing, q, k.transpose(1, 2), beta=0, alpha=scale)
        weights = scores.exp_()
        sums = weights.sum(-1, keepdim=True)
        lowest, highest = torch.aminmax(sums)
        if float(lowest) > LOWEST and float(highest) < HIGHEST:  # neither where one is not a number
            found = torch.bmm(weights, v).div_(sums).unflatten(0, (-1, heads))
        else:
            found = F.scaled_dot_product_attention(queries[few], keys[few], values[few])
        mixed[few] = found.transpose(1, 2)
    return mixed.flatten(2)
