"""The sizes of the paper and its successors by name, and what a model costs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from vitrail.errors import UsageError, nearest
from vitrail.model.backbone import BackboneConfig
from vitrail.model.block import MLP, Block, Norm
from vitrail.model.heads import LinearHead
from vitrail.model.mixers import QuadraticAttention, TokenMLP
from vitrail.model.pools import AttentionPool, ClassToken, GlobalAverage
from vitrail.model.positions import Learned1D, NoPosition
from vitrail.model.resnet import ResNetConfig
from vitrail.model.tokenizers import ConvolutionalStem, LinearPatches
from vitrail.model.trunks import PostActivation, PreActivation
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

# Residual units of the stages of a ResNet of so many layers (arXiv 1603.05027; 26 and 200: official code and BiT).
STAGES = {
    "R26": (2, 2, 2, 2),
    "R50": (3, 4, 6, 3),
    "R101": (3, 4, 23, 3),
    "R152": (3, 8, 36, 3),
    "R200": (3, 24, 36, 3),
}
# A sequence four times as long: the last stage's units join the third's (paper 3.1, "Model variants").
_LONGER = (3, 4, 9)
# size, stages of the trunk, pixels per token. R+ViT-Ti/16 is called /16, but its root of stride 4 is cut into 8x8.
HYBRIDS: dict[str, tuple[str, tuple[int, ...], int]] = {
    "R+ViT-Ti/16": ("Ti", (), 32),
    "R26+ViT-S/32": ("S", STAGES["R26"], 32),
    "R26+ViT-B/32": ("B", STAGES["R26"], 32),
    "R50+ViT-B/32": ("B", STAGES["R50"], 32),
    "R50+ViT-B/16": ("B", _LONGER, 16),
    "R50+ViT-L/32": ("L", STAGES["R50"], 32),
    "R50+ViT-L/16": ("L", _LONGER, 16),
}
# MLP-Mixer (arXiv 2105.01601, table 1): size, hidden width along the tokens. One head stands for none.
MIXERS = {
    "S": (Size(512, 8, 1, 2048), 256),
    "B": (Size(768, 12, 1, 3072), 384),
    "L": (Size(1024, 24, 1, 4096), 512),
    "H": (Size(1280, 32, 1, 5120), 640),
}

# The network of arXiv 1911.03584 with quadratic relative attention: patches of 2x2 pixels, nine heads of full width.
# From the paper and its code (epfml/attention-cnn): sizes, patches, mean and linear head, dropout, GELU and epsilon. Theirs
# norms after each residual as BERT does; ours norms before, as all of ours, and once at the end.
QUADRATIC = {
    "Cordonnier": (Size(400, 6, 9, 512), (2, 2), Block(QuadraticAttention(), MLP("erf"), Norm(1e-12), dropout=0.1))
}

VITS = ("Ti/16", "S/32", "S/16", "B/32", "B/16", "B/8", "L/32", "L/16", "H/14", "g/14", "G/14")
NAMES = (
    *(f"ViT-{name}" for name in VITS),
    *HYBRIDS,
    *(f"Mixer-{name}" for name in ("S/32", "S/16", "B/32", "B/16", "L/32", "L/16", "H/14")),
    *QUADRATIC,
)
RESNETS = ("R50x1", "R50x2", "R50x3", "R101x1", "R101x3", "R152x1", "R152x2", "R152x4", "R200x3")


def named(name: str, classes: int = 1000, image_size: tuple[int, int] = (224, 224), channels: int = 3) -> ViTConfig:
    """A ViT, hybrid or Mixer: "ViT-B/16", any size of the table with any patch; "R50+ViT-B/16"; "Cordonnier".

    Raises:
        UsageError: the name is not of this form; the message gives the nearest names.
    """
    head = LinearHead(classes)
    if name in HYBRIDS:
        letter, stages, side = HYBRIDS[name]
        stem = ConvolutionalStem((side, side), channels, PostActivation(stages))
        return ViTConfig(SIZES[letter], stem, head=head, image_size=image_size)
    if name in QUADRATIC:
        size, patch, block = QUADRATIC[name]
        return ViTConfig(size, LinearPatches(patch, channels), NoPosition(), block, GlobalAverage(), head, image_size)
    match = re.fullmatch(r"(ViT|Mixer)-(\w+)/(\d{1,3})(?:x(\d{1,3}))?", name)
    if (
        not match
        or match[2] not in (SIZES if match[1] == "ViT" else MIXERS)
        or 0 in (int(match[3]), int(match[4] or 1))
    ):
        raise UsageError("VT004", f"there is no model {name!r}", nearest(name, (*NAMES, *RESNETS)), "vitrail models")
    tokenizer = LinearPatches((int(match[3]), int(match[4] or match[3])), channels)
    if match[1] == "Mixer":
        size, along = MIXERS[match[2]]
        block = Block(mixer=TokenMLP(along))
        return ViTConfig(size, tokenizer, NoPosition(), block, GlobalAverage(), head, image_size)
    pool = AttentionPool() if match[2] in _MAP_SIZES else ClassToken()
    return ViTConfig(SIZES[match[2]], tokenizer, Learned1D(), pool=pool, head=head, image_size=image_size)


def resnet(name: str, classes: int = 1000, image_size: tuple[int, int] = (224, 224), channels: int = 3) -> ResNetConfig:
    """The configuration of a BiT ResNet: "R50x1", any depth of the table with any width factor.

    Raises:
        UsageError: the name is not of this form; the message gives the nearest names.
    """
    match = re.fullmatch(r"(R\d+)x([1-9]\d?)", name)
    if not match or match[1] not in STAGES:
        raise UsageError("VT004", f"there is no model {name!r}", nearest(name, (*NAMES, *RESNETS)), "vitrail models")
    return ResNetConfig(PreActivation(STAGES[match[1]], 64 * int(match[2])), LinearHead(classes), image_size, channels)


def backbone(
    name: str, classes: int = 1000, image_size: tuple[int, int] = (224, 224), channels: int = 3
) -> ViTConfig | ResNetConfig:
    """The configuration of any name, "ViT-B/16" or "R50x1".

    Raises:
        UsageError: there is no such name; the message gives the nearest ones.
    """
    is_resnet = re.fullmatch(r"R\d+x\d+", name) is not None
    return (resnet if is_resnet else named)(name, classes, image_size, channels)


def smaller(config: BackboneConfig[Any]) -> Iterator[tuple[str, BackboneConfig[Any]]]:
    """The names of the same kind and patch that compute less, the largest first, for the same images and classes."""
    down, across = config.stride
    if max(down, across) > 999:  # no name has more digits
        return
    patch = f"{down}" if down == across else f"{down}x{across}"
    names = (
        *(f"ViT-{size}/{patch}" for size in SIZES),
        *(f"Mixer-{size}/{patch}" for size in MIXERS),
        *HYBRIDS,
        *QUADRATIC,
        *RESNETS,
    )
    known = {name: backbone(name, config.head.classes, config.image_size, config.channels) for name in names}
    alike = {name: other for name, other in known.items() if _kind(other) == _kind(config)}
    for name, other in sorted(alike.items(), key=lambda pair: -pair[1].work.products):
        if other.work.products < config.work.products:
            yield name, other


def _kind(config: BackboneConfig[Any]) -> tuple[Any, ...]:
    parts = (config.tokenizer, config.block.mixer) if isinstance(config, ViTConfig) else ()
    return type(config), config.stride, *map(type, parts)


@dataclass(frozen=True)
class Cost:
    """What one image costs, counted and not measured.

    Attributes:
        tokens: sequence length, class token and registers included; of a ResNet, the places of its last map.
        parameters: of the whole model, head included.
        flops: of one forward pass, two per multiply-add, matrix products and convolutions only.
        activation_bytes: float32 values that training keeps for the backward pass, per image (fused attention).
    """

    tokens: int
    parameters: int
    flops: int
    activation_bytes: int


def cost(config: BackboneConfig[Any]) -> Cost:
    """Counts a model without building it in memory."""
    import torch

    with torch.device("meta"):
        parameters = config.build().num_parameters()
    return Cost(config.num_tokens, parameters, 2 * config.work.products, 4 * config.work.kept)


def with_classes(config: ViTConfig, classes: int) -> ViTConfig:
    """The same model with another number of classes."""
    return replace(config, head=replace(config.head, classes=classes))  # type: ignore[type-var]
