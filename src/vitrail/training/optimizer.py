"""Optimizers, and which parameters they decay."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from vitrail.configuration import require
from vitrail.errors import UsageError
from vitrail.training.rules import FactoredMoments, RoundedMomentum, SignMomentum

Named = tuple[str, nn.Parameter]


class Optimizer(ABC):
    """Axis: how gradients move the weights."""

    @abstractmethod
    def build(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        """PyTorch optimizers that together own every parameter that learns once.

        The schedule multiplies a group's `base_lr`; where it has none, the `lr` that it begins with.
        """


@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled decay of the matrices (Loshchilov & Hutter 2019).

    Attributes:
        head_decay: decay of the head's matrices, where it has one of its own (ViT-G, arXiv 2106.04560, section 3.1).
        decay_follows: a step takes away lr * factor * weight_decay of a weight ("rate"), or factor * weight_decay,
            whatever the learning rate ("schedule", as big_vision counts: its 1e-4 at lr 1e-3 is 0.1 here).
    """

    lr: float = 1e-3
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    head_decay: float | None = None
    decay_follows: Literal["rate", "schedule"] = "rate"

    def __post_init__(self) -> None:
        _check(self, ("lr", "weight_decay", "head_decay"))
        require(
            self.lr > 0 or self.decay_follows == "rate", "optimizer.lr", self.lr, "a positive number, for this decay"
        )

    def build(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        # PyTorch multiplies the decay by the rate; dividing by its base leaves the schedule's factor alone.
        unit = 1.0 if self.decay_follows == "rate" else 1 / self.lr
        head = None if self.head_decay is None else self.head_decay * unit
        groups = _decay_groups(model, self.weight_decay * unit, head)
        return _with_base([torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, fused=True)])


@dataclass(frozen=True)
class SGD(Optimizer):
    """SGD with momentum (fine-tuning, paper 4.1: momentum 0.9, no decay).

    Attributes:
        buffer: how the momentum is kept between steps; the official code rounds it to bfloat16, in half the bytes.
    """

    lr: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 0.0
    buffer: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        _check(self, ("lr", "weight_decay"))

    def build(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        rule: Any = torch.optim.SGD if self.buffer == "float32" else RoundedMomentum
        groups = _decay_groups(model, self.weight_decay)
        return _with_base([rule(groups, lr=self.lr, momentum=self.momentum)])


@dataclass(frozen=True)
class Lion(Optimizer):
    """The sign of the momentum (Chen et al. 2023): half of Adam's buffers; a smaller rate and a larger decay than Adam's."""

    lr: float = 1e-4
    weight_decay: float = 1.0
    betas: tuple[float, float] = (0.9, 0.99)

    def __post_init__(self) -> None:
        _check(self, ("lr", "weight_decay"))

    def build(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        return _with_base([SignMomentum(_decay_groups(model, self.weight_decay), self.lr, self.betas)])


@dataclass(frozen=True)
class Adafactor(Optimizer):
    """Adam in less than half of its memory, as ViT-G was trained: second moments in factors, the first in bfloat16."""

    lr: float = 8e-4
    weight_decay: float = 0.1
    momentum: float = 0.9
    head_decay: float | None = None

    def __post_init__(self) -> None:
        _check(self, ("lr", "weight_decay", "head_decay"))

    def build(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        groups = _decay_groups(model, self.weight_decay, self.head_decay)
        return _with_base([FactoredMoments(groups, self.lr, self.momentum)])


@dataclass(frozen=True)
class Muon(Optimizer):
    """Muon for the matrices of the encoder's blocks (torch.optim.Muon), AdamW for everything else.

    Everything else: the patch embedding, a stem's convolutions, norms, biases, positions, tokens and the head. A ResNet
    has no blocks, so that nothing would be Muon's: it is refused, and AdamW or SGD moves it. `weight_decay` is of Muon's
    matrices alone; what AdamW moves does not decay.

    In few epochs from scratch it is far ahead of AdamW: docs/log.md has the comparison.
    """

    lr: float = 0.02
    weight_decay: float = 0.05
    adam_lr: float = 2e-3
    adam_betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        _check(self, ("lr", "adam_lr", "weight_decay"))

    def build(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        hidden = [p for name, p in model.named_parameters() if _is_hidden(name, p)]
        if not hidden:
            raise UsageError(
                "VT003", f"optimizer is muon, and a {type(model).__name__} has no encoder blocks: its weights are convolutions",
                "adamw or sgd", "leave it out, or --set optimizer=adamw",
            )  # fmt: skip
        learning = _learning(model)
        mine = [p for name, p in learning if _is_hidden(name, p)]
        rest = [p for name, p in learning if not _is_hidden(name, p)]
        if not mine:
            raise UsageError("VT003", "optimizer is muon, and nothing that learns is a matrix of the encoder's blocks",
                             "adamw or sgd", "--set optimizer=adamw")  # fmt: skip
        optimizers: list[torch.optim.Optimizer] = [torch.optim.Muon(mine, lr=self.lr, weight_decay=self.weight_decay)]
        if rest:
            rule = torch.optim.AdamW(rest, lr=self.adam_lr, betas=self.adam_betas, weight_decay=0.0, fused=True)
            optimizers.append(rule)
        return _with_base(optimizers)


@dataclass(frozen=True)
class LayerDecay(Optimizer):
    """Another optimizer whose rate shrinks by `decay` with every layer towards the image (BEiT, arXiv 2106.08254, A.5).

    The head and the final norm have the whole rate, the last block decay times that, and so on down to the patches,
    positions and tokens. A decay that follows the rate shrinks with it.
    """

    optimizer: Optimizer = field(default_factory=AdamW)
    decay: float = 0.75

    def __post_init__(self) -> None:
        require(0 < self.decay <= 1, "optimizer.decay", self.decay, "more than 0, at most 1")

    def build(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        depth = len(getattr(model, "blocks", ()))
        if not depth:
            raise UsageError(
                "VT003", f"optimizer is layer-decay, and a {type(model).__name__} has no encoder blocks",
                "the optimizer alone", "--set optimizer=adamw",
            )  # fmt: skip
        scales = {p: self.decay ** (depth + 1 - _layer(name, depth)) for name, p in model.named_parameters()}
        optimizers = self.optimizer.build(model)
        # PyTorch multiplies the decay by the rate, which is smaller here: a decay that the rate does not change is made up for.
        apart = getattr(self.optimizer, "decay_follows", "rate") == "schedule"
        for optimizer in optimizers:
            optimizer.param_groups = [
                {
                    **group,
                    "params": members,
                    "lr": group["lr"] * scale,
                    "base_lr": group.get("base_lr", group["lr"]) * scale,
                    "weight_decay": group["weight_decay"] / (scale if apart else 1.0),
                }
                for group in optimizer.param_groups
                for scale, members in _divided(group["params"], scales.__getitem__)
            ]
        return optimizers


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "adamw": AdamW, "sgd": SGD, "muon": Muon, "lion": Lion, "adafactor": Adafactor, "layer-decay": LayerDecay
}  # fmt: skip


def _check(optimizer: Optimizer, names: tuple[str, ...]) -> None:
    for name in names:
        value, rate = getattr(optimizer, name), name.endswith("lr")
        good = value is None or ((value > 0 if rate else value >= 0) and value < math.inf)
        require(good, f"optimizer.{name}", value, "a positive number" if rate else "zero or a positive number")
    momentum = getattr(optimizer, "momentum", 0.0)
    require(0 <= momentum < 1, "optimizer.momentum", momentum, "0 to less than 1")
    for name in ("betas", "adam_betas"):
        value = getattr(optimizer, name, ())
        require(all(0 <= beta < 1 for beta in value), f"optimizer.{name}", value, "two numbers, 0 to less than 1")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Matrices and kernels decay; biases, norms, LayerScale, positions and learned tokens do not.

    Centres and widths of quadratic attention are positions too, though they lie in the blocks.
    """
    apart = name.startswith(("position.", "pool.class_token", "pool.registers", "pool.probe"))
    return parameter.ndim >= 2 and not apart and ".mixer.scores." not in name


def _learning(model: nn.Module) -> list[Named]:
    """What is not frozen.

    Raises:
        UsageError: VT003, that is nothing.
    """
    found = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not found:
        raise UsageError(
            "VT003", "no part of the model learns: all of it is frozen", "a part that learns, such as the head"
        )
    return found


def _is_hidden(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and name.startswith("blocks.") and decays(name, parameter)


def _decay_groups(model: nn.Module, weight_decay: float, head_decay: float | None = None) -> list[dict[str, Any]]:
    """What decays, what does not, and the head's matrices where they decay otherwise; only what learns."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    head: list[nn.Parameter] = []
    for name, parameter in _learning(model):
        own = head_decay is not None and name.startswith("head.")
        (plain if not decays(name, parameter) else head if own else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
        {"params": head, "weight_decay": head_decay},
    ]
    return [group for group in groups if group["params"]]


def _layer(name: str, depth: int) -> int:
    """0 for what makes the tokens, 1 to depth for the blocks, depth + 1 for what follows them."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return 0 if name.startswith(("tokenizer.", "position.", "pool.class_token", "pool.registers")) else depth + 1


def _divided(
    parameters: list[nn.Parameter], key: Callable[[nn.Parameter], float]
) -> list[tuple[float, list[nn.Parameter]]]:
    """Parameters by their key, the largest first, so that the log shows the whole rate."""
    keys = sorted({key(parameter) for parameter in parameters}, reverse=True)
    return [(value, [parameter for parameter in parameters if key(parameter) == value]) for value in keys]


def _with_base(optimizers: list[torch.optim.Optimizer]) -> list[torch.optim.Optimizer]:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers


def set_factor(optimizers: list[torch.optim.Optimizer], factor: float) -> float:
    """Scales every learning rate; returns the first one, for the log."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("base_lr", group["lr"]) * factor
    return optimizers[0].param_groups[0]["lr"]
