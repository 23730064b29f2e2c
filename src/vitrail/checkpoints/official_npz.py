"""The files of google-research/vision_transformer: ViT, hybrid, ResNet and MLP-Mixer, in the released and in today's names.

What the arrays cannot tell is the family's: GELU in the tanh form, epsilon 1e-6, position added after the class token is
prepended, pixels in [-1, 1], images stretched to the model's size (docs/house.md, "Numbers that differ").
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.entries import (
    Entry,
    Shape,
    dense,
    norm,
    patches,
    same,
)
from vitrail.checkpoints.family import Family, differing, in_a_row
from vitrail.checkpoints.flax_names import (
    POSITIONS,
    RELEASED,
    depth_of,
    either_rank,
    encoder_entries,
    head_entries,
    head_of,
    mlp_entries,
    program_of,
    respelled,
    stages_of,
    trunk_entries,
    untrained,
)
from vitrail.checkpoints.listing import Listing
from vitrail.model.backbone import BackboneConfig
from vitrail.model.block import Block
from vitrail.model.heads import Head, LinearHead, ProjectedHead, TanhHead
from vitrail.model.mixers import TokenMLP
from vitrail.model.pools import ClassToken, GlobalAverage
from vitrail.model.positions import Learned1D, NoPosition
from vitrail.model.resnet import ResNetConfig
from vitrail.model.tokenizers import ConvolutionalStem, LinearPatches, Tokenizer
from vitrail.model.trunks import GROUPS, PostActivation, Trunk
from vitrail.model.vit import Size, ViTConfig

NAME = "official-npz"
CONTAINERS = (".npz",)
STATED = "GELU tanh, epsilon 1e-6, kernels standardised with deviation + 1e-5, pixels in [-1, 1], stretched bilinearly"


def recognises(found: Listing) -> bool:
    return program_of(found.names) == NAME


def to_native(found: Listing, image_size: tuple[int, int] | None = None) -> Checkpoint:
    """Reads a model of the official family.

    Args:
        found: the arrays of the file.
        image_size: (height, width) of its training, needed only where the number of positions is no square.

    Raises:
        CheckpointError: no such model, or missing, extra, misshapen or object arrays, all listed together.
    """
    found = either_rank(respelled(found, RELEASED), ones=True)
    return _FAMILY.read(found, image_size)


def from_native(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the released names, bit for bit what `to_native` would read back.

    Raises:
        CheckpointError: VT074, the format has no place for this model.
    """
    _FAMILY.write(checkpoint, path)


def obstacles(config: BackboneConfig[Any]) -> list[str]:
    """What of a model the format has no place for."""
    head: Head = LinearHead(config.head.classes)
    if isinstance(config, ResNetConfig):
        head = config.head if isinstance(config.head, ProjectedHead) else ProjectedHead(config.head.classes)
        return differing(config, replace(config, trunk=_trunk_like(config.trunk), head=head))
    if not isinstance(config, ViTConfig):
        return [f"{config}"]
    block, tokenizer = untrained(config.block), config.tokenizer
    if isinstance(config.block.mixer, TokenMLP):
        block = replace(block, mixer=TokenMLP(config.block.mixer.hidden))
        tokenizer = tokenizer if isinstance(tokenizer, LinearPatches) else LinearPatches()
        head = config.head if isinstance(config.head, LinearHead) else head
        held = replace(config, tokenizer=tokenizer, position=NoPosition(), block=block, pool=GlobalAverage(), head=head)
        return differing(config, held)
    if isinstance(tokenizer, ConvolutionalStem):
        tokenizer = replace(tokenizer, trunk=_trunk_like(tokenizer.trunk))
    pool = ClassToken() if config.pool.class_tokens else GlobalAverage()
    head = config.head if isinstance(config.head, (LinearHead, TanhHead)) else head
    held = replace(config, tokenizer=tokenizer, position=Learned1D(), block=block, pool=pool, head=head)
    return differing(config, held)


def _trunk_like(trunk: Trunk) -> PostActivation:
    return PostActivation(trunk.stages, trunk.width)


def _infer(found: Listing) -> BackboneConfig[Any]:
    if any(name.startswith("MixerBlock_") for name in found.shapes):
        return _mixer(found)
    if any(name.startswith("Transformer/") for name in found.shapes):
        return _vit(found)
    return _resnet(found)


def _vit(found: Listing) -> ViTConfig:
    """A ViT, or a hybrid where there is a trunk before it."""
    shapes, depth = found.shapes, depth_of(found.shapes, "Transformer/encoderblock_")
    pool = ClassToken() if "cls" in shapes else GlobalAverage()
    block = "Transformer/encoderblock_0/"
    query, hidden = f"{block}{RELEASED.attention}/query/kernel", f"{block}{RELEASED.mlp}/Dense_0/kernel"
    stages = stages_of(found)
    hybrid = bool(stages) or "conv_root/kernel" in shapes or "gn_root/scale" in shapes
    ranks = {"embedding/kernel": 4, query: 3, hidden: 2, "head/kernel": 2, POSITIONS: 3}
    ranks |= {"conv_root/kernel": 4} if hybrid else {}
    ranks |= {"pre_logits/kernel": 2} if "pre_logits/kernel" in shapes else {}
    anything = _tokenizer(hybrid, stages, (1, 1), (7, 7, 1, GROUPS))
    head = TanhHead(1, 1) if "pre_logits/kernel" in shapes else LinearHead(1)
    like = ViTConfig(Size(1, max(1, depth), 1, 1), anything, pool=pool, head=head, image_size=anything.patch)
    found.check_ranks(_entries(like), ranks)

    height, width, _, dim = shapes["embedding/kernel"]
    tokenizer = _tokenizer(
        hybrid, stages, (height, width), shapes["conv_root/kernel" if hybrid else "embedding/kernel"]
    )
    patches = shapes[POSITIONS][1] - pool.class_tokens
    return ViTConfig(
        Size(dim, depth, shapes[query][1], shapes[hidden][1]),
        tokenizer,
        pool=pool,
        head=head_of(shapes),
        image_size=in_a_row(found, patches, tokenizer.patch),
    )


def _tokenizer(
    hybrid: bool, stages: tuple[int, ...], patch: tuple[int, int], kernel: Shape
) -> LinearPatches | ConvolutionalStem:
    """`patch` is in places of what it is cut from; `kernel` is the shape of the first convolution."""
    if not hybrid:
        return LinearPatches(patch, kernel[2])
    trunk = PostActivation(stages, kernel[3])
    return ConvolutionalStem((patch[0] * trunk.stride, patch[1] * trunk.stride), kernel[2], trunk)


def _mixer(found: Listing) -> ViTConfig:
    shapes, depth = found.shapes, depth_of(found.shapes, "MixerBlock_")
    along, across = (f"MixerBlock_0/{kind}_mixing/Dense_0/kernel" for kind in ("token", "channel"))

    def config(
        size: Size, tokenizer: LinearPatches, hidden: int, classes: int, image_size: tuple[int, int]
    ) -> ViTConfig:
        block = Block(mixer=TokenMLP(hidden))
        return ViTConfig(size, tokenizer, NoPosition(), block, GlobalAverage(), LinearHead(classes), image_size)

    like = config(Size(1, max(1, depth), 1, 1), LinearPatches((1, 1)), 1, 1, (1, 1))
    found.check_ranks(_entries(like), {"stem/kernel": 4, along: 2, across: 2, "head/kernel": 2})
    height, width, channels, dim = shapes["stem/kernel"]
    patches, hidden = shapes[along]
    return config(
        Size(dim, depth, 1, shapes[across][1]),
        LinearPatches((height, width), channels),
        hidden,
        shapes["head/kernel"][1],
        in_a_row(found, patches, (height, width)),
    )


def _resnet(found: Listing) -> ResNetConfig:
    """The trunk, the embedding of its places, their mean: what the official code builds without a Transformer."""
    shapes, stages = found.shapes, stages_of(found)
    like = ResNetConfig(PostActivation(stages, GROUPS), ProjectedHead(1, 1))
    found.check_ranks(_entries(like), {"conv_root/kernel": 4, "embedding/kernel": 4, "head/kernel": 2})
    _, _, channels, width = shapes["conv_root/kernel"]
    head = ProjectedHead(shapes["head/kernel"][1], shapes["embedding/kernel"][3])
    return ResNetConfig(PostActivation(stages, width), head, channels=channels)


def _entries(config: BackboneConfig[Any]) -> Iterator[Entry]:
    """The table of names, in the order of the network."""
    if isinstance(config, ResNetConfig):
        yield from trunk_entries("trunk.", config.trunk, config.channels, ones=True)
        hidden = config.head.hidden  # type: ignore[attr-defined]  # a ProjectedHead
        yield from patches("head.represent.0", "embedding", (1, 1, config.dim, hidden))
        yield from dense("head.linear", "head", hidden, config.head.classes)
        return
    assert isinstance(config, ViTConfig)
    if isinstance(config.block.mixer, TokenMLP):
        yield from _mixer_entries(config, config.block.mixer)
        return
    dim, classes = config.dim, config.pool.class_tokens
    if classes:
        yield same("pool.class_token", "cls", (1, 1, dim), (1, dim))
    yield from _tokenizer_entries(config.tokenizer, dim)
    rows = classes + math.prod(config.grid)
    yield same("position.tables.0.rows", POSITIONS, (1, rows, dim), (rows, dim))
    yield from encoder_entries(config.size, RELEASED)
    yield from head_entries(config)


def _tokenizer_entries(tokenizer: Tokenizer, dim: int) -> Iterator[Entry]:
    if isinstance(tokenizer, ConvolutionalStem):
        cut = tokenizer.on_the_map
        yield from trunk_entries("tokenizer.trunk.", tokenizer.trunk, tokenizer.channels, ones=True)
        yield from patches("tokenizer.patches.project", "embedding", (*cut.patch, cut.channels, dim))
        return
    assert isinstance(tokenizer, LinearPatches)
    yield from patches("tokenizer.project", "embedding", (*tokenizer.patch, tokenizer.channels, dim))


def _mixer_entries(config: ViTConfig, mixer: TokenMLP) -> Iterator[Entry]:
    dim, tokens, tokenizer = config.dim, config.num_tokens, config.tokenizer
    assert isinstance(tokenizer, LinearPatches)
    yield from patches("tokenizer.project", "stem", (*tokenizer.patch, tokenizer.channels, dim))
    for layer in range(config.size.depth):
        native, block = f"blocks.{layer}.", f"MixerBlock_{layer}/"
        yield from norm(native + "mixer_norm", block + "LayerNorm_0", (dim,))
        yield from mlp_entries(native + "mixer", block + "token_mixing", tokens, mixer.hidden)
        yield from norm(native + "mlp_norm", block + "LayerNorm_1", (dim,))
        yield from mlp_entries(native + "mlp", block + "channel_mixing", dim, config.size.hidden)
    yield from norm("pool.norm", "pre_head_layer_norm", (dim,))
    yield from dense("head.linear", "head", dim, config.head.classes)


_FAMILY = Family(NAME, STATED, _infer, _entries, obstacles)
