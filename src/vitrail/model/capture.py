"""Recording attention: the modules themselves compute what was asked, beside the fused path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from vitrail.errors import UsageError, nearest
from vitrail.model.mixers import AttentionMap, CaptureRequest, MultiHeadAttention

if TYPE_CHECKING:
    from vitrail.model.vit import ViT


class Capture:
    """`with model.capture("attention", layers=[-1], heads=None, queries=[0]) as tape: model(images)`.

    `tape` is a list of `AttentionMap`, one per layer and forward pass, in the order of computation. Negative layers
    count from the end; `None` means all. Compiled models run eagerly while recording. Leaving the context stops the
    recording; a context in which nothing was recorded raises, so that an empty list never passes for a result.
    """

    def __init__(
        self,
        model: ViT,
        what: str = "attention",
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        queries: Sequence[int] | None = None,
    ) -> None:
        if what != "attention":
            raise UsageError("VT040", f"cannot capture {what!r}", nearest(what, ["attention"]))
        depth = len(model.blocks)
        _check_indices("layers", layers, depth)
        _check_indices("heads", heads, model.config.size.heads)
        chosen = range(depth) if layers is None else sorted({layer % depth for layer in layers})
        self.modules = [
            module
            for layer in chosen
            for module in model.blocks[layer].modules()
            if isinstance(module, MultiHeadAttention)
        ]
        if not self.modules:
            raise UsageError("VT040", "these layers have no attention to capture", "layers that mix by attention")
        self.tape: list[AttentionMap] = []
        count = model.config.size.heads
        self.request = CaptureRequest(
            self.tape,
            None if heads is None else tuple(head % count for head in heads),
            None if queries is None else tuple(queries),
        )

    def __enter__(self) -> list[AttentionMap]:
        self._stance = torch.compiler.set_stance("force_eager")
        self._stance.__enter__()
        for module in self.modules:
            module.request = self.request
        return self.tape

    def __exit__(self, kind: type | None, *rest: object) -> None:
        for module in self.modules:
            module.request = None
        self._stance.__exit__(kind, *rest)
        if kind is None and not self.tape:
            raise UsageError("VT040", "nothing was captured: the model did not run inside the context", "model(images)")


def _check_indices(name: str, indices: Sequence[int] | None, count: int) -> None:
    for index in indices or ():
        if not -count <= index < count:
            raise UsageError("VT040", f"{name}: there is no {index}", f"{-count} to {count - 1}")
