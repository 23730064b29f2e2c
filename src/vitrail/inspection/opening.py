"""The module and the preprocessing inside what a user holds."""

from __future__ import annotations

from typing import Any

from vitrail.errors import UsageError
from vitrail.model.backbone import Backbone
from vitrail.preprocessing import Preprocessing


def opened(model: Any) -> tuple[Backbone, Preprocessing]:
    """The module, also out of `torch.compile`, and its preprocessing.

    Raises:
        UsageError: VT043, there is nothing to look into.
    """
    module = getattr(model, "module", None)
    module = getattr(module, "_orig_mod", module)
    preprocessing = getattr(model, "preprocessing", None)
    if not isinstance(module, Backbone) or not isinstance(preprocessing, Preprocessing):
        name = type(model).__name__
        raise UsageError(
            "VT043", f"attention cannot be read from a {name}", "what vitrail.load gives: a ViT with its preprocessing",
            "an exported or scripted model has no attention left to read: load the checkpoint that it came from",
        )  # fmt: skip
    return module, preprocessing
