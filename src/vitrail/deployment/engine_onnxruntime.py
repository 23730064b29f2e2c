"""ONNX Runtime: sessions of exported ONNX files, whose weights it maps from the file itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from vitrail.deployment.engines import Setting, unanswered
from vitrail.deployment.onnx_file import OnnxFile
from vitrail.deployment.passport import IMAGES, LOGITS, damaged
from vitrail.errors import UsageError

_QUIET = 4  # of ONNX Runtime's five levels: fatal errors alone; others come as exceptions

onnxruntime.disable_telemetry_events()


class OnnxruntimeSession:
    """One model on the CPU."""

    computes = "float32"

    def __init__(self, session: Any) -> None:
        self._session = session

    def run(self, images: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
        """Images, batch channels height width, to logits, batch classes."""
        try:
            (logits,) = self._session.run([LOGITS], {IMAGES: images})
        except Exception as error:  # its exceptions have no common class
            raise unanswered("onnxruntime", images, error) from error
        values: NDArray[np.float32] = logits
        return values


def open_session(file: OnnxFile, size: tuple[int, int], setting: Setting) -> OnnxruntimeSession:
    """A checked file, ready to answer for images of any of its sizes.

    Raises:
        VitrailError: VT160, ONNX Runtime cannot read it. UsageError: VT169, another precision than the file's.
    """
    options = _options(setting, file.passport.precision)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.path.parent))
    session = _opened(file.graph, options, str(file.path))
    file.demand_unchanged()
    return session


def open_model(model: bytes, precision: str, size: tuple[int, int], setting: Setting) -> OnnxruntimeSession:
    """The same of an ONNX model in memory."""
    return _opened(model, _options(setting, precision), "the model")


def _options(setting: Setting, precision: str) -> Any:
    if setting.precision not in ("auto", precision):
        ways = {"bfloat16": "--engine openvino", "int8": "vitrail export RUN --to onnx --precision int8"}
        raise UsageError(
            "VT169", f"onnxruntime with {setting.precision}: this model is of {precision}", "its own precision",
            ways.get(setting.precision, f"vitrail export RUN --to onnx --precision {setting.precision}"),
        )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    options.intra_op_num_threads = setting.cores
    if setting.purpose == "first-answer":  # no second copy of the weights, which lie in the file as they are used
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_mem_pattern = False  # for many answers: room for all intermediate values, planned at once
    return options


def _opened(model: bytes, options: Any, name: str) -> OnnxruntimeSession:
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common class
        raise damaged(name, f"ONNX Runtime says: {_first_line(error)}") from error
    inputs, outputs = ([each.name for each in listed] for listed in (session.get_inputs(), session.get_outputs()))
    if inputs != [IMAGES] or LOGITS not in outputs:
        raise damaged(name, f"it takes {inputs[:5]} and gives {outputs[:5]}, not {IMAGES!r} and {LOGITS!r}")
    return OnnxruntimeSession(session)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
