"""One vector per image to logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor, nn

from vitrail.model.initialisation import lecun_normal_
from vitrail.model.work import Work


class Head(ABC):
    """Axis: how the pooled vector becomes logits."""

    classes: int

    @abstractmethod
    def build(self, dim: int) -> HeadModule:
        """A module from pooled vectors to logits."""

    @abstractmethod
    def work(self, dim: int) -> Work:
        """What it costs for one vector."""

    @abstractmethod
    def adapted(self, classes: int, keep_representation: bool) -> Head:
        """The head of fine-tuning: pre-training's own layer is dropped unless it is to be kept (paper 3.2)."""


@dataclass(frozen=True)
class LinearHead(Head):
    """One layer with zero weights: the first prediction is `bias` for every class (fine-tuning, paper 3.1)."""

    classes: int = 1000
    bias: float = 0.0

    def build(self, dim: int) -> HeadModule:
        return HeadModule(nn.Identity(), dim, self.classes, self.bias)

    def work(self, dim: int) -> Work:
        return Work(dim * self.classes)

    def adapted(self, classes: int, keep_representation: bool) -> Head:
        return LinearHead(classes)


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

    def work(self, dim: int) -> Work:
        return Work((dim + self.classes) * self.hidden)

    def adapted(self, classes: int, keep_representation: bool) -> Head:
        return TanhHead(classes, self.hidden) if keep_representation else LinearHead(classes)


@dataclass(frozen=True)
class ProjectedHead(Head):
    """A linear layer before the last one, and nothing between them.

    The official code ends its ResNets so: the embedding of the patches stays where there is no Transformer. Embedding the
    mean of the map is the mean of the embedded map. It belongs to the network, so fine-tuning keeps it.
    """

    classes: int = 1000
    hidden: int = 768
    bias: float = 0.0

    def build(self, dim: int) -> HeadModule:
        hidden = nn.Linear(dim, self.hidden)
        lecun_normal_(hidden.weight, dim)
        nn.init.zeros_(hidden.bias)
        return HeadModule(nn.Sequential(hidden), self.hidden, self.classes, self.bias)

    def work(self, dim: int) -> Work:
        return Work((dim + self.classes) * self.hidden)

    def adapted(self, classes: int, keep_representation: bool) -> Head:
        return replace(self, classes=classes, bias=0.0)


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


HEADS: dict[str, type[Head]] = {"linear": LinearHead, "tanh": TanhHead, "projected": ProjectedHead}
