"""The models of one program, read and written by its table of names."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal
from zipfile import ZIP_STORED, ZipFile

import numpy as np
import torch
from torch import Tensor

from vitrail.checkpoints.arrays import COMMENT_KEY, CheckpointError, write_safetensors
from vitrail.checkpoints.carried import calibration_files, carried_classes, carried_preprocessing, carried_size
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.entries import Entry, Shape
from vitrail.checkpoints.extras import Extras, read_extras, write_extras
from vitrail.checkpoints.listing import Listing
from vitrail.errors import DataError, VitrailError
from vitrail.files import explained, new_folder, sync_file, sync_folder, write_json
from vitrail.model.backbone import BackboneConfig
from vitrail.model.positions import NoPosition, Rotary2D, SineCosine
from vitrail.model.vit import ViTConfig
from vitrail.preprocessing import Preprocessing

Container = Literal[".npz", ".safetensors", ""]  # a file's suffix; "" is a folder
UNSAID = (224, 224)  # the size of the training where nothing says it


@dataclass(frozen=True)
class Family:
    """The models of one program.

    Attributes:
        stated: what its arrays cannot tell, for people.
        infer: the configuration that the arrays determine. Patches may be thought of in one row (`in_a_row`), because
            only their number is known.
        entries: the table of names, in the order of the network.
        obstacles: what of a model the family has no place for.
        preprocessing: of such a model, unless the file says another; size and channels are the model's.
        files: JSON that belongs beside the weights in a folder, name -> content.
        unused: name and shape of what its own strict loader asks for and no model of Vitrail has: written as zeros, and
            to be left out by `read`'s caller.
    """

    name: str
    stated: str
    infer: Callable[[Listing], BackboneConfig[Any]]
    entries: Callable[[BackboneConfig[Any]], Iterable[Entry]]
    obstacles: Callable[[BackboneConfig[Any]], list[str]]
    preprocessing: Callable[[BackboneConfig[Any]], Preprocessing] = lambda config: Preprocessing()
    files: Callable[[Checkpoint], Mapping[str, Any]] = lambda checkpoint: {}
    unused: Callable[[BackboneConfig[Any]], Mapping[str, Shape]] = lambda config: {}

    def read(self, found: Listing, image_size: tuple[int, int] | None) -> Checkpoint:
        """A checkpoint of the family, at the image size of its training.

        Its preprocessing may have another image size, where a folder's own files say so.

        Raises:
            CheckpointError: missing, extra, misshapen or unreadable arrays, all listed together, or sizes of no model.
            DataError: VT033, the image size cannot be told.
        """
        path, extras = found.path, read_extras(found.path, found.weights.arrays.comment)
        config = self._config(found, extras)
        found.check(self.entries(config))
        if extras is None or extras.model is None:
            own = extras.preprocessing.image_size if extras else carried_size(found.weights)
            size = trained_size(path, config, own or image_size)
            config = replace(config, image_size=size)  # type: ignore[type-var]  # every configuration is a dataclass
        weights = found.read(self.entries(config))
        classes = carried_classes(found.weights, config.head.classes)
        checkpoint = Checkpoint(
            config,
            weights,
            carried_preprocessing(found.weights, _fitted(self.preprocessing(config), config)),
            classes or tuple(f"class {index}" for index in range(config.head.classes)),
            provenance=self._provenance(found),
        )
        return extras.applied(path, checkpoint) if extras else checkpoint

    def _config(self, found: Listing, extras: Extras | None) -> BackboneConfig[Any]:
        if extras is not None and extras.model is not None:
            extras.check(found.path, len(found.names), self.obstacles(extras.model))
            return extras.model
        try:
            return self.infer(found)
        except VitrailError as error:
            if error.code not in ("VT003", "VT030"):  # what a part says of itself is here the file's fault
                raise
            raise CheckpointError("VT073", f"{found.path}: {error.what}", error.expected) from error

    def _provenance(self, found: Listing) -> dict[str, Any]:
        facts: dict[str, Any] = {"format": self.name, "file": found.path.name, "arrays left out": len(found.left_out)}
        if found.left_out:
            facts["left out"] = found.told_left_out()
        return facts | {"stated by the family": self.stated}

    def write(self, checkpoint: Checkpoint, path: Path) -> None:
        """The arrays of the table, into an .npz or a .safetensors file or a folder; it appears when it is whole.

        Files have no place for preprocessing and class names: they go into the comment of the zip or the metadata of
        the tensors, which other readers pass over.

        Raises:
            CheckpointError: VT074, the family has no place for this model, or its class names are too long.
        """
        if obstacles := self.obstacles(checkpoint.config):
            raise CheckpointError(
                "VT074", f"{path}: {self.name} cannot hold {', '.join(obstacles)}", "a model of that family"
            )
        {".npz": self._write_npz, ".safetensors": self._write_safetensors}.get(path.suffix, self._write_folder)(
            checkpoint, path
        )

    def _foreign(self, checkpoint: Checkpoint) -> Iterable[tuple[str, Tensor]]:
        for entry in self.entries(checkpoint.config):
            parts = entry.split(checkpoint.weights[entry.native].detach().cpu().float())
            for (name, shape), part in zip(entry.foreign, parts, strict=True):
                yield name, part.reshape(shape).contiguous()
        for name, shape in self.unused(checkpoint.config).items():
            yield name, torch.zeros(shape)

    def _write_npz(self, checkpoint: Checkpoint, path: Path) -> None:
        temporary = path.with_name(f".{path.name}.tmp")
        with explained(path):
            try:
                with ZipFile(temporary, "w", ZIP_STORED) as archive:
                    archive.comment = write_extras(path, checkpoint)
                    for name, tensor in self._foreign(checkpoint):
                        buffer = BytesIO()
                        np.save(buffer, tensor.numpy(), allow_pickle=False)
                        archive.writestr(f"{name}.npy", buffer.getvalue())
                sync_file(temporary)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            sync_folder(path.parent)

    def _write_safetensors(self, checkpoint: Checkpoint, path: Path) -> None:
        comment = write_extras(path, checkpoint, untrained(checkpoint.config)).decode()
        with explained(path):  # safetensors itself writes under another name first
            write_safetensors(dict(self._foreign(checkpoint)), path, {"format": "pt", COMMENT_KEY: comment})
            sync_file(path)
            sync_folder(path.parent)

    def _write_folder(self, checkpoint: Checkpoint, path: Path) -> None:
        with new_folder(path) as folder:
            for name, content in (*self.files(checkpoint).items(), *calibration_files(checkpoint).items()):
                write_json(folder / name, content)
            write_safetensors(dict(self._foreign(checkpoint)), folder / "model.safetensors", {"format": "pt"})


def differing(config: Any, held: Any, name: str = "") -> list[str]:
    """The parts of a model that would come back as something else; `held` is what would come back.

    How positions are resampled is no such part: at the file's own size it changes nothing, and at another one each
    library has its own way.
    """
    if config == held or name.endswith(".interpolation"):
        return []
    if type(config) is not type(held) or not dataclasses.is_dataclass(config):
        return [f"{name} {config}" if dataclasses.is_dataclass(config) else f"{name}={config!r}"]
    parts = [field.name for field in dataclasses.fields(config)]
    return [
        line
        for part in parts
        for line in differing(getattr(config, part), getattr(held, part), f"{name}.{part}".lstrip("."))
    ]


def untrained(config: BackboneConfig[Any]) -> BackboneConfig[Any]:
    """Without what matters in training only: a file has no room for that and needs none."""
    if not isinstance(config, ViTConfig):
        return config
    return replace(config, block=replace(config.block, dropout=0.0, drop_path=0.0))


def in_a_row(found: Listing, patches: int, patch: tuple[int, int]) -> tuple[int, int]:
    """An image size with so many patches, until the real one is known.

    Raises:
        CheckpointError: VT073, no patches at all.
    """
    if patches < 1:
        raise CheckpointError("VT073", f"{found.path} has {patches} positions of patches", "one or more")
    return patch[0], patches * patch[1]


def trained_size(path: Path, config: BackboneConfig[Any], stated: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) of the training: a square grid of patches, unless what was stated has as many of them.

    Where no array belongs to a grid, it is what was stated, or `UNSAID`.

    Raises:
        DataError: VT033, it cannot be told.
    """
    if not isinstance(config, ViTConfig):
        return stated or UNSAID
    patch = config.tokenizer.patch  # linear or convolutional
    free = isinstance(config.position, SineCosine | Rotary2D) or (
        isinstance(config.position, NoPosition) and config.attends
    )
    patches = None if free else math.prod(config.grid)
    side = math.isqrt(patches or 0)

    def fits(size: tuple[int, int]) -> bool:
        rows, cols = size[0] // patch[0], size[1] // patch[1]
        return (rows * patch[0], cols * patch[1]) == size and patches in (None, rows * cols)

    for size in (stated, UNSAID if patches is None else (side * patch[0], side * patch[1])):
        if size is not None and fits(size):
            return size
    known = (
        f"{patches} positions of patches; {patches} is no square" if patches else f"patches of {patch} and no positions"
    )
    given = "" if stated is None else f", and {stated[0]}x{stated[1]} px gives another number"
    raise DataError(
        "VT033", f"{path} has {known}{given}",
        "the image size of its training", "load(path, image_size=(height, width)), or --image-size HEIGHTxWIDTH",
    )  # fmt: skip


def _fitted(preprocessing: Preprocessing, config: BackboneConfig[Any]) -> Preprocessing:
    """At the model's size; for another number of channels, each is normalised as the mean of the family's."""
    mean, std, channels = preprocessing.mean, preprocessing.std, config.channels
    if channels != preprocessing.channels:
        mean, std = ((sum(values) / len(values),) * channels for values in (mean, std))
    return replace(preprocessing, image_size=config.image_size, channels=channels, mean=mean, std=std)
