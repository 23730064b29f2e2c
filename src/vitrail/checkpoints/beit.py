"""BEiT under the names of its authors and of timm: a relative position bias, of each layer or shared; keys have no bias.

The answer is the normed mean of the patches (`fc_norm`), or the normed class token (`norm`). The table of offsets says
the heads and, for a square, the grid. What masked pre-training alone uses is left out. Between sizes the offsets are
resampled bilinearly, as transformers does it; the authors space them geometrically, timm bicubically.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitrail.checkpoints.arrays import CheckpointError
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.entries import Entry, same
from vitrail.checkpoints.families import HALF, Facts
from vitrail.checkpoints.family import Family, differing
from vitrail.checkpoints.listing import Listing
from vitrail.checkpoints.torch_names import BlockNames, depth_of, linear, norm, patches, stack
from vitrail.model.backbone import BackboneConfig
from vitrail.model.block import MLP, Block, Norm
from vitrail.model.heads import Features, Head, LinearHead
from vitrail.model.mixers import Attention
from vitrail.model.pools import ClassToken, GlobalAverage
from vitrail.model.positions import RelativeBias
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import Size, ViTConfig

NAME = "beit"
CONTAINERS = (".safetensors",)
STATED = "GELU erf, epsilon 1e-6, offsets resampled bilinearly, the middle 9/10 (above 224 px all), bicubic, mean 0.5"
_FACTS = Facts("microsoft/unilm", HALF, (0.9, 1.0))
_BLOCKS = BlockNames(
    block="blocks.{}.",
    first_norm="norm1", query_key_value="attn.qkv", project="attn.proj",
    second_norm="norm2", expand="mlp.fc1", contract="mlp.fc2", scales=("gamma_1", "gamma_2"),
)  # fmt: skip
_TABLE, _KERNELS, _EXPAND = "relative_position_bias_table", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"
_SHARED, _OWN = f"rel_pos_bias.{_TABLE}", f"blocks.{{}}.attn.{_TABLE}"
_MEAN = GlobalAverage(class_tokens=1, norm_first=False)
_OTHERS = r"mask_token|(.*\.)?relative_position_index|lm_head\..*"


def recognises(found: Listing) -> bool:
    names = set(found.names)
    return bool({_SHARED, _OWN.format(0)} & names) and "blocks.0.attn.qkv.weight" in names


def to_native(found: Listing, image_size: tuple[int, int] | None = None) -> Checkpoint:
    """Reads an encoder, with its classifier where it has one.

    Args:
        found: the arrays of a file.
        image_size: of no use here: the table of offsets says it.

    Raises:
        CheckpointError: missing, extra, misshapen or unreadable arrays, all listed together.
    """
    return _FAMILY.read(found.without(_OTHERS), image_size)


def from_native(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the names that both programs read.

    Raises:
        CheckpointError: VT074, the format has no place for this model.
    """
    _FAMILY.write(checkpoint, path)


def obstacles(config: BackboneConfig[Any]) -> list[str]:
    """What of a model the format has no place for."""
    if not isinstance(config, ViTConfig):
        return [f"a {type(config).__name__.removesuffix('Config')}"]
    tokenizer, position, block, head = config.tokenizer, config.position, config.block, config.head
    shared = isinstance(position, RelativeBias) and position.inject == "shared"
    held = replace(
        config,
        tokenizer=replace(tokenizer, bias=True) if isinstance(tokenizer, LinearPatches) else LinearPatches(),
        position=RelativeBias("shared" if shared else "every-layer"),
        block=replace(_block(block.layer_scale), drop_path=block.drop_path, dropout=block.dropout),
        pool=ClassToken() if isinstance(config.pool, ClassToken) else _MEAN,
        head=head if isinstance(head, LinearHead) else LinearHead(head.classes) if head.classes else Features(),
    )
    rows, cols = config.grid
    uneven = [] if rows == cols else [f"a grid of {rows}x{cols}, which a table of offsets does not tell"]
    return differing(config, held) + uneven


def _block(layer_scale: float | None) -> Block:
    return Block(Attention(key_bias=False), MLP("erf"), Norm(1e-6), layer_scale)


def _infer(found: Listing) -> ViTConfig:
    shapes, depth = found.shapes, depth_of(found.shapes, _BLOCKS.block)
    shared = _SHARED in shapes
    table = _SHARED if shared else _OWN.format(0)
    pool = _MEAN if any(name.startswith("fc_norm.") for name in shapes) else ClassToken()
    scale = 0.1 if any(".gamma_" in name for name in shapes) else None
    head: Head = LinearHead(1) if any(name.startswith("head.") for name in shapes) else Features()
    like = ViTConfig(
        Size(1, max(1, depth), 1, 1), LinearPatches((1, 1)), RelativeBias("shared" if shared else "every-layer"),
        _block(scale), pool, head, (1, 1),
    )  # fmt: skip
    ranks = {_KERNELS: 4, _EXPAND: 2, table: 2} | ({"head.weight": 2} if head.classes else {})
    found.check_ranks(_entries(like), ranks)
    (dim, channels, height, width), (rows, heads) = shapes[_KERNELS], shapes[table]
    line = math.isqrt(max(0, rows - 3))
    if line**2 != rows - 3 or line % 2 == 0:
        raise CheckpointError(
            "VT073", f"{found.path}: {table} has {rows} rows", "(2n - 1)^2 + 3 of them, for a grid of n x n patches"
        )
    side = (line + 1) // 2
    return replace(
        like,
        size=Size(dim, depth, heads, shapes[_EXPAND][0]),
        tokenizer=LinearPatches((height, width), channels),
        head=LinearHead(shapes["head.weight"][0]) if head.classes else head,
        image_size=(side * height, side * width),
    )


def _entries(config: BackboneConfig[Any]) -> Iterator[Entry]:
    """The table of names, in the order of the network."""
    assert isinstance(config, ViTConfig) and isinstance(config.tokenizer, LinearPatches)
    assert isinstance(config.position, RelativeBias)
    dim, (rows, cols) = config.size.dim, config.grid
    shape = ((2 * rows - 1) * (2 * cols - 1) + 3, config.size.heads)
    yield same("pool.class_token", "cls_token", (1, 1, dim), (1, dim))
    yield from patches("tokenizer.project", "patch_embed.proj", dim, config.tokenizer)
    shared = config.position.inject == "shared"
    for layer in range(1 if shared else config.size.depth):
        yield same(f"position.tables.{layer}", _SHARED if shared else _OWN.format(layer), shape)
    plain = replace(config.block, mixer=Attention(input_bias=False))
    yield from _BLOCKS.entries(config.size, config=plain)
    for layer in range(config.size.depth):
        biases = (f"blocks.{layer}.attn.q_bias", f"blocks.{layer}.attn.v_bias")
        yield stack(f"blocks.{layer}.mixer.query_value_bias", biases, (dim,))
    yield from norm("pool.norm", "norm" if isinstance(config.pool, ClassToken) else "fc_norm", dim)
    if isinstance(config.head, LinearHead):
        yield from linear("head.linear", "head", config.head.classes, dim)


_FAMILY = Family(NAME, STATED, _infer, _entries, obstacles, _FACTS.preprocessing)
