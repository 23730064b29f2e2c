"""Files of named arrays, read one array at a time and never executed: .npz and .safetensors."""

from __future__ import annotations

import math
import mmap
import os
import re
import zipfile
import zlib
from abc import ABC
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import VitrailError

MAX_ARRAYS = 100_000
_HEADER_BYTES = 64 * 2**10  # NumPy itself refuses headers of more than 10,000 bytes, but only after reading them
COMMENT_KEY = "vitrail"  # of the metadata of a .safetensors file
KINDS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool", "I8": "int8",
    "I16": "int16", "I32": "int32", "I64": "int64", "U8": "uint8",
}  # fmt: skip
_LOCAL_HEADER = 30  # bytes, before a member's name
_BFLOAT16 = np.dtype("V2")  # NumPy does not know bfloat16 and keeps it as raw bytes


class CheckpointError(VitrailError):
    """A file of weights that cannot be used."""


class Misfit(CheckpointError):
    """Arrays that are not those of the model; `lines` has every one, the message the first."""

    lines: tuple[str, ...] = ()


class Arrays(Mapping[str, Any], ABC):
    """Named arrays of a file: NumPy's or torch's, each read when it is asked for.

    Attributes:
        shapes: of every array, as the file says; () where it says none.
        kinds: the type of its numbers, as text: "float32".
        unreadable: name -> why this array will not be read: objects, no numbers, a header that lies.
        comment: what Vitrail may have written beside the arrays.
        others: name -> what is there too and is no array.
        files: that have them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.kinds: dict[str, str] = {}
        self.unreadable: dict[str, str] = {}
        self.comment = b""
        self.others: dict[str, str] = {}
        self.files: tuple[Path, ...] = (path,)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, name: object) -> bool:  # Mapping's own reads the array
        return name in self.shapes


class NpzArrays(Arrays):
    """The arrays of an .npz file. Headers are checked against the file before any memory is taken."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._archive = zipfile.ZipFile(path)
        except Exception as error:  # a damaged directory may raise anything
            raise CheckpointError("VT070", f"{path} is not an .npz file: {error}", "a zip of .npy arrays") from error
        self.comment = self._archive.comment
        members = self._archive.infolist()
        if len(members) > MAX_ARRAYS:
            raise CheckpointError("VT071", f"{path} lists {len(members):,} arrays", f"at most {MAX_ARRAYS:,}")
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._map: mmap.mmap | None = None
        self._last: tuple[int, int] | None = None
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
        self.shapes[name], self.kinds[name] = (), "unknown"
        try:
            with self._archive.open(member) as file:
                start = BytesIO(file.read(_HEADER_BYTES))
            shape, _, dtype = _header(start)
        except Exception as error:  # a hostile header may raise anything
            return str(error) or type(error).__name__
        if min(shape, default=0) < 0:
            return f"a shape of {shape}"
        self.shapes[name], self.kinds[name] = shape, "bfloat16" if dtype == _BFLOAT16 else str(dtype)
        if dtype.hasobject:
            return "an array of Python objects, which are never unpickled"
        if dtype.kind not in "fiu" and dtype != _BFLOAT16:
            return f"an array of type {dtype}, not of numbers"
        size = member.file_size - start.tell()
        if math.prod(shape) * dtype.itemsize != size:
            return f"the header says {shape} {dtype}, the file has {size} bytes"
        return None

    def __getitem__(self, name: str) -> NDArray[Any]:
        member = self._members[name]
        plain = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1
        try:
            array = self._mapped(member) if plain else self._inflated(member)
        except Exception as error:  # so may the rest of the array
            raise CheckpointError("VT072", f"{self.path}: {name} is damaged: {error}", "a whole file") from error
        if array.dtype != _BFLOAT16:
            return array
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)  # the upper half of a float32

    def _inflated(self, member: zipfile.ZipInfo) -> NDArray[Any]:
        with self._archive.open(member) as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    def _mapped(self, member: zipfile.ZipInfo) -> NDArray[Any]:
        """An array where it lies in the file, after a look at its checksum. Pages of the last one are given back.

        They come again from the file for whoever still holds that array.
        """
        if self._map is None:
            with open(self.path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        if self._last is not None:
            self._map.madvise(mmap.MADV_DONTNEED, *self._last)
        local = self._map[member.header_offset : member.header_offset + _LOCAL_HEADER]
        lengths = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
        start = member.header_offset + _LOCAL_HEADER + lengths
        data = memoryview(self._map)[start : start + member.file_size]
        if local[:4] != b"PK\3\4" or len(data) < member.file_size or zlib.crc32(data) != member.CRC:
            raise ValueError("its checksum differs")
        begin = start // mmap.PAGESIZE * mmap.PAGESIZE
        self._last = begin, start + member.file_size - begin
        header = BytesIO(data[:_HEADER_BYTES])
        shape, fortran, dtype = _header(header)
        if dtype.hasobject:
            raise ValueError("Object arrays are never unpickled")
        if math.prod(shape) * dtype.itemsize != member.file_size - header.tell():
            raise ValueError("its header is another one now")
        array = np.frombuffer(data, dtype, math.prod(shape), header.tell())
        return array.reshape(shape, order="F" if fortran else "C")


def _header(file: BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and type; a hostile header may raise anything."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"unknown .npy version {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    found: tuple[tuple[int, ...], bool, np.dtype[Any]] = read(file)
    return found


class SafetensorsArrays(Arrays):
    """The tensors of a .safetensors file, as torch tensors that stay in the file until they are used."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        super().__init__(path)
        try:
            self._file = safe_open(str(path), framework="pt")
            names = self._file.keys()
            if len(names) > MAX_ARRAYS:
                raise CheckpointError("VT071", f"{path} lists {len(names):,} arrays", f"at most {MAX_ARRAYS:,}")
            for name in names:
                part = self._file.get_slice(name)
                self.shapes[name], kind = tuple(part.get_shape()), part.get_dtype()
                self.kinds[name] = KINDS.get(kind, kind)
                if kind not in KINDS:
                    self.unreadable[name] = f"an array of type {kind}"
            self.comment = (self._file.metadata() or {}).get(COMMENT_KEY, "").encode()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                "VT070", f"{path} is not a whole .safetensors file: {error}", "a file that was written to its end"
            ) from error

    def __getitem__(self, name: str) -> Any:
        return self._file.get_tensor(name)


class JoinedArrays(Arrays):
    """Several files that together are one: the shards of a large model."""

    def __init__(self, path: Path, parts: Sequence[Arrays]) -> None:
        super().__init__(path)
        self._homes: dict[str, Arrays] = {}
        for part in parts:
            for name in part:
                if name in self._homes:
                    self.unreadable[name] = f"both {self._homes[name].path.name} and {part.path.name} have it"
                self._homes[name] = part
            self.shapes |= part.shapes
            self.kinds |= part.kinds
            self.unreadable |= part.unreadable
            self.others |= part.others
        self.files = tuple(part.path for part in parts)

    def __getitem__(self, name: str) -> Any:
        return self._homes[name][name]


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
        Misfit: VT073 with the missing, extra, misshapen and unreadable arrays.
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
        error = Misfit(
            "VT073", f"{path} does not fit its model:\n  " + "\n  ".join(lines[:40]) + more,
            "every array of the model, in its shape, and no other",
        )  # fmt: skip
        error.lines = tuple(lines)
        raise error


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
