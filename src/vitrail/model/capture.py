"""Recording attention: the modules themselves compute what was asked, beside the fused path."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import nn

from vitrail.errors import UsageError, nearest
from vitrail.model.mixers import AttentionMap, AttentionModule, CaptureRequest

if TYPE_CHECKING:
    from vitrail.model.vit import ViT

Layer = int | str
"""The number of a layer of the encoder, negative from the end, or "pool", attention pooling."""


@runtime_checkable
class Recorder(Protocol):
    """Who is told each map as soon as it is computed: a list keeps them, others may reduce them at once."""

    def append(self, entry: AttentionMap, /) -> None: ...


class Capture:
    """`with model.capture("attention", layers=[-1], heads=None, queries=[0]) as tape: model(images)`.

    `tape` is a list of `AttentionMap`, one per layer and forward pass, in the order of computation, or the recorder
    that was given as `into`. Negative layers count from the end; `None` means all of the encoder; "pool" is the probe
    of attention pooling, whose one query looks after the last layer. Compiled models run eagerly while
    recording. Leaving the context stops the recording; a context in which nothing was recorded raises, so that an
    empty list never passes for a result.
    """

    def __init__(
        self,
        model: ViT,
        what: str = "attention",
        layers: Sequence[Layer] | None = None,
        heads: Sequence[int] | None = None,
        queries: Sequence[int] | None = None,
        into: Recorder | None = None,
    ) -> None:
        if what != "attention":
            raise UsageError("VT040", f"cannot capture {what!r}", nearest(what, ["attention"]))
        for name, asked in (("layers", layers), ("heads", heads), ("queries", queries)):
            _check_some(name, asked)
        _check_indices("heads", heads, model.config.size.heads)
        self.modules = attention_modules(model, layers)
        self.tape: Recorder = [] if into is None else into
        self.recorded = 0
        self._stance: AbstractContextManager[object] = nullcontext()
        count = model.config.size.heads
        self.request = CaptureRequest(
            self._record,
            None if heads is None else tuple(head % count for head in heads),
            None if queries is None else tuple(queries),
        )

    def _record(self, entry: AttentionMap) -> None:
        self.recorded += 1
        self.tape.append(entry)

    def __enter__(self) -> Any:
        if any(module.request is not None for module in self.modules):
            raise UsageError(
                "VT040", "these layers are being captured already", "one capture at a time", "leave the other one first"
            )
        # Where nothing was compiled the compiler is not loaded, and asking it would load it: 55 MiB and a second.
        loaded = "torch._dynamo" in sys.modules
        self._stance = torch.compiler.set_stance("force_eager") if loaded else nullcontext()
        self._stance.__enter__()
        for module in self.modules:
            module.request = self.request
        return self.tape

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        for module in self.modules:
            module.request = None
        self._stance.__exit__(kind, *rest)
        if kind is None and not self.recorded:
            raise UsageError("VT040", "nothing was captured: the model did not run inside the context", "model(images)")


def attention_modules(model: ViT, layers: Sequence[Layer] | None = None) -> list[AttentionModule]:
    """What attends in these layers, in their order; None means all of the encoder.

    Raises:
        UsageError: VT040 no such layer, VT041 none of them attends.
    """
    depth = len(model.blocks)
    numbers = list(range(depth)) if layers is None else [layer for layer in layers if isinstance(layer, int)]
    _check_indices("layers", numbers, depth)
    chosen: list[nn.Module] = [model.blocks[layer] for layer in sorted({layer % depth for layer in numbers})]
    if layers is not None and len(numbers) < len(layers):
        if {layer for layer in layers if not isinstance(layer, int)} != {"pool"}:
            raise UsageError("VT040", f"layers: {list(layers)}", "numbers of layers, or pool")
        chosen.append(model.pool)
    found = [module for part in chosen for module in part.modules() if isinstance(module, AttentionModule)]
    if not found:
        names = sorted({type(getattr(part, "mixer", part)).__name__ for part in chosen})
        raise UsageError(
            "VT041",
            f"these layers have no attention: they mix their tokens by {' and '.join(names)}",
            "layers that mix by attention",
            "there is nothing to record in this model; attention needs a model whose block.mixer is attention",
        )
    return found


def _check_indices(name: str, indices: Sequence[int] | None, count: int) -> None:
    for index in indices or ():
        if not -count <= index < count:
            raise UsageError(
                "VT040",
                f"{name}: there is no {index}, the model has {count}",
                f"{-count} to {count - 1}",
                "the first is 0, the last is -1",
            )


def _check_some(name: str, indices: Sequence[Layer] | None) -> None:
    if indices is not None and not len(indices):
        raise UsageError("VT040", f"{name}: none was asked for", "one or more", "leave it out for all of them")
