"""Hugging Face's ViT, DeiT, MAE, MSN and I-JEPA: one encoder under the same names.

A classifier reads the class token, or the mean of the patches where there is none (I-JEPA); DeiT's two read a token each.
A ViTModel answers with its pooler where it has one, and else with the class token. The decoder of MAE is left out. What
has no classifier and no pooler is written as a ViTMSNModel, which is a ViTModel that asks for no pooler.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vitrail.checkpoints import huggingface as hf
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.entries import Entry, same
from vitrail.checkpoints.family import Family, differing, in_a_row
from vitrail.checkpoints.listing import Listing
from vitrail.checkpoints.torch_names import BlockNames, depth_of, linear, norm, patches, stack
from vitrail.model.backbone import BackboneConfig
from vitrail.model.block import MLP, Block, Norm
from vitrail.model.heads import Features, Head, LinearHead, TwoHeads
from vitrail.model.mixers import Attention
from vitrail.model.pools import ClassToken, DistilledToken, GlobalAverage, Pool
from vitrail.model.positions import Learned1D
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import Size, ViTConfig
from vitrail.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

NAME = "hf-vit"
CONTAINERS = ("", ".safetensors")
STATED = (
    "positions bicubic between the centres; without a config.json: GELU erf, epsilon 1e-12, heads of 64 channels; without a "
    "preprocessor_config.json: stretched, mean 0.5 (DeiT: the middle 224/256, ImageNet's mean)"
)
KINDS = ("vit", "deit", "vit_mae", "vit_msn", "ijepa")
BLOCKS = BlockNames(
    block="encoder.layer.{}.",
    first_norm="layernorm_before",
    query_key_value=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    project="attention.output.dense",
    second_norm="layernorm_after", expand="intermediate.dense", contract="output.dense",
)  # fmt: skip
# How version 5 names the same parts inside; it still writes the names of before.
TODAY = {
    r"^(.*\.)?layers\.(\d+)\.": r"\1encoder.layer.\2.", r"attention\.q_proj\.": "attention.attention.query.",
    r"attention\.k_proj\.": "attention.attention.key.", r"attention\.v_proj\.": "attention.attention.value.",
    r"attention\.o_proj\.": "attention.output.dense.", r"mlp\.fc1\.": "intermediate.dense.",
    r"mlp\.fc2\.": "output.dense.",
}  # fmt: skip
_POSITION = Learned1D(interpolation="bicubic")
_HEADS = ("classifier.", "cls_classifier.", "distillation_classifier.")
_PREFIX = re.compile(r"^(vit|deit|ijepa)\.")
# Of pre-training, and a pooler beside a classifier, which nothing reads.
_LEFT_OUT = r"(.*\.)?embeddings\.mask_token|decoder\..*|(vit|deit)\.pooler\..*"


def recognises(found: Listing) -> bool:
    if said := hf.kind(found):
        return said in KINDS
    names = [_today(name) for name in found.names]
    return any(name.endswith("encoder.layer.0.layernorm_before.weight") for name in names) and not any(
        "lambda_" in name or "relative_position_bias" in name for name in names
    )


def to_native(found: Listing, image_size: tuple[int, int] | None = None) -> Checkpoint:
    """Reads an encoder, with its classifier or its pooler.

    Args:
        found: the arrays of a folder or a file.
        image_size: (height, width) of its training, needed only where neither config.json nor a square says it.

    Raises:
        CheckpointError: missing, extra, misshapen or unreadable arrays, all listed together; VT076, a config.json that
            cannot be used.
    """
    found = found.spelled(_today)
    prefix = _prefix_of(found) if any(name.startswith(_HEADS) for name in found.names) else ""
    named = hf.below(found, prefix, lambda name: _PREFIX.sub("", name))
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
    mixer = Attention(input_bias=getattr(block.mixer, "input_bias", True))
    mlp = block.mlp if isinstance(block.mlp, MLP) else MLP("erf")
    pool, heads = _places(config.pool)
    held = replace(
        config,
        tokenizer=replace(tokenizer, bias=True) if isinstance(tokenizer, LinearPatches) else LinearPatches(),
        position=replace(_POSITION, class_position=pool.class_tokens > 0),
        block=Block(mixer, mlp, block.norm, drop_path=block.drop_path, dropout=block.dropout),
        pool=pool,
        head=config.head if config.head in heads(config) else LinearHead(config.head.classes),
    )
    return differing(config, held)


def _places(pool: Pool) -> tuple[Pool, Any]:
    """The pool that would come back, and the heads it may have."""

    def heads(config: ViTConfig) -> list[Head]:
        pooler = Features(getattr(config.head, "width", None) or config.dim, tanh=True)
        if pool == DistilledToken():
            return [TwoHeads(config.head.classes)]
        if pool == DistilledToken(alone=True):
            return [LinearHead(config.head.classes), replace(pooler, width=config.dim)]
        return [LinearHead(config.head.classes), Features(), *([pooler] if pool == ClassToken() else [])]

    known = pool in (DistilledToken(), DistilledToken(alone=True), ClassToken(), GlobalAverage())
    return (pool if known else ClassToken()), heads


def _today(name: str) -> str:
    for pattern, word in TODAY.items():
        name = re.sub(pattern, word, name)
    return name


def _prefix_of(found: Listing) -> str:
    if any(name.endswith("embeddings.distillation_token") for name in found.names):
        return "deit."
    return "vit." if any(name.endswith("embeddings.cls_token") for name in found.names) else "ijepa."


def _prefix(config: ViTConfig) -> str:
    if isinstance(config.head, Features):
        return ""
    return {2: "deit.", 1: "vit.", 0: "ijepa."}[config.pool.class_tokens]


def _infer(found: Listing) -> ViTConfig:
    shapes = found.shapes
    prefix = _prefix_of(found) if any(name.startswith(_HEADS) for name in shapes) else ""
    first, depth = prefix + BLOCKS.block.format(0), depth_of(shapes, prefix + BLOCKS.block)
    kernels, positions = (
        f"{prefix}embeddings.patch_embeddings.projection.weight",
        f"{prefix}embeddings.position_embeddings",
    )
    expand, biased = f"{first}{BLOCKS.expand}.weight", f"{first}attention.attention.query.bias" in shapes
    pool, head = _pool_of(found), _head_of(found)
    ranks = {kernels: 4, positions: 3, expand: 2}
    ranks |= {name: 2 for layer in _read_by(head) if (name := f"{layer}.weight")}
    position = replace(_POSITION, class_position=pool.class_tokens > 0)
    block = Block(
        Attention(input_bias=hf.is_true(found, "qkv_bias", biased)),
        MLP(hf.gelu(found, "erf")),
        Norm(hf.number(found, "layer_norm_eps", 1e-12)),
    )
    like = ViTConfig(Size(1, max(1, depth), 1, 1), LinearPatches((1, 1)), position, block, pool, head, (1, 1))
    found.check_ranks(_entries(like), ranks)

    dim, channels, height, width = shapes[kernels]
    tokenizer = LinearPatches((height, width), channels)
    return ViTConfig(
        Size(dim, depth, hf.heads(found, dim), shapes[expand][0]),
        tokenizer, position, block, pool, head,
        in_a_row(found, shapes[positions][1] - pool.class_tokens, tokenizer.patch),
    )  # fmt: skip


def _pool_of(found: Listing) -> Pool:
    prefix = _prefix_of(found)
    if prefix == "deit.":
        return DistilledToken(alone=not any(name.startswith("distillation_classifier.") for name in found.names))
    return ClassToken() if prefix == "vit." else GlobalAverage()


def _head_of(found: Listing) -> Head:
    if classes := hf.classes_of(found, "cls_classifier") or hf.classes_of(found, "distillation_classifier"):
        return TwoHeads(classes)
    if classes := hf.classes_of(found):
        return LinearHead(classes)
    hf.check_activation(found, "pooler_act", "tanh")
    width = hf.classes_of(found, "pooler.dense")
    return Features() if width is None else Features(width, tanh=True)


def _read_by(head: Head) -> tuple[str, ...]:
    """The names of a head's layers."""
    if isinstance(head, TwoHeads):
        return "cls_classifier", "distillation_classifier"
    return ("classifier",) if isinstance(head, LinearHead) else ("pooler.dense",) if head != Features() else ()


def _entries(config: BackboneConfig[Any]) -> Iterator[Entry]:
    """The table of names, in the order of the network."""
    assert isinstance(config, ViTConfig) and isinstance(config.tokenizer, LinearPatches)
    dim, rows, prefix = config.size.dim, config.num_tokens, _prefix(config)
    inside, names = f"{prefix}embeddings.", replace(BLOCKS, block=prefix + BLOCKS.block)
    if config.pool.class_tokens == 2:
        yield _two_tokens(inside, dim)
    elif config.pool.class_tokens:
        yield same("pool.class_token", f"{inside}cls_token", (1, 1, dim), (1, dim))
    yield from patches("tokenizer.project", f"{inside}patch_embeddings.projection", dim, config.tokenizer)
    yield same("position.tables.0.rows", f"{inside}position_embeddings", (1, rows, dim), (rows, dim))
    yield from names.entries(config.size, config=config.block)
    yield from norm("pool.norm", f"{prefix}layernorm", dim)
    if isinstance(config.head, Features):
        if config.head.width is not None:
            yield from linear("head.represent.0", "pooler.dense", config.head.width, dim)
        return
    for own, layer in zip(("head.linear", "head.distilled"), _read_by(config.head), strict=False):
        yield from linear(own, layer, config.head.classes, dim)


def _two_tokens(inside: str, dim: int) -> Entry:
    """Class token and distillation token are rows of one array here."""
    names = f"{inside}cls_token", f"{inside}distillation_token"
    entry = stack("pool.class_token", names, (1, 1, dim))
    return replace(entry, join=lambda *tokens: torch.cat(tokens).reshape(2, dim))


def _preprocessing(config: BackboneConfig[Any]) -> Preprocessing:
    if not isinstance(config, ViTConfig) or config.pool.class_tokens < 2:
        return Preprocessing()
    return Preprocessing(
        crop_share=224 / 256, interpolation="bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD, rounding="down"
    )


def _kind(config: ViTConfig) -> tuple[str, str]:
    """model_type and architecture."""
    match config.pool.class_tokens, config.head:
        case 2, TwoHeads():
            return "deit", "DeiTForImageClassificationWithTeacher"
        case 2, head:
            return "deit", "DeiTModel" if isinstance(head, Features) else "DeiTForImageClassification"
        case 1, Features(width=None):
            return "vit_msn", "ViTMSNModel"
        case 1, head:
            return "vit", "ViTModel" if isinstance(head, Features) else "ViTForImageClassification"
        case _, head:
            return "ijepa", "IJepaModel" if isinstance(head, Features) else "IJepaForImageClassification"


def _files(checkpoint: Checkpoint) -> Mapping[str, Any]:
    config = checkpoint.config
    assert isinstance(config, ViTConfig)
    said: dict[str, Any] = {"qkv_bias": getattr(config.block.mixer, "input_bias", True)}
    if isinstance(config.head, Features):
        said |= {"pooler_output_size": config.head.width or config.dim, "pooler_act": "tanh"}
    return hf.files(checkpoint, *_kind(config), said)


_FAMILY = Family(NAME, STATED, _infer, _entries, obstacles, _preprocessing, _files)
