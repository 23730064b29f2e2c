"""What every weight format becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vitrail.model.backbone import BackboneConfig, Model
from vitrail.preprocessing import Preprocessing

if TYPE_CHECKING:
    from vitrail.checkpoints.listing import Listing


COLDEST, HOTTEST = 0.01, 100.0  # temperatures; beyond them a fit has found nothing

_FILLING = {
    torch.nn.init.kaiming_uniform_, torch.nn.init.uniform_, torch.nn.init.normal_, torch.nn.init.constant_,
    Tensor.mul, Tensor.__mul__, Tensor.__rmul__, Tensor.uniform_, Tensor.normal_, Tensor.zero_, Tensor.fill_,
}  # fmt: skip


class Unfilled(TorchFunctionMode):
    """Skips initial values on "meta", where there are none: some of them would load the compiler, for 1.5 seconds."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = args[0] if args else (kwargs or {}).get("tensor")
        if function in _FILLING and isinstance(first, Tensor) and first.is_meta:
            return first
        return (torch.empty if function is torch.randn else function)(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Checkpoint(Generic[Model]):
    """A model with all that belongs to it.

    Attributes:
        weights: the model's state by name.
        classes: one name per logit.
        multi_label: several classes may be true at once.
        provenance: where the weights come from and what was assumed about them, for people.
        temperature: what logits are divided by before they become probabilities (evaluation/temperature.py).
        spare: an unfilled module, made when the names were compared, for the first `build` of the same configuration.
    """

    config: BackboneConfig[Model]
    weights: Mapping[str, Tensor]
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    multi_label: bool = False
    provenance: Mapping[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    spare: list[Model] = field(default_factory=list, repr=False, compare=False)

    def build(self) -> Model:
        """The module with these weights, in evaluation mode."""
        try:
            model = self.spare.pop()
        except IndexError:
            model = unfilled(self.config)
        if model.config != self.config:  # changed since it was read
            model = unfilled(self.config)
        model.load_state_dict(dict(self.weights), strict=True, assign=True)
        for module in model.modules():  # buffers that are computed and not stored stay behind on "meta"
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_meta:
                    module.register_buffer(name, torch.empty_like(buffer, device="cpu"), persistent=False)
        return model.requires_grad_(True).eval()


class Format(Protocol):
    """One weight format; a module of this folder.

    Attributes:
        CONTAINERS: what it is written as, the default first: ".npz", ".safetensors", or "" for a folder.
    """

    NAME: str
    CONTAINERS: tuple[str, ...]

    def recognises(self, found: Listing) -> bool:
        """Whether the arrays are of this format, judged by names, shapes and configuration alone; no other says so too."""

    def to_native(self, found: Listing, image_size: tuple[int, int] | None = None) -> Checkpoint:
        """Reads strictly; `image_size` (height, width) is used where the file's own cannot be told."""

    def obstacles(self, config: BackboneConfig[Any]) -> list[str]:
        """What of a model the format has no place for; nothing where it can hold it."""

    def from_native(self, checkpoint: Checkpoint, path: Path) -> None:
        """Writes, or refuses with the reason where the format cannot hold the model."""


def unfilled(config: BackboneConfig[Model]) -> Model:
    """The module without numbers: names and shapes of all arrays, and no memory."""
    with torch.device("meta"), Unfilled():
        return config.build()
