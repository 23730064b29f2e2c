"""What the folders of Hugging Face's transformers have in common: config.json and preprocessor_config.json.

Arrays say the sizes; config.json says what they cannot: heads, GELU form, epsilon, image size, names of classes. A file
of such arrays without a config.json is read with the family's defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from vitrail.checkpoints.arrays import CheckpointError
from vitrail.checkpoints.carried import RESAMPLE
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.family import Family
from vitrail.checkpoints.listing import Listing
from vitrail.checkpoints.torch_names import heads_of
from vitrail.model.backbone import BackboneConfig
from vitrail.model.block import Gelu
from vitrail.model.heads import Features, LinearHead
from vitrail.model.vit import ViTConfig
from vitrail.preprocessing import Preprocessing

ACTIVATIONS: dict[str, Gelu] = {
    "gelu": "erf", "gelu_python": "erf",
    "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh", "gelu_fast": "tanh", "gelu_python_tanh": "tanh",
    "quick_gelu": "quick",
}  # fmt: skip
PARTS = ("embeddings.", "encoder.", "layer.", "layernorm.", "norm.", "pooler.")  # of an encoder
_WRITTEN: dict[Gelu, str] = {"erf": "gelu", "tanh": "gelu_pytorch_tanh", "quick": "quick_gelu"}


def kind(found: Listing) -> str | None:
    """The model_type of config.json; None without one."""
    said = found.config.get("model_type")
    return said if isinstance(said, str) else None


def below(found: Listing, prefix: str, plain: Callable[[str], str]) -> Listing:
    """The arrays of the encoder under their `plain` names below a prefix; all others, such as a classifier's, as they are."""

    def spell(name: str) -> str:
        bare = plain(name)
        return prefix + bare if bare.startswith(PARTS) else name

    return found.spelled(spell)


def tower(found: Listing, part: str = "vision_config") -> Listing:
    """Of a model of pictures and words: its own facts are those of its part for pictures."""
    said = found.config.get(part)
    if not isinstance(said, Mapping):
        return found
    config = {**found.config, **said, "model_type": found.config.get("model_type")}
    return replace(found, weights=replace(found.weights, config=config))


def gelu(found: Listing, usual: Gelu) -> Gelu:
    """What its hidden_act names.

    Raises:
        CheckpointError: VT076, another function.
    """
    said = found.config.get("hidden_act", _WRITTEN[usual])
    if not isinstance(said, str) or said not in ACTIVATIONS:
        raise _useless(found, "hidden_act", said, f"one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[said]


def check_activation(found: Listing, key: str, only: str) -> None:
    """Refuses a function that no part of a model here has; without a word it is the released one.

    Raises:
        CheckpointError: VT076, another function.
    """
    if (said := found.config.get(key, only)) != only:
        raise _useless(found, key, said, only)


def number(found: Listing, key: str, usual: float, most: float = 1e6) -> float:
    """A number above zero, such as an epsilon.

    Raises:
        CheckpointError: VT076, none.
    """
    said = found.config.get(key, usual)
    if isinstance(said, bool) or not isinstance(said, int | float) or not 0 < said <= most:
        raise _useless(found, key, said, f"a number above 0, and at most {most:g}")
    return float(said)


def heads(found: Listing, dim: int) -> int:
    """How many attention heads; 64 channels each where nothing says it.

    Raises:
        CheckpointError: VT076, no number that divides the width.
    """
    said = found.config.get("num_attention_heads")
    if said is None:
        return heads_of(dim)
    if type(said) is not int or said < 1 or dim % said:
        raise _useless(found, "num_attention_heads", said, f"a number that divides the width {dim}")
    return said


def is_true(found: Listing, key: str, usual: bool) -> bool:
    return bool(found.config.get(key, usual))


def classes_of(found: Listing, name: str = "classifier") -> int | None:
    """How many numbers that layer gives; None where it is not there at all."""
    if not any(array.startswith(f"{name}.") for array in found.names):
        return None
    return found.shapes[f"{name}.weight"][0] if f"{name}.weight" in found.names else 1


def head_of(found: Listing) -> LinearHead | Features:
    """A classifier, or none."""
    classes = classes_of(found)
    return Features() if classes is None else LinearHead(classes)


def checkpoint(family: Family, found: Listing, image_size: tuple[int, int] | None) -> Checkpoint:
    """What the family reads, with what config.json says of its classes."""
    read = family.read(found, image_size)
    several = found.config.get("problem_type") == "multi_label_classification"
    return replace(read, multi_label=True) if several else read


def files(checkpoint: Checkpoint, model_type: str, architecture: str, more: Mapping[str, Any]) -> dict[str, Any]:
    """config.json, with what only this family says, and preprocessor_config.json."""
    about = {"architectures": [architecture], "model_type": model_type, **described(checkpoint.config), **more}
    return {
        "config.json": {**about, **_labels(checkpoint), "torch_dtype": "float32"},
        "preprocessor_config.json": processor(checkpoint.preprocessing),
    }


def processor(said: Preprocessing) -> dict[str, Any]:
    """The home library's words; Vitrail reads its own, which lose nothing."""
    height, width = said.image_size
    whole = [round(side / said.crop_share) for side in said.image_size]
    size = {"height": whole[0], "width": whole[1]} if said.fit == "stretch" else {"shortest_edge": min(whole)}
    cuts = said.fit == "crop" or said.crop_share < 1
    return {
        "image_processor_type": "BitImageProcessor" if cuts else "ViTImageProcessor",
        "do_resize": True, "size": size,
        "resample": next(number for number, name in RESAMPLE.items() if name == said.interpolation),
        **({"do_center_crop": True, "crop_size": {"height": height, "width": width}} if cuts else {}),
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(said.mean), "image_std": list(said.std),
        "vitrail": asdict(said),
    }  # fmt: skip


def not_square(config: BackboneConfig[Any]) -> Iterable[str]:
    """Why a family whose config.json has one side of a patch and one of a picture cannot hold a model."""
    assert isinstance(config, ViTConfig)
    for name, pair in (("patches", config.tokenizer.patch), ("a picture", config.image_size)):
        if pair[0] != pair[1]:
            yield f"{name} of {pair[0]}x{pair[1]} px"


def described(config: BackboneConfig[Any]) -> dict[str, Any]:
    """The encoder, in the words of config.json."""
    assert isinstance(config, ViTConfig)
    size = config.size
    return {
        "hidden_size": size.dim, "num_hidden_layers": size.depth, "num_attention_heads": size.heads,
        "intermediate_size": size.hidden, "hidden_act": _WRITTEN[getattr(config.block.mlp, "gelu", "erf")],
        "layer_norm_eps": config.block.norm.epsilon, "num_channels": config.channels,
        "image_size": _sides(config.image_size), "patch_size": _sides(config.tokenizer.patch),
    }  # fmt: skip


def _labels(checkpoint: Checkpoint) -> dict[str, Any]:
    if not checkpoint.classes:
        return {}
    names = dict(enumerate(checkpoint.classes))
    said = {"id2label": {str(index): name for index, name in names.items()},
            "label2id": {name: index for index, name in names.items()}}  # fmt: skip
    return {**said, "problem_type": "multi_label_classification"} if checkpoint.multi_label else said


def _sides(pair: tuple[int, int]) -> int | list[int]:
    return pair[0] if pair[0] == pair[1] else list(pair)


def _useless(found: Listing, key: str, said: Any, expected: str) -> CheckpointError:
    return CheckpointError("VT076", f"{found.path}: its config.json says {key} = {str(said)[:60]!r}", expected)
