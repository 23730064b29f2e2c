"""Numbers out of MATLAB's files, version 5: plain matrices alone, and nothing is executed.

Flowers-102 keeps its labels so. scipy.io reads all of the format; for two tables of numbers it would be a hundred
megabytes more to install and a parser of objects, functions and cells more to trust. Oracle in the tests: scipy.io.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import DataError

MAX_BYTES = 64 * 2**20  # of the file, and of what is packed in it
MAX_ELEMENTS = 1000
_COMPRESSED, _MATRIX, _INT8, _INT32, _UINT32 = 15, 14, 1, 5, 6
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC_CLASSES = range(6, 16)  # double, single and the integers; before them cells, structs, objects, text, sparse


def read_mat(path: Path) -> dict[str, NDArray[np.float64]]:
    """Every real matrix of numbers by its name; what is none (text, cells, structs) is left out.

    Raises:
        DataError: VT113, the file is damaged, too large or of another version.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            _refuse(path, f"has {size:,} bytes")
        content = path.read_bytes()
    except OSError as error:
        raise DataError("VT113", f"{path} cannot be read: {error}", "a MATLAB file") from error
    orders = {b"IM": "<", b"MI": ">"}
    if len(content) < 128 or content[126:128] not in orders or not content.startswith(b"MATLAB 5.0"):
        _refuse(path, "is no MATLAB file of version 5")
    order = orders[content[126:128]]
    found: dict[str, NDArray[np.float64]] = {}
    budget = MAX_BYTES
    try:
        for kind, data in _elements(content[128:], order):
            if kind == _COMPRESSED:
                unpacker = zlib.decompressobj()
                unpacked = unpacker.decompress(data, budget)
                if unpacker.unconsumed_tail or not unpacker.eof:
                    _refuse(path, f"has a part of more than {budget:,} bytes, or one that is cut off")
                budget -= len(unpacked)
                (kind, data), *_ = _elements(unpacked, order)
            if kind == _MATRIX and (matrix := _matrix(data, order)):
                found[matrix[0]] = matrix[1]
    except (struct.error, zlib.error, ValueError, UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise DataError("VT113", f"{path} is damaged: {error}", "a whole MATLAB file") from error
    return found


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and bytes of each element, one after another; small ones keep both in eight bytes."""
    at = 0
    for _ in range(MAX_ELEMENTS):
        if at + 8 > len(content):
            return
        kind, size = struct.unpack_from(f"{order}II", content, at)
        if kind >> 16:  # a small one
            kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
            if size > 4:
                raise ValueError("a small element of more than four bytes")
        else:
            start = at + 8
            # Compressed elements are not padded.
            end = start + size + (0 if kind == _COMPRESSED else -size % 8)
        if start + size > len(content):
            raise ValueError(f"an element of {size:,} bytes where {len(content) - start:,} are left")
        yield kind, content[start : start + size]
        at = end
    raise ValueError(f"more than {MAX_ELEMENTS:,} elements")


def _matrix(content: bytes, order: str) -> tuple[str, NDArray[np.float64]] | None:
    """Name and numbers of a matrix; None where it is not one of real numbers."""
    parts = _elements(content, order)
    try:
        (_, flags), (shape_kind, shape), (name_kind, name) = next(parts), next(parts), next(parts)
        (word,) = struct.unpack_from(f"{order}I", flags)
        if word & 0xFF not in _NUMERIC_CLASSES or word & 0x0800:
            return None
        kind, data = next(parts)
    except StopIteration:
        raise ValueError("a matrix without its parts") from None
    if shape_kind != _INT32 or name_kind != _INT8 or kind not in _NUMBERS or len(shape) > 32:
        raise ValueError("a matrix whose parts are of unknown types")
    sides = struct.unpack(f"{order}{len(shape) // 4}i", shape)
    values = np.frombuffer(data, np.dtype(order + _NUMBERS[kind]))
    if min(sides, default=0) < 0 or math.prod(sides) != len(values):
        raise ValueError(f"a matrix of {sides} with {len(values):,} numbers")
    return name.decode("ascii"), values.astype(np.float64).reshape(sides, order="F")


def _refuse(path: Path, what: str) -> NoReturn:
    raise DataError("VT113", f"{path} {what}", "a MATLAB file of version 5 (save -v7 or -v6), at most 64 MiB")
