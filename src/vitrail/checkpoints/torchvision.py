"""torchvision's VisionTransformer (vit_b_16 and its siblings), every release of its names.

What the arrays cannot tell is the family's: GELU in the erf form, epsilon 1e-6, heads of 64 channels (80 in H/14),
positions resampled bicubically with aligned corners, ImageNet's normalisation. The middle 224/256 of the picture,
bilinear, for weights of 224 px; the larger ones were fine-tuned from SWAG and see the whole shorter side, bicubic.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.entries import Entry, same
from vitrail.checkpoints.family import Family, differing, in_a_row
from vitrail.checkpoints.listing import Listing
from vitrail.checkpoints.torch_names import BlockNames, depth_of, heads_of, linear, norm, patches
from vitrail.model.backbone import BackboneConfig
from vitrail.model.block import MLP, Block, Norm
from vitrail.model.heads import LinearHead, TanhHead
from vitrail.model.pools import ClassToken
from vitrail.model.positions import Learned1D
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import Size, ViTConfig
from vitrail.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

NAME = "torchvision"
CONTAINERS = (".safetensors",)
STATED = (
    "GELU erf, epsilon 1e-6, heads of 64 channels, positions bicubic with aligned corners, ImageNet's normalisation"
)
_BLOCKS = BlockNames(
    block="encoder.layers.encoder_layer_{}.",
    first_norm="ln_1", query_key_value="self_attention.in_proj", project="self_attention.out_proj", in_projection=True,
    second_norm="ln_2", expand="mlp.0", contract="mlp.3",
)  # fmt: skip
_POSITIONS, _FIRST = "encoder.pos_embedding", _BLOCKS.block.format(0)
_BLOCK = Block(mlp=MLP("erf"), norm=Norm(1e-6))
_POSITION = Learned1D(interpolation="bicubic-aligned")
# Names of before torchvision 0.14, and of heads without a name.
_OLDER = {r"mlp\.linear_1\.": "mlp.0.", r"mlp\.linear_2\.": "mlp.3.", r"^heads\.0\.": "heads.head."}


def recognises(found: Listing) -> bool:
    return any(name.startswith("encoder.layers.encoder_layer_") for name in found.names)


def to_native(found: Listing, image_size: tuple[int, int] | None = None) -> Checkpoint:
    """Reads a VisionTransformer.

    Args:
        found: the arrays of a file.
        image_size: (height, width) of its training, needed only where the number of positions is no square.

    Raises:
        CheckpointError: missing, extra, misshapen or unreadable arrays, all listed together.
    """
    return _FAMILY.read(found.spelled(_today), image_size)


def from_native(checkpoint: Checkpoint, path: Path) -> None:
    """Writes today's names, bit for bit what `to_native` would read back.

    Raises:
        CheckpointError: VT074, the format has no place for this model.
    """
    _FAMILY.write(checkpoint, path)


def obstacles(config: BackboneConfig[Any]) -> list[str]:
    """What of a model the format has no place for."""
    if not isinstance(config, ViTConfig):
        return [f"a {type(config).__name__.removesuffix('Config')}"]
    head = config.head if isinstance(config.head, (LinearHead, TanhHead)) else LinearHead(config.head.classes)
    tokenizer = config.tokenizer if isinstance(config.tokenizer, LinearPatches) else LinearPatches()
    block = replace(_BLOCK, dropout=config.block.dropout, drop_path=config.block.drop_path)
    held = replace(config, tokenizer=tokenizer, position=_POSITION, block=block, pool=ClassToken(), head=head)
    return differing(config, held)


def _today(name: str) -> str:
    for pattern, word in _OLDER.items():
        name = re.sub(pattern, word, name)
    return name


def _infer(found: Listing) -> ViTConfig:
    shapes, depth = found.shapes, depth_of(found.shapes, _BLOCKS.block)
    hidden, wide = f"{_FIRST}{_BLOCKS.expand}.weight", "heads.pre_logits.weight"
    ranks = {"conv_proj.weight": 4, hidden: 2, "heads.head.weight": 2, _POSITIONS: 3}
    ranks |= {wide: 2} if wide in shapes else {}
    head = TanhHead(1, 1) if wide in shapes else LinearHead(1)
    like = ViTConfig(
        Size(1, max(1, depth), 1, 1), LinearPatches((1, 1)), _POSITION, _BLOCK, head=head, image_size=(1, 1)
    )
    found.check_ranks(_entries(like), ranks)

    dim, channels, height, width = shapes["conv_proj.weight"]
    classes, tokenizer = shapes["heads.head.weight"][0], LinearPatches((height, width), channels)
    return ViTConfig(
        Size(dim, depth, heads_of(dim), shapes[hidden][0]),
        tokenizer,
        _POSITION,
        _BLOCK,
        head=TanhHead(classes, shapes[wide][0]) if wide in shapes else LinearHead(classes),
        image_size=in_a_row(found, shapes[_POSITIONS][1] - 1, tokenizer.patch),
    )


def _entries(config: BackboneConfig[Any]) -> Iterator[Entry]:
    """The table of names, in the order of the network."""
    assert isinstance(config, ViTConfig) and isinstance(config.tokenizer, LinearPatches)
    dim, rows, features = config.dim, config.num_tokens, config.dim
    yield same("pool.class_token", "class_token", (1, 1, dim), (1, dim))
    yield from patches("tokenizer.project", "conv_proj", dim, config.tokenizer)
    yield same("position.tables.0.rows", _POSITIONS, (1, rows, dim), (rows, dim))
    yield from _BLOCKS.entries(config.size)
    yield from norm("pool.norm", "encoder.ln", dim)
    if isinstance(config.head, TanhHead):
        features = config.head.hidden
        yield from linear("head.represent.0", "heads.pre_logits", features, dim)
    yield from linear("head.linear", "heads.head", config.head.classes, features)


def _preprocessing(config: BackboneConfig[Any]) -> Preprocessing:
    normal = Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD, fit="crop", rounding="nearest")
    if min(config.image_size) > 224:
        return replace(normal, interpolation="bicubic")
    return replace(normal, crop_share=224 / 256)


_FAMILY = Family(NAME, STATED, _infer, _entries, obstacles, _preprocessing)
