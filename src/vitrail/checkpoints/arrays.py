"""Files of named arrays, read one array at a time and never executed: .npz and .safetensors."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import VitrailError

MAX_ARRAYS = 100_000
MAX_ELEMENTS = 20 * 2**30  # ten times the largest public Vision Transformer


class CheckpointError(VitrailError):
    """A file of weights that cannot be used."""


class NpzArrays(Mapping[str, NDArray[Any]]):
    """The arrays of an .npz file. Headers are checked against the file before any memory is taken."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise CheckpointError("VT070", f"{path} is not an .npz file: {error}", "a zip of .npy arrays") from error
        members = self._archive.infolist()
        if len(members) > MAX_ARRAYS:
            raise CheckpointError("VT071", f"{path} lists {len(members):,} arrays", f"at most {MAX_ARRAYS:,}")
        self._members = {info.filename.removesuffix(".npy"): info for info in members}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, np.dtype[Any]] = {}
        problems = []
        for name in self._members:
            try:
                self._read_header(name)
            except (ValueError, OSError, EOFError, SyntaxError, zipfile.BadZipFile, NotImplementedError) as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise CheckpointError(
                "VT072", f"{path} holds arrays that cannot be read:\n  " + "\n  ".join(problems[:20]),
                "plain numeric arrays; objects are never unpickled",
            )  # fmt: skip

    def _read_header(self, name: str) -> None:
        with self._archive.open(self._members[name]) as file:
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"unknown .npy version {version}")
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            start = file.tell()
        if dtype.hasobject:
            raise ValueError("an array of Python objects")
        size = math.prod(shape) * dtype.itemsize
        if size != self._members[name].file_size - start or math.prod(shape) > MAX_ELEMENTS:
            raise ValueError(
                f"the header says {shape} {dtype}, the file has {self._members[name].file_size - start} bytes"
            )
        self.shapes[name], self._dtypes[name] = shape, dtype

    def __getitem__(self, name: str) -> NDArray[Any]:
        try:
            with self._archive.open(self._members[name]) as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise CheckpointError("VT072", f"{self.path}: {name} is damaged: {error}", "a whole file") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


class SafetensorsArrays(Mapping[str, Any]):
    """The tensors of a .safetensors file, as torch tensors."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            self._file = safe_open(str(path), framework="pt")
            self.shapes = {name: tuple(self._file.get_slice(name).get_shape()) for name in self._file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                "VT070", f"{path} is not a whole .safetensors file: {error}", "a file that was written to its end"
            ) from error

    def __getitem__(self, name: str) -> Any:
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def check_names(path: Path, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Compares names and shapes and lists everything that is wrong at once.

    Raises:
        CheckpointError: VT073 with the missing, extra and misshapen arrays.
    """
    lines = [f"missing    {name} {wanted[name]}" for name in wanted if name not in found]
    lines += [f"extra      {name} {found[name]}" for name in found if name not in wanted]
    lines += [
        f"misshapen  {name}: {found[name]} instead of {wanted[name]}"
        for name in wanted
        if name in found and tuple(found[name]) != tuple(wanted[name])
    ]
    if lines:
        more = f"\n  ... and {len(lines) - 40} more" if len(lines) > 40 else ""
        raise CheckpointError(
            "VT073", f"{path} does not fit its model:\n  " + "\n  ".join(lines[:40]) + more,
            "every array of the model, in its shape, and no other",
        )  # fmt: skip
