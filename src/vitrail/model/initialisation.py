"""Initial weights in the forms of the original JAX code."""

from __future__ import annotations

from torch import Tensor, nn


def lecun_normal_(weight: Tensor, fan_in: int) -> None:
    """flax's default: a normal cut at two standard deviations, widened so that its variance is 1 / fan_in."""
    spread = fan_in**-0.5 / 0.87962566103423978
    nn.init.trunc_normal_(weight, std=spread, a=-2 * spread, b=2 * spread)
