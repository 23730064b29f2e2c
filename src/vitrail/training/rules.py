"""Rules of update that PyTorch does not have, as its optimizers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

Groups = Iterable[dict[str, Any]]


class RoundedMomentum(torch.optim.Optimizer):
    """SGD with momentum whose buffer is kept in bfloat16, half the bytes (official fine-tuning, big_vision's momentum_hp).

    buffer = gradient + momentum * buffer;  parameter -= lr * buffer;  and only then is the buffer rounded. JAX multiplies a
    bfloat16 array by a number in bfloat16, so that a momentum of 0.9 is 0.8984375 there, and here. Where a group has a
    `weight_decay`, weight_decay * parameter is added to the gradient, as torch.optim.SGD does.
    """

    def __init__(self, groups: Groups, lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            momentum = torch.tensor(group["momentum"], dtype=torch.bfloat16).item()
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                buffer = parameter.grad.float()
                if group["weight_decay"]:
                    buffer = buffer.add(parameter, alpha=group["weight_decay"])
                if "momentum_buffer" in (state := self.state[parameter]):
                    buffer = buffer.add(state["momentum_buffer"].float(), alpha=momentum)
                parameter.sub_(buffer, alpha=group["lr"])
                state["momentum_buffer"] = buffer.bfloat16()


class SignMomentum(torch.optim.Optimizer):
    """Lion (Chen et al. 2023, arXiv 2302.06675, program 1): only the sign of a blend of momentum and gradient moves.

    parameter -= lr * (sign(beta1 * m + (1 - beta1) * gradient) + weight_decay * parameter)
    m = beta2 * m + (1 - beta2) * gradient
    """

    def __init__(self, groups: Groups, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state: dict[str, Tensor] = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"]
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(torch.lerp(parameter.grad, momentum, first).sign_(), alpha=group["lr"])
                momentum.lerp_(parameter.grad, 1 - second)


class FactoredMoments(torch.optim.Optimizer):
    """big_vision's Adafactor ("Scaling Vision Transformers", arXiv 2106.04560): a matrix's second moments from two vectors.

    v = beta v + (1 - beta) (gradient^2 + 1e-30), beta = min(0.999, 1 - t^-0.8) for update t; of a matrix whose sides are
    at least 32 only the means r of its rows and c of its columns are kept, and v_ij = r_i c_j / mean(r).
    m = momentum m + (1 - momentum) gradient / sqrt(v);  parameter -= lr * (m + weight_decay * parameter)
    m is kept in bfloat16, as by `RoundedMomentum`. Adam keeps two arrays of a matrix's size in float32.
    """

    def __init__(self, groups: Groups, lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            rounded = torch.tensor(group["momentum"], dtype=torch.bfloat16).item()
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                state["step"] = state.get("step", torch.zeros(())) + 1
                beta = min(0.999, 1 - float(state["step"]) ** -0.8)
                update = parameter.grad * _moments(state, parameter.grad.square() + 1e-30, beta).rsqrt()
                update = update * (1 - group["momentum"])
                if "momentum" in state:
                    update = update.add(state["momentum"].float(), alpha=rounded)
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])
                state["momentum"] = update.bfloat16()


def _moments(state: dict[str, Tensor], squares: Tensor, beta: float) -> Tensor:
    """Moves the averages on, and gives the second moment of every weight."""
    matrix = squares.ndim == 2 and min(squares.shape) >= 32
    means = {"rows": squares.mean(dim=1), "cols": squares.mean(dim=0)} if matrix else {"squares": squares}
    for name, mean in means.items():
        state[name] = torch.lerp(mean, state.get(name, torch.zeros_like(mean)), beta)
    if not matrix:
        return state["squares"]
    return torch.outer(state["rows"] / state["rows"].mean(), state["cols"])
