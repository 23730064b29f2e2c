"""`vitrail.load`: from a path to a Predictor, on the engine that is asked for. Torch is imported where weights need it."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vitrail import configuration
from vitrail.deployment import machine
from vitrail.deployment.engines import ENGINES, Setting, named
from vitrail.deployment.exported import Exported, inner_needed, is_exported, open_exported
from vitrail.errors import UsageError

if TYPE_CHECKING:
    from vitrail.deployment.classifier import Classifier


def load(
    path: str | os.PathLike[str],
    image_size: tuple[int, int] | None = None,
    device: str = "cpu",
    family: str | None = None,
    engine: str = "auto",
    precision: str = "auto",
    setting: Setting | None = None,
) -> Any:
    """Loads an exported model, a run folder, a model folder or a file of weights.

    Args:
        path: an exported file (.onnx, .openvino) is opened without torch; for others see `checkpoints.loading.read`.
        image_size: (height, width); None is the model's own. An exported file has those that it was exported for.
        device: of PyTorch: "cpu", "cuda".
        family: what the weights are, where names do not tell.
        engine: "pytorch", "compiled" (PyTorch's compiler), "onnxruntime", "openvino", or "auto". Weights are exported in
            memory for the latter two; on a CPU PyTorch answers with packed weights (`deployment.packed`).
        precision: "float32", "bfloat16", "int8", or "auto": the file's own, for weights float32.
        setting: threads, streams and purpose; its precision is the argument's.

    Returns:
        A Classifier on PyTorch, or else an Exported: both predict pictures.

    Raises:
        VitrailError: the file cannot be used. UsageError: the engine cannot, or not like this (VT165 to VT169).
    """
    setting = replace(setting or Setting(), precision=precision)
    if is_exported(path):
        if device not in ("cpu", "auto"):
            raise UsageError("VT173", f"{path} on {device}", "exported models run on the CPU", "--device cpu")
        if family is not None:
            raise UsageError("VT046", f"{path} is an exported model, which has no family", "leave the family out")
        return open_exported(path, image_size, engine, setting)
    if engine != "auto" and named(engine).package != "torch":
        if not ENGINES[engine].installed:
            raise ENGINES[engine].missing()
        return _in_memory(load_classifier(path, image_size, "cpu", family), engine, setting)
    from vitrail.checkpoints.loading import read
    from vitrail.deployment.answering import way_of
    from vitrail.deployment.classifier import Classifier
    from vitrail.model.families import AXES

    checkpoint = read(path, image_size, family)
    key = machine.key_of_weights(configuration.encode(checkpoint.config, AXES), checkpoint.preprocessing.image_size)
    precision = "float32" if precision == "auto" else precision
    setting = machine.advised(key, "compiled" if engine == "compiled" else "pytorch", setting, precision)
    return Classifier(checkpoint, device, way_of(engine, setting, device))


def load_classifier(
    path: str | os.PathLike[str],
    image_size: tuple[int, int] | None = None,
    device: str = "cpu",
    family: str | None = None,
) -> Classifier:
    """The same on PyTorch, for those who need features, gradients or the module itself.

    Raises:
        UsageError: VT174, it is an exported model.
    """
    if is_exported(path):
        raise inner_needed(path)
    from vitrail.checkpoints.loading import read
    from vitrail.deployment.classifier import Classifier

    return Classifier(read(path, image_size, family), device)


def _in_memory(classifier: Classifier, engine: str, setting: Setting) -> Exported:
    """The model exported for one engine and this process alone."""
    from vitrail.deployment import graph
    from vitrail.deployment.passport import Passport, Target

    size, preprocessing = classifier.preprocessing.image_size, classifier.preprocessing
    target: Target = "onnx" if engine == "onnxruntime" else "openvino"
    passport = Passport(
        target, "float32", (size,), classifier.classes, classifier.multi_label, classifier.temperature, preprocessing
    )
    home = ENGINES[engine].module()
    model = graph.onnx_model(classifier).SerializeToString() if target == "onnx" else graph.openvino_model(classifier)
    return Exported(passport, engine, size, setting, lambda asked: home.open_model(model, "float32", size, asked))
