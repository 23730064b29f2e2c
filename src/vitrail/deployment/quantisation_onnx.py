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
from vitrail.deployment.sensitivity import (
    BATCH,
    PROBES,
    HeldOut,
    Logits,
    Quantised,
    check_budget,
    check_images,
    decided,
)  # fmt: skip

LAYERS = ("MatMul", "Gemm")  # ONNX Runtime's integer convolution is slower than its float32 one


def quantise(model: Any, probes: NDArray[Any], judge: HeldOut, budget: float) -> Quantised:
    """The same as for OpenVINO, of an onnx.ModelProto in float32; `model` of the answer is ONNX in bytes.

    Args:
        probes: images that measure sensitivity, as the model takes them.
        judge: held-out images that choose the layers; none of `probes`.
        budget: the largest drop of top-1, in percentage points.

    Raises:
        UsageError: VT187, the budget is no share. DataError: VT186, too few images or one class; VT188, answers that are
        not finite. Disagreement: VT189, the budget cannot be held.
    """
    check_budget(budget)
    check_images(judge.targets)
    return decided([DynamicInt8(model)], opened(model.SerializeToString()), probes[:PROBES], judge, budget)


class DynamicInt8:
    """A Mixture of an onnx.ModelProto in float32."""

    words = "dynamic"

    def __init__(self, model: Any) -> None:
        constants = {array.name: array for array in model.graph.initializer}
        self._model = model
        self._sizes = {name: int(np.prod(array.dims)) for name, array in constants.items()}
        self.layers = tuple(
            node.name for node in model.graph.node if node.op_type in LAYERS and node.input[1] in constants
        )

    @property
    def work(self) -> dict[str, float]:
        """Each layer's share of the weights, which all but a few read for as many tokens."""
        sizes = {
            node.name: self._sizes[node.input[1]] for node in self._model.graph.node if node.name in set(self.layers)
        }
        return {layer: sizes[layer] / sum(sizes.values()) for layer in self.layers}

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
