"""OpenVINO models in one file: a stored zip of model.xml, model.bin and passport.json, checked and mapped, never unpacked."""

from __future__ import annotations

import io
import mmap
import os
import re
import struct
import zipfile
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from vitrail.deployment.passport import MAX_TEXT, Passport, Stretch, check_seal, damaged, read_passport, sealed
from vitrail.errors import VitrailError

XML, BIN, PASSPORT = "model.xml", "model.bin", "passport.json"
ALIGNED = 64  # bytes: where the weights begin, so that they can be used as they lie
MAX_XML, MAX_BIN = 64 * 2**20, 64 * 2**30
_HEADER = struct.Struct("<4s5H3L2H")  # of a member: signature ... lengths of name and extra field
_PADDING = 0xD935  # an extra field that pads, as Android's zipalign writes it
_LAYER = re.compile(rb"<layer\b[^>]*?\bversion=\"([^\"]*)\"")  # of which set of operators


@dataclass(frozen=True)
class OpenvinoFile:
    """A checked file.

    Attributes:
        path: of the file.
        passport: what it says of itself.
        graph: the text of model.xml.
        weights: the bytes of model.bin, mapped: they are read from the disk when they are used.
    """

    path: str
    passport: Passport
    graph: bytes
    weights: NDArray[np.uint8]


def stamped(graph: bytes, weights: bytes | memoryview, passport: Passport) -> bytes:
    """An exported file: the text of model.xml, the bytes of model.bin and their passport, sealed."""
    target, date = io.BytesIO(), (1980, 1, 1, 0, 0, 0)  # the same model is the same file
    text = sealed(passport, [graph, weights]).text().encode()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as file:
        for name, content in ((XML, graph), (BIN, weights), (PASSPORT, text)):
            member = zipfile.ZipInfo(name, date)
            begin = target.tell() + _HEADER.size + len(name) + 4
            member.extra = struct.pack("<HH", _PADDING, -begin % ALIGNED) + bytes(-begin % ALIGNED)
            file.writestr(member, content)
    return target.getvalue()


def read_openvino(path: str | os.PathLike[str]) -> OpenvinoFile:
    """Checks an exported file, and its hash.

    Raises:
        VitrailError: VT160 damaged, or no such zip; VT161 of a newer format; VT162 another hash; VT163 foreign operators.
    """
    name = os.fspath(path)
    with open(path, "rb") as file:
        places = _places(file, name)
        (xml, size), (binary, length), (text, count) = (places[part] for part in (XML, BIN, PASSPORT))
        graph, said = os.pread(file.fileno(), size, xml), os.pread(file.fileno(), count, text)
        passport = read_passport(said, name)
        if passport.target != "openvino":
            raise damaged(name, f"its passport is of a file for {passport.target}")
        check_seal(passport, [graph, Stretch(file.fileno(), binary, length)], name)
        _check_operators(graph, name)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # OpenVINO takes no array that cannot be written
        return OpenvinoFile(name, passport, graph, np.frombuffer(mapped, np.uint8, length, binary))


def _places(file: BinaryIO, name: str) -> dict[str, tuple[int, int]]:
    """Where each member's bytes begin, and how many there are; all that a zip says is a claim."""
    size = os.fstat(file.fileno()).st_size
    limits = {XML: MAX_XML, BIN: MAX_BIN, PASSPORT: MAX_TEXT}
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise damaged(name, f"it is no zip: {error}") from error
    if sorted(member.filename for member in members) != sorted(limits):
        raise damaged(name, f"it holds other things than {', '.join(limits)}, once each")
    places = {}
    for member in members:
        start, length = member.header_offset, member.file_size
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != length or member.flag_bits & 1:
            raise damaged(name, f"{member.filename} is compressed or encrypted")
        head = os.pread(file.fileno(), _HEADER.size, start) if 0 <= start < size else b""
        if len(head) != _HEADER.size or head[:4] != b"PK\x03\x04":
            raise damaged(name, f"{member.filename} is not where it is said to be")
        *_, letters, extra = _HEADER.unpack(head)
        start += _HEADER.size + letters + extra
        if length > limits[member.filename] or start + length > size:
            raise damaged(name, f"{member.filename} has {length:,} bytes, more than there are or than are read")
        places[member.filename] = (start, length)
    if os.pread(file.fileno(), 4, size - 22) != b"PK\x05\x06":  # the end of the directory is the end of the file
        raise damaged(name, "something follows its directory")
    ordered = sorted(places.values())
    if any(start + length > after for (start, length), (after, _) in pairwise(ordered)):
        raise damaged(name, "its parts overlap")
    return places


def _check_operators(graph: bytes, name: str) -> None:
    """Layers are of OpenVINO's own sets of operators; others would be looked for in libraries."""
    if b"<!" in graph:
        raise damaged(name, f"{XML} holds declarations, which OpenVINO does not write")
    for version in set(_LAYER.findall(graph)):
        if re.fullmatch(rb"opset\d{1,2}", version) is None:
            raise VitrailError(
                "VT163", f"{name} holds operators of {version[:60].decode(errors='replace')!r}, which exports of Vitrail have "
                "not; it was not opened", "OpenVINO's own operators",
                "load the weights that it was made from, and export them: vitrail export WEIGHTS --to openvino",
            )  # fmt: skip
