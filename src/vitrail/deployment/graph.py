"""A classifier as one graph: uint8 images in, logits and probabilities out, for ONNX, OpenVINO and torch.export."""

from __future__ import annotations

import logging
import warnings
from ast import literal_eval
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vitrail.deployment.engines import silence
from vitrail.deployment.passport import IMAGES, LOGITS, NORMALISATION, PROBABILITIES, SOFTMAX, Inside
from vitrail.deployment.resolutions import Size, listed
from vitrail.errors import UsageError, VitrailError
from vitrail.model.backbone import Backbone
from vitrail.model.trunks import StandardisedConvolution

if TYPE_CHECKING:
    from vitrail.deployment.classifier import Classifier

PRODUCTS = ("MatMul", "Gemm", "Convolution", "GroupConvolution", "Conv")  # the layers that do the work
OPSET = 20  # of ONNX: the first with GELU in both forms
DEFAULT: tuple[Inside, ...] = (NORMALISATION, SOFTMAX)


class Deployed(nn.Module):
    """The network with what stands before and behind it; `names` says what it answers."""

    def __init__(self, classifier: Classifier, backbone: Backbone, inside: Sequence[Inside]) -> None:
        super().__init__()
        self.backbone = backbone
        self.normalise = classifier.preprocessing.normalise if NORMALISATION in inside else None
        self.temperature, self.multi_label = classifier.temperature, classifier.multi_label
        self.names = (LOGITS, PROBABILITIES) if SOFTMAX in inside else (LOGITS,)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images, batch channels height width: uint8, or normalised float32 where normalisation is not inside."""
        logits = self.backbone(images if self.normalise is None else self.normalise(images))
        if PROBABILITIES not in self.names:
            return (logits,)
        scaled = logits if self.temperature == 1 else logits / self.temperature
        return logits, scaled.sigmoid() if self.multi_label else scaled.softmax(dim=-1)


def deployed(classifier: Classifier, inside: Sequence[Inside] = DEFAULT, size: Size | None = None) -> Deployed:
    """The module that is exported, in float32 on the CPU, for images of one size: the preprocessing's own, if none is given.

    It is a copy; the classifier stays what it is.
    """
    height, width = size or classifier.preprocessing.image_size
    backbone = classifier.module.at((height, width)).float().cpu().eval().requires_grad_(False)
    for part in backbone.modules():
        if isinstance(part, StandardisedConvolution):
            part.bake()
    return Deployed(classifier, backbone, inside)


def program(
    classifier: Classifier, sizes: Sequence[Size] = (), inside: Sequence[Inside] = DEFAULT
) -> tuple[ExportedProgram, tuple[str, ...]]:
    """torch.export's form of `deployed`, for any batch, and the names of what it answers.

    Args:
        sizes: (height, width) of every image size that it takes; the preprocessing's own, where none are given.

    Raises:
        VitrailError: VT150, the model cannot be traced. UsageError: VT156, it cannot take several sizes.
    """
    sizes = sizes or [classifier.preprocessing.image_size]
    module, dynamic = deployed(classifier, inside, None if len(sizes) > 1 else sizes[0]), {0: Dim.DYNAMIC}
    if len(sizes) > 1:
        _, sides = listed(module.backbone, sizes)
        dynamic |= sides
    shape = (2, classifier.preprocessing.channels, *sizes[0])  # a batch of one would be taken for a constant
    images = torch.zeros(shape, dtype=torch.uint8 if NORMALISATION in inside else torch.float32)
    try:
        with torch.no_grad(), _quiet():
            traced = torch.export.export(module, (images,), dynamic_shapes={IMAGES: dynamic})
    except VitrailError:
        raise
    except Exception as error:  # what torch.export raises has no common class
        raise VitrailError(
            "VT150", f"torch.export cannot follow this model: {str(error).strip().splitlines()[0][:200]}",
            "a model without control flow that depends on the images",
            "load it with engine='pytorch', which needs no export",
        ) from error  # fmt: skip
    for node in traced.graph.nodes:
        node.meta.pop("stack_trace", None)  # the folders of this machine
    return traced, module.names


def onnx_model(classifier: Classifier, sizes: Sequence[Size] = (), inside: Sequence[Inside] = DEFAULT) -> Any:
    """An onnx.ModelProto of any batch. `sizes` as in `program`.

    Raises:
        VitrailError: VT150, the model cannot be traced. UsageError: VT151, an extra is not installed; VT156 as above.
    """
    _needs("onnx", "onnx", "onnxscript")
    traced, names = program(classifier, sizes, inside)
    with _quiet():
        made = torch.onnx.export(
            traced, dynamo=True, opset_version=OPSET, input_names=[IMAGES], output_names=list(names), verbose=False
        )  # fmt: skip
    return _cleaned(made.model_proto)  # type: ignore[union-attr]


def openvino_model(classifier: Classifier, sizes: Sequence[Size] = (), inside: Sequence[Inside] = DEFAULT) -> Any:
    """An openvino.Model of any batch in float32. `sizes` as in `program`.

    It is made from torch.export's program. Through ONNX, or from a traced module, it becomes the same fast kernels
    (attention and GELU fused, 2026-11-21), but needs more packages.

    Raises:
        VitrailError: VT150, the model cannot be traced. UsageError: VT151, the extra is not installed; VT156 as above.
    """
    _needs("openvino", "openvino")
    silence()
    import openvino

    traced, names = program(classifier, sizes, inside)
    with _quiet():
        model = openvino.convert_model(traced)
    for port, name in zip([*model.inputs, *model.outputs], [IMAGES, *names], strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_friendly_name(name)
    _name(model, traced)
    rows, columns = zip(*(sizes or [classifier.preprocessing.image_size]), strict=True)
    sides = [openvino.Dimension(min(side), max(side)) for side in (rows, columns)]
    model.reshape({IMAGES: openvino.PartialShape([-1, classifier.preprocessing.channels, *sides])})
    return model


def _name(model: Any, traced: ExportedProgram) -> None:
    """Products are called as the modules that they belong to: "blocks.3.mlp.expand", and a number where there are several."""
    found = Counter[str]()
    modules = {node.name: node.meta["nn_module_stack"] for node in traced.graph.nodes if "nn_module_stack" in node.meta}
    for operator in model.get_ordered_ops():
        called = operator.get_friendly_name().partition("/")[0].replace("convolution", "conv2d")
        stack = modules.get(called)
        if stack and operator.get_type_name() in PRODUCTS:
            operator.set_friendly_name(_numbered([path for path, _ in stack.values()][-1], found))


def _numbered(module: str, found: Counter[str]) -> str:
    name = module.removeprefix("backbone.")
    found[name] += 1
    return name if found[name] == 1 else f"{name} {found[name]}"


def _cleaned(model: Any) -> Any:
    """Without the exporter's notes, which name the files of this machine, and safe from what ONNX Runtime does to a Pad."""
    import onnx

    graph, found = model.graph, Counter[str]()
    for node in graph.node:
        scopes = next((each.value for each in node.metadata_props if each.key == "pkg.torch.onnx.name_scopes"), "[]")
        if node.op_type in PRODUCTS and len(modules := literal_eval(scopes)) > 1:
            node.name = _numbered(modules[-2], found)
    for part in (graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    del graph.value_info[:]
    made_by = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        before = made_by.get(node.input[0]) if node.op_type == "MaxPool" else None
        if before is not None and before.op_type == "Pad" and not _constant(graph, before.input[2]):
            # ONNX Runtime (1.31) moves a Pad with zeros into MaxPool, which pads with minus infinity.
            tiny = np.array(np.finfo(np.float32).tiny, dtype=np.float32)
            graph.initializer.append(onnx.numpy_helper.from_array(tiny, f"{before.name}_not_zero"))
            before.input[2] = f"{before.name}_not_zero"
    return model


def _constant(graph: Any, name: str) -> float:
    import onnx

    return next(float(onnx.numpy_helper.to_array(array)) for array in graph.initializer if array.name == name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters warn about libraries that are not installed and about their own internals."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _needs(extra: str, *packages: str) -> None:
    from importlib.util import find_spec

    if missing := [name for name in packages if find_spec(name) is None]:
        raise UsageError(
            "VT151", f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed",
            f"the packages of the extra {extra!r}", f'pip install "vitrail[{extra}]"',
        )  # fmt: skip
