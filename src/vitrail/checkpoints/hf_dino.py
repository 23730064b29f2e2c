"""Hugging Face's DINOv2, with registers or without, and DINOv3.

Without a classifier the answer is the normed class token. Released networks are backbones; the classifier of
transformers reads the class token and the mean of the patches. Without registers positions are resampled bicubically
between the centres, with them also averaged where the grid shrinks; DINOv3 turns queries and keys instead.
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
from vitrail.checkpoints.torch_names import BlockNames, depth_of, linear, norm, patches
from vitrail.model.backbone import BackboneConfig
from vitrail.model.block import MLP, Block, FeedForward, Norm, SwiGLU
from vitrail.model.heads import Features, LinearHead
from vitrail.model.mixers import Attention
from vitrail.model.pools import ClassToken, Pool, TokenAndAverage
from vitrail.model.positions import Learned1D, Rotary2D
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import Size, ViTConfig
from vitrail.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

NAME = "hf-dino"
CONTAINERS = ("", ".safetensors")
STATED = (
    "positions bicubic between the centres, averaged with registers, or rotary with base 100 (DINOv3); without a config.json: "
    "GELU erf, epsilon 1e-6 (DINOv3 1e-5), heads of 64 channels; without a preprocessor_config.json: the middle 224/256, "
    "bicubic (DINOv3: stretched, bilinear), ImageNet's normalisation"
)
KINDS = ("dinov2", "dinov2_with_registers", "dinov3_vit")
_QUERY, _KEY = "attention.attention.query", "attention.attention.key"
SECOND = BlockNames(
    block="encoder.layer.{}.",
    first_norm="norm1", query_key_value=(_QUERY, _KEY, "attention.attention.value"), project="attention.output.dense",
    second_norm="norm2", expand="mlp.fc1", contract="mlp.fc2", scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
)  # fmt: skip
SECOND_GATED = replace(SECOND, expand="mlp.weights_in", contract="mlp.weights_out")
THIRD = BlockNames(
    block="layer.{}.",
    first_norm="norm1", query_key_value=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    project="attention.o_proj", second_norm="norm2", expand="mlp.up_proj", contract="mlp.down_proj", scales=SECOND.scales,
)  # fmt: skip
THIRD_GATED = replace(THIRD, expand=("mlp.gate_proj", "mlp.up_proj"))
TODAY = {
    r"attention\.q_proj\.": f"{_QUERY}.", r"attention\.k_proj\.": f"{_KEY}.",
    r"attention\.v_proj\.": "attention.attention.value.", r"attention\.o_proj\.": "attention.output.dense.",
}  # fmt: skip
_PREFIX = re.compile(r"^(dinov2_with_registers|dinov2|model)\.")
_LEFT_OUT = r"(.*\.)?(embeddings\.mask_token|rope_embeddings\..*)"


def recognises(found: Listing) -> bool:
    if said := hf.kind(found):
        return said in KINDS
    names = set(map(_plain, found.names))
    second = {"encoder.layer.0.layer_scale1.lambda1", "embeddings.patch_embeddings.projection.weight"}
    return second <= names or {"layer.0.layer_scale1.lambda1", "embeddings.register_tokens"} <= names


def to_native(found: Listing, image_size: tuple[int, int] | None = None) -> Checkpoint:
    """Reads a backbone, or one with a classifier.

    Args:
        found: the arrays of a folder or a file.
        image_size: (height, width) of its training, needed only where neither config.json nor a square says it.

    Raises:
        CheckpointError: missing, extra, misshapen or unreadable arrays, all listed together; VT076, a config.json that
            cannot be used.
    """
    named = hf.below(found, _prefix_of(found), _plain)
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
    block, tokenizer, third, registers = config.block, config.tokenizer, _is_third(config), config.pool.registers
    usual = {"key_bias": getattr(block.mixer, "key_bias", True)} if third else {}
    mixer = replace(Attention(input_bias=third or getattr(block.mixer, "input_bias", True)), **usual)
    mlp = block.mlp if isinstance(block.mlp, MLP | SwiGLU) else MLP("erf")
    scale = block.layer_scale or 1.0
    read_by = ClassToken(registers) if isinstance(config.head, Features) or third else TokenAndAverage(registers)
    held = replace(
        config,
        tokenizer=replace(tokenizer, bias=True) if isinstance(tokenizer, LinearPatches) else LinearPatches(),
        position=config.position if third else _position(registers),
        block=Block(mixer, mlp, block.norm, scale, drop_path=block.drop_path, dropout=block.dropout),
        pool=read_by,
        head=Features() if isinstance(read_by, ClassToken) else LinearHead(config.head.classes),
    )
    widths = (
        [] if third or _ratio(config) else [f"an MLP of {config.size.hidden}, no such multiple of {config.size.dim}"]
    )
    return differing(config, held) + widths + (["no registers"] if third and not registers else [])


def _is_third(config: ViTConfig) -> bool:
    return isinstance(config.position, Rotary2D)


def _position(registers: int) -> Learned1D:
    return Learned1D(interpolation="bicubic-antialiased" if registers else "bicubic")


def _ratio(config: ViTConfig) -> int | None:
    """config.json of DINOv2 says the MLP's width as a multiple of the model's, of which gated ones take two thirds."""

    def width(ratio: int) -> int:
        full = config.size.dim * ratio
        return (int(full * 2 / 3) + 7) // 8 * 8 if isinstance(config.block.mlp, SwiGLU) else full

    return next((ratio for ratio in range(1, 65) if width(ratio) == config.size.hidden), None)


def _plain(name: str) -> str:
    """Without the prefix, and as released."""
    name = _PREFIX.sub("", name)
    if name.startswith("layer."):
        return name
    for pattern, word in TODAY.items():
        name = re.sub(pattern, word, name)
    return name


def _prefix_of(found: Listing) -> str:
    if not any(name.startswith("classifier.") for name in found.names):
        return ""
    return "dinov2_with_registers." if any(name.endswith("register_tokens") for name in found.names) else "dinov2."


def _prefix(config: ViTConfig) -> str:
    if isinstance(config.head, Features):
        return ""
    return "dinov2_with_registers." if config.pool.registers else "dinov2."


def _names(third: bool, mlp: FeedForward) -> BlockNames:
    if isinstance(mlp, SwiGLU):
        return THIRD_GATED if third else SECOND_GATED
    return THIRD if third else SECOND


def _infer(found: Listing) -> ViTConfig:
    shapes, prefix = found.shapes, _prefix_of(found)
    third = any(name.startswith("layer.") for name in shapes)
    gated = any(re.search(r"\.mlp\.(weights_in|gate_proj)\.", name) for name in shapes)
    mlp = SwiGLU() if gated else MLP(hf.gelu(found, "erf"))
    if third and gated:  # DINOv2's gated MLP has silu whatever its hidden_act says
        hf.check_activation(found, "hidden_act", "silu")
    names = _names(third, mlp)
    names = replace(names, block=prefix + names.block)
    depth, first = depth_of(shapes, names.block), names.block.format(0)
    kernels = f"{prefix}embeddings.patch_embeddings.{'' if third else 'projection.'}weight"
    contract, positions = f"{first}{names.contract}.weight", f"{prefix}embeddings.position_embeddings"
    registers = shapes.get(f"{prefix}embeddings.register_tokens", (0, 0))[1]
    block = _block(found, third, mlp, f"{first}{names.query_key_value[0]}.bias" in shapes)
    head = hf.head_of(found)
    pool: Pool = ClassToken(registers) if isinstance(head, Features) else TokenAndAverage(registers)
    position = Rotary2D(hf.number(found, "rope_theta", 100.0)) if third else _position(registers)
    ranks = {kernels: 4, contract: 2} | ({} if third else {positions: 3})
    ranks |= {} if isinstance(head, Features) else {"classifier.weight": 2}
    like = ViTConfig(Size(1, max(1, depth), 1, 1), LinearPatches((1, 1)), position, block, pool, head, (1, 1))
    if third:
        like = replace(like, size=Size(4, max(1, depth), 1, 1))
    found.check_ranks(_entries(like), ranks)

    dim, channels, height, width = shapes[kernels]
    tokenizer = LinearPatches((height, width), channels)
    count = 1 if third else shapes[positions][1] - 1
    return ViTConfig(
        Size(dim, depth, hf.heads(found, dim), shapes[contract][1]),
        tokenizer, position, block, pool, head, in_a_row(found, count, tokenizer.patch),
    )  # fmt: skip


def _block(found: Listing, third: bool, mlp: FeedForward, biased: bool) -> Block:
    if third:
        mixer = Attention(key_bias=hf.is_true(found, "key_bias", any("k_proj.bias" in name for name in found.names)))
    else:
        mixer = Attention(input_bias=hf.is_true(found, "qkv_bias", biased))
    norm = Norm(hf.number(found, "layer_norm_eps", 1e-5 if third else 1e-6))
    return Block(mixer, mlp, norm, hf.number(found, "layerscale_value", 1.0))


def _entries(config: BackboneConfig[Any]) -> Iterator[Entry]:
    """The table of names, in the order of the network."""
    assert isinstance(config, ViTConfig) and isinstance(config.tokenizer, LinearPatches)
    dim, prefix, third, registers = config.size.dim, _prefix(config), _is_third(config), config.pool.registers
    inside, names = f"{prefix}embeddings.", _names(third, config.block.mlp)
    yield same("pool.class_token", f"{inside}cls_token", (1, 1, dim), (1, dim))
    if registers:
        yield same("pool.registers", f"{inside}register_tokens", (1, registers, dim), (registers, dim))
    kernels = f"{inside}patch_embeddings" + ("" if third else ".projection")
    yield from patches("tokenizer.project", kernels, dim, config.tokenizer)
    if not third:
        rows = config.num_tokens - registers
        yield same("position.tables.0.rows", f"{inside}position_embeddings", (1, rows, dim), (rows, dim))
    yield from replace(names, block=prefix + names.block).entries(config.size, config=config.block)
    yield from norm("pool.norm", "norm" if third else f"{prefix}layernorm", dim)
    if isinstance(config.head, LinearHead):
        yield from linear("head.linear", "classifier", config.head.classes, config.dim)


def _preprocessing(config: BackboneConfig[Any]) -> Preprocessing:
    normal = Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    if isinstance(config, ViTConfig) and _is_third(config):
        return normal
    return replace(normal, fit="crop", crop_share=224 / 256, interpolation="bicubic", rounding="down")


def _unused(config: BackboneConfig[Any]) -> dict[str, tuple[int, ...]]:
    """The mask token of pre-training, for which only DINOv2 without registers has a switch."""
    assert isinstance(config, ViTConfig)
    if _is_third(config):
        return {"embeddings.mask_token": (1, 1, config.size.dim)}
    return {f"{_prefix(config)}embeddings.mask_token": (1, config.size.dim)} if config.pool.registers else {}


def _files(checkpoint: Checkpoint) -> Mapping[str, Any]:
    config = checkpoint.config
    assert isinstance(config, ViTConfig) and isinstance(config.block.mixer, Attention)
    gated, registers = isinstance(config.block.mlp, SwiGLU), config.pool.registers
    said: dict[str, Any] = {"layerscale_value": config.block.layer_scale, "num_register_tokens": registers}
    if isinstance(config.position, Rotary2D):
        said |= {"rope_theta": config.position.base, "key_bias": config.block.mixer.key_bias, "use_gated_mlp": gated}
        said |= {"hidden_act": "silu"} if gated else {}
        return hf.files(checkpoint, "dinov3_vit", "DINOv3ViTModel", said)
    said |= {"mlp_ratio": _ratio(config), "use_swiglu_ffn": gated, "qkv_bias": config.block.mixer.input_bias}
    said |= {} if registers else {"use_mask_token": False}
    what = "Model" if isinstance(config.head, Features) else "ForImageClassification"
    kind, name = ("dinov2_with_registers", "Dinov2WithRegisters") if registers else ("dinov2", "Dinov2")
    return hf.files(checkpoint, kind, name + what, said)


_FAMILY = Family(NAME, STATED, _infer, _entries, obstacles, _preprocessing, _files, _unused)
