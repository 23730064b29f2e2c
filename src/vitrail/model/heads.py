"""One vector per image to logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn


class Head(ABC):
    """Axis: how the pooled vector becomes logits."""

    classes: int

    @abstractmethod
    def build(self, dim: int) -> HeadModule:
        """A module from pooled vectors to logits."""


@dataclass(frozen=True)
class LinearHead(Head):
    """One layer with zero weights: the first prediction is `bias` for every class (fine-tuning, paper 3.1)."""

    classes: int = 1000
    bias: float = 0.0

    def build(self, dim: int) -> HeadModule:
        return HeadModule(nn.Identity(), dim, self.classes, self.bias)


@dataclass(frozen=True)
class TanhHead(Head):
    """A hidden layer with tanh, then the zero-initialised layer (pre-training, paper 3.1 and D.3)."""

    classes: int = 1000
    hidden: int = 768
    bias: float = 0.0

    def build(self, dim: int) -> HeadModule:
        hidden = nn.Linear(dim, self.hidden)
        nn.init.xavier_uniform_(hidden.weight)
        nn.init.zeros_(hidden.bias)
        return HeadModule(nn.Sequential(hidden, nn.Tanh()), self.hidden, self.classes, self.bias)


class HeadModule(nn.Module):
    """`represent` gives what few-shot evaluation reads (pre-logits); `parts` gives every logit."""

    def __init__(self, represent: nn.Module, dim: int, classes: int, bias: float) -> None:
        super().__init__()
        self.represent = represent
        self.linear = nn.Linear(dim, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, bias)

    def parts(self, pooled: Float[Tensor, "batch dim"]) -> tuple[Float[Tensor, "batch classes"], ...]:
        return (self.linear(self.represent(pooled)),)

    def forward(self, pooled: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch classes"]:
        (logits,) = self.parts(pooled)
        return logits


HEADS: dict[str, type[Head]] = {"linear": LinearHead, "tanh": TanhHead}
