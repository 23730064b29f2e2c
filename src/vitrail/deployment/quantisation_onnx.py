"""int8 for ONNX Runtime: weights int8 per channel, activations quantised as they come; for the quickest first answer.

No images calibrate it; some still choose the layers that are spared. The range of an activation is that of its batch, so
that the answer for a picture moves a little with those beside it; OpenVINO's int8 has fixed ranges and is faster.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.deployment.engines import Setting
from vitrail.deployment.sensitivity import BATCH, Logits

LAYERS = ("MatMul", "Gemm")  # ONNX Runtime's integer convolution is slower than its float32 one


class DynamicInt8:
    """A Mixture of an onnx.ModelProto in float32."""

    def __init__(self, model: Any) -> None:
        constants = {array.name for array in model.graph.initializer}
        self._model = model
        self.layers = tuple(
            node.name for node in model.graph.node if node.op_type in LAYERS and node.input[1] in constants
        )

    def logits(self, kept: Sequence[str], exact: bool = False) -> Logits:
        """Nothing is bfloat16 here, so that `exact` changes nothing."""
        return opened(self.model(kept))

    def model(self, kept: Sequence[str]) -> bytes:
        """The ONNX model in bytes with every layer in int8 but those of `kept`."""
        if not (chosen := [layer for layer in self.layers if layer not in set(kept)]):
            content: bytes = self._model.SerializeToString()
            return content
        from onnxruntime.quantization import QuantType, quantize_dynamic

        before = logging.root.manager.disable
        logging.disable(logging.WARNING)  # it recommends a preparation that changes nothing here
        try:
            with TemporaryDirectory(prefix="vitrail-") as folder:
                path = Path(folder) / "int8.onnx"
                quantize_dynamic(
                    self._model, path, nodes_to_quantize=chosen, per_channel=True, weight_type=QuantType.QInt8,
                    extra_options={"MatMulConstBOnly": True},
                )  # fmt: skip
                return path.read_bytes()
        finally:
            logging.disable(before)


def opened(model: bytes) -> Logits:
    """Logits of an ONNX model in memory."""
    from vitrail.deployment.engine_onnxruntime import open_model

    session = open_model(model, "float32", (0, 0), Setting())

    def logits(images: NDArray[Any]) -> NDArray[np.float32]:
        return np.concatenate([session.run(images[start : start + BATCH]) for start in range(0, len(images), BATCH)])

    return logits
