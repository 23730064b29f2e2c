"""The names that timm gives the arrays of a Vision Transformer, and most PyTorch programs with it.

cls_token, pos_embed, patch_embed.proj, blocks.0.attn.qkv and so on: DeiT, DINO, MAE, MoCo v3 and DINOv2 have them too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vitrail.checkpoints.entries import Entry, same
from vitrail.checkpoints.families import Facts
from vitrail.checkpoints.family import in_a_row
from vitrail.checkpoints.listing import Listing
from vitrail.checkpoints.torch_names import depth_of, fused, heads_of, linear, norm, patches
from vitrail.model.backbone import BackboneConfig
from vitrail.model.block import MLP, Block, FeedForward, Norm, SwiGLU
from vitrail.model.heads import Features, Head, LinearHead, TwoHeads
from vitrail.model.mixers import Attention
from vitrail.model.pools import AttentionPool, ClassToken, DistilledToken, GlobalAverage, Pool, TokenAndAverage
from vitrail.model.positions import Learned1D, Normed, Position
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import Size, ViTConfig

BLOCK, POSITIONS, PATCHES, FIRST = "blocks.{}.", "pos_embed", "patch_embed.proj.weight", "blocks.0."


@dataclass(frozen=True)
class Words:
    """Where the programs differ; `before` stands before every name but the head's."""

    registers: str = "reg_token"
    expand: str = "mlp.fc1"
    contract: str = "mlp.fc2"
    head: str = "head"
    before: str = ""


def infer(
    found: Listing, facts: Facts, words: Words = Words(), heads: int | None = None, pooling: str | None = None
) -> ViTConfig:
    """The configuration that the arrays determine; patches are thought of in one row.

    Args:
        found: the arrays.
        facts: what they cannot tell.
        words: the program's spelling.
        heads: how many, where it is said.
        pooling: "avg" or "token", where it is said; it decides where there is a class token and one norm at the end.
    """
    shapes = {name.removeprefix(words.before): shape for name, shape in found.shapes.items()}
    expand, contract = f"{FIRST}{words.expand}.weight", f"{FIRST}{words.contract}.weight"
    depth, head = depth_of(shapes, BLOCK), f"{words.head}.weight"
    normed, classes = _any(shapes, "norm_pre."), shapes.get(head, (0,))[0]
    position: Position = Learned1D(interpolation=facts.interpolation)
    block = Block(
        Attention(input_bias=any(name.endswith("attn.qkv.bias") for name in shapes)),
        MLP(facts.gelu),
        Norm(facts.epsilon),
        1e-5 if any(name.endswith(".gamma") for name in shapes) else None,
    )
    pool = _pool(shapes, facts, words, pooling)
    like = ViTConfig(
        Size(1, max(1, depth), 1, 1), LinearPatches((1, 1), bias=not normed), Normed(position) if normed else position,
        block, pool, _head(shapes, words, 1), (1, 1),
    )  # fmt: skip
    ranks = {words.before + name: rank for name, rank in {PATCHES: 4, expand: 2, contract: 2, POSITIONS: 3}.items()}
    ranks |= {head: 2} if like.head.classes else {}
    found.check_ranks(entries(like, words), ranks)

    dim, channels, height, width = shapes[PATCHES]
    tokenizer = LinearPatches((height, width), channels, bias=not normed)
    gated = shapes[expand][0] == 2 * shapes[contract][1]
    mlp: FeedForward = SwiGLU() if gated else MLP(facts.gelu)
    rows = _rows_of_class(found, shapes[POSITIONS][1], pool, facts, tokenizer.patch)
    position = Learned1D(class_position=rows > 0 or not pool.class_tokens, interpolation=facts.interpolation)
    return ViTConfig(
        Size(dim, depth, heads or facts.heads.get(dim) or heads_of(dim), shapes[contract][1]),
        tokenizer,
        Normed(position, facts.epsilon) if normed else position,
        Block(block.mixer, mlp, block.norm, block.layer_scale),
        pool,
        _head(shapes, words, classes),
        in_a_row(found, shapes[POSITIONS][1] - rows, tokenizer.patch),
    )


def _pool(shapes: Mapping[str, tuple[int, ...]], facts: Facts, words: Words, pooling: str | None) -> Pool:
    shape = shapes.get(words.registers, ())
    registers, token = shape[1] if len(shape) == 3 else 0, int("cls_token" in shapes)
    if "dist_token" in shapes:
        return DistilledToken(registers)
    if _any(shapes, "attn_pool."):
        return AttentionPool(registers, facts.gelu)
    if _any(shapes, "linear_head."):
        return TokenAndAverage(registers)
    if _any(shapes, "fc_norm.") and pooling != "token":
        return GlobalAverage(registers, token, norm_first=False)
    return ClassToken(registers) if token and pooling != "avg" else GlobalAverage(registers, token)


def _head(shapes: Mapping[str, tuple[int, ...]], words: Words, classes: int) -> Head:
    if "dist_token" in shapes:
        return TwoHeads(classes)
    return LinearHead(classes) if _any(shapes, f"{words.head}.") else Features()


def _any(shapes: Mapping[str, tuple[int, ...]], start: str) -> bool:
    """One array of a part is enough: the missing ones are then listed."""
    return any(name.startswith(start) for name in shapes)


def _rows_of_class(found: Listing, rows: int, pool: Pool, facts: Facts, patch: tuple[int, int]) -> int:
    """How many rows of the table are not of patches: those of class tokens, or none. A grid is a square if it can be."""
    tokens = pool.class_tokens
    if not tokens:
        return 0
    said = said_size(found)
    if said is not None:
        return tokens if math.prod(side // step for side, step in zip(said, patch, strict=True)) != rows else 0
    with_rows, without = (math.isqrt(max(0, count)) ** 2 == count for count in (rows - tokens, rows))
    if with_rows != without:
        return tokens if with_rows else 0
    return tokens if facts.class_position and not pool.registers else 0


def said_size(found: Listing) -> tuple[int, int] | None:
    """(height, width) in timm's config.json."""
    said = found.config.get("pretrained_cfg")
    size = said.get("input_size") if isinstance(said, Mapping) else None
    known = isinstance(size, list) and len(size) == 3 and all(type(side) is int and side > 0 for side in size)
    return (size[1], size[2]) if known and isinstance(size, list) else None


def entries(config: BackboneConfig[Any], words: Words = Words()) -> Iterator[Entry]:
    """The table of names, in the order of the network."""
    for entry in _entries(config, words):
        names = ((name if name.startswith(words.head) else words.before + name, shape) for name, shape in entry.foreign)
        yield replace(entry, foreign=tuple(names))


def _entries(config: BackboneConfig[Any], words: Words) -> Iterator[Entry]:
    assert isinstance(config, ViTConfig) and isinstance(config.tokenizer, LinearPatches)
    dim, pool, normed = config.size.dim, config.pool, isinstance(config.position, Normed)
    inner = config.position.position if isinstance(config.position, Normed) else config.position
    assert isinstance(inner, Learned1D)
    rows = math.prod(config.grid) + (pool.class_tokens if inner.class_position else 0)
    tokens = ("cls_token", "dist_token")[: pool.class_tokens]
    if tokens:
        yield Entry("pool.class_token", tuple((name, (1, 1, dim)) for name in tokens),
                    lambda *parts: torch.cat([part[0] for part in parts]), lambda t: t.split(1))  # fmt: skip
    if pool.registers:
        yield same("pool.registers", words.registers, (1, pool.registers, dim), (pool.registers, dim))
    place = "position.inner" if normed else "position"
    yield same(f"{place}.tables.0.rows", POSITIONS, (1, rows, dim), (rows, dim))
    yield from patches("tokenizer.project", "patch_embed.proj", dim, config.tokenizer, config.tokenizer.bias)
    if normed:
        yield from norm("position.norm", "norm_pre", dim)
    for layer in range(config.size.depth):
        yield from _block(f"blocks.{layer}.", BLOCK.format(layer), config, words)
    late = isinstance(pool, GlobalAverage) and not pool.norm_first
    yield from norm("pool.norm", "fc_norm" if late else "norm", dim)
    if isinstance(pool, AttentionPool):
        yield from _probe(config.size)
    if not isinstance(config.head, Features):
        width = config.dim // 2 if isinstance(config.head, TwoHeads) else config.dim
        yield from linear("head.linear", words.head, config.head.classes, width)
    if isinstance(config.head, TwoHeads):
        yield from linear("head.distilled", "head_dist", config.head.classes, width)


def _block(native: str, block: str, config: ViTConfig, words: Words) -> Iterator[Entry]:
    dim, hidden, mixer = config.size.dim, config.size.hidden, config.block.mixer
    assert isinstance(mixer, Attention)
    parts = 2 if isinstance(config.block.mlp, SwiGLU) else 1
    yield from norm(f"{native}mixer_norm", f"{block}norm1", dim)
    yield from fused(f"{native}mixer.query_key_value", f"{block}attn.qkv.", dim, mixer.input_bias)
    yield from linear(f"{native}mixer.project", f"{block}attn.proj", dim, dim)
    yield from norm(f"{native}mlp_norm", f"{block}norm2", dim)
    yield from linear(f"{native}mlp.expand", f"{block}{words.expand}", parts * hidden, dim)
    yield from linear(f"{native}mlp.contract", f"{block}{words.contract}", dim, hidden)
    if config.block.layer_scale is not None:
        yield same(f"{native}mixer_branch.scale", f"{block}ls1.gamma", (dim,))
        yield same(f"{native}mlp_branch.scale", f"{block}ls2.gamma", (dim,))


def _probe(size: Size) -> Iterator[Entry]:
    """Attention pooling; the probe's query has a layer of its own."""
    dim, native, pool = size.dim, "pool.attention.query_key_value", "attn_pool"
    yield same("pool.probe", f"{pool}.latent", (1, 1, dim), (1, dim))

    def split(joint: Tensor) -> tuple[Tensor, ...]:
        return joint[:dim], joint[dim:]

    for part, width in (("weight", (dim,)), ("bias", ())):
        yield Entry(f"{native}.{part}", ((f"{pool}.q.{part}", (dim, *width)), (f"{pool}.kv.{part}", (2 * dim, *width))),
                    lambda q, kv: torch.cat([q, kv]), split)  # fmt: skip
    yield from linear("pool.attention.project", f"{pool}.proj", dim, dim)
    yield from norm("pool.mlp_norm", f"{pool}.norm", dim)
    yield from linear("pool.mlp.expand", f"{pool}.mlp.fc1", size.hidden, dim)
    yield from linear("pool.mlp.contract", f"{pool}.mlp.fc2", dim, size.hidden)
