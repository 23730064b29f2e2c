"""The files of google-research/big_vision: its ViT (models/vit.py) and both of its ResNets (bit.py, bit_paper.py).

What the arrays cannot tell is the family's: GELU in the tanh form, LayerNorm epsilon 1e-6, position added before the class
token is prepended, pixels in [-1, 1], the middle 224/256 of the picture. Where positions are sines, or the model is a
ResNet, nothing says the image size: it is 224 unless it is stated.
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
    attention,
    dense,
    norm,
    patches,
    same,
)
from vitrail.checkpoints.family import Family, differing, in_a_row
from vitrail.checkpoints.flax_names import (
    LINEN,
    POSITIONS,
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
    unstacked,
    untrained,
)
from vitrail.checkpoints.listing import Listing
from vitrail.model.backbone import BackboneConfig
from vitrail.model.heads import Features, Head, LinearHead, TanhHead
from vitrail.model.pools import AttentionPool, ClassToken, GlobalAverage, Pool
from vitrail.model.positions import Learned1D, Position, SineCosine
from vitrail.model.resnet import ResNetConfig
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.trunks import BIT, GROUPS, HYBRID, PostActivation, PreActivation, Trunk
from vitrail.model.vit import Size, ViTConfig
from vitrail.preprocessing import Preprocessing

NAME = "big-vision-npz"
CONTAINERS = (".npz",)
STATED = (
    "GELU tanh, epsilon 1e-6 (bit_paper: 1e-5), no border around max-pooling, pixels in [-1, 1], "
    "the middle 224/256 of the picture, 224 px where no positions say otherwise"
)
_TABLE, _PROBE = "pos_embedding", "MAPHead_0"
_TOWER = "img/"  # SigLIP's files hold a tower for texts beside it
_PAPER = replace(BIT, border="nothing")


def recognises(found: Listing) -> bool:
    return program_of(found.inside(_TOWER).names) == NAME


def to_native(found: Listing, image_size: tuple[int, int] | None = None) -> Checkpoint:
    """Reads a model of big_vision, also as older versions of it named the positions and the attention pool.

    Of SigLIP it is the tower for images. A ViT without a last layer gives features.

    Args:
        found: the arrays of the file.
        image_size: (height, width) of its training, where it cannot be told.

    Raises:
        CheckpointError: no such model, or missing, extra, misshapen or object arrays, all listed together.
    """
    found = respelled(unstacked(found.inside(_TOWER)), LINEN).spelled(_today)
    paper = any(name.startswith(("root_block/", "norm-pre-head/")) for name in found.names)
    return _FAMILY.read(either_rank(found, ones=paper), image_size)


def from_native(checkpoint: Checkpoint, path: Path) -> None:
    """Writes today's names, bit for bit what `to_native` would read back.

    Raises:
        CheckpointError: VT074, the format has no place for this model.
    """
    _FAMILY.write(checkpoint, path)


def obstacles(config: BackboneConfig[Any]) -> list[str]:
    """What of a model the format has no place for."""
    linear = LinearHead(config.head.classes)
    if isinstance(config, ResNetConfig):
        kind, numerics = (
            (PreActivation, _PAPER) if isinstance(config.trunk, PreActivation) else (PostActivation, HYBRID)
        )
        trunk = kind(config.trunk.stages, config.trunk.width, numerics)
        head: Head = config.head if isinstance(config.head, LinearHead) else linear
        return differing(config, replace(config, trunk=trunk, head=head))
    if not isinstance(config, ViTConfig):
        return [f"{config}"]
    position = SineCosine() if isinstance(config.position, SineCosine) else Learned1D()
    if isinstance(config.position, Learned1D):
        # A class token's row is told from the others by their number: one more than a square.
        rows, cols = config.grid
        position = Learned1D(
            class_position=config.position.class_position and (rows == cols or not config.pool.class_tokens)
        )
    pool = type(config.pool)() if isinstance(config.pool, (ClassToken, GlobalAverage, AttentionPool)) else ClassToken()
    head = config.head if isinstance(config.head, (LinearHead, TanhHead)) else linear
    head = Features() if isinstance(config.head, Features) else head
    tokenizer = config.tokenizer if isinstance(config.tokenizer, LinearPatches) else LinearPatches()
    block = untrained(config.block)
    held = replace(config, tokenizer=tokenizer, position=position, block=block, pool=pool, head=head)
    return differing(config, held)


def _today(name: str) -> str:
    """Older spellings: the table inside the encoder, the parts of the attention pool beside it."""
    if name in (POSITIONS, "Transformer/pos_embedding"):
        return _TABLE
    first = name.split("/")[0]
    return f"{_PROBE}/{name}" if first in ("probe", LINEN.attention, LINEN.first_norm, LINEN.mlp) else name


def _infer(found: Listing) -> BackboneConfig[Any]:
    return _vit(found) if any(name.startswith("Transformer/") for name in found.shapes) else _resnet(found)


def _vit(found: Listing) -> ViTConfig:
    shapes, depth = found.shapes, depth_of(found.shapes, "Transformer/encoderblock_")
    pool: Pool = GlobalAverage()
    if any(name.startswith(f"{_PROBE}/") for name in shapes):
        pool = AttentionPool()
    elif "cls" in shapes:
        pool = ClassToken()
    block = "Transformer/encoderblock_0/"
    query, hidden = f"{block}{LINEN.attention}/query/kernel", f"{block}{LINEN.mlp}/Dense_0/kernel"
    head: Head = TanhHead(1, 1) if "pre_logits/kernel" in shapes else LinearHead(1)
    if not any(name.startswith(("head/", "pre_logits/")) for name in shapes):
        head = Features()
    ranks = {"embedding/kernel": 4, query: 3, hidden: 2}
    ranks |= {"head/kernel": 2} if head.classes else {}
    ranks |= {"pre_logits/kernel": 2} if "pre_logits/kernel" in shapes else {}
    ranks |= {_TABLE: 3} if _TABLE in shapes else {}
    position: Position = Learned1D() if _TABLE in shapes else SineCosine()
    like = ViTConfig(
        Size(1, max(1, depth), 1, 1), LinearPatches((1, 1)), position, pool=pool, head=head, image_size=(1, 1)
    )
    found.check_ranks(_entries(like), ranks)

    height, width, channels, dim = shapes["embedding/kernel"]
    image_size = (height, width)
    if _TABLE in shapes:
        # Files of before 2022 have a row for the class token; big_vision adds it to the token itself, which is the same.
        rows = shapes[_TABLE][1]
        with_class = pool.class_tokens == 1 and rows > 1 and math.isqrt(rows - 1) ** 2 == rows - 1
        position = Learned1D(class_position=with_class or not pool.class_tokens)
        image_size = in_a_row(found, rows - with_class, (height, width))
    return ViTConfig(
        Size(dim, depth, shapes[query][1], shapes[hidden][1]),
        LinearPatches((height, width), channels),
        position,
        pool=pool,
        head=head_of(shapes) if head.classes else head,
        image_size=image_size,
    )


def _resnet(found: Listing) -> ResNetConfig:
    paper = any(name.startswith(("root_block/", "norm-pre-head/")) for name in found.shapes)
    root, stages = "root_block/conv_root/kernel" if paper else "conv_root/kernel", stages_of(found)

    def trunk(width: int) -> Trunk:
        return PreActivation(stages, width, _PAPER) if paper else PostActivation(stages, width)

    found.check_ranks(_entries(ResNetConfig(trunk(GROUPS), LinearHead(1))), {root: 4, "head/kernel": 2})
    _, _, channels, width = found.shapes[root]
    return ResNetConfig(trunk(width), LinearHead(found.shapes["head/kernel"][1]), channels=channels)


def _entries(config: BackboneConfig[Any]) -> Iterator[Entry]:
    """The table of names, in the order of the network."""
    if isinstance(config, ResNetConfig):
        yield from trunk_entries("trunk.", config.trunk, config.channels, ones=isinstance(config.trunk, PreActivation))
        yield from dense("head.linear", "head", config.dim, config.head.classes)
        return
    assert isinstance(config, ViTConfig) and isinstance(config.tokenizer, LinearPatches)
    dim, tokenizer, position = config.dim, config.tokenizer, config.position
    yield from patches("tokenizer.project", "embedding", (*tokenizer.patch, tokenizer.channels, dim))
    if isinstance(position, Learned1D):
        rows = math.prod(config.grid) + (config.pool.class_tokens if position.class_position else 0)
        yield same("position.tables.0.rows", _TABLE, (1, rows, dim), (rows, dim))
    if config.pool.class_tokens:
        yield same("pool.class_token", "cls", (1, 1, dim), (1, dim))
    yield from encoder_entries(config.size, LINEN)
    if isinstance(config.pool, AttentionPool):
        yield same("pool.probe", f"{_PROBE}/probe", (1, 1, dim), (1, dim))
        yield from attention("pool.attention", f"{_PROBE}/{LINEN.attention}", dim, config.size.heads)
        yield from norm("pool.mlp_norm", f"{_PROBE}/{LINEN.first_norm}", (dim,))
        yield from mlp_entries("pool.mlp", f"{_PROBE}/{LINEN.mlp}", dim, config.size.hidden)
    if config.head.classes:
        yield from head_entries(config)


def _preprocessing(config: BackboneConfig[Any]) -> Preprocessing:
    return Preprocessing(fit="crop", crop_share=224 / 256)


_FAMILY = Family(NAME, STATED, _infer, _entries, obstacles, _preprocessing)
