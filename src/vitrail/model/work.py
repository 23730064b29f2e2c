"""What a part of a model costs, counted from its shapes and not measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """Of one image, forward.

    Attributes:
        products: multiply-adds in matrix products and convolutions; norms, sums and softmax are left out.
        kept: float32 values that training keeps for the backward pass; attention is fused.
    """

    products: int = 0
    kept: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.products + other.products, self.kept + other.kept)

    def __mul__(self, times: int) -> Work:
        return Work(self.products * times, self.kept * times)
