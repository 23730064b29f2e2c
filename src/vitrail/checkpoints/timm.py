"""timm's VisionTransformer and the families that share its names: DeiT, DINO, MAE, MoCo v3, DINOv2 and CLIP as timm has them.

A folder's config.json names the architecture, and with it what the arrays cannot tell. A single file says nothing:
then the family is the one that was asked for, or the one that the wrapping of its training program shows, or else
`augreg`, timm's own. `families.FAMILIES` has their numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

from vitrail.checkpoints.arrays import CheckpointError
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.families import FAMILIES as FAMILIES
from vitrail.checkpoints.families import Facts
from vitrail.checkpoints.family import Family
from vitrail.checkpoints.listing import Listing
from vitrail.checkpoints.timm_names import entries, infer
from vitrail.model.backbone import BackboneConfig
from vitrail.model.block import MLP, Gelu, SwiGLU
from vitrail.model.geometry import Interpolation
from vitrail.model.heads import Features, LinearHead, TwoHeads
from vitrail.model.mixers import Attention
from vitrail.model.pools import AttentionPool, ClassToken, DistilledToken, GlobalAverage
from vitrail.model.positions import Learned1D, Normed
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import ViTConfig

NAME = "timm"
CONTAINERS = (".safetensors", "")
STATED = "GELU form, epsilon, interpolation of positions and normalisation, by the family"
# What an architecture's name contains -> its row; the first that fits.
_ROWS = {"clip_quickgelu": "clip", "clip": "open-clip", "siglip": "siglip", "dinov2": "dinov2", "deit3": "deit3",
         "deit": "deit", "flexivit": "flexivit"}  # fmt: skip
# timm runs the smaller SigLIPs with GELU erf, although they were trained with tanh.
_TANH = re.compile(r"base_patch32_siglip|large_patch16_siglip_(gap_)?512|so400m_patch16_siglip|giantopt")
_HEADS = {"giantopt": 16, "vit_base_patch16_gap_224": 16, "test_vit3": 3, "test_vit": 2}
_POST_NORM = "_rpn_"  # the same names, other arithmetic
_ACTIVATIONS: dict[str, Gelu] = {"gelu": "erf", "gelu_tanh": "tanh", "quick_gelu": "quick"}
_OTHERS = r"mask_token|decoder_.*|head\.\d+\..*|fc_norm\.num_batches_tracked"  # of pre-training; MoCo's projection


def recognises(found: Listing) -> bool:
    names = {name.removeprefix("backbone.") for name in found.names}
    ours = {"pos_embed", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight"}
    released = {"register_tokens", "linear_head.weight", "linear_head.bias"} & names or (
        "mask_token" in names and not _has_decoder(names)
    )
    return ours <= set(inner(found).names) and not released  # by DINOv2


def to_native(found: Listing, image_size: tuple[int, int] | None = None) -> Checkpoint:
    """Reads a VisionTransformer of the family that is told.

    Args:
        found: the arrays of a file.
        image_size: (height, width) of its training, needed only where the number of positions is no square.

    Raises:
        CheckpointError: missing, extra, misshapen or unreadable arrays, all listed together; VT076, config.json names
            an architecture whose arrays have these names and mean something else.
    """
    row, why = row_of(found)
    facts, heads = FAMILIES[row], None
    if "architecture" in found.config:
        facts, heads = of_architecture(found, facts)
    pooling = _argument(found, "global_pool")
    family = replace(
        _FAMILY,
        stated=f"{row}, {why}: {facts.told}",
        infer=lambda bare: infer(bare, facts, heads=heads, pooling=pooling),
        preprocessing=facts.preprocessing,
    )
    return family.read(inner(found), image_size)


def from_native(checkpoint: Checkpoint, path: Path) -> None:
    """Writes timm's names; a folder also has the config.json of which timm builds the model ("local-dir:FOLDER").

    Raises:
        CheckpointError: VT074, the format has no place for this model.
    """
    _FAMILY.write(checkpoint, path)


def obstacles(config: BackboneConfig[Any]) -> list[str]:
    """What of a model the format has no place for."""
    if not isinstance(config, ViTConfig):
        return [f"a {type(config).__name__.removesuffix('Config')}"]
    tokenizer, position, block, pool, head = config.tokenizer, config.position, config.block, config.pool, config.head
    mixer, mlp, epsilon = block.mixer, block.mlp, block.norm.epsilon
    normed, distilled = isinstance(position, Normed), isinstance(pool, DistilledToken)
    learned = position.position if isinstance(position, Normed) else position
    class_row = isinstance(learned, Learned1D) and learned.class_position and pool.class_tokens > 0
    classifies = TwoHeads if distilled else LinearHead
    fits = {
        f"{tokenizer}": isinstance(tokenizer, LinearPatches) and tokenizer.bias is not normed,
        f"{position}": isinstance(learned, Learned1D)
        and learned.inject == "stem"
        and not (class_row and pool.registers)
        and (class_row or not distilled)
        and (not isinstance(position, Normed) or position.epsilon == epsilon),
        f"{block}": isinstance(mixer, Attention)
        and mixer == Attention(input_bias=mixer.input_bias)
        and (epsilon == 1e-6 or (epsilon == 1e-5 and isinstance(mlp, MLP) and not distilled))
        and not (distilled and isinstance(mlp, SwiGLU)),
        f"{pool}": isinstance(pool, (ClassToken, GlobalAverage))
        or (isinstance(pool, DistilledToken) and not pool.registers)
        or (isinstance(pool, AttentionPool) and mlp == MLP(pool.gelu)),
        f"{head}": isinstance(head, classifies) or (head == Features() and not distilled),
    }
    return [part for part, held in fits.items() if not held]


def row_of(found: Listing) -> tuple[str, str]:
    """(row of `FAMILIES`, how it is known)."""
    if (asked := found.weights.family) in FAMILIES:
        return str(asked), "as asked"
    if name := _architecture(found):
        row = next((row for word, row in _ROWS.items() if word in name), "augreg")
        return row, f"the architecture is {name}"
    names, shown = set(found.names), "as its names show"
    if any(name.startswith("base_encoder.") for name in names):
        return "moco-v3", shown
    if _has_decoder(names):
        return "mae", shown
    if "blocks.0.ls1.gamma" in inner(found).names:
        return ("deit3" if any("gamma_1" in name for name in names) else "dinov2"), shown
    if "dist_token" in names:
        return "deit", shown
    if any(name.startswith(("student/", "teacher/")) for name in (*found.left_out, *found.names.values())):
        return "dino", "as its wrapping shows"
    if any(name.startswith("attn_pool.") for name in names):
        return "siglip", shown
    return ("open-clip", shown) if any(name.startswith("norm_pre.") for name in names) else ("augreg", "assumed")


def inner(found: Listing) -> Listing:
    """The weights of the encoder alone, under timm's names."""
    return found.inside("base_encoder.", "backbone.").without(_OTHERS).spelled(_today)


def _today(name: str) -> str:
    """DeiT III calls LayerScale's factors as BEiT does."""
    return re.sub(r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma", name)


def _has_decoder(names: Iterable[str]) -> bool:
    """MAE's."""
    return any(name.startswith("decoder_") for name in names)


def _architecture(found: Listing) -> str:
    name = found.config.get("architecture")
    return name if isinstance(name, str) else ""


def _argument(found: Listing, name: str) -> Any:
    """What config.json says of an argument of the model."""
    arguments = found.config.get("model_args")
    own = arguments.get(name) if isinstance(arguments, Mapping) else None
    return own if own is not None else found.config.get(name)


def of_architecture(found: Listing, facts: Facts) -> tuple[Facts, int | None]:
    """The row with what timm itself does: it resamples positions in one way, whoever trained them; and the heads."""
    name, own = _architecture(found), found.config.get("vitrail")
    if _POST_NORM in name:
        raise CheckpointError(
            "VT076", f"{found.path} is a {name}, whose norms stand behind the branches", "norms before the branches"
        )
    gelu = facts.gelu if "siglip" not in name else "tanh" if _TANH.search(name) else "erf"
    interpolation: Any = "bilinear" if "flexivit" in name else "bicubic-antialiased"
    if isinstance(own, Mapping) and own.get("interpolation") in get_args(Interpolation):
        interpolation = own["interpolation"]
    gelu = _ACTIVATIONS.get(str(_argument(found, "act_layer")), gelu)
    heads = _argument(found, "num_heads")
    if heads is None:
        heads = next((count for word, count in _HEADS.items() if word in name), None)
    if heads is not None and (type(heads) is not int or heads < 1):
        raise CheckpointError("VT076", f"{found.path}: config.json says {heads!r} heads", "a positive number")
    return replace(facts, gelu=gelu, interpolation=interpolation), heads


def _files(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """config.json, of which timm builds the model; what only Vitrail asks for is under "vitrail"."""
    config, seen = checkpoint.config, checkpoint.preprocessing
    assert isinstance(config, ViTConfig)
    learned = config.position.position if isinstance(config.position, Normed) else config.position
    assert isinstance(learned, Learned1D)
    arguments = _arguments(config, learned)
    said = {
        "architecture": _written_as(config),
        "num_classes": config.head.classes,
        "num_features": config.size.dim,
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [config.channels, *config.image_size],
            "interpolation": seen.interpolation,
            "crop_pct": math.floor(seen.crop_share * 1e6) / 1e6,
            "crop_mode": "center" if seen.fit == "crop" else "squash",
            "mean": list(seen.mean),
            "std": list(seen.std),
            "num_classes": config.head.classes,
            "classifier": ["head", "head_dist"] if isinstance(config.head, TwoHeads) else "head",
            "first_conv": "patch_embed.proj",
        },
        "label_names": list(checkpoint.classes),
        "vitrail": {"interpolation": learned.interpolation},
    }
    return {"config.json": said, "preprocessor_config.json": {"vitrail": asdict(seen)}}


def _written_as(config: ViTConfig) -> str:
    """A registered model with this epsilon, this kind of MLP and these heads; its arguments say the rest."""
    if isinstance(config.pool, DistilledToken):
        return "deit_base_distilled_patch16_224"
    if isinstance(config.block.mlp, SwiGLU):
        return "vit_giant_patch14_dinov2"
    return "vit_base_patch16_clip_224" if config.block.norm.epsilon == 1e-5 else "vit_base_patch16_224"


def _arguments(config: ViTConfig, learned: Learned1D) -> dict[str, Any]:
    size, pool, mlp, tokenizer = config.size, config.pool, config.block.mlp, config.tokenizer
    hidden = size.hidden * (2 if isinstance(mlp, SwiGLU) else 1)
    late = isinstance(pool, GlobalAverage)
    found: dict[str, Any] = {
        "img_size": list(config.image_size), "patch_size": list(tokenizer.patch), "in_chans": config.channels,
        "embed_dim": size.dim, "depth": size.depth, "num_heads": size.heads,
        "mlp_ratio": (hidden + 0.5) / size.dim,  # timm rounds it down
        "qkv_bias": isinstance(config.block.mixer, Attention) and config.block.mixer.input_bias,
        "init_values": config.block.layer_scale, "pre_norm": isinstance(config.position, Normed),
        "global_pool": "map" if isinstance(pool, AttentionPool) else "avg" if late else "token",
        "fc_norm": isinstance(pool, GlobalAverage) and not pool.norm_first,
    }  # fmt: skip
    if isinstance(mlp, MLP):
        found["act_layer"] = next(name for name, gelu in _ACTIVATIONS.items() if gelu == mlp.gelu)
    if not isinstance(pool, DistilledToken):
        found |= {"class_token": pool.class_tokens > 0, "reg_tokens": pool.registers,
                  "no_embed_class": not (learned.class_position and pool.class_tokens)}  # fmt: skip
    return found


_FAMILY = Family(NAME, STATED, lambda found: infer(found, FAMILIES["augreg"]), entries, obstacles, files=_files)
