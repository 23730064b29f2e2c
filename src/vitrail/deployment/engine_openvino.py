"""OpenVINO: sessions of exported files on the CPU, with the batch divided among streams."""

from __future__ import annotations

import sys
from threading import Lock
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from vitrail.deployment.engines import Setting
from vitrail.deployment.onnx_file import OnnxFile
from vitrail.deployment.openvino_file import OpenvinoFile
from vitrail.deployment.passport import IMAGES, LOGITS, damaged
from vitrail.errors import UsageError

_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}  # what is not int8 in an int8 model
_told = False


class OpenvinoSession:
    """One model on the CPU; one request for each stream. Callers of several threads take turns."""

    def __init__(self, compiled: Any, streams: int) -> None:
        self._requests = [compiled.create_infer_request() for _ in range(streams)]
        self._logits = compiled.output(LOGITS)
        self._turn = Lock()

    def run(self, images: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
        """Images, batch channels height width, to logits, batch classes."""
        parts = [part for part in np.array_split(images, len(self._requests)) if len(part)]
        working = self._requests[: len(parts)]
        with self._turn:
            for request, part in zip(working, parts, strict=True):
                request.start_async({IMAGES: np.ascontiguousarray(part)}, share_inputs=True)
            for request in working:
                request.wait()
            return np.concatenate([request.get_tensor(self._logits).data for request in working])  # a copy


def open_session(file: OpenvinoFile | OnnxFile, size: tuple[int, int], setting: Setting) -> OpenvinoSession:
    """A checked file, ready to answer for images of one size, (height, width).

    Raises:
        VitrailError: VT160, OpenVINO cannot read it. UsageError: VT169, int8 of a model that is not.
    """
    core, name = openvino.Core(), str(file.path)
    try:
        if isinstance(file, OnnxFile):
            model = core.read_model(name)
        else:
            model = core.read_model(file.graph, openvino.Tensor(file.weights, shared_memory=True))
        return open_model(model, file.passport.precision, size, setting, core, name)
    except (RuntimeError, UnicodeDecodeError) as error:  # of a message that quotes what is no text
        raise damaged(name, f"OpenVINO says: {_short(error)}") from error


def open_model(
    model: Any, precision: str, size: tuple[int, int], setting: Setting, core: Any = None, name: str = "the model"
) -> OpenvinoSession:
    """The same of an openvino.Model, which is changed: it takes images of this size afterwards."""
    core = core or openvino.Core()
    inputs, outputs = ([name for port in ports for name in port.get_names()] for ports in (model.inputs, model.outputs))
    if IMAGES not in inputs or len(model.inputs) != 1 or LOGITS not in outputs:
        raise damaged(name, f"it takes {inputs[:5]} and gives {outputs[:5]}, not {IMAGES!r} and {LOGITS!r}")
    batch, channels, *_ = model.input(IMAGES).get_partial_shape()
    model.reshape({IMAGES: openvino.PartialShape([batch, channels, *size])})
    streams = setting.streams or (1 if setting.purpose == "first-answer" else 0)
    configuration = {
        "PERFORMANCE_HINT": "LATENCY" if setting.purpose == "first-answer" else "THROUGHPUT",
        "INFERENCE_NUM_THREADS": setting.cores,
        "INFERENCE_PRECISION_HINT": _precision(core, precision, setting.precision),
    }
    compiled = core.compile_model(model, "CPU", configuration | ({"NUM_STREAMS": streams} if streams else {}))
    return OpenvinoSession(compiled, streams or compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))


def _precision(core: Any, stored: str, asked: str) -> str:
    """What OpenVINO is told to calculate in; bfloat16 where the processor has it."""
    if asked == "int8" and stored != "int8":
        raise UsageError(
            "VT169", f"openvino with int8: this model is of {stored}", "a model that was calibrated for int8",
            "vitrail export RUN --to openvino --precision int8",
        )  # fmt: skip
    hint = _HINTS[stored if asked == "auto" else asked]
    if hint == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        global _told
        if not _told and "int8" not in (asked, stored):
            print("this processor has no bfloat16: float32 is used, which is as exact and slower", file=sys.stderr)
        _told = True
        return "f32"
    return hint


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
