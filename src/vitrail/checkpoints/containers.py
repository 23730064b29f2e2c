"""What lies at a path: the arrays of a file or a folder, and the JSON beside them. Nothing of the arrays is read yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitrail.checkpoints.arrays import MAX_ARRAYS, Arrays, CheckpointError, JoinedArrays, NpzArrays, SafetensorsArrays
from vitrail.checkpoints.torch_arrays import TorchArrays
from vitrail.files import read_json

FOLDER = ""  # a container's name is its suffix
INDEX = ".index.json"
CALIBRATION = "calibration.json"
WEIGHTS = tuple(name + ending for name in ("model.safetensors", "pytorch_model.bin") for ending in ("", INDEX))
MAX_SHARDS = 64
PROGRAMS = {".pt2": "an exported program", ".onnx": "an ONNX graph", ".tflite": "a program for phones", ".pb": "a graph",
            ".h5": "an HDF5 file", ".msgpack": "a flax file", ".engine": "a program for one kind of GPU"}  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """The weights at a path.

    Attributes:
        path: as it was given: a file or a folder.
        arrays: by their names in the file; each is read when it is asked for.
        config: a folder's config.json (Hugging Face, timm, Vitrail); empty without one.
        processor: a folder's preprocessor_config.json; empty without one.
        family: what the caller says that the weights are; None where nothing was said.
        calibration: a folder's calibration.json; empty without one.
    """

    path: Path
    arrays: Arrays
    config: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)
    family: str | None = None
    calibration: Mapping[str, Any] = field(default_factory=dict)


def open_weights(path: Path) -> Weights:
    """Opens a file of arrays, an index of such files, or a folder with one of them.

    Raises:
        VitrailError: VT070, damaged; VT071, too many arrays; VT065, a program; VT077, of no
            kind that is read; VT063, its JSON is damaged.
    """
    if not path.is_dir():
        return Weights(path, _arrays(path))
    found = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
    if found is None:
        raise CheckpointError(
            "VT077", f"the folder {path} has no weights", f"a run folder, or one with {', '.join(WEIGHTS)}"
        )
    config, processor, calibration = (
        _described(path / name) for name in ("config.json", "preprocessor_config.json", CALIBRATION)
    )
    return Weights(path, _arrays(found), config, processor, calibration=calibration)


def _arrays(path: Path) -> Arrays:
    if path.suffix in PROGRAMS and path.is_file():
        raise CheckpointError(
            "VT065", f"{path} is {PROGRAMS[path.suffix]}, which is not read: some run code when they are opened",
            f"weights alone: {', '.join(OPENERS)}", "save the weights with the program that wrote this file",
        )  # fmt: skip
    opener = _sharded if path.name.endswith(INDEX) else OPENERS.get(path.suffix)
    if opener is None or not path.is_file():
        raise CheckpointError(
            "VT077",
            f"{path} is of no format that Vitrail reads",
            f"a run folder, a model folder ({', '.join(WEIGHTS)}) or a file that ends in {', '.join(OPENERS)}",
        )
    return opener(path)


def _sharded(path: Path) -> JoinedArrays:
    """The files that an index names; they lie beside it."""
    index = read_json(path)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError("VT070", f"{path} is no index of shards", 'a "weight_map" from array to file')
    names = list(dict.fromkeys(places.values()))
    if len(places) > MAX_ARRAYS or len(names) > MAX_SHARDS:
        raise CheckpointError(
            "VT071", f"{path} lists {len(places):,} arrays in {len(names):,} files",
            f"at most {MAX_ARRAYS:,} in {MAX_SHARDS:,}",
        )  # fmt: skip
    for name in names:
        if Path(name).name != name or Path(name).suffix not in OPENERS:
            raise CheckpointError("VT070", f"{path} names the file {name!r}", "files of weights in its own folder")
        if not (path.parent / name).is_file():
            raise CheckpointError("VT070", f"{path} names {name}, which is not there", "every shard of the model")
    parts = {name: _arrays(path.parent / name) for name in names}
    for array, name in places.items():
        if array not in parts[name]:
            raise CheckpointError("VT070", f"{path}: {name} has no array {array!r}", "the shards that the index is of")
    return JoinedArrays(path, list(parts.values()))


def _described(path: Path) -> Mapping[str, Any]:
    data = read_json(path) if path.is_file() else {}
    return data if isinstance(data, dict) else {}


OPENERS: dict[str, Callable[[Path], Arrays]] = {
    ".safetensors": SafetensorsArrays, ".npz": NpzArrays,
    ".pth": TorchArrays, ".pt": TorchArrays, ".bin": TorchArrays, ".ckpt": TorchArrays,
}  # fmt: skip
