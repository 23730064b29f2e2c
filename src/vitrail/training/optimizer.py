"""Optimizers, and which parameters they decay."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from vitrail.configuration import require
from vitrail.errors import UsageError

Named = tuple[str, nn.Parameter]


class Optimizer(ABC):
    """Axis: how gradients move the weights."""

    @abstractmethod
    def build(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        """PyTorch optimizers that together own every parameter once; each group has a `base_lr`."""


@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled decay of the matrices (Loshchilov & Hutter 2019)."""

    lr: float = 1e-3
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        _check(self, ("lr", "weight_decay"))

    def build(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        groups = _decay_groups(model.named_parameters(), self.weight_decay)
        return _with_base([torch.optim.AdamW(groups, lr=self.lr, betas=self.betas)])


@dataclass(frozen=True)
class SGD(Optimizer):
    """SGD with momentum (fine-tuning, paper 4.1: momentum 0.9, no decay)."""

    lr: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check(self, ("lr", "momentum", "weight_decay"))

    def build(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        groups = _decay_groups(model.named_parameters(), self.weight_decay)
        return _with_base([torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum)])


@dataclass(frozen=True)
class Muon(Optimizer):
    """Muon for the matrices of the encoder's blocks (torch.optim.Muon), AdamW for everything else.

    Everything else: the patch embedding, a stem's convolutions, norms, biases, positions, tokens and the head. A ResNet
    has no blocks, so that nothing would be Muon's: it is refused, and AdamW or SGD moves it.

    In few epochs from scratch it is far ahead of AdamW: docs/log.md has the comparison.
    """

    lr: float = 0.02
    weight_decay: float = 0.05
    adam_lr: float = 2e-3
    adam_betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        _check(self, ("lr", "adam_lr", "weight_decay"))

    def build(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        named = list(model.named_parameters())
        hidden = [p for name, p in named if p.ndim == 2 and name.startswith("blocks.") and decays(name, p)]
        if not hidden:
            raise UsageError(
                "VT003", f"optimizer is muon, and a {type(model).__name__} has no encoder blocks: its weights are convolutions",
                "adamw or sgd", "leave it out, or --set optimizer=adamw",
            )  # fmt: skip
        owned = set(map(id, hidden))
        rest = [p for _, p in named if id(p) not in owned]
        muon = torch.optim.Muon(hidden, lr=self.lr, weight_decay=self.weight_decay)
        return _with_base([muon, torch.optim.AdamW(rest, lr=self.adam_lr, betas=self.adam_betas, weight_decay=0.0)])


OPTIMIZERS: dict[str, type[Optimizer]] = {"adamw": AdamW, "sgd": SGD, "muon": Muon}


def _check(optimizer: Optimizer, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(optimizer, name)
        require(0 <= value < math.inf, f"optimizer.{name}", value, "zero or a positive number")
    for name in ("betas", "adam_betas"):
        value = getattr(optimizer, name, ())
        require(all(0 <= beta < 1 for beta in value), f"optimizer.{name}", value, "two numbers, 0 to less than 1")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Matrices and kernels decay; biases, norms, LayerScale, positions and learned tokens do not.

    Centres and widths of quadratic attention are positions too, though they lie in the blocks.
    """
    apart = name.startswith(("position.", "pool.class_token", "pool.registers", "pool.probe"))
    return parameter.ndim >= 2 and not apart and ".mixer.scores." not in name


def _decay_groups(named: Iterable[Named], weight_decay: float) -> list[dict[str, object]]:
    parameters = list(named)
    decayed = [p for name, p in parameters if decays(name, p)]
    plain = [p for name, p in parameters if not decays(name, p)]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def _with_base(optimizers: list[torch.optim.Optimizer]) -> list[torch.optim.Optimizer]:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers


def set_factor(optimizers: list[torch.optim.Optimizer], factor: float) -> float:
    """Scales every learning rate; returns the first one, for the log."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
    return optimizers[0].param_groups[0]["lr"]
