"""Vitrail's own model folder, in the Hugging Face layout: config.json, model.safetensors, preprocessor_config.json."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import vitrail
from vitrail import configuration
from vitrail.checkpoints.arrays import CheckpointError, write_safetensors
from vitrail.checkpoints.carried import RESAMPLE, calibration_files
from vitrail.checkpoints.checkpoint import Checkpoint, unfilled
from vitrail.checkpoints.entries import same
from vitrail.checkpoints.listing import Listing
from vitrail.errors import VitrailError
from vitrail.files import new_folder, write_json, write_text
from vitrail.model.backbone import BackboneConfig
from vitrail.model.families import AXES, from_json
from vitrail.preprocessing import Preprocessing

NAME = "vitrail"
CONTAINERS = ("",)
_RESAMPLE = {name: number for number, name in RESAMPLE.items()}


def recognises(found: Listing) -> bool:
    return found.config.get("model_type") == "vitrail"


def to_native(found: Listing, image_size: tuple[int, int] | None = None) -> Checkpoint:
    """Reads a model folder strictly. It says its own image size, so none need be stated.

    Raises:
        CheckpointError: a part is missing or does not fit the others.
    """
    path, description, processor = found.path, found.config, found.weights.processor
    if not processor:
        raise CheckpointError("VT076", f"{path} has no preprocessor_config.json", "config, weights and preprocessing")
    try:
        config: BackboneConfig[Any] = from_json(description["vitrail"]["model"])
        preprocessing = configuration.decode(Preprocessing, processor["vitrail"], {})
        labels = {int(index): str(name) for index, name in description["id2label"].items()}
        classes = tuple(labels[index] for index in range(config.head.classes))
        multi_label = bool(description["vitrail"].get("multi_label", False))
        provenance = dict(description["vitrail"].get("provenance", {}))
        _check_agreement(config, preprocessing, len(found.names))
        model = unfilled(config)
    # RuntimeError: PyTorch, of sizes that no memory has.
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError, VitrailError) as error:
        raise CheckpointError(
            "VT076", f"{path}: the configuration is not Vitrail's: {error}", "its own files"
        ) from error
    entries = [same(name, name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
    found.check(entries)
    weights = found.read(entries)
    return Checkpoint(config, weights, preprocessing, classes, multi_label, provenance, spare=[model])


def obstacles(config: BackboneConfig[Any]) -> list[str]:
    """Nothing: a folder holds every model."""
    return []


def _check_agreement(config: BackboneConfig[Any], preprocessing: Preprocessing, arrays: int) -> None:
    if config.num_layers > arrays:  # before so many layers are built only to find that they are missing
        raise ValueError(f"{config.num_layers} layers, and {arrays} arrays")
    if (config.image_size, config.channels) != (preprocessing.image_size, preprocessing.channels):
        raise ValueError("model and preprocessing differ in image size or channels")


def from_native(checkpoint: Checkpoint, path: Path) -> None:
    """Writes a model folder; it appears when it is whole."""
    with new_folder(path) as folder:
        write_files(checkpoint, folder)


def write_files(checkpoint: Checkpoint, folder: Path) -> None:
    """The files of a model folder, into a folder that the caller makes appear at once."""
    config, preprocessing = checkpoint.config, checkpoint.preprocessing
    write_json(folder / "config.json", {
        "model_type": "vitrail",
        "architectures": [type(config).__name__.removesuffix("Config")],
        **config.facts(),
        "image_size": list(config.image_size),
        "id2label": {str(index): name for index, name in enumerate(checkpoint.classes)},
        "label2id": {name: index for index, name in enumerate(checkpoint.classes)},
        "problem_type": "multi_label_classification" if checkpoint.multi_label else "single_label_classification",
        "vitrail": {
            "version": vitrail.__version__,
            "model": configuration.encode(config, AXES),
            "multi_label": checkpoint.multi_label,
            "provenance": dict(checkpoint.provenance),
        },
    })  # fmt: skip
    write_json(folder / "preprocessor_config.json", {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": dict(zip(("height", "width"), preprocessing.image_size, strict=True)),
        "resample": _RESAMPLE[preprocessing.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        "vitrail": dataclasses.asdict(preprocessing),
    })  # fmt: skip
    for name, content in calibration_files(checkpoint).items():
        write_json(folder / name, content)
    write_safetensors(checkpoint.weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_text(folder / "README.md", _card(checkpoint))


def _card(checkpoint: Checkpoint) -> str:
    config, provenance = checkpoint.config, checkpoint.provenance
    facts: dict[str, Any] = {
        **{key.replace("_", " ").capitalize(): value for key, value in config.facts().items()},
        "Input": f"{config.image_size[0]}x{config.image_size[1]} px, {checkpoint.preprocessing.channels} channels",
        "Classes": f"{len(checkpoint.classes)}: {', '.join(checkpoint.classes[:10])}"
        + (" ..." if len(checkpoint.classes) > 10 else ""),
        **{str(key).capitalize(): value for key, value in provenance.items()},
    }
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    return (
        "---\nlibrary_name: vitrail\npipeline_tag: image-classification\n---\n"
        f"# A {type(config).__name__.removesuffix('Config')}\n\n| | |\n|---|---|\n{rows}\n\n"
        '```python\nimport vitrail\nmodel = vitrail.load("this folder")\nprint(model.predict("picture.png"))\n```\n'
    )
