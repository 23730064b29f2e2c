"""Tables of names: which arrays of a file make which tensor of a model, and reading and writing files by them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vitrail.checkpoints.arrays import CheckpointError, NpzArrays, check_memory, check_names
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.extras import read_extras, write_extras
from vitrail.errors import VitrailError
from vitrail.files import explained, sync_file, sync_folder
from vitrail.model.backbone import BackboneConfig
from vitrail.preprocessing import Preprocessing

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """One native tensor: the foreign arrays it is made of, and how to go there and back."""

    native: str
    foreign: tuple[tuple[str, Shape], ...]
    join: Callable[..., Tensor]
    split: Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Listing:
    """What an .npz says of its arrays, under the names of a format's table; nothing is read yet.

    Attributes:
        names: the table's name -> the name in the file.
        left_out: how many arrays are no weights: the optimiser's state.
    """

    path: Path
    arrays: NpzArrays
    names: Mapping[str, str]
    shapes: Mapping[str, Shape]
    unreadable: Mapping[str, str]
    left_out: int

    def spelled(self, spell: Callable[[str], str]) -> Listing:
        """The same under other names; the second of two spellings of one array is an extra array."""
        names: dict[str, str] = {}
        for name, own in self.names.items():
            spelling = spell(name)
            names[own if spelling in names else spelling] = own
        return _listed(self.path, self.arrays, names, self.left_out)

    def shaped(self, shapes: Mapping[str, Shape]) -> Listing:
        """The same with some arrays thought of in another shape of as many values."""
        return replace(self, shapes={**self.shapes, **shapes})

    def check_ranks(self, like: Iterable[Entry], ranks: Mapping[str, int]) -> None:
        """Where the arrays that say the sizes are not there, everything wrong is still listed, by names and ranks.

        Raises:
            CheckpointError: VT073, one of `ranks` is missing or has another number of dimensions.
        """
        if all(len(self.shapes.get(name, ())) == rank and 0 not in self.shapes[name] for name, rank in ranks.items()):
            return
        wanted = {name: f"({len(shape)} dimensions)" for entry in like for name, shape in entry.foreign}
        found = {
            name: "(no values)" if 0 in shape else f"({len(shape)} dimensions)" for name, shape in self.shapes.items()
        }
        check_names(self.path, found, wanted, self.unreadable)

    def check(self, entries: Iterable[Entry]) -> None:
        """Compares names, shapes and memory.

        Raises:
            CheckpointError: VT073, missing, extra, misshapen and unreadable arrays, all listed; VT071, too large.
        """
        wanted = dict(pair for entry in entries for pair in entry.foreign)
        check_names(self.path, self.shapes, wanted, self.unreadable)
        check_memory(self.path, wanted.values())

    def read(self, entries: Iterable[Entry]) -> dict[str, Tensor]:
        """The native tensors of arrays that were checked; each is read once.

        Raises:
            CheckpointError: VT072, an array is damaged.
        """

        def tensor(name: str, shape: Shape) -> Tensor:
            array = np.ascontiguousarray(self.arrays[self.names[name]], dtype=np.float32)
            return torch.from_numpy(array).reshape(shape)

        return {entry.native: entry.join(*(tensor(*pair) for pair in entry.foreign)).contiguous() for entry in entries}


def listing(path: Path) -> Listing:
    """The arrays without the prefixes of training programs, and without their optimiser's state."""
    arrays = NpzArrays(path)
    names = stripped(arrays)
    return _listed(path, arrays, names, len(arrays) - len(names))


def stripped(names: Iterable[str]) -> dict[str, str]:
    """Name of a weight -> name in the file. "params/" is today's state of big_vision, "opt/target/" flax's of old."""
    every = list(names)
    prefix = next((start for start in ("params/", "opt/target/") if any(name.startswith(start) for name in every)), "")
    states = {"params/": ("opt/", "chrono/"), "opt/target/": ("opt/state/",), "": ("opt/state/",)}[prefix]
    found: dict[str, str] = {}
    for name in every:
        plain = name.removeprefix(prefix)
        if not name.startswith(states):
            found[name if plain in found else plain] = name
    return found


def names_in(path: Path) -> frozenset[str]:
    """Names of the weights of an .npz; none where it cannot be opened."""
    if path.suffix != ".npz" or not path.is_file():
        return frozenset()
    try:
        with ZipFile(path) as archive:
            return frozenset(stripped(name.removesuffix(".npy") for name in archive.namelist()))
    except Exception:  # a damaged directory may raise anything; who reads the file says what is wrong with it
        return frozenset()


@dataclass(frozen=True)
class Family:
    """The models of one program.

    Attributes:
        stated: what its arrays cannot tell, for people.
        infer: the configuration that the arrays determine. Patches are thought of in one row, because only their
            number is known.
        size: (height, width) of the training of such a configuration, with what was stated.
        entries: the table of names, in the order of the network.
        preprocessing: of the family; size and channels are the model's.
    """

    name: str
    stated: str
    infer: Callable[[Listing], BackboneConfig[Any]]
    size: Callable[[Path, BackboneConfig[Any], tuple[int, int] | None], tuple[int, int]]
    entries: Callable[[BackboneConfig[Any]], Iterable[Entry]]
    preprocessing: Preprocessing = Preprocessing()

    def read(self, found: Listing, image_size: tuple[int, int] | None) -> Checkpoint:
        """A checkpoint of the family.

        Raises:
            CheckpointError: missing, extra, misshapen or unreadable arrays, all listed together, or sizes of no model.
            DataError: VT033, the image size cannot be told.
        """
        path, extras = found.path, read_extras(found.path, found.arrays.comment)
        try:
            config = self.infer(found)
        except VitrailError as error:
            if error.code not in ("VT003", "VT030"):  # what a part says of itself is here the file's fault
                raise
            raise CheckpointError("VT073", f"{path}: {error.what}", error.expected) from error
        found.check(self.entries(config))
        size = self.size(path, config, extras.preprocessing.image_size if extras else image_size)
        config = replace(config, image_size=size)  # type: ignore[type-var]  # every configuration is a dataclass
        weights, half = found.read(self.entries(config)), (0.5,) * config.channels
        preprocessing = replace(
            self.preprocessing, image_size=config.image_size, channels=config.channels, mean=half, std=half
        )
        classes = tuple(f"class {index}" for index in range(config.head.classes))
        facts = {"format": self.name, "file": path.name, "arrays left out": found.left_out}
        provenance = facts | {"stated by the family": self.stated}
        checkpoint = Checkpoint(config, weights, preprocessing, classes, provenance=provenance)
        return extras.applied(path, checkpoint) if extras else checkpoint

    def write(self, checkpoint: Checkpoint, path: Path, obstacles: Sequence[str]) -> None:
        """The arrays of the table; the file appears when it is whole.

        Such a format has no place for preprocessing and class names: they go into the comment of the zip, which other
        readers pass over.

        Raises:
            CheckpointError: VT074, the format has no place for this model, or its class names are too long.
        """
        if obstacles:
            raise CheckpointError(
                "VT074", f"{path}: {self.name} cannot hold {', '.join(obstacles)}", "a model of that family",
                "save a model folder, which holds any: a path without .npz",
            )  # fmt: skip
        temporary = path.with_name(f".{path.name}.tmp")
        with explained(path):
            try:
                with ZipFile(temporary, "w", ZIP_STORED) as archive:
                    archive.comment = write_extras(path, checkpoint)
                    for entry in self.entries(checkpoint.config):
                        parts = entry.split(checkpoint.weights[entry.native].detach().cpu().float())
                        for (name, shape), part in zip(entry.foreign, parts, strict=True):
                            buffer = BytesIO()
                            np.save(buffer, part.contiguous().numpy().reshape(shape), allow_pickle=False)
                            archive.writestr(f"{name}.npy", buffer.getvalue())
                sync_file(temporary)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            sync_folder(path.parent)


def differing(config: BackboneConfig[Any], held: BackboneConfig[Any]) -> list[str]:
    """The parts of a model that would come back as something else; `held` is what would come back."""
    assert dataclasses.is_dataclass(config)
    names = [field.name for field in dataclasses.fields(config)]
    return [f"{getattr(config, name)}" for name in names if getattr(config, name) != getattr(held, name)]


def same(native: str, foreign: str, shape: Shape, own: Shape | None = None) -> Entry:
    """The same values; `own` is the tensor's shape where the file has another."""
    return Entry(native, ((foreign, shape),), lambda t: t.reshape(own or shape), lambda t: (t,))


def norm(native: str, foreign: str, shape: Shape, words: tuple[str, str] = ("scale", "bias")) -> Iterator[Entry]:
    """Scale and shift, of LayerNorm or of group norm."""
    own = (shape[-1],)
    yield same(f"{native}.weight", f"{foreign}/{words[0]}", shape, own)
    yield same(f"{native}.bias", f"{foreign}/{words[1]}", shape, own)


def dense(native: str, foreign: str, inputs: int, outputs: int) -> Iterator[Entry]:
    """Their kernels map from the left."""
    yield Entry(f"{native}.weight", ((f"{foreign}/kernel", (inputs, outputs)),), lambda t: t.T, lambda t: (t.T,))
    yield same(f"{native}.bias", f"{foreign}/bias", (outputs,))


def convolution(native: str, foreign: str, shape: Shape) -> Entry:
    """`shape` is theirs: height, width, inputs, outputs."""
    return Entry(
        f"{native}.weight", ((f"{foreign}/kernel", shape),),
        lambda t: rearrange(t, "h w i o -> o i h w"), lambda t: (rearrange(t, "o i h w -> h w i o"),),
    )  # fmt: skip


def patches(native: str, foreign: str, shape: Shape) -> Iterator[Entry]:
    """The matrix E, kept by them as a convolution of `shape` height, width, inputs, outputs."""
    yield Entry(
        f"{native}.weight", ((f"{foreign}/kernel", shape),),
        lambda t: rearrange(t, "p q c d -> d (p q c)"), lambda t: (t.T.reshape(shape),),
    )  # fmt: skip
    yield same(f"{native}.bias", f"{foreign}/bias", shape[-1:])


def attention(native: str, foreign: str, dim: int, heads: int) -> Iterator[Entry]:
    """Queries, keys and values are one matrix here and three of theirs, with a dimension for the heads."""
    head_dim, parts = dim // heads, ("query", "key", "value")
    yield Entry(
        f"{native}.query_key_value.weight",
        tuple((f"{foreign}/{part}/kernel", (dim, heads, head_dim)) for part in parts),
        lambda *three: torch.cat([rearrange(part, "d h e -> (h e) d") for part in three]),
        lambda t: tuple(rearrange(part, "(h e) d -> d h e", h=heads) for part in t.chunk(3)),
    )
    yield Entry(
        f"{native}.query_key_value.bias",
        tuple((f"{foreign}/{part}/bias", (heads, head_dim)) for part in parts),
        lambda *three: torch.cat([part.reshape(dim) for part in three]),
        lambda t: t.chunk(3),
    )
    yield Entry(f"{native}.project.weight", ((f"{foreign}/out/kernel", (heads, head_dim, dim)),),
                lambda t: rearrange(t, "h e d -> d (h e)"), lambda t: (t.T,))  # fmt: skip
    yield same(f"{native}.project.bias", f"{foreign}/out/bias", (dim,))


def _listed(path: Path, arrays: NpzArrays, names: Mapping[str, str], left_out: int) -> Listing:
    shapes = {name: arrays.shapes[own] for name, own in names.items()}
    unreadable = {name: arrays.unreadable[own] for name, own in names.items() if own in arrays.unreadable}
    return Listing(path, arrays, names, shapes, unreadable, left_out)
