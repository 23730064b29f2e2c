"""OpenVINO: sessions of exported files on the CPU, with the batch divided among streams."""

from __future__ import annotations

import sys
from threading import Lock
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from vitrail.deployment.engines import Setting, unanswered
from vitrail.deployment.onnx_file import OnnxFile
from vitrail.deployment.openvino_file import OpenvinoFile
from vitrail.deployment.passport import IMAGES, LOGITS, damaged
from vitrail.errors import UsageError

_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}  # what is not int8 in an int8 model
_told = False
_core: Any = None
_making = Lock()


def core() -> Any:
    """The one openvino.Core of this process.

    A Core gives the thread that made it an alternate stack for signals and takes it away again with itself. Where the
    first of two goes before the second, or in another thread, the thread keeps a stack that is gone and dies of its
    next signal (OpenVINO 2026.4). One that stays does no harm.
    """
    global _core
    with _making:
        if _core is None:
            _core = openvino.Core()
        return _core


class OpenvinoSession:
    """One model on the CPU, prepared when it is first asked. Callers of several threads take turns.

    For one image it has a graph of that shape on all cores, in bfloat16 2 % and in int8 9 % quicker than the one for any
    batch (ViT-B/16); for a first answer several images go through it one by one, so that there is no other in memory.
    """

    weights: Any

    def __init__(self, model: Any, size: tuple[int, int], setting: Setting, hint: str, name: str) -> None:
        self._model, self._name = model, name
        self._image = [model.input(IMAGES).get_partial_shape()[1], *size]
        self._setting, self._hint, self.weights = setting, hint, None
        self.computes = "bfloat16" if hint == "bf16" else "float32"
        self._ready: dict[bool, list[Any]] = {}  # for one image, for many: a request for each stream
        self._turn = Lock()
        if setting.purpose == "first-answer":
            self._requests(alone=True)

    def run(self, images: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
        """Images, batch channels height width, to logits, batch classes."""
        with self._turn:
            alone = len(images) == 1 or self._setting.purpose == "first-answer"
            requests, found = self._requests(alone), []
            parts = np.array_split(images, len(images) if alone else min(len(images), len(requests)))
            try:
                for start in range(0, len(parts), len(requests)):
                    working = list(zip(requests, parts[start : start + len(requests)], strict=False))
                    for request, part in working:
                        request.start_async({IMAGES: np.ascontiguousarray(part)}, share_inputs=True)
                    for request, _ in working:
                        request.wait()
                        found.append(request.get_tensor(LOGITS).data.copy())
            except (RuntimeError, UnicodeDecodeError) as error:
                self._ready.clear()  # some request may still be at work
                raise unanswered("openvino", images, error) from error
            return np.concatenate(found)

    def _requests(self, alone: bool) -> list[Any]:
        if alone not in self._ready:
            streams = 1 if alone else self._setting.streams
            configuration = {
                "PERFORMANCE_HINT": "LATENCY" if alone else "THROUGHPUT",
                "INFERENCE_NUM_THREADS": self._setting.cores,
                "INFERENCE_PRECISION_HINT": self._hint,
            }
            try:
                self._model.reshape({IMAGES: openvino.PartialShape([1 if alone else -1, *self._image])})
                compiled = core().compile_model(
                    self._model, "CPU", configuration | ({"NUM_STREAMS": streams} if streams else {})
                )
            except (RuntimeError, UnicodeDecodeError) as error:
                raise damaged(self._name, f"OpenVINO says: {_short(error)}") from error
            count = streams or compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
            self._ready[alone] = [compiled.create_infer_request() for _ in range(count)]
        return self._ready[alone]


def open_session(file: OpenvinoFile | OnnxFile, size: tuple[int, int], setting: Setting) -> OpenvinoSession:
    """A checked file, ready to answer for images of one size, (height, width).

    Raises:
        VitrailError: VT160, OpenVINO cannot read it. UsageError: VT169, int8 of a model that is not.
    """
    name = str(file.path)
    try:
        if isinstance(file, OnnxFile):
            model = core().read_model(name)
            file.demand_unchanged()
        else:
            model = core().read_model(file.graph, openvino.Tensor(file.weights, shared_memory=True))
        session = open_model(model, file.passport.precision, size, setting, name)
    except (RuntimeError, UnicodeDecodeError) as error:  # of a message that quotes what is no text
        raise damaged(name, f"OpenVINO says: {_short(error)}") from error
    session.weights = file  # which the model reads for as long as it is there
    return session


def open_model(
    model: Any, precision: str, size: tuple[int, int], setting: Setting, name: str = "the model"
) -> OpenvinoSession:
    """The same of an openvino.Model, which is changed: it takes images of this size afterwards."""
    inputs, outputs = ([name for port in ports for name in port.get_names()] for ports in (model.inputs, model.outputs))
    if IMAGES not in inputs or len(model.inputs) != 1 or LOGITS not in outputs:
        raise damaged(name, f"it takes {inputs[:5]} and gives {outputs[:5]}, not {IMAGES!r} and {LOGITS!r}")
    return OpenvinoSession(model, size, setting, _precision(precision, setting.precision), name)


def _precision(stored: str, asked: str) -> str:
    """What OpenVINO is told to calculate in; bfloat16 where the processor has it."""
    if asked == "int8" and stored != "int8":
        raise UsageError(
            "VT169", f"openvino with int8: this model is of {stored}", "a model that was calibrated for int8",
            "vitrail export RUN --to openvino --precision int8",
        )  # fmt: skip
    hint = _HINTS[stored if asked == "auto" else asked]
    if hint == "bf16" and not has_bfloat16():
        global _told
        if not _told and "int8" not in (asked, stored):
            print("this processor has no bfloat16: float32 is used, which is as exact and slower", file=sys.stderr)
        _told = True
        return "f32"
    return hint


def has_bfloat16() -> bool:
    """Whether OpenVINO multiplies bfloat16 on this processor."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
