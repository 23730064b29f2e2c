"""LoRA: a matrix stays as it is, and a product of two thin ones is learned beside it (Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

from typing import cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vitrail.errors import UsageError

# Where in a block each matrix lies: module, which of its equal slices of rows, and of how many.
MATRICES: dict[str, tuple[str, int, int]] = {
    "query": ("mixer.query_key_value", 0, 3), "key": ("mixer.query_key_value", 1, 3),
    "value": ("mixer.query_key_value", 2, 3), "project": ("mixer.project", 0, 1),
    "expand": ("mlp.expand", 0, 1), "contract": ("mlp.contract", 0, 1),
}  # fmt: skip


class LowRank(nn.Module):
    """weight + scale * up down, on some of the equal slices of its rows; `up` begins with zeros.

    Args:
        weight: rows cols.
        slices: which of `count` slices learn.
    """

    def __init__(
        self, weight: Float[Tensor, "rows cols"], slices: tuple[int, ...], count: int, rank: int, scale: float
    ) -> None:
        super().__init__()
        self.slices, self.count, self.scale = slices, count, scale
        rows, cols = weight.shape
        self.down = nn.Parameter(weight.new_empty(len(slices), rank, cols))
        self.up = nn.Parameter(weight.new_zeros(len(slices), rows // count, rank))
        nn.init.normal_(self.down, std=cols**-0.5)

    def forward(self, weight: Float[Tensor, "rows cols"]) -> Float[Tensor, "rows cols"]:
        parts = list(rearrange(weight, "(part row) col -> part row col", part=self.count))
        for place, change in zip(self.slices, self.up @ self.down, strict=True):
            parts[place] = parts[place] + self.scale * change
        return torch.cat(parts)


def add_low_rank(model: nn.Module, matrices: tuple[str, ...], rank: int, scale: float) -> None:
    """Puts one on the named matrices of every block of a ViT, in place; the matrices themselves stop learning.

    Raises:
        UsageError: VT003, the model has no such matrices.
    """
    wanted: dict[str, tuple[tuple[int, ...], int]] = {}
    for name in matrices:
        place, part, count = MATRICES[name]
        wanted[place] = (*wanted.get(place, ((), count))[0], part), count
    blocks = getattr(model, "blocks", ())
    for block in blocks:
        for place, (slices, count) in wanted.items():
            try:
                linear = block.get_submodule(place)
            except AttributeError as error:
                raise UsageError(
                    "VT003",
                    f"the blocks of this model have no {place}",
                    f"matrices of attention or MLP: {', '.join(MATRICES)}",
                ) from error
            weight = cast(nn.Linear, linear).weight
            parametrize.register_parametrization(linear, "weight", LowRank(weight.data, slices, count, rank, scale))
            linear.parametrizations.weight.original.requires_grad_(False)
    if not len(blocks):
        raise UsageError("VT003", f"a {type(model).__name__} has no encoder blocks to adapt", "a Vision Transformer")


def merged(model: nn.Module) -> dict[str, Tensor]:
    """The model's state under its plain names, every adapted matrix as the one that it amounts to."""
    state = {name: tensor for name, tensor in model.state_dict().items() if ".parametrizations." not in f".{name}"}
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for tensor in cast(nn.ModuleDict, module.parametrizations):
                state[f"{name}.{tensor}".lstrip(".")] = getattr(module, tensor).detach()
    return state
