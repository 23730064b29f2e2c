"""Hugging Face's BEiT: a relative position bias, of each layer or shared, with a table of absolute positions or without.

The answer is the normed mean of the patches, or the normed class token where config.json says so. Keys have no bias. The
head of masked pre-training is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitrail.checkpoints import huggingface as hf
from vitrail.checkpoints.arrays import CheckpointError
from vitrail.checkpoints.carried import carried_size
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.entries import Entry, same
from vitrail.checkpoints.family import Family, differing, in_a_row
from vitrail.checkpoints.hf_vit import BLOCKS, TODAY
from vitrail.checkpoints.listing import Listing
from vitrail.checkpoints.torch_names import depth_of, linear, norm, patches
from vitrail.model.backbone import BackboneConfig
from vitrail.model.block import MLP, Block, Norm
from vitrail.model.geometry import Position
from vitrail.model.heads import Features, LinearHead
from vitrail.model.mixers import Attention
from vitrail.model.pools import ClassToken, GlobalAverage
from vitrail.model.positions import Both, Learned1D, NoPosition, RelativeBias
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import Size, ViTConfig
from vitrail.preprocessing import Preprocessing

NAME = "hf-beit"
CONTAINERS = ("", ".safetensors")
STATED = (
    "offsets resampled bilinearly and absolute positions bicubically, between the centres; without a config.json: GELU erf, "
    "epsilon 1e-12, heads of 64 channels; without a preprocessor_config.json: stretched, bicubic, mean 0.5"
)
_BLOCKS = replace(BLOCKS, scales=("lambda_1", "lambda_2"))
_TABLE = "relative_position_bias.relative_position_bias_table"
_SHARED, _OWN = f"encoder.{_TABLE}", f"{BLOCKS.block}attention.attention.{_TABLE}"
_ABSOLUTE, _MEAN = Learned1D(interpolation="bicubic"), GlobalAverage(class_tokens=1, norm_first=False)
_TODAY = {
    r"^(.*\.)?layers\.(\d+)\.relative_position_bias\.": r"\1encoder.layer.\2.attention.attention.relative_position_bias.",
    r"^(.*\.)?shared_position_bias\.": r"\1encoder.relative_position_bias.", **TODAY
}  # fmt: skip
_LEFT_OUT = r"(.*\.)?(embeddings\.mask_token|relative_position_index)|lm_head\..*"


def recognises(found: Listing) -> bool:
    if said := hf.kind(found):
        return said == "beit"
    names = [_plain(name) for name in found.names]
    return "encoder.layer.0.layernorm_before.weight" in names and any(
        name.endswith(_TABLE) or "lambda_" in name for name in names
    )


def to_native(found: Listing, image_size: tuple[int, int] | None = None) -> Checkpoint:
    """Reads an encoder, with its classifier where it has one.

    Args:
        found: the arrays of a folder or a file.
        image_size: (height, width) of its training, needed only where neither config.json nor a square says it.

    Raises:
        CheckpointError: missing, extra, misshapen or unreadable arrays, all listed together; VT076, a config.json that
            cannot be used.
    """
    prefix = "beit." if any(name.startswith("classifier.") for name in found.names) else ""
    named = hf.below(found, prefix, _plain)
    return hf.checkpoint(_FAMILY, named.without(_LEFT_OUT), image_size)


def from_native(checkpoint: Checkpoint, path: Path) -> None:
    """Writes what `AutoModel` or `AutoModelForImageClassification` loads, bit for bit what `to_native` would read back.

    Raises:
        CheckpointError: VT074, the format has no place for this model.
    """
    _FAMILY.write(checkpoint, path)


def obstacles(config: BackboneConfig[Any]) -> list[str]:
    """What of a model the format has no place for."""
    if not isinstance(config, ViTConfig):
        return [f"a {type(config).__name__.removesuffix('Config')}"]
    block, tokenizer = config.block, config.tokenizer
    table, bias = _parts(config.position)
    held = replace(
        config,
        tokenizer=replace(tokenizer, bias=True) if isinstance(tokenizer, LinearPatches) else LinearPatches(),
        position=_together(table and _ABSOLUTE, bias if bias and bias.inject != "stem" else None),
        block=Block(
            Attention(key_bias=False), block.mlp if isinstance(block.mlp, MLP) else MLP("erf"), block.norm,
            block.layer_scale, drop_path=block.drop_path, dropout=block.dropout,
        ),
        pool=config.pool if config.pool in (ClassToken(), _MEAN) else _MEAN,
        head=config.head if config.head == Features() else LinearHead(config.head.classes),
    )  # fmt: skip
    (height, width), (rows, cols) = getattr(config.tokenizer, "patch", (1, 1)), config.grid
    uneven = [f"patches of {height}x{width} px"] if height != width else []
    return differing(config, held) + uneven + ([f"a grid of {rows}x{cols}"] if bias and rows != cols else [])


def _together(table: Learned1D | None, bias: RelativeBias | None) -> Position:
    if table and bias:
        return Both(table, bias)
    return table or bias or NoPosition()


def _parts(position: Position) -> tuple[Learned1D | None, RelativeBias | None]:
    parts = (position.first, position.second) if isinstance(position, Both) else (position,)
    table = next((part for part in parts if isinstance(part, Learned1D)), None)
    return table, next((part for part in parts if isinstance(part, RelativeBias)), None)


def _plain(name: str) -> str:
    """Without the prefix, and as released."""
    name = name.removeprefix("beit.")
    for pattern, word in _TODAY.items():
        name = re.sub(pattern, word, name)
    return name


def _infer(found: Listing) -> ViTConfig:
    shapes, head = found.shapes, hf.head_of(found)
    prefix = "" if isinstance(head, Features) else "beit."
    first, depth = prefix + BLOCKS.block.format(0), depth_of(shapes, prefix + BLOCKS.block)
    kernels, expand = f"{prefix}embeddings.patch_embeddings.projection.weight", f"{first}{BLOCKS.expand}.weight"
    tables = [name for name in shapes if name.endswith(_TABLE)]
    shared = f"{prefix}{_SHARED}" in tables
    positions = f"{prefix}embeddings.position_embeddings"
    table = _ABSOLUTE if positions in shapes else None
    bias = RelativeBias("shared" if shared else "every-layer") if tables else None
    scaled = any(name.endswith((".lambda_1", ".lambda_2")) for name in shapes)
    scale = hf.number(found, "layer_scale_init_value", 0.1) if scaled else None
    norm = Norm(hf.number(found, "layer_norm_eps", 1e-12))
    block = Block(Attention(key_bias=False), MLP(hf.gelu(found, "erf")), norm, scale)
    mean = any(name.startswith(f"{prefix}pooler.") for name in shapes)
    like = ViTConfig(
        Size(1, max(1, depth), 1, 1), LinearPatches((1, 1)), _together(table, bias), block,
        _MEAN if mean else ClassToken(), head, (1, 1),
    )  # fmt: skip
    counted = (f"{prefix}{_SHARED}" if shared else prefix + _OWN.format(0)) if bias else None
    ranks = {kernels: 4, expand: 2} | ({positions: 3} if table else {}) | ({counted: 2} if counted else {})
    found.check_ranks(_entries(like), ranks | ({} if isinstance(head, Features) else {"classifier.weight": 2}))

    dim, channels, height, width = shapes[kernels]
    patch = (height, width)
    offsets = shapes[counted][0] if counted else None
    return replace(
        like,
        size=Size(dim, depth, hf.heads(found, dim), shapes[expand][0]),
        tokenizer=LinearPatches(patch, channels),
        image_size=in_a_row(found, shapes[positions][1] - 1 if table else 1, patch) if offsets is None
        else _trained(found, offsets, patch),
    )  # fmt: skip


def _trained(found: Listing, rows: int, patch: tuple[int, int]) -> tuple[int, int]:
    """The image size whose grid has so many offsets, and three more: of a square, for the code they come from has no other."""
    side = math.isqrt(max(0, rows - 3))
    if side**2 != rows - 3 or side % 2 == 0:
        raise CheckpointError(
            "VT073", f"{found.path} has {rows} rows of relative positions", "(2 n - 1)^2 + 3 for a grid of n x n"
        )
    size = (side + 1) // 2 * patch[0], (side + 1) // 2 * patch[1]
    said = carried_size(found.weights) or size
    if said != size:
        raise CheckpointError(
            "VT076", f"{found.path}: its config.json says images of {said[0]}x{said[1]}, its offsets are of "
            f"{size[0]}x{size[1]}", "one size",
        )  # fmt: skip
    return size


def _entries(config: BackboneConfig[Any]) -> Iterator[Entry]:
    """The table of names, in the order of the network."""
    assert isinstance(config, ViTConfig) and isinstance(config.tokenizer, LinearPatches)
    dim, heads, rows, depth = config.size.dim, config.size.heads, config.num_tokens, config.size.depth
    prefix = "" if isinstance(config.head, Features) else "beit."
    inside, (table, bias) = f"{prefix}embeddings.", _parts(config.position)
    first, second = ("position.first", "position.second") if table and bias else ("position", "position")
    yield same("pool.class_token", f"{inside}cls_token", (1, 1, dim), (1, dim))
    yield from patches("tokenizer.project", f"{inside}patch_embeddings.projection", dim, config.tokenizer)
    if table:
        yield same(f"{first}.tables.0.rows", f"{inside}position_embeddings", (1, rows, dim), (rows, dim))
    if bias:
        offsets = (2 * config.grid[0] - 1) * (2 * config.grid[1] - 1) + 3
        names = [_SHARED] if bias.inject == "shared" else [_OWN.format(layer) for layer in range(depth)]
        for index, name in enumerate(names):
            yield same(f"{second}.tables.{index}", prefix + name, (offsets, heads))
    yield from replace(_BLOCKS, block=prefix + BLOCKS.block).entries(config.size, config=config.block)
    normed = "layernorm" if isinstance(config.pool, ClassToken) else "pooler.layernorm"
    yield from norm("pool.norm", prefix + normed, dim)
    if isinstance(config.head, LinearHead):
        yield from linear("head.linear", "classifier", config.head.classes, dim)


def _preprocessing(config: BackboneConfig[Any]) -> Preprocessing:
    return Preprocessing(interpolation="bicubic")


def _files(checkpoint: Checkpoint) -> Mapping[str, Any]:
    config = checkpoint.config
    assert isinstance(config, ViTConfig)
    table, bias = _parts(config.position)
    said = {
        "use_absolute_position_embeddings": table is not None,
        "use_relative_position_bias": bias is not None and bias.inject == "every-layer",
        "use_shared_relative_position_bias": bias is not None and bias.inject == "shared",
        "layer_scale_init_value": config.block.layer_scale or 0.0, "use_mean_pooling": config.pool == _MEAN,
        "use_mask_token": False,
    }  # fmt: skip
    what = "BeitModel" if isinstance(config.head, Features) else "BeitForImageClassification"
    return hf.files(checkpoint, "beit", what, said)


_FAMILY = Family(NAME, STATED, _infer, _entries, obstacles, _preprocessing, _files)
