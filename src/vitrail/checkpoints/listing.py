"""The arrays of a file under the names of a format's table; nothing is read before it is checked."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.checkpoints.arrays import CheckpointError, check_memory, check_names
from vitrail.checkpoints.containers import Weights
from vitrail.checkpoints.entries import Entry, Shape

# Programs save more than weights. Prefix of the weights -> prefixes of what is left out; "" is everything else.
# "params/" is today's state of big_vision, "opt/target/" flax's of old; the others are PyTorch's.
WRAPPERS: dict[str, tuple[str, ...]] = {
    "params/": ("opt/", "chrono/"), "opt/target/": ("opt/state/",), "teacher/": ("",), "model/": ("",), "state_dict/": ("",)
}  # fmt: skip
PARALLEL = ("module.", "_orig_mod.")  # of DistributedDataParallel and of torch.compile


@dataclass(frozen=True)
class Listing:
    """What a file says of its arrays.

    Attributes:
        names: the table's name -> the name in the file.
        left_out: names in the file of what is no weight of the model: the optimiser's state, another network.
    """

    weights: Weights
    names: Mapping[str, str]
    shapes: Mapping[str, Shape]
    unreadable: Mapping[str, str]
    left_out: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return self.weights.path

    @property
    def config(self) -> Mapping[str, Any]:
        return self.weights.config

    def spelled(self, spell: Callable[[str], str]) -> Listing:
        """The same under other names; the second of two spellings of one array is an extra array."""
        names: dict[str, str] = {}
        for name, own in self.names.items():
            spelling = spell(name)
            names[own if spelling in names else spelling] = own
        return listed(self.weights, names, self.left_out)

    def inside(self, *prefixes: str) -> Listing:
        """Only the arrays behind each of these prefixes that there is, in turn, without it; the rest is left out."""
        names, left_out = dict(self.names), self.left_out
        for prefix in prefixes:
            if any(name.startswith(prefix) for name in names):
                left_out += tuple(own for name, own in names.items() if not name.startswith(prefix))
                names = {n.removeprefix(prefix): own for n, own in names.items() if n.startswith(prefix)}
        return listed(self.weights, names, left_out)

    def without(self, pattern: str) -> Listing:
        """Arrays whose whole name matches are left out: what can be computed, what only pre-training uses."""
        gone = [name for name in self.names if re.fullmatch(pattern, name)]
        names = {name: own for name, own in self.names.items() if name not in set(gone)}
        return listed(self.weights, names, (*self.left_out, *(self.names[name] for name in gone)))

    def shaped(self, shapes: Mapping[str, Shape]) -> Listing:
        """The same with some arrays thought of in another shape of as many values."""
        return replace(self, shapes={**self.shapes, **shapes})

    def told_left_out(self) -> str:
        """Where the arrays that were left out stand, for people: "optimizer 148, student 150"."""
        return ", ".join(f"{word} {count}" for word, count in Counter(map(_first, self.left_out)).items())

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
        """The native tensors of arrays that were checked, in float32; each is read once.

        Raises:
            CheckpointError: VT072, an array is damaged; VT066, some values are no numbers.
        """
        broken: dict[str, int] = {}

        def tensor(name: str, shape: Shape) -> Tensor:
            array = self.weights.arrays[self.names[name]]
            if isinstance(array, np.ndarray):
                array = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
            values = array.float().reshape(shape)
            if count := not_finite(values):
                broken[self.names[name]] = count
            return values

        found = {entry.native: entry.join(*(tensor(*pair) for pair in entry.foreign)).contiguous() for entry in entries}
        refuse_broken(self.path, broken)
        return found


def listing(weights: Weights) -> Listing:
    """The arrays without the prefixes of training programs, and without their optimiser's state."""
    names = stripped(weights.arrays)
    own = set(names.values())
    return listed(weights, names, tuple(name for name in weights.arrays if name not in own))


def stripped(names: Iterable[str]) -> dict[str, str]:
    """Name of a weight -> name in the file."""
    every = list(names)
    prefix = next((start for start in WRAPPERS if any(name.startswith(start) for name in every)), "")
    states = WRAPPERS.get(prefix, ("opt/state/",))
    found: dict[str, str] = {}
    for name in every:
        plain = name.removeprefix(prefix)
        if (prefix and name.startswith(prefix)) or not name.startswith(states):
            found[name if plain in found else plain] = name
    for wrapper in PARALLEL:
        if found and all(name.startswith(wrapper) for name in found):
            found = {name.removeprefix(wrapper): own for name, own in found.items()}
    return found


def listed(weights: Weights, names: Mapping[str, str], left_out: tuple[str, ...]) -> Listing:
    arrays = weights.arrays
    shapes = {name: arrays.shapes[own] for name, own in names.items()}
    unreadable = {name: arrays.unreadable[own] for name, own in names.items() if own in arrays.unreadable}
    return Listing(weights, names, shapes, unreadable, left_out)


def not_finite(values: Tensor) -> int:
    """How many values are NaN or infinite."""
    if math.isfinite(values.sum().item()):  # one pass, no memory; a sum may overflow by itself
        return 0
    return int(values.numel() - torch.isfinite(values).sum())


def refuse_broken(path: Path, broken: Mapping[str, int]) -> None:
    """Raises VT066 where some array has values that are no numbers: no answer of such a model means anything."""
    if broken:
        names = ", ".join(list(broken)[:5]) + (f" and {len(broken) - 5} more" if len(broken) > 5 else "")
        raise CheckpointError(
            "VT066", f"{path}: {sum(broken.values()):,} values are NaN or infinite, in {names}", "finite weights",
            "take an earlier checkpoint of that training",
        )  # fmt: skip


def _first(name: str) -> str:
    return re.split(r"[./]", name, maxsplit=1)[0]
