"""Heads left out: what they say is zero, exactly, before the heads of their layer are read together."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch

from vitrail.errors import UsageError
from vitrail.model.capture import Layer, attention_modules
from vitrail.model.mixers import AttentionModule

if TYPE_CHECKING:
    from vitrail.model.vit import ViT


@contextmanager
def without_heads(model: ViT, heads: Mapping[Layer, Sequence[int]]) -> Iterator[None]:
    """`with without_heads(model, {3: [0, 5], "pool": [1]}): model(images)`.

    The attention modules themselves leave the heads out, value biases included, and no weight is touched: the answer is
    that of a model whose projection reads nothing from these heads. Compiled models run eagerly meanwhile.

    Args:
        heads: which of each layer; negative ones count from the end, "pool" is attention pooling.

    Raises:
        UsageError: VT040 no such layer or head, or heads are left out already; VT041 a layer without attention.
    """
    closed: dict[AttentionModule, torch.Tensor] = {}
    for layer, chosen in heads.items():
        for module in attention_modules(model, [layer]):
            gates = closed.setdefault(module, torch.ones(module.heads, device=next(module.parameters()).device))
            for head in chosen:
                if not -module.heads <= head < module.heads:
                    raise UsageError(
                        "VT040", f"heads: there is no {head}, the layer has {module.heads}",
                        f"{-module.heads} to {module.heads - 1}", "the first is 0, the last is -1",
                    )  # fmt: skip
                gates[head] = 0
            if module.gates is not None:
                raise UsageError("VT040", "heads of this layer are left out already", "one at a time")
    loaded = "torch._dynamo" in sys.modules  # as in Capture: asking for the compiler would load it
    with torch.compiler.set_stance("force_eager") if loaded else nullcontext():
        for module, gates in closed.items():
            module.gates = gates
        try:
            yield
        finally:
            for module in closed:
                module.gates = None
