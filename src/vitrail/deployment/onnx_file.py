"""ONNX files as bytes: checked before a runtime sees them, with their weights left where they lie. Neither onnx nor torch.

Protocol buffers are read by hand (https://protobuf.dev/programming-guides/encoding, onnx.proto of ONNX 1.23), because the
runtime reads whatever it is given: other files, for weights that are said to lie outside, and operators of any domain.
Only fields that an export of Vitrail has are let through.

The passport is the last field of the file, so that everything before it is hashed in one piece. Two messages one after
the other are one message to every reader of protocol buffers.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vitrail.deployment.passport import KEY, MAX_TEXT, Passport, Stretch, check_seal, damaged, read_passport, sealed
from vitrail.errors import VitrailError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # kinds of a field; 3 and 4 are groups, which ONNX has none of
MAX_BYTES = 2**31 - 1  # of one message of protocol buffers
MAX_FIELDS, MAX_DEPTH = 2_000_000, 8
DOMAINS = (b"", b"ai.onnx")
SMALLEST = 1024  # bytes of an array that is left in the file; the graph's own numbers (shapes, axes) are smaller
ALIGNED = 64  # bytes: a line of the cache, and AVX-512's widest read
# What may stand in each message: the number of a field, and the message inside it; None: text, numbers or names.
_MESSAGES: dict[str, dict[int, str | None]] = {
    "model": {1: None, 2: None, 3: None, 4: None, 5: None, 6: None, 7: "graph", 8: "opset", 14: None},
    "opset": {1: None, 2: None},
    "graph": {1: "node", 2: None, 5: "tensor", 10: None, 11: None, 12: None, 13: None, 16: None},
    "node": {1: None, 2: None, 3: None, 4: None, 5: "attribute", 6: None, 7: None, 9: None},
    "attribute": {1: None, 2: None, 3: None, 4: None, 5: "tensor", 6: "graph", 7: None, 8: None, 9: None, 10: "tensor",
                  11: "graph", 13: None, 20: None},
    "tensor": {1: None, 2: None, 4: None, 5: None, 6: None, 7: None, 8: None, 9: None, 10: None, 11: None, 12: None,
               13: None, 14: None, 16: None},
}  # fmt: skip
_OF_PEOPLE = {
    "graph": (10, 13, 16),
    "node": (6, 9),
    "tensor": (12, 16),
}  # notes, and shapes that runtimes find themselves
_GRAPH, _METADATA, _NODE, _INITIALIZER, _DOC = 7, 14, 1, 5, 12
_DOMAIN_OF = {"node": 7, "opset": 1}
_RAW, _EXTERNAL, _LOCATION = 9, 13, 14  # of a tensor: its bytes, the file where they lie, whether they lie in one


class Field(NamedTuple):
    """One field of a message: its number and kind, where it begins, and where what it holds begins and ends."""

    number: int
    kind: int
    start: int
    inner: int
    end: int


@dataclass(frozen=True)
class OnnxFile:
    """A checked file.

    Attributes:
        path: of the file itself, no link.
        passport: what it says of itself.
        graph: the model in which every large array is said to lie at its place in this same file, for a runtime that
            maps it into memory.
        state: which file that was: device, number, size and time of the last change.
    """

    path: Path
    passport: Passport
    graph: bytes
    state: tuple[int, ...]

    def unchanged(self) -> bool:
        """Whether the path still leads to the file that was checked; runtimes open it by its name."""
        try:
            return _state(os.stat(self.path)) == self.state
        except OSError:
            return False

    def demand_unchanged(self) -> None:
        """To be called when a runtime has opened it: raises VT176 where that may have been another file."""
        if not self.unchanged():
            raise VitrailError(
                "VT176", f"{self.path} was replaced or removed while it was being opened", "the file that was checked",
                "load it again",
            )  # fmt: skip


def _state(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def stamped(model: bytes, passport: Passport, name: str = "the model") -> list[bytes]:
    """An exported file in parts: a model with its weights inside, and its passport, sealed.

    Large arrays are moved to multiples of 64 bytes, where they can be used as they lie. What exporters leave for people,
    such as each operator's place in a program, with the names of folders, is left out.

    Raises:
        VitrailError: VT160, it is no ONNX model; VT163, it is one that `read_onnx` would refuse.
    """
    reader = _Reader(model, name)
    body = b"".join(reader.aligned(reader.checked("model", 0, len(model))))
    text = sealed(passport, [body]).text().encode()
    return [body, _written(_METADATA, _written(1, KEY.encode()) + _written(2, text))]


def read_onnx(path: str | os.PathLike[str]) -> OnnxFile:
    """Checks an exported file, and its hash.

    Raises:
        VitrailError: VT160 damaged; VT161 of a newer format; VT162 another hash; VT163 weights in other files, foreign
            operators or other things that exports of Vitrail have not; VT164 no passport: somebody else's model.
    """
    name, place = os.fspath(path), Path(os.path.realpath(path))
    with open(place, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not 0 < size <= MAX_BYTES:
            raise damaged(name, f"it has {size:,} bytes; 1 to {MAX_BYTES:,} are read")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            reader = _Reader(content, name)
            top = reader.checked("model", 0, size)
            passport = reader.passport(top)
            check_seal(passport, [Stretch(file.fileno(), 0, top[-1].start)], name)
            return OnnxFile(place, passport, reader.pointing(top[:-1], place.name), _state(os.fstat(file.fileno())))


class _Reader:
    """Goes through the messages of a file, whose every length is a claim."""

    def __init__(self, content: mmap.mmap | bytes, name: str) -> None:
        self.content, self.name, self.left = content, name, MAX_FIELDS

    def checked(self, message: str, start: int, end: int, depth: int = 0) -> list[Field]:
        """The fields of a message, after all that is inside them was checked."""
        if depth > MAX_DEPTH:
            raise damaged(self.name, "its graphs are nested too deeply")
        known, domain, found = _MESSAGES[message], _DOMAIN_OF.get(message), []
        for field in self.fields(start, end):
            found.append(field)
            if field.number not in known:
                raise self._foreign(f"field {field.number} of a {message}")
            inner = known[field.number]
            if inner is not None:
                if field.kind != BYTES:
                    raise damaged(self.name, f"field {field.number} of a {message} is no message")
                self.checked(inner, field.inner, field.end, depth + 1)
            elif field.number == domain and (text := self.content[field.inner : field.end]) not in DOMAINS:
                raise self._foreign(f"operators of the domain {text[:60].decode(errors='replace')!r}")
            elif message == "tensor" and self._outside(field):
                raise self._foreign("weights that are said to lie in other files")
        return found

    def _outside(self, field: Field) -> bool:
        """Whether this field of a tensor says that its values lie in another file."""
        said = field.number == _LOCATION and (field.kind != VARINT or self._varint(field.inner, field.end)[0] != 0)
        return said or field.number == _EXTERNAL

    def fields(self, start: int, end: int) -> Iterator[Field]:
        while start < end:
            tag, inner = self._varint(start, end)
            number, kind = tag >> 3, tag & 7
            if kind == BYTES:
                length, inner = self._varint(inner, end)
                stop = inner + length
            elif kind == VARINT:
                _, stop = self._varint(inner, end)
            elif kind in (FIXED32, FIXED64):
                stop = inner + (4 if kind == FIXED32 else 8)
            else:
                raise damaged(self.name, f"at byte {start:,} is no field of an ONNX file")
            self.left -= 1
            if stop > end or self.left < 0:
                raise damaged(self.name, f"it is cut off, or the field at byte {start:,} is too long")
            yield Field(number, kind, start, inner, stop)
            start = stop

    def _varint(self, start: int, end: int) -> tuple[int, int]:
        """A whole number of seven bits a byte, and where it ends."""
        value = 0
        for place in range(start, min(start + 10, end)):
            byte = self.content[place]
            value |= (byte & 127) << 7 * (place - start)
            if byte < 128:
                return value, place + 1
        raise damaged(self.name, f"the number at byte {start:,} has no end")

    def passport(self, top: list[Field]) -> Passport:
        """What the last field holds; there is one graph and one passport."""
        if [field.number for field in top].count(_GRAPH) != 1:
            raise damaged(self.name, "it is no ONNX model with one graph")
        texts = [self._entry(field) for field in top if field.number == _METADATA]
        places = [place for place, (key, _) in enumerate(texts) if key == KEY.encode()]
        if not places:
            raise VitrailError(
                "VT164", f"{self.name} is an ONNX model without a passport of Vitrail: nothing says how pictures become its "
                "images, or what its classes are", "a file that `vitrail export` wrote",
                "load the weights that it was made from, and export them: vitrail export WEIGHTS --to onnx",
            )  # fmt: skip
        if places != [len(texts) - 1] or top[-1].number != _METADATA:
            raise damaged(self.name, "its passport is not what it ends with")
        passport = read_passport(texts[-1][1], self.name)
        if passport.target != "onnx":
            raise damaged(self.name, f"its passport is of a file for {passport.target}")
        return passport

    def _entry(self, entry: Field) -> tuple[bytes, bytes]:
        """Key and value of metadata."""
        parts = {field.number: field for field in self.fields(entry.inner, entry.end)}
        if parts.keys() != {1, 2} or parts[2].end - parts[2].inner > MAX_TEXT:
            raise damaged(self.name, "its metadata cannot be read")
        key, value = (self.content[parts[number].inner : parts[number].end] for number in (1, 2))
        return key, value

    def pointing(self, top: list[Field], file: str) -> bytes:
        """The model whose large arrays are said to lie in `file`, where they are."""
        parts: list[bytes] = []
        for field in top:
            if field.number != _GRAPH:
                parts.append(self.content[field.start : field.end])
                continue
            inside = [self._pointer(part, file) for part in self.fields(field.inner, field.end)]
            parts.append(_written(_GRAPH, b"".join(inside)))
        return b"".join(parts)

    def aligned(self, top: list[Field]) -> Iterator[bytes]:
        """The model with every large array at a multiple of 64 bytes of the file."""
        place = 0
        for field in top:
            if field.number == _METADATA:
                continue
            if field.number != _GRAPH:
                yield self.content[field.start : field.end]
                place += field.end - field.start
                continue
            parts: list[bytes] = []
            place += 6  # a tag and five bytes of length
            for inside in self.fields(field.inner, field.end):
                if inside.number in _OF_PEOPLE["graph"]:
                    continue
                parts.append(self._placed(inside, place))
                place += len(parts[-1])
            yield bytes([_GRAPH << 3 | BYTES]) + _number(sum(map(len, parts)), 5)
            yield from parts

    def _placed(self, field: Field, place: int) -> bytes:
        """A field of the graph, as it is written at this place of the file."""
        if field.number == _NODE:
            return _written(_NODE, self._without(field, _OF_PEOPLE["node"]))
        raw = self._large(field)
        if raw is None:
            return self.content[field.start : field.end]
        size = raw.end - raw.inner
        head, values = self._without(field, (*_OF_PEOPLE["tensor"], _RAW)), self.content[raw.inner : raw.end]
        opening = bytes([_RAW << 3 | BYTES]) + _number(size)
        for spaces in range(ALIGNED):
            inner = head + _written(_DOC, b" " * spaces) + opening
            whole = bytes([_INITIALIZER << 3 | BYTES]) + _number(len(inner) + size) + inner
            if (place + len(whole)) % ALIGNED == 0:
                return whole + values
        raise AssertionError("one of 64 places that follow each other is a multiple of 64")

    def _large(self, field: Field) -> Field | None:
        """The bytes of an initializer, where they are many."""
        if field.number != _INITIALIZER:
            return None
        raw = [part for part in self.fields(field.inner, field.end) if part.number == _RAW]
        return raw[0] if len(raw) == 1 and raw[0].end - raw[0].inner >= SMALLEST else None

    def _without(self, message: Field, numbers: tuple[int, ...]) -> bytes:
        fields = self.fields(message.inner, message.end)
        return b"".join(self.content[part.start : part.end] for part in fields if part.number not in numbers)

    def _pointer(self, tensor: Field, file: str) -> bytes:
        raw = self._large(tensor)
        if raw is None or raw.inner % ALIGNED:
            return self.content[tensor.start : tensor.end]
        said = {"location": file, "offset": str(raw.inner), "length": str(raw.end - raw.inner)}
        entries = [
            _written(_EXTERNAL, _written(1, key.encode()) + _written(2, os.fsencode(value)))
            for key, value in said.items()
        ]
        kept = self._without(tensor, (_RAW, _LOCATION, _DOC))
        return _written(_INITIALIZER, b"".join([kept, *entries, bytes([_LOCATION << 3, 1])]))

    def _foreign(self, what: str) -> VitrailError:
        return VitrailError(
            "VT163", f"{self.name} holds {what}, which exports of Vitrail have not; it was not opened",
            "operators of ONNX itself, and every weight inside the file",
            "load the weights that it was made from, and export them: vitrail export WEIGHTS --to onnx",
        )  # fmt: skip


def _written(number: int, content: bytes) -> bytes:
    """A field of bytes."""
    return _number(number << 3 | BYTES) + _number(len(content)) + content


def _number(value: int, least: int = 1) -> bytes:
    """A varint of this many bytes or more."""
    parts: list[int] = []
    while value > 127 or len(parts) + 1 < least:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
