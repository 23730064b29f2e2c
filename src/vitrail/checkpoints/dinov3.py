"""DINOv3 as its authors released it: rotary positions, four registers ("storage tokens"), LayerScale, no bias of the keys.

The bias of queries, keys and values comes with a mask that is zero for the keys. Positions are computed here; the file's
periods are those of base 100. Pictures are stretched, bilinear, as the authors' README prepares them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.entries import Entry, same
from vitrail.checkpoints.family import Family, differing, in_a_row
from vitrail.checkpoints.listing import Listing
from vitrail.checkpoints.torch_names import BlockNames, depth_of, heads_of, norm, patches
from vitrail.model.backbone import BackboneConfig
from vitrail.model.block import MLP, Block, FeedForward, Norm, SwiGLU
from vitrail.model.heads import Features
from vitrail.model.mixers import Attention
from vitrail.model.pools import ClassToken
from vitrail.model.positions import Rotary2D
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import Size, ViTConfig
from vitrail.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

NAME = "dinov3"
CONTAINERS = (".safetensors",)
STATED = (
    "GELU erf, epsilon 1e-5, rotary positions of base 100, heads of 64 channels (of 128 in 7B), 224 px, stretched, "
    "bilinear, ImageNet's normalisation"
)
BASE = 100.0
HEADS = {1280: 20, 4096: 32}
_BLOCKS = BlockNames(
    block="blocks.{}.",
    first_norm="norm1", query_key_value="attn.qkv", project="attn.proj",
    second_norm="norm2", expand="mlp.fc1", contract="mlp.fc2", scales=("ls1.gamma", "ls2.gamma"),
)  # fmt: skip
_GATED = replace(_BLOCKS, expand=("mlp.w1", "mlp.w2"), contract="mlp.w3")
_REGISTERS, _PERIODS, _KERNELS = "storage_tokens", "rope_embed.periods", "patch_embed.proj.weight"
_OTHERS = r"mask_token|local_cls_norm\..*|(dino|ibot|gram)_head\..*"  # of pre-training


def recognises(found: Listing) -> bool:
    return {_REGISTERS, "blocks.0.attn.qkv.weight"} <= set(_inner(found).names)


def to_native(found: Listing, image_size: tuple[int, int] | None = None) -> Checkpoint:
    """Reads a backbone, whose answer is the normed class token.

    Args:
        found: the arrays of a file.
        image_size: (height, width) that pictures are prepared at; 224x224 where nothing is said.

    Raises:
        CheckpointError: missing, extra, misshapen or unreadable arrays, all listed together.
    """
    return _FAMILY.read(_inner(found), image_size)


def from_native(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the released names, with the periods, the mask of the bias and a mask token of zeros.

    Raises:
        CheckpointError: VT074, the format has no place for this model.
    """
    _FAMILY.write(checkpoint, path)


def obstacles(config: BackboneConfig[Any]) -> list[str]:
    """What of a model the format has no place for."""
    if not isinstance(config, ViTConfig):
        return [f"a {type(config).__name__.removesuffix('Config')}"]
    block, tokenizer = config.block, config.tokenizer
    held = replace(
        config,
        tokenizer=replace(tokenizer, bias=True) if isinstance(tokenizer, LinearPatches) else LinearPatches(),
        position=Rotary2D(BASE),
        block=_block(block.mlp if isinstance(block.mlp, SwiGLU) else MLP("erf"), block),
        pool=ClassToken(config.pool.registers or 4),
        head=Features(),
    )
    return differing(config, held)


def _block(mlp: FeedForward, like: Block = Block()) -> Block:
    scale = like.layer_scale or 1e-5
    return Block(Attention(key_bias=False), mlp, Norm(1e-5), scale, like.drop_path, like.dropout)


def _inner(found: Listing) -> Listing:
    return found.inside("backbone.").without(_OTHERS)


def _infer(found: Listing) -> ViTConfig:
    shapes, depth = found.shapes, depth_of(found.shapes, _BLOCKS.block)
    gated = "blocks.0.mlp.w1.weight" in shapes
    mlp: FeedForward = SwiGLU() if gated else MLP("erf")
    contract = f"blocks.0.{(_GATED if gated else _BLOCKS).contract}.weight"
    like = ViTConfig(
        Size(4, max(1, depth), 1, 1),
        LinearPatches((1, 1)),
        Rotary2D(BASE),
        _block(mlp),
        ClassToken(1),
        Features(),
        (1, 1),
    )
    found.check_ranks(_entries(like), {_KERNELS: 4, contract: 2, _REGISTERS: 3})
    dim, channels, height, width = shapes[_KERNELS]
    tokenizer = LinearPatches((height, width), channels)
    return replace(
        like,
        size=Size(dim, depth, HEADS.get(dim) or heads_of(dim), shapes[contract][1]),
        tokenizer=tokenizer,
        pool=ClassToken(shapes[_REGISTERS][1]),
        image_size=in_a_row(found, 1, tokenizer.patch),
    )


def _entries(config: BackboneConfig[Any]) -> Iterator[Entry]:
    """The table of names, in the order of the network."""
    assert isinstance(config, ViTConfig) and isinstance(config.tokenizer, LinearPatches)
    dim, registers = config.size.dim, config.pool.registers
    quarter = dim // config.size.heads // 4
    periods = BASE ** (torch.arange(quarter, dtype=torch.float32) / quarter)  # computed where they are used, too
    yield Entry("pool.class_token", (("cls_token", (1, 1, dim)), (_PERIODS, (quarter,))),
                lambda token, _: token[0], lambda token: (token, periods))  # fmt: skip
    yield same("pool.registers", _REGISTERS, (1, registers, dim), (registers, dim))
    yield from patches("tokenizer.project", "patch_embed.proj", dim, config.tokenizer)
    names = _GATED if isinstance(config.block.mlp, SwiGLU) else _BLOCKS
    plain = replace(config.block, mixer=Attention(input_bias=False))
    for entry in names.entries(config.size, scaled=True, config=plain):
        yield entry
        if entry.native.endswith("query_key_value.weight"):
            bias = entry.foreign[0][0].removesuffix("weight") + "bias"
            yield _masked(entry.native.replace("query_key_value.weight", "query_value_bias"), bias, dim)
    yield from norm("pool.norm", "norm", dim)


def _masked(native: str, bias: str, dim: int) -> Entry:
    """Biases of queries, keys and values, and what they are multiplied with: 1, 0 and 1, so the keys' are dropped."""

    def join(three: Tensor, _: Tensor) -> Tensor:
        queries, _, values = three.chunk(3)
        return torch.cat([queries, values])

    def split(both: Tensor) -> tuple[Tensor, Tensor]:
        queries, values = both.chunk(2)
        none, kept = torch.zeros_like(queries), torch.ones_like(queries)
        return torch.cat([queries, none, values]), torch.cat([kept, none, kept])

    return Entry(native, ((bias, (3 * dim,)), (f"{bias}_mask", (3 * dim,))), join, split)


def _preprocessing(config: BackboneConfig[Any]) -> Preprocessing:
    return Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD)


_FAMILY = Family(
    NAME, STATED, _infer, _entries, obstacles, _preprocessing, unused=lambda config: {"mask_token": (1, config.dim)}
)
