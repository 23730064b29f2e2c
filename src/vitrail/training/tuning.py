"""What of a model learns: all, the head, all but some parts, or thin matrices beside the large ones."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import nn

from vitrail.configuration import require
from vitrail.errors import UsageError, nearest
from vitrail.model.low_rank import MATRICES, add_low_rank


class Tuning(ABC):
    """Axis: what of a model learns."""

    @abstractmethod
    def prepare(self, model: nn.Module, seed: int) -> None:
        """Freezes, or adds what learns, in place, before optimizers and objective are built."""


@dataclass(frozen=True)
class Everything(Tuning):
    """All of it."""

    def prepare(self, model: nn.Module, seed: int) -> None:
        return


@dataclass(frozen=True)
class HeadOnly(Tuning):
    """Linear probing: the head learns, on features that stay as they are."""

    def prepare(self, model: nn.Module, seed: int) -> None:
        _head_learns(model)


@dataclass(frozen=True)
class Frozen(Tuning):
    """Some parts stay as they are.

    Attributes:
        parts: beginnings of the names of parameters: "tokenizer", "position", "blocks.3.mlp".
        layers: and the first so many blocks with all that makes their tokens, so that nothing need be computed backwards.
    """

    parts: tuple[str, ...] = ()
    layers: int = 0

    def __post_init__(self) -> None:
        require(self.layers >= 0, "tuning.layers", self.layers, "0 or more")

    def prepare(self, model: nn.Module, seed: int) -> None:
        depth = len(getattr(model, "blocks", ()))
        require(self.layers <= depth, "tuning.layers", self.layers, f"at most {depth}, the number of blocks")
        stems = ("tokenizer", "position", "pool.class_token", "pool.registers") if self.layers else ()
        names = [name for name, _ in model.named_parameters()]
        if unknown := [part for part in self.parts if not any(_below(name, part) for name in names)]:
            known = sorted({".".join(name.split(".")[:depth]) for name in names for depth in (1, 2, 3)})
            raise UsageError(
                "VT003", f"tuning.parts: no parameter's name begins with {unknown[0]}", nearest(unknown[0], known)
            )
        for name, parameter in model.named_parameters():
            early = any(_below(name, f"blocks.{layer}") for layer in range(self.layers))
            if early or any(_below(name, part) for part in (*self.parts, *stems)):
                parameter.requires_grad_(False)


@dataclass(frozen=True)
class LoRA(Tuning):
    """The head learns, and products of thin matrices beside the blocks' (Hu et al. 2021); what is saved is merged.

    Attributes:
        matrices: which of query, key, value, project, expand, contract.
        rank: of the product; `alpha` / rank is what it is multiplied by.
    """

    matrices: tuple[str, ...] = ("query", "value")
    rank: int = 8
    alpha: float = 16.0

    def __post_init__(self) -> None:
        require(bool(self.matrices) and len(set(self.matrices)) == len(self.matrices) and set(self.matrices) <= set(MATRICES),
                "tuning.matrices", self.matrices, f"some of {', '.join(MATRICES)}")  # fmt: skip
        require(self.rank > 0, "tuning.rank", self.rank, "at least 1")
        require(0 < self.alpha < math.inf, "tuning.alpha", self.alpha, "a positive number")

    def prepare(self, model: nn.Module, seed: int) -> None:
        _head_learns(model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            add_low_rank(model, self.matrices, self.rank, self.alpha / self.rank)


def _head_learns(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_below(name, "head"))


def _below(name: str, part: str) -> bool:
    return f"{name}.".startswith(f"{part}.")


TUNINGS: dict[str, type[Tuning]] = {"everything": Everything, "head-only": HeadOnly, "frozen": Frozen, "lora": LoRA}
