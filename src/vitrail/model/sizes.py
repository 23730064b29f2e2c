"""The sizes of the paper and its successors by name, and what a model costs."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from vitrail.errors import UsageError, nearest
from vitrail.model.heads import LinearHead
from vitrail.model.pools import AttentionPool, ClassToken
from vitrail.model.positions import Learned1D
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import Size, ViTConfig

# dim, depth, heads, hidden. Ti and S: DeiT and the official code; B L H: paper table 1; g G: arXiv 2106.04560 table 2.
SIZES = {
    "Ti": Size(192, 12, 3, 768),
    "S": Size(384, 12, 6, 1536),
    "B": Size(768, 12, 12, 3072),
    "L": Size(1024, 24, 16, 4096),
    "H": Size(1280, 32, 16, 5120),
    "g": Size(1408, 40, 16, 6144),
    "G": Size(1664, 48, 16, 8192),
}
# The two largest have no class token and a MAP head; their patch positions are added alone.
_MAP_SIZES = ("g", "G")

NAMES = tuple(
    f"ViT-{name}" for name in ("Ti/16", "S/32", "S/16", "B/32", "B/16", "B/8", "L/32", "L/16", "H/14", "g/14", "G/14")
)


def named(name: str, classes: int = 1000, image_size: tuple[int, int] = (224, 224), channels: int = 3) -> ViTConfig:
    """The configuration of a name such as "ViT-B/16": any size of the table with any patch.

    Raises:
        UsageError: the name is not of this form; the message gives the nearest names.
    """
    match = re.fullmatch(r"ViT-(\w+)/(\d{1,3})(?:x(\d{1,3}))?", name)
    if not match or match[1] not in SIZES or int(match[2]) < 1:
        raise UsageError("VT004", f"there is no model {name!r}", nearest(name, NAMES), "vitrail models")
    patch = int(match[2]), int(match[3] or match[2])
    return ViTConfig(
        size=SIZES[match[1]],
        tokenizer=LinearPatches(patch, channels),
        position=Learned1D(),
        pool=AttentionPool() if match[1] in _MAP_SIZES else ClassToken(),
        head=LinearHead(classes),
        image_size=image_size,
    )


@dataclass(frozen=True)
class Cost:
    """What one image costs, counted and not measured.

    Attributes:
        tokens: sequence length, class token and registers included.
        parameters: of the whole model, head included.
        flops: of one forward pass, two per multiply-add, matrix products only.
        activation_bytes: float32 values that training keeps for the backward pass, per image (fused attention).
    """

    tokens: int
    parameters: int
    flops: int
    activation_bytes: int


def cost(config: ViTConfig) -> Cost:
    """Counts a model without building it in memory."""
    import torch

    from vitrail.model.vit import ViT

    size, (rows, cols) = config.size, config.grid
    patches = rows * cols
    tokens = patches + config.pool.class_tokens + config.pool.registers
    with torch.device("meta"):
        parameters = ViT(config).num_parameters()
    patch_values = config.tokenizer.patch[0] * config.tokenizer.patch[1] * config.tokenizer.channels  # type: ignore[attr-defined]
    per_layer = tokens * (4 * size.dim**2 + 2 * size.dim * size.hidden) + 2 * tokens**2 * size.dim
    head = _head_products(config)
    products = patches * patch_values * size.dim + size.depth * per_layer + head
    # Kept per token and layer: two norm outputs, the fused q k v, the attention output, its projection and the residual
    # sum (dim each), and the MLP's hidden values before and after GELU.
    kept = tokens * (8 * size.dim + 2 * size.hidden) * size.depth + tokens * 2 * size.dim + patches * patch_values
    return Cost(tokens, parameters, 2 * products, 4 * kept)


def _head_products(config: ViTConfig) -> int:
    dim, hidden = config.size.dim, getattr(config.head, "hidden", None)
    products = dim * config.head.classes if hidden is None else dim * hidden + hidden * config.head.classes
    if isinstance(config.pool, AttentionPool):
        patches = config.grid[0] * config.grid[1]
        products += 2 * patches * dim**2 + 2 * dim**2 + 2 * patches * dim + 2 * dim * config.size.hidden
    return products


def with_classes(config: ViTConfig, classes: int) -> ViTConfig:
    """The same model with another number of classes."""
    return replace(config, head=replace(config.head, classes=classes))  # type: ignore[type-var]
