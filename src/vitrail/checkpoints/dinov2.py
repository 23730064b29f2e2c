"""DINOv2 as its authors released it, with registers or without, and with its linear classifier of one layer.

timm's names but for the registers, the gated MLP of the giant and a mask token, which pre-training alone uses. The
positions are of 518 px; the authors evaluate at 224, and so does this. Between sizes they are resampled bicubically:
scaled as DINO does it without registers, averaged where the grid shrinks with them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.entries import Entry
from vitrail.checkpoints.families import Facts
from vitrail.checkpoints.family import Family, differing
from vitrail.checkpoints.listing import Listing
from vitrail.checkpoints.timm_names import Words, entries, infer
from vitrail.model.backbone import BackboneConfig
from vitrail.model.block import MLP, Block, Norm, SwiGLU
from vitrail.model.geometry import Interpolation
from vitrail.model.heads import Features, LinearHead
from vitrail.model.mixers import Attention
from vitrail.model.pools import ClassToken, TokenAndAverage
from vitrail.model.positions import Learned1D
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import ViTConfig

NAME = "dinov2"
CONTAINERS = (".safetensors",)
STATED = (
    "GELU erf, epsilon 1e-6, heads of 64 channels, positions bicubic (scaled with an offset of 0.1, or antialiased with "
    "registers), the middle 224/256 at 224 px, bicubic, ImageNet's normalisation"
)
TRAINED = (518, 518)
_WORDS = Words(registers="register_tokens", head="linear_head")
_GATED = replace(_WORDS, expand="mlp.w12", contract="mlp.w3")
_BACKBONE = "backbone."
_OTHERS = r"(backbone\.)?mask_token|(dino|ibot)_head\..*"


def recognises(found: Listing) -> bool:
    names = {_plain(name).removeprefix(_BACKBONE) for name in found.names}
    own = {"mask_token", "register_tokens", "linear_head.weight", "linear_head.bias", "blocks.0.mlp.w12.weight"}
    return (
        {"pos_embed", "blocks.0.attn.qkv.weight"} <= names
        and bool(own & names)
        and not any(name.startswith("decoder_") for name in names)
    )


def to_native(found: Listing, image_size: tuple[int, int] | None = None) -> Checkpoint:
    """Reads a backbone, or one with the linear classifier of its last layer.

    Args:
        found: the arrays of a file.
        image_size: (height, width) of its training, needed only where the number of positions is no square.

    Raises:
        CheckpointError: missing, extra, misshapen or unreadable arrays, all listed together.
    """
    checkpoint = _FAMILY.read(_inner(found), image_size)
    seen = checkpoint.preprocessing
    if found.weights.arrays.comment or checkpoint.config.image_size != TRAINED:
        return checkpoint
    return replace(checkpoint, preprocessing=replace(seen, image_size=(224, 224)))


def from_native(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the released names; the mask token as zeros.

    Raises:
        CheckpointError: VT074, the format has no place for this model.
    """
    _FAMILY.write(checkpoint, path)


def obstacles(config: BackboneConfig[Any]) -> list[str]:
    """What of a model the format has no place for."""
    if not isinstance(config, ViTConfig):
        return [f"a {type(config).__name__.removesuffix('Config')}"]
    block, head, registers = config.block, config.head, config.pool.registers
    mlp = block.mlp if isinstance(block.mlp, SwiGLU) else MLP("erf")
    plain = block.layer_scale or 1e-5
    held = replace(
        config,
        tokenizer=replace(config.tokenizer, bias=True)
        if isinstance(config.tokenizer, LinearPatches)
        else LinearPatches(),
        position=Learned1D(interpolation=_interpolation(registers)),
        block=Block(Attention(), mlp, Norm(1e-6), plain, block.drop_path, block.dropout),
        pool=TokenAndAverage(registers) if head.classes else ClassToken(registers),
        head=(head if isinstance(head, LinearHead) else LinearHead(head.classes)) if head.classes else Features(),
    )
    return differing(config, held)


def _interpolation(registers: int | bool) -> Interpolation:
    return "bicubic-antialiased" if registers else "bicubic-offset"


def _plain(name: str) -> str:
    """Training keeps its blocks in chunks: blocks.CHUNK.NUMBER."""
    return re.sub(r"^(backbone\.)?blocks\.\d+\.(\d+)\.", r"\1blocks.\2.", name)


def _inner(found: Listing) -> Listing:
    """Without what pre-training alone uses; the network stands below `backbone.` in a classifier only."""
    named = found.spelled(_plain).without(_OTHERS)
    return named if any(name.startswith(_WORDS.head) for name in named.names) else named.inside(_BACKBONE)


def _words(gated: bool, classifies: bool) -> Words:
    return replace(_GATED if gated else _WORDS, before=_BACKBONE if classifies else "")


def _infer(found: Listing) -> ViTConfig:
    names = set(found.shapes)
    registers = any(name.endswith("register_tokens") for name in names)
    words = _words(any(".mlp.w12." in name for name in names), any(name.startswith(_WORDS.head) for name in names))
    return infer(found, Facts("", interpolation=_interpolation(registers)), words)


def _entries(config: BackboneConfig[Any]) -> Iterator[Entry]:
    assert isinstance(config, ViTConfig)
    return entries(config, _words(isinstance(config.block.mlp, SwiGLU), config.head.classes > 0))


def _unused(config: BackboneConfig[Any]) -> dict[str, tuple[int, ...]]:
    assert isinstance(config, ViTConfig)
    return {f"{_BACKBONE if config.head.classes else ''}mask_token": (1, config.size.dim)}


_FAMILY = Family(NAME, STATED, _infer, _entries, obstacles, Facts("").preprocessing, unused=_unused)
