"""What travels inside an exported model: what its numbers mean, where they came from, and how they were checked. No torch."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from threading import Thread
from typing import Any, Final, Literal

from vitrail import __version__
from vitrail.configuration import decode
from vitrail.errors import UsageError, VitrailError
from vitrail.preprocessing import Preprocessing

FORMAT = 1  # of the passport and of what the graph takes and gives; a newer one is refused
KEY = "vitrail"  # of the ONNX metadata that hold the passport
IMAGES, LOGITS, PROBABILITIES = "images", "logits", "probabilities"  # names of the graph's input and outputs
MAX_TEXT = 4 * 2**20  # bytes of a passport; ImageNet-21k's names take one
MAX_CLASSES, MAX_NAME, MAX_SIZES, MAX_SIDE, MAX_DEPTH, MAX_FACTS = 200_000, 1000, 16, 4096, 6, 20_000
BLOCK, THREADS = 2**20, 2  # bytes that a thread hashes at a time: what it keeps of memory; how many hash

Target = Literal["onnx", "openvino", "torch-export"]
Inside = Literal["normalisation", "softmax"]
Precision = Literal["float32", "bfloat16", "int8"]
NORMALISATION: Final = "normalisation"
SOFTMAX: Final = "softmax"


@dataclass(frozen=True)
class Stretch:
    """Bytes of an open file, read when they are asked for: a map of them would count as memory of the process."""

    descriptor: int
    start: int
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self.length)
        return os.pread(self.descriptor, stop - start, self.start + start)


Part = bytes | memoryview | Stretch  # of a file


@dataclass(frozen=True)
class Passport:
    """What an exported file says of itself.

    Attributes:
        target: what kind of file it is.
        precision: of the weights and of most of the work.
        sizes: (height, width) of every image size that the graph takes, the model's own first.
        classes: the name of each logit.
        multi_label: several classes may be true at once (sigmoid), or exactly one is (softmax).
        temperature: what logits are divided by before they become probabilities.
        preprocessing: what turns a picture into an image; its image size is the first of `sizes`.
        inside: what the graph does itself. With "normalisation" it takes uint8 images, without it normalised float32; with
            "softmax" it gives probabilities beside the logits.
        source: where the weights came from: names, fingerprints, versions.
        check: what the verification measured; empty where there was none.
        made_by: the program and its version.
        format: of the passport.
        hash: of the graph, the weights and this passport; see `sealed`.
    """

    target: Target
    precision: Precision
    sizes: tuple[tuple[int, int], ...]
    classes: tuple[str, ...]
    multi_label: bool
    temperature: float
    preprocessing: Preprocessing
    inside: tuple[Inside, ...] = (NORMALISATION, SOFTMAX)
    source: Mapping[str, Any] = field(default_factory=dict)
    check: Mapping[str, Any] = field(default_factory=dict)
    made_by: str = f"vitrail {__version__}"
    format: int = FORMAT
    hash: str = ""

    def text(self) -> str:
        """As JSON, on one line, in ASCII."""
        said = asdict(replace(self, source={}, check={})) | {"source": dict(self.source), "check": dict(self.check)}
        return json.dumps(said, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def read_passport(text: bytes | str, name: str) -> Passport:
    """The inverse of `Passport.text`; every value is checked.

    Args:
        text: JSON.
        name: of the file, for errors.

    Raises:
        VitrailError: VT160, it is damaged; VT161, a newer Vitrail wrote it.
    """
    if len(text) > MAX_TEXT:
        raise damaged(name, f"its passport has {len(text):,} bytes; at most {MAX_TEXT:,} are read")
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise damaged(name, f"its passport is no JSON: {error}") from error
    if not isinstance(data, dict) or type(data.get("format")) is not int:
        raise damaged(name, "its passport says no format")
    if data["format"] > FORMAT:
        raise VitrailError(
            "VT161", f"{name} is of format {data['format']}; it was made by {str(data.get('made_by'))[:60]!r}",
            f"format {FORMAT} or older, which vitrail {__version__} reads", "pip install --upgrade vitrail",
        )  # fmt: skip
    try:
        free = {key: _facts(data.pop(key, {}), key) for key in ("source", "check")}
        return _checked(replace(decode(Passport, data, {}), **free))
    except VitrailError as error:
        raise damaged(name, f"its passport: {error.what}") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise damaged(name, f"its passport: {error}") from error


def sealed(passport: Passport, parts: Sequence[Part]) -> Passport:
    """The passport with the hash of itself and of what it speaks of.

    Args:
        passport: anything that it says of a hash is passed over.
        parts: ONNX: the one buffer of the model without the passport. OpenVINO: model.xml and model.bin.
    """
    return replace(passport, hash=_hashed([*parts, replace(passport, hash="").text().encode()]))


def check_seal(passport: Passport, parts: Sequence[Part], name: str) -> None:
    """Raises VT162 where the file is not what was sealed."""
    found = sealed(passport, parts).hash
    if found != passport.hash:
        raise VitrailError(
            "VT162", f"{name} is damaged or was changed: its contents have the hash {found[:16]}, not {passport.hash[:16]}",
            "the file as `vitrail export` wrote it", "copy it again, or export it again",
        )  # fmt: skip


def damaged(name: str, what: str) -> VitrailError:
    return VitrailError(
        "VT160", f"{name} is no exported model, or a damaged one: {what}", "a file that `vitrail export` wrote",
        "copy it again, or export it again: vitrail export RUN --to onnx",
    )  # fmt: skip


def _hashed(parts: Sequence[Part]) -> str:
    """SHA-256 of the SHA-256 of every block of every part; several threads hash, which need no GIL for it."""
    blocks = [
        (part if isinstance(part, Stretch) else memoryview(part), slice(start, start + BLOCK))
        for part in parts
        for start in range(0, len(part), BLOCK)
    ]
    digests = [b""] * len(blocks)  # what could not be read has no digest, and so another hash

    def work(first: int) -> None:
        for number in range(first, len(blocks), THREADS):
            part, place = blocks[number]
            digests[number] = hashlib.sha256(part[place]).digest()

    others = [Thread(target=work, args=(first,)) for first in range(1, THREADS)] if len(blocks) > THREADS else []
    for thread in others:
        thread.start()
    for first in range(1 if others else THREADS):
        work(first)
    for thread in others:
        thread.join()
    lengths = ",".join(str(len(part)) for part in parts)  # so that nothing moves from one part to the next
    return hashlib.sha256(lengths.encode() + b"".join(digests)).hexdigest()


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _checked(passport: Passport) -> Passport:
    sizes, (height, width) = passport.sizes, passport.preprocessing.image_size
    require = _require
    require(0 < passport.format <= FORMAT, "format", passport.format)
    require(0 < len(sizes) <= MAX_SIZES and len(set(sizes)) == len(sizes), "sizes", sizes)
    require(all(0 < side <= MAX_SIDE for size in sizes for side in size), "sizes", sizes)
    require(sizes[0] == (height, width), "sizes", (sizes[0], (height, width)))
    require(0 < passport.preprocessing.channels <= 16, "channels", passport.preprocessing.channels)
    require(len(passport.classes) <= MAX_CLASSES, "number of classes", len(passport.classes))
    require(all(len(name) <= MAX_NAME for name in passport.classes), "classes", "a name that is too long")
    require(0 < passport.temperature < 1e6, "temperature", passport.temperature)
    require(len(set(passport.inside)) == len(passport.inside), "inside", passport.inside)
    require(len(passport.made_by) <= MAX_NAME, "made_by", passport.made_by[:60])
    require(re.fullmatch(r"[0-9a-f]{64}", passport.hash) is not None, "hash", passport.hash[:80])
    return passport


def _require(holds: bool, key: str, value: Any) -> None:
    if not holds:
        raise UsageError("VT003", f"{key} is {str(value)[:200]!r}")


def _facts(data: Any, key: str) -> Mapping[str, Any]:
    """Plain JSON of bounded depth and count; what it says is for people."""
    _require(isinstance(data, dict), key, data)
    waiting, count = [(data, 1)], 0
    while waiting:
        value, depth = waiting.pop()
        inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        count += len(inner)
        _require(depth <= MAX_DEPTH and count <= MAX_FACTS, key, "too deep or too long")
        waiting += [(item, depth + 1) for item in inner if isinstance(item, (dict, list))]
    facts: Mapping[str, Any] = data
    return facts
