"""Files of named arrays, read one array at a time and never executed: .npz and .safetensors."""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import VitrailError

MAX_ARRAYS = 100_000
_HEADER_BYTES = 64 * 2**10  # NumPy itself refuses headers of more than 10,000 bytes, but only after reading them
_BFLOAT16 = np.dtype("V2")  # NumPy does not know bfloat16 and keeps it as raw bytes


class CheckpointError(VitrailError):
    """A file of weights that cannot be used."""


class NpzArrays(Mapping[str, NDArray[Any]]):
    """The arrays of an .npz file. Headers are checked against the file before any memory is taken.

    Attributes:
        shapes: of every array, as its header says; () where there is no header.
        unreadable: name -> why this array will not be read: objects, no numbers, a header that lies.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except Exception as error:  # a damaged directory may raise anything
            raise CheckpointError("VT070", f"{path} is not an .npz file: {error}", "a zip of .npy arrays") from error
        self.comment = self._archive.comment
        members = self._archive.infolist()
        if len(members) > MAX_ARRAYS:
            raise CheckpointError("VT071", f"{path} lists {len(members):,} arrays", f"at most {MAX_ARRAYS:,}")
        self._members: dict[str, zipfile.ZipInfo] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.unreadable: dict[str, str] = {}
        for info in members:
            name = info.filename.removesuffix(".npy")
            problem = self._examine(name, info)
            if name in self._members:
                problem = "two arrays of this name"
            self._members[name] = info
            if problem is not None:
                self.unreadable[name] = problem

    def _examine(self, name: str, member: zipfile.ZipInfo) -> str | None:
        """Notes the shape, and says what speaks against reading the array."""
        self.shapes[name] = ()
        try:
            with self._archive.open(member) as file:
                start = BytesIO(file.read(_HEADER_BYTES))
            version = np.lib.format.read_magic(start)
            if version not in ((1, 0), (2, 0)):
                return f"unknown .npy version {version}"
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(start)
        except Exception as error:  # a hostile header may raise anything
            return str(error) or type(error).__name__
        if min(shape, default=0) < 0:
            return f"a shape of {shape}"
        self.shapes[name] = shape
        if dtype.hasobject:
            return "an array of Python objects, which are never unpickled"
        if dtype.kind not in "fiu" and dtype != _BFLOAT16:
            return f"an array of type {dtype}, not of numbers"
        size = member.file_size - start.tell()
        if math.prod(shape) * dtype.itemsize != size:
            return f"the header says {shape} {dtype}, the file has {size} bytes"
        return None

    def __getitem__(self, name: str) -> NDArray[Any]:
        try:
            with self._archive.open(self._members[name]) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
        except Exception as error:  # so may the rest of the array
            raise CheckpointError("VT072", f"{self.path}: {name} is damaged: {error}", "a whole file") from error
        if array.dtype != _BFLOAT16:
            return array
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)  # the upper half of a float32

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


def write_safetensors(tensors: Mapping[str, Any], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes torch tensors; a full disk is an OSError, as everywhere else."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, str(path), metadata)
    except SafetensorError as error:  # it carries the system's error number as text only
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) if number else error from error
    path.chmod(0o644)  # safetensors leaves its temporary file's 0600


def check_names(
    path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], unreadable: Mapping[str, str] | None = None
) -> None:
    """Compares names and shapes and lists everything that is wrong at once.

    Raises:
        CheckpointError: VT073 with the missing, extra, misshapen and unreadable arrays.
    """
    refused = unreadable or {}
    lines = [f"missing     {name} {wanted[name]}" for name in wanted if name not in found]
    lines += [f"extra       {name} {found[name]}" for name in found if name not in wanted and name not in refused]
    lines += [
        f"misshapen   {name}: {found[name]} instead of {wanted[name]}"
        for name in wanted
        if name in found and found[name] != wanted[name] and name not in refused
    ]
    lines += [f"unreadable  {name}: {reason}" for name, reason in refused.items()]
    if lines:
        more = f"\n  ... and {len(lines) - 40} more" if len(lines) > 40 else ""
        raise CheckpointError(
            "VT073", f"{path} does not fit its model:\n  " + "\n  ".join(lines[:40]) + more,
            "every array of the model, in its shape, and no other",
        )  # fmt: skip


def check_memory(path: Path, shapes: Iterable[tuple[int, ...]]) -> None:
    """Refuses weights that this computer cannot hold, before any is read: a small file may unpack to a huge one."""
    needed, memory = 4 * sum(map(math.prod, shapes)), memory_bytes()
    if needed > memory:
        raise CheckpointError(
            "VT071", f"{path} unpacks to {needed / 2**30:.1f} GiB of weights",
            f"at most this computer's memory, {memory / 2**30:.1f} GiB",
        )  # fmt: skip


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
