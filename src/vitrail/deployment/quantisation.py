"""int8 for OpenVINO: calibrated by NNCF on the user's images, every layer's sensitivity measured, accuracy kept in a budget.

Weights are int8 per channel, activations int8 per tensor with ranges from calibration images. Attention products stay as
they are: OpenVINO's kernel for them has no int8 on CPUs, so that quantising them would cost accuracy and gain nothing.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.deployment import sensitivity
from vitrail.deployment.engines import silence
from vitrail.deployment.passport import LOGITS
from vitrail.deployment.sensitivity import BATCH, CALIBRATING, PROBES, HeldOut, Logits, Quantised
from vitrail.errors import UsageError

SMOOTHING: tuple[float | None, ...] = (None, 0.95)  # SmoothQuant's alpha (Xiao et al. 2023); NNCF's own choice is 0.95
LAYERS = ("MatMul", "Convolution", "GroupConvolution")
# What passes numbers on as they are, so that a range before it holds behind it.
PASSING = (
    "Reshape", "Transpose", "Pad", "MaxPool", "Slice", "StridedSlice", "Squeeze", "Unsqueeze", "Concat", "Gather"
)  # fmt: skip


def quantise(
    model: Any, images: NDArray[Any], targets: NDArray[np.float32], judge: HeldOut, budget: float, seed: int = 0
) -> Quantised:
    """The fastest int8 form of a model whose top-1 falls by no more than the budget.

    Args:
        model: an openvino.Model, float32, with an output "logits".
        images: for calibration, as the model takes them: batch channels height width.
        targets: of these, batch classes, 1 where the class is true.
        judge: held-out images that choose the layers; none of `images`.
        budget: the largest drop of top-1, in percentage points.
        seed: of the order in which images are taken.

    Raises:
        UsageError: VT185, nncf is missing; VT187, the budget is no share.
        DataError: VT186, too few images or one class; VT188, answers that are not finite.
        Disagreement: VT189, the budget cannot be held.
    """
    sensitivity.check_budget(budget)
    for given in (targets, judge.targets):
        sensitivity.check_images(given)
    images = images[np.random.default_rng(seed).permutation(len(images))]
    share = max(8, min(PROBES, len(images) // 4))
    probes, images = images[:share], images[share:][:CALIBRATING]
    float32 = compiled(model, exact=True)
    sensitivity.finite(float32(probes))  # before NNCF meets them
    mixtures = [Int8(model, images, smoothing) for smoothing in SMOOTHING]
    return sensitivity.decided(mixtures, float32, probes, judge, budget)


class Int8:
    """A Mixture: the model with NNCF's quantisers, from which those of single layers are taken out again."""

    def __init__(self, model: Any, images: NDArray[Any], smoothing: float | None = None) -> None:
        """`images` calibrate; batch channels height width."""
        self.smoothing = smoothing
        self._model = _with_quantisers(model, images, smoothing)

    @cached_property
    def layers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(layer for layers in _readers(self._model).values() for layer in layers))

    @property
    def words(self) -> str:
        return "static, " + ("without SmoothQuant" if self.smoothing is None else f"SmoothQuant {self.smoothing:g}")

    @cached_property
    def work(self) -> dict[str, float]:
        """Each layer's share of the multiply-adds."""
        found = {node.get_friendly_name(): _products(node) for node in self._model.get_ops()}
        return {layer: found[layer] / sum(found[layer] for layer in self.layers) for layer in self.layers}

    def logits(self, kept: Sequence[str], exact: bool = False) -> Logits:
        return compiled(self.model(kept), exact)

    def model(self, kept: Sequence[str]) -> Any:
        """With int8 weights, and without the quantisers that serve `kept` alone."""
        from openvino._offline_transformations import compress_quantize_weights_transformation as compress

        made = self._model.clone()
        spared = set(kept)
        for quantiser, layers in _readers(made).items():
            node = next(node for node in made.get_ops() if node.get_friendly_name() == quantiser)
            for reader in node.output(0).get_target_inputs():
                if reader.get_node().get_friendly_name() in spared or set(layers) <= spared:
                    reader.replace_source_output(node.input_value(0))
        made.validate_nodes_and_infer_types()
        compress(made)
        return made


def _products(node: Any) -> int:
    """Multiply-adds of a layer for one image: its answers, times what each is a sum of."""
    if node.get_type_name() not in LAYERS:
        return 0
    answers = [max(1, side.get_max_length()) for side in node.get_output_partial_shape(0)][1:]
    weights = list(node.input_value(1).get_shape())
    given, made = int(np.prod(weights)), answers[-1 if node.get_type_name() == "MatMul" else 0]
    return int(np.prod(answers)) * given // made


def _readers(model: Any) -> dict[str, list[str]]:
    """Every quantiser with the layers that read it, in the order in which they are computed."""
    found: dict[str, list[str]] = {}
    behind: dict[str, set[str]] = {}  # what stands behind these quantisers alone
    for node in model.get_ordered_ops():
        name, kind = node.get_friendly_name(), node.get_type_name()
        sources = [value.get_node().get_friendly_name() for value in node.input_values()]
        before = set().union(*(behind.get(source, set()) for source in sources))
        if kind == "FakeQuantize":
            found[name], behind[name] = [], {name}
        elif kind in LAYERS:
            for quantiser in before:
                found[quantiser].append(name)
        elif kind in PASSING:
            behind[name] = before
    order = {name: place for place, name in enumerate(node.get_friendly_name() for node in model.get_ordered_ops())}
    return dict(sorted(found.items(), key=lambda pair: min((order[layer] for layer in pair[1]), default=len(order))))


def _with_quantisers(model: Any, images: NDArray[Any], smoothing: float | None) -> Any:
    nncf = _nncf()
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, AdvancedSmoothQuantParameters

    with quiet():
        return nncf.quantize(
            model,
            nncf.Dataset([images[index : index + 1] for index in range(len(images))]),
            subset_size=len(images),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(types=["ScaledDotProductAttention"], validate=False),
            advanced_parameters=AdvancedQuantizationParameters(
                # Biases corrected for one mix are wrong for another; they moved no figure (docs/log.md).
                disable_bias_correction=True,
                smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=-1 if smoothing is None else smoothing),
                backend_params={"compress_weights": False},  # float weights stay, for the layers that are spared
            ),
        )


def compiled(model: Any, exact: bool, name: str = LOGITS) -> Logits:
    """One answer of an openvino.Model; `exact` in float32, otherwise as it is deployed, in bfloat16 where there is any."""
    silence()
    from vitrail.deployment.engine_openvino import core, has_bfloat16

    hint = "f32" if exact or not has_bfloat16() else "bf16"
    ready = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    answer = ready.output(name)

    def logits(images: NDArray[Any]) -> NDArray[np.float32]:
        parts = range(0, len(images), BATCH)
        return np.concatenate([ready(images[start : start + BATCH])[answer].copy() for start in parts])

    return logits


def _nncf() -> Any:
    silence()
    if find_spec("nncf") is None:
        raise UsageError(
            "VT185", "nncf is not installed", "what int8 is calibrated with", 'pip install "vitrail[openvino]"'
        )
    with quiet():
        import nncf
    return nncf


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """NNCF writes progress bars to stdout and logs to stderr."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
