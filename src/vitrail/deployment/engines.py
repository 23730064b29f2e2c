"""The engines that give logits, by name; each is imported when a model is opened with it. No torch.

A session is what an engine makes of one file for one image size and one `Setting`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vitrail.cores import cores
from vitrail.errors import UsageError, VitrailError, nearest

Purpose = Literal["first-answer", "throughput"]
MAX_THREADS = 1024
PRECISIONS = ("auto", "float32", "bfloat16", "int8")


@dataclass(frozen=True)
class Setting:
    """How an engine is to work.

    Attributes:
        precision: "auto" is the file's own; "float32", "bfloat16".
        threads: of one session; 0 is one for each core that this process may use.
        streams: images of a batch are divided among so many, each with its share of the threads; 0 lets the engine choose.
        purpose: "first-answer" is ready soon and takes little memory; "throughput" prepares the weights for speed; None
            lets the number of images decide.
    """

    precision: str = "auto"
    threads: int = 0
    streams: int = 0
    purpose: Purpose | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError("VT002", f"precision {self.precision!r}", nearest(self.precision, PRECISIONS))
        if not (0 <= self.threads <= MAX_THREADS and 0 <= self.streams <= MAX_THREADS):
            raise UsageError("VT002", f"{self.threads} threads, {self.streams} streams", f"0 (chosen) to {MAX_THREADS}")

    @property
    def cores(self) -> int:
        """Threads, as many as there are to be."""
        return self.threads or cores()


class Session(Protocol):
    """A model in an engine, ready to answer; it `computes` in float32 or bfloat16 what is not int8."""

    computes: str

    def run(self, images: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
        """Images, batch channels height width, as the graph takes them, to logits, batch classes."""


@dataclass(frozen=True)
class Engine:
    """A program that runs models.

    Attributes:
        name: as users write it.
        package: the library; extra: what of Vitrail brings it along.
        home: the module of Vitrail that speaks to it.
        reads: the kinds of exported files.
        precisions: what it can make of float32 weights; others are calibrated or converted when the file is written.
    """

    name: str
    package: str
    extra: str
    home: str
    reads: tuple[str, ...]
    precisions: tuple[str, ...] = ("float32", "bfloat16")

    @property
    def installed(self) -> bool:
        return sys.modules.get(self.package) is not None or find_spec(self.package) is not None

    def module(self) -> Any:
        """Its module.

        Raises:
            UsageError: VT165, it is not installed. VitrailError: VT166, it is, and cannot be loaded.
        """
        silence()
        try:
            return import_module(self.home)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != self.package:
                raise
            raise self.missing() from error
        except ImportError as error:  # a library of another system, or one that lacks another
            raise VitrailError(
                "VT166", f"the engine {self.name} cannot be loaded: {str(error)[:300]}", f"a {self.package} for this system",
                f'pip install --force-reinstall {self.package}, or another engine: --engine {" or ".join(others(self.name))}',
            ) from error  # fmt: skip

    def missing(self) -> UsageError:
        return UsageError(
            "VT165", f"the engine {self.name} is not installed", f"the package {self.package}",
            f'pip install "vitrail[{self.extra}]"' if self.extra else f"pip install {self.package}",
        )  # fmt: skip


ENGINES: Mapping[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine("onnxruntime", "onnxruntime", "onnx", "vitrail.deployment.engine_onnxruntime", ("onnx",), ("float32",)),
        Engine("openvino", "openvino", "openvino", "vitrail.deployment.engine_openvino", ("openvino", "onnx")),
        Engine("pytorch", "torch", "", "vitrail.deployment.classifier", ()),
        Engine("compiled", "torch", "", "vitrail.deployment.answering", ()),
    )
}


def unanswered(engine: str, images: NDArray[Any], error: Exception) -> VitrailError:
    """What is said where an engine that opened a model fails to answer."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:300]
    return VitrailError(
        "VT183", f"{engine} gave no answer to images of shape {'x'.join(map(str, images.shape))}, {images.dtype}: {said}",
        "logits", f"another engine (--engine {' or '.join(others(engine))}), or in Python fewer images at a time",
    )  # fmt: skip


def silence() -> None:
    """To be called before openvino or nncf is imported: they look for this module to tell Intel and Google what they are
    used for, and tell nobody anything where it is missing.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: an import finds nothing


def others(name: str) -> list[str]:
    return [engine for engine in ENGINES if engine != name]


def named(name: str) -> Engine:
    """The engine of this name.

    Raises:
        UsageError: VT167, there is none.
    """
    if name not in ENGINES:
        raise UsageError("VT167", f"there is no engine {name!r}", nearest(name, [*ENGINES, "auto"]))
    return ENGINES[name]


def reading(target: str, name: str = "auto", stored: str = "auto", precision: str = "auto") -> Engine:
    """The engine for an exported file of this kind: the one that is asked for, or else the first that is installed.

    Where the file is `stored` in another precision than is asked for, engines that can make it come first.

    Raises:
        UsageError: VT165, it is not installed; VT167, there is none of this name; VT168, it does not read such files.
    """
    fitting = [engine for engine in ENGINES.values() if target in engine.reads]
    if name == "auto":
        other = precision not in ("auto", stored)
        able = [engine for engine in fitting if not other or precision in engine.precisions]
        return next((engine for engine in (*able, *fitting) if engine.installed), fitting[0])
    engine = named(name)
    if engine not in fitting:
        raise UsageError(
            "VT168", f"the engine {name} does not read files for {target}", " or ".join(each.name for each in fitting),
            f"vitrail export RUN --to {' or '.join(engine.reads)}" if engine.reads else "load the run that it was made from",
        )  # fmt: skip
    return engine
