"""From a classifier to one file that runs elsewhere, written only when its answers are shown to be the same."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray

from vitrail.deployment import engines, graph, onnx_file, openvino_file
from vitrail.deployment.classifier import Classifier
from vitrail.deployment.exported import open_exported
from vitrail.deployment.passport import (
    KEY,
    MAX_SIDE,
    MAX_SIZES,
    NORMALISATION,
    Inside,
    Passport,
    Precision,
    Target,
    read_passport,
    sealed,
)  # fmt: skip
from vitrail.deployment.verification import Check, Evidence, Logits, Size, compared
from vitrail.errors import Disagreement, UsageError
from vitrail.files import explained, write_bytes

SUFFIXES: Mapping[Target, str] = {"onnx": ".onnx", "openvino": ".openvino", "torch-export": ".pt2"}
ENGINES: Mapping[Target, str] = {"onnx": "onnxruntime", "openvino": "openvino", "torch-export": "pytorch"}
PRECISIONS: Mapping[Target, tuple[Precision, ...]] = {
    "onnx": ("float32", "int8"), "openvino": ("float32", "bfloat16", "int8"), "torch-export": ("float32",)
}  # fmt: skip
WHY = {
    "onnx": "ONNX Runtime has no bfloat16 kernels on CPUs",
    "torch-export": "whoever loads the program can change its type",
}
MAX_ONNX = 2**31 - 2**24  # bytes of weights: a message of protocol buffers ends at 2 GiB


@dataclass(frozen=True)
class Wanted:
    """What is to be written.

    Attributes:
        sizes: (height, width) that the file holds; none: the preprocessing's own.
        inside: what the graph does itself; see `Passport`.
        max_drop: percentage points of top-1 that int8 may cost.
    """

    target: Target
    precision: Precision = "float32"
    sizes: tuple[Size, ...] = ()
    inside: tuple[Inside, ...] = graph.DEFAULT
    max_drop: float = 0.5

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS[self.target]:
            raise UsageError(
                "VT152", f"--to {self.target} with --precision {self.precision}: {WHY[self.target]}",
                " or ".join(PRECISIONS[self.target]), f"--to openvino --precision {self.precision}",
            )  # fmt: skip
        if len(self.sizes) > MAX_SIZES or any(side > MAX_SIDE for size in self.sizes for side in size):
            raise UsageError(
                "VT152", f"{len(self.sizes)} image sizes, the largest side {max(map(max, self.sizes))} pixels",
                f"at most {MAX_SIZES} sizes of {MAX_SIDE:,} pixels a side in one file", "fewer or smaller sizes",
            )  # fmt: skip


class Calibrated(Protocol):
    """What `quantisation.quantise` makes of a float32 model."""

    model: Any

    def facts(self) -> dict[str, Any]:
        """How, for the passport."""


@dataclass(frozen=True)
class Written:
    """An export that passed its check."""

    path: Path
    bytes: int
    passport: Passport
    check: Check


def export(
    classifier: Classifier,
    wanted: Wanted,
    path: Path,
    evidence: Evidence,
    source: Mapping[str, Any] | None = None,
    calibration: Callable[[Any], Calibrated] | None = None,
    told: Callable[[str], None] = lambda text: None,
) -> Written:
    """Writes one file and checks it before it gets its name.

    Args:
        path: of the new file, with the suffix of its kind; what is there is replaced.
        evidence: pictures that the answers are compared on.
        source: where the weights come from, for the passport.
        calibration: makes int8 of the float32 model of openvino or onnx.
        told: is told what goes on.

    Raises:
        Disagreement: VT155, the answers are others; nothing is written.
        UsageError: VT045, no classes; VT151, an extra is missing; VT152, what cannot be written.
        VitrailError: VT150, the model cannot be traced.
    """
    sizes = wanted.sizes or (classifier.preprocessing.image_size,)
    wanted = replace(wanted, sizes=sizes)
    _check_classes(classifier)
    _check_bfloat16(wanted)
    evidence = evidence.readable()
    told(f"{wanted.target}: the graph")
    made, facts = _made(classifier, wanted, calibration)
    passport = _passport(classifier, wanted, {**(source or {}), **({"int8": facts} if facts else {})})
    with _folder_of(path), _temporary(path) as temporary:
        with explained(path):
            temporary.write_bytes(made(passport))
        opener = _opener(temporary, classifier, passport)
        rows = compared(opener, lambda size: reference(classifier, size), evidence, passport, told)
        check = Check(
            rows, wanted.precision, _engine(wanted.target, wanted.precision), evidence.source, wanted.max_drop
        )
        check.demand()
        passport = replace(passport, check=check.facts())
        content = made(passport)
        write_bytes(path, content)
    return Written(path, len(content), passport, check)


@contextmanager
def _folder_of(path: Path) -> Iterator[None]:
    """It is there; folders that were made for this file are gone again where there is no file."""
    new = [folder for folder in path.parents if not folder.exists()]
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in new:
            with suppress(OSError):
                folder.rmdir()
        raise


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A name beside it, which is nobody's afterwards."""
    temporary = path.with_name(f".{uuid4().hex[:8]}.tmp{path.suffix}")
    try:
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def reference(classifier: Classifier, size: Size) -> Logits:
    """The module itself in PyTorch's float32, for images of this size."""
    module = classifier.module.at(size).float().cpu().eval()

    def logits(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            answer: NDArray[np.float32] = module(classifier.preprocessing.normalise(torch.from_numpy(images))).numpy()
        return answer

    return logits


def _check_classes(classifier: Classifier) -> None:
    if not classifier.classes:
        raise UsageError(
            "VT045", "these weights have no classes: they turn a picture into a vector of features", "a classifier",
            "vitrail train YOUR_IMAGES --weights THESE_WEIGHTS gives classes",
        )  # fmt: skip


def _check_bfloat16(wanted: Wanted) -> None:
    """What was checked in float32 was not shown to answer in bfloat16."""
    if wanted.precision == "bfloat16" and not _openvino_has_bfloat16():
        raise UsageError(
            "VT152", "--precision bfloat16 on a processor that has none: the file could not be checked as it will answer",
            "float32 or int8 here, or a processor with bfloat16", "vitrail export RUN --to openvino",
        )  # fmt: skip


def _openvino_has_bfloat16() -> bool:
    engine = engines.ENGINES["openvino"]
    return not engine.installed or bool(engine.module().has_bfloat16())  # not installed: told later, with the extra


def _passport(classifier: Classifier, wanted: Wanted, source: Mapping[str, Any]) -> Passport:
    preprocessing = replace(classifier.preprocessing, image_size=wanted.sizes[0])
    return Passport(
        wanted.target, wanted.precision, wanted.sizes, classifier.classes, classifier.multi_label,
        classifier.temperature, preprocessing, wanted.inside, source,
    )  # fmt: skip


Made = tuple[Callable[[Passport], bytes], dict[str, Any]]


def _made(classifier: Classifier, wanted: Wanted, calibration: Callable[[Any], Calibrated] | None) -> Made:
    """What writes the file with a passport; how int8 came about."""
    if wanted.target == "openvino":
        model = graph.openvino_model(classifier, wanted.sizes, wanted.inside)
        facts: dict[str, Any] = {}
        if wanted.precision == "int8":
            model, facts = _int8(model, calibration)
        xml, weights = _serialised(model, wanted.precision)
        return (lambda passport: openvino_file.stamped(xml, weights, passport)), facts
    if wanted.target == "onnx":
        _check_protobuf(classifier)
        proto = graph.onnx_model(classifier, wanted.sizes, wanted.inside)
        content, facts = _int8(proto, calibration) if wanted.precision == "int8" else (proto.SerializeToString(), {})
        return (lambda passport: b"".join(onnx_file.stamped(content, passport))), facts
    program, _ = graph.program(classifier, wanted.sizes, wanted.inside)
    return (lambda passport: _archive(program, passport)), {}


def _int8(model: Any, calibration: Callable[[Any], Calibrated] | None) -> tuple[Any, dict[str, Any]]:
    assert calibration is not None
    made = calibration(model)
    return made.model, made.facts()


def _serialised(model: Any, precision: Precision) -> tuple[bytes, bytes]:
    """The text and the weights of an openvino.Model, which only writes to files.

    float16 has three bits more than bfloat16 down to 6e-5, so that what it loses of weights is less than their use loses.
    """
    import openvino

    with TemporaryDirectory(prefix="vitrail-") as folder:
        xml, weights = Path(folder) / "model.xml", Path(folder) / "model.bin"
        if precision == "bfloat16":
            openvino.save_model(model, xml, compress_to_fp16=True)
        else:
            openvino.serialize(model, xml, weights)
        return xml.read_bytes(), weights.read_bytes()


def _archive(program: torch.export.ExportedProgram, passport: Passport) -> bytes:
    arrays = [program.state_dict[name].contiguous() for name in sorted(program.state_dict)]
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.reshape(-1).view(torch.uint8).numpy())
    target = io.BytesIO()
    torch.export.save(program, target, extra_files={f"{KEY}.json": sealed(passport, [digest.digest()]).text()})
    return target.getvalue()


def _check_protobuf(classifier: Classifier) -> None:
    size = 4 * sum(parameter.numel() for parameter in classifier.module.parameters())
    if size > MAX_ONNX:
        raise UsageError(
            "VT152", f"the weights have {size / 2**30:.1f} GiB, and an ONNX file ends at 2 GiB", "a smaller model",
            "--to openvino, whose files may be larger",
        )  # fmt: skip


def _opener(path: Path, classifier: Classifier, passport: Passport) -> Callable[[Size], Logits]:
    """Opens the written file as those who use it will, for images of a size; its passport must be the classifier's."""

    def checked(said: Passport, logits: Logits) -> Logits:
        facts = (classifier.classes, classifier.multi_label, classifier.temperature)
        if (said.classes, said.multi_label, said.temperature) != facts or said.preprocessing != preprocessing:
            raise Disagreement(
                "VT155", "the exported file says other things of its classes or preprocessing than the original",
                "the same", "nothing was written; please report this",
            )  # fmt: skip
        return logits

    preprocessing = replace(classifier.preprocessing, image_size=passport.sizes[0])
    if passport.target == "torch-export":
        return lambda size: checked(*_program(path))

    def opened(size: Size) -> Logits:
        model = open_exported(path, size, ENGINES[passport.target])
        return checked(model.passport, model.logits)

    return opened


def _program(path: Path) -> tuple[Passport, Logits]:
    """torch.export's own file, which was written a moment ago: what others wrote is never loaded, for it holds pickles."""
    files = {f"{KEY}.json": ""}
    run = torch.export.load(path, extra_files=files).module()
    passport = read_passport(files[f"{KEY}.json"], path.name)

    def logits(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        values = torch.from_numpy(images)
        given = values if NORMALISATION in passport.inside else passport.preprocessing.normalise(values)
        with torch.inference_mode():
            answer: NDArray[np.float32] = run(given)[0].numpy()
        return answer

    return passport, logits


def _engine(target: Target, precision: Precision) -> str:
    from importlib.metadata import version

    package = {"onnx": "onnxruntime", "openvino": "openvino", "torch-export": "torch"}[target]
    name = f"{package} {version(package)}"
    if precision == "int8" and target == "openvino" and not _openvino_has_bfloat16():
        name += ", what is not int8 in float32, as this processor has no bfloat16"
    return name
