"""The image towers of Hugging Face's CLIP and SigLIP, by themselves or out of a model of pictures and words.

CLIP's answer is the projected, normed class token where the file has a projection; SigLIP's is what its probe asks the
patches for, or with a classifier the mean of the normed patches. Towers of words and the temperature are left out.
transformers' CLIPForImageClassification reads tokens that no norm has seen, for which no pool is here: it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitrail.checkpoints import huggingface as hf
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.entries import Entry, same
from vitrail.checkpoints.family import Family, differing, in_a_row
from vitrail.checkpoints.listing import Listing
from vitrail.checkpoints.torch_names import BlockNames, depth_of, fused, linear, norm, patches
from vitrail.model.backbone import BackboneConfig
from vitrail.model.block import MLP, Block, Gelu, Norm
from vitrail.model.geometry import Position
from vitrail.model.heads import Features, Head, LinearHead
from vitrail.model.pools import AttentionPool, ClassToken, GlobalAverage, Pool
from vitrail.model.positions import Learned1D, Normed
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import Size, ViTConfig
from vitrail.preprocessing import Preprocessing

NAME = "hf-clip"
CONTAINERS = ("", ".safetensors")
STATED = (
    "positions bicubic between the centres; without a config.json: GELU quick and epsilon 1e-5 (SigLIP: tanh, 1e-6), heads of "
    "64 channels; without a preprocessor_config.json: the whole shorter side, bicubic, CLIP's normalisation (SigLIP: "
    "stretched, mean 0.5)"
)
KINDS = ("clip", "clip_vision_model", "siglip", "siglip_vision_model")
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_TOWER = "vision_model."
_BLOCKS = BlockNames(
    block=f"{_TOWER}encoder.layers.{{}}.",
    first_norm="layer_norm1", query_key_value=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    project="self_attn.out_proj", second_norm="layer_norm2", expand="mlp.fc1", contract="mlp.fc2",
)  # fmt: skip
_INSIDE, _FIRST = f"{_TOWER}embeddings.", _BLOCKS.block.format(0)
_KERNELS, _POSITIONS = f"{_INSIDE}patch_embedding.weight", f"{_INSIDE}position_embedding.weight"
_PROBE, _PROJECTION = f"{_TOWER}head.", "visual_projection.weight"
_BARE = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.", "head.")
_LEFT_OUT = r"text_model\..*|text_projection\..*|logit_(scale|bias)|.*\.position_ids"


def recognises(found: Listing) -> bool:
    if said := hf.kind(found):
        return said in KINDS
    names = {_full(name) for name in found.names}
    return {f"{_FIRST}layer_norm1.weight", _KERNELS} <= names


def to_native(found: Listing, image_size: tuple[int, int] | None = None) -> Checkpoint:
    """Reads a tower.

    Args:
        found: the arrays of a folder or a file.
        image_size: (height, width) of its training, needed only where the number of positions is no square.

    Raises:
        CheckpointError: missing, extra, misshapen or unreadable arrays, all listed together; VT076, a config.json that
            cannot be used.
    """
    named = hf.tower(found).spelled(_full).without(_LEFT_OUT)
    if any(name.startswith("classifier.") for name in named.names):
        named = named.without(re.escape(_PROBE) + ".*")  # transformers' classifier passes it by
    return hf.checkpoint(_FAMILY, named, image_size)


def from_native(checkpoint: Checkpoint, path: Path) -> None:
    """Writes what the class that its config.json names loads, bit for bit what `to_native` would read back.

    Raises:
        CheckpointError: VT074, the format has no place for this model.
    """
    _FAMILY.write(checkpoint, path)


def obstacles(config: BackboneConfig[Any]) -> list[str]:
    """What of a model the format has no place for."""
    if not isinstance(config, ViTConfig):
        return [f"a {type(config).__name__.removesuffix('Config')}"]
    block, tokenizer, clip = config.block, config.tokenizer, isinstance(config.pool, ClassToken)
    mlp, head = block.mlp if isinstance(block.mlp, MLP) else MLP("tanh"), config.head
    if clip:
        head = Features(head.width if isinstance(head, Features) else None)
    elif head == Features() or isinstance(config.pool, AttentionPool):
        head = Features()
    else:
        head = LinearHead(head.classes)
    held = replace(
        config,
        tokenizer=replace(tokenizer, bias=not clip) if isinstance(tokenizer, LinearPatches) else LinearPatches(),
        position=_position(clip, block.norm.epsilon),
        block=Block(mlp=mlp, norm=block.norm, drop_path=block.drop_path, dropout=block.dropout),
        pool=config.pool if config.pool in (ClassToken(), GlobalAverage()) else AttentionPool(gelu=mlp.gelu),
        head=head,
    )
    pairs = {"patches": config.tokenizer.patch, "a picture": config.image_size}
    uneven = [f"{name} of {first}x{second} px" for name, (first, second) in pairs.items() if first != second]
    return differing(config, held) + uneven


def _position(clip: bool, epsilon: float) -> Position:
    table = Learned1D(class_position=clip, interpolation="bicubic")
    return Normed(table, epsilon) if clip else table


def _full(name: str) -> str:
    """Version 5 writes a tower by itself without the prefix that it reads."""
    return _TOWER + name if name.startswith(_BARE) else name


def _infer(found: Listing) -> ViTConfig:
    shapes = found.shapes
    clip = any(name in shapes for name in (f"{_INSIDE}class_embedding", f"{_TOWER}pre_layrnorm.weight"))
    depth, hidden = depth_of(shapes, _BLOCKS.block), f"{_FIRST}mlp.fc1.weight"
    mlp = MLP(hf.gelu(found, "quick" if clip else "tanh"))
    pool, head = _ends(found, clip, mlp.gelu)
    norm = Norm(hf.number(found, "layer_norm_eps", 1e-5 if clip else 1e-6))
    block = Block(mlp=mlp, norm=norm)
    like = ViTConfig(
        Size(1, max(1, depth), 1, 1), LinearPatches((1, 1), bias=not clip), _position(clip, norm.epsilon), block,
        pool, head, (1, 1),
    )  # fmt: skip
    ranks = {_KERNELS: 4, _POSITIONS: 2, hidden: 2}
    ranks |= (
        {"classifier.weight": 2} if isinstance(head, LinearHead) else {_PROJECTION: 2} if head != Features() else {}
    )
    found.check_ranks(_entries(like), ranks)

    dim, channels, height, width = shapes[_KERNELS]
    tokenizer = replace(like.tokenizer, patch=(height, width), channels=channels)  # type: ignore[type-var]
    return replace(
        like,
        size=Size(dim, depth, hf.heads(found, dim), shapes[hidden][0]),
        tokenizer=tokenizer,
        image_size=in_a_row(found, shapes[_POSITIONS][0] - pool.class_tokens, tokenizer.patch),
    )


def _ends(found: Listing, clip: bool, gelu: Gelu) -> tuple[Pool, Head]:
    if clip:
        projection = found.shapes.get(_PROJECTION)
        return ClassToken(), Features(projection[0] if projection else None)
    if any(name.startswith(_PROBE) for name in found.names):
        return AttentionPool(gelu=gelu), Features()
    return GlobalAverage(), hf.head_of(found)


def _entries(config: BackboneConfig[Any]) -> Iterator[Entry]:
    """The table of names, in the order of the network."""
    assert isinstance(config, ViTConfig) and isinstance(config.tokenizer, LinearPatches)
    dim, rows, clip = config.size.dim, config.num_tokens, isinstance(config.pool, ClassToken)
    if clip:
        yield same("pool.class_token", f"{_INSIDE}class_embedding", (dim,), (1, dim))
    kernels = _KERNELS.removesuffix(".weight")
    yield from patches("tokenizer.project", kernels, dim, config.tokenizer, config.tokenizer.bias)
    position = "position.inner" if clip else "position"
    yield same(f"{position}.tables.0.rows", _POSITIONS, (rows, dim))
    if clip:
        yield from norm("position.norm", f"{_TOWER}pre_layrnorm", dim)
    yield from _BLOCKS.entries(config.size)
    yield from norm("pool.norm", f"{_TOWER}post_layernorm", dim)
    if isinstance(config.pool, AttentionPool):
        yield from _probe(dim, config.size.hidden)
    if isinstance(config.head, LinearHead):
        yield from linear("head.linear", "classifier", config.head.classes, dim)
    elif isinstance(config.head, Features) and config.head.width is not None:
        yield same("head.represent.weight", _PROJECTION, (config.head.width, dim))


def _probe(dim: int, hidden: int) -> Iterator[Entry]:
    yield same("pool.probe", f"{_PROBE}probe", (1, 1, dim), (1, dim))
    yield from fused("pool.attention.query_key_value", f"{_PROBE}attention.in_proj_", dim)
    yield from linear("pool.attention.project", f"{_PROBE}attention.out_proj", dim, dim)
    yield from norm("pool.mlp_norm", f"{_PROBE}layernorm", dim)
    yield from linear("pool.mlp.expand", f"{_PROBE}mlp.fc1", hidden, dim)
    yield from linear("pool.mlp.contract", f"{_PROBE}mlp.fc2", dim, hidden)


def _preprocessing(config: BackboneConfig[Any]) -> Preprocessing:
    if not isinstance(config.pool, ClassToken):  # type: ignore[attr-defined]  # a ViT's
        return Preprocessing(interpolation="bicubic")
    return Preprocessing(fit="crop", interpolation="bicubic", mean=CLIP_MEAN, std=CLIP_STD, rounding="down")


def _files(checkpoint: Checkpoint) -> Mapping[str, Any]:
    config = checkpoint.config
    assert isinstance(config, ViTConfig)
    if isinstance(config.head, LinearHead):
        tower = {"model_type": "siglip_vision_model", **hf.described(config), "vision_use_head": False}
        return hf.files(checkpoint, "siglip", "SiglipForImageClassification", {"vision_config": tower})
    if not isinstance(config.pool, ClassToken):
        said = {"vision_use_head": isinstance(config.pool, AttentionPool)}
        return hf.files(checkpoint, "siglip_vision_model", "SiglipVisionModel", said)
    width = config.head.width if isinstance(config.head, Features) else None
    what = "CLIPVisionModel" if width is None else "CLIPVisionModelWithProjection"
    return hf.files(checkpoint, "clip_vision_model", what, {"projection_dim": width or config.size.dim})


_FAMILY = Family(NAME, STATED, _infer, _entries, obstacles, _preprocessing, _files)
