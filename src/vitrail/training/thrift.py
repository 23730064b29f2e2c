"""What makes a step cheaper: activations computed again instead of kept, patches left out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vitrail.configuration import require
from vitrail.errors import UsageError
from vitrail.model.tokenizers import Tokens


@dataclass(frozen=True)
class Thrift:
    """Both act in training alone, on the model that learns; neither is a part of what is saved.

    Attributes:
        recompute: of every encoder block only the input is kept, and its inside is computed again for the gradient
            (Chen et al. 2016, arXiv 1604.06174): less memory, about a third more time, the same bits.
        patch_dropout: this share of the patches, others of every image, is left out after the patches are embedded and
            before their positions are added (Liu et al. 2022, arXiv 2208.07220): less of both, and a regulariser.
    """

    recompute: bool = False
    patch_dropout: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.patch_dropout < 1, "thrift.patch_dropout", self.patch_dropout, "0 to less than 1")

    def prepare(self, model: nn.Module) -> None:
        """Changes how `model` computes, in place.

        Raises:
            UsageError: VT003, the model has no encoder blocks.
        """
        if self == Thrift():
            return
        blocks = getattr(model, "blocks", None)
        if not isinstance(blocks, nn.ModuleList):
            raise UsageError("VT003", f"a {type(model).__name__} has no encoder blocks to save at", "a Vision Transformer",
                             "leave out --set thrift")  # fmt: skip
        if self.patch_dropout:
            model.get_submodule("tokenizer").register_forward_hook(partial(_left_out, self.patch_dropout))
        for block in blocks if self.recompute else ():
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def _left_out(share: float, tokenizer: nn.Module, _: Any, tokens: Tokens) -> Tokens:
    if not tokenizer.training:
        return tokens
    batch, count, dim = tokens.values.shape
    kept = max(1, round(count * (1 - share)))
    order = torch.rand(batch, count, device=tokens.values.device).argsort(dim=1)[:, :kept]
    places = order.sort(dim=1).values
    values = tokens.values.gather(1, places[:, :, None].expand(-1, -1, dim))
    return replace(tokens, values=values, kept=places)
