"""Vitrail: the whole life of the Vision Transformer. Names are loaded when first used, so that importing is quick."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "load": "vitrail.deployment.loading",
    "save": "vitrail.checkpoints.loading",
    "adapt": "vitrail.checkpoints.adapt",
    "embed": "vitrail.deployment.embeddings",
    "search": "vitrail.deployment.embeddings",
    "explain": "vitrail.inspection.explanation",
    "train": "vitrail.recipes.execute",
    "ViT": "vitrail.model.vit",
    "ViTConfig": "vitrail.model.vit",
    "VitrailError": "vitrail.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vitrail' has no attribute {name!r}; it has: {', '.join(sorted(_HOMES))}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*_HOMES, "__version__"])
