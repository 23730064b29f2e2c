"""One vector per image to logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.errors import UsageError
from vitrail.model.initialisation import lecun_normal_
from vitrail.model.work import Work


class Head(ABC):
    """Axis: how the pooled vector becomes logits.

    Attributes:
        classes: how many logits; 0 where the answer is a vector of features.
    """

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
        return LinearModule(nn.Identity(), dim, self.classes, self.bias)

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
        return LinearModule(nn.Sequential(hidden, nn.Tanh()), self.hidden, self.classes, self.bias)

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
        return LinearModule(nn.Sequential(hidden), self.hidden, self.classes, self.bias)

    def work(self, dim: int) -> Work:
        return Work((dim + self.classes) * self.hidden)

    def adapted(self, classes: int, keep_representation: bool) -> Head:
        return replace(self, classes=classes, bias=0.0)


@dataclass(frozen=True)
class TwoHeads(Head):
    """A layer for the class token and one for the distillation token, whose logits are averaged (DeiT, arXiv 2012.12877)."""

    classes: int = 1000

    def build(self, dim: int) -> HeadModule:
        return TwoLinears(dim, self.classes)

    def work(self, dim: int) -> Work:
        return Work(dim * self.classes)

    def adapted(self, classes: int, keep_representation: bool) -> Head:
        return TwoHeads(classes)


@dataclass(frozen=True)
class Features(Head):
    """No classes: the pooled vector itself, or a map of it.

    Attributes:
        width: of that map's result; None for the pooled vector.
        tanh: a linear map with bias and tanh (what Hugging Face's ViT calls its pooler) instead of one without bias
            (CLIP's embedding of an image).
    """

    width: int | None = None
    tanh: bool = False

    @property
    def classes(self) -> int:  # type: ignore[override]  # fixed, and so no field
        return 0

    def build(self, dim: int) -> HeadModule:
        if self.width is None:
            return FeatureModule(nn.Identity())
        layer = nn.Linear(dim, self.width, bias=self.tanh)
        return FeatureModule(nn.Sequential(layer, nn.Tanh()) if self.tanh else layer)

    def work(self, dim: int) -> Work:
        return Work(dim * (self.width or 0))

    def adapted(self, classes: int, keep_representation: bool) -> Head:
        return LinearHead(classes)


class HeadModule(nn.Module, ABC):
    """`represent` gives what few-shot evaluation reads (pre-logits); `parts` gives every logit."""

    represent: nn.Module

    @abstractmethod
    def parts(self, pooled: Float[Tensor, "batch dim"]) -> tuple[Float[Tensor, "batch classes"], ...]:
        """What each layer says; most heads have one."""

    def forward(self, pooled: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch classes"]:
        """The mean of the parts."""
        parts = self.parts(pooled)
        return parts[0] if len(parts) == 1 else torch.stack(parts).mean(dim=0)


class LinearModule(HeadModule):
    def __init__(self, represent: nn.Module, dim: int, classes: int, bias: float) -> None:
        super().__init__()
        self.represent = represent
        self.linear = _zeros(dim, classes, bias)

    def parts(self, pooled: Float[Tensor, "batch dim"]) -> tuple[Float[Tensor, "batch classes"], ...]:
        return (self.linear(self.represent(pooled)),)


class TwoLinears(HeadModule):
    """Reads the class token's and the distillation token's vectors, one behind the other."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        if dim % 2:
            raise UsageError("VT003", f"two heads for one vector of {dim}", "a pool that gives two: distilled-token")
        self.represent = nn.Identity()
        self.linear, self.distilled = _zeros(dim // 2, classes, 0.0), _zeros(dim // 2, classes, 0.0)

    def parts(self, pooled: Float[Tensor, "batch dim"]) -> tuple[Float[Tensor, "batch classes"], ...]:
        first, second = pooled.chunk(2, dim=-1)
        return self.linear(first), self.distilled(second)


class FeatureModule(HeadModule):
    def __init__(self, represent: nn.Module) -> None:
        super().__init__()
        self.represent = represent

    def parts(self, pooled: Float[Tensor, "batch dim"]) -> tuple[Float[Tensor, "batch features"], ...]:
        return (self.represent(pooled),)


def _zeros(dim: int, classes: int, bias: float) -> nn.Linear:
    linear = nn.Linear(dim, classes)
    nn.init.zeros_(linear.weight)
    nn.init.constant_(linear.bias, bias)
    return linear


HEADS: dict[str, type[Head]] = {
    "linear": LinearHead, "tanh": TanhHead, "projected": ProjectedHead, "two-linear": TwoHeads, "features": Features
}  # fmt: skip
