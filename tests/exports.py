"""Exported files made by hand: a small network written with onnx.helper, and the same in NumPy."""

from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vitrail.deployment import onnx_file, openvino_file
from vitrail.deployment.passport import Passport
from vitrail.preprocessing import Preprocessing

SIZES = ((8, 8), (12, 16))
CLASSES = ("ant", "bee", "cat", "dog", "eel")
RANDOM = np.random.default_rng(3)
KERNELS = RANDOM.normal(size=(16, 3, 4, 4)).astype(np.float32)  # 3 kB: an array that stays in the file
MATRIX = RANDOM.normal(size=(16, len(CLASSES))).astype(np.float32)
BIAS = RANDOM.normal(size=len(CLASSES)).astype(np.float32)


def passport(target="onnx", **changes):
    return replace(
        Passport(target, "float32", SIZES, CLASSES, False, 2.0, Preprocessing(image_size=SIZES[0])), **changes
    )


def oracle(images, normalised=False):
    """uint8 batch channels height width to logits: patches of 4 x 4, a ReLU, the mean, a matrix."""
    pixels = images.astype(np.float64) if normalised else images / 127.5 - 1
    batch, channels, height, width = images.shape
    patches = pixels.reshape(batch, channels, height // 4, 4, width // 4, 4)
    found = np.einsum("bcrpsq,kcpq->bkrs", patches, KERNELS.astype(np.float64))
    return np.maximum(found, 0).mean(axis=(2, 3)) @ MATRIX.astype(np.float64) + BIAS


def network(normalised=False, domain="", scale=1.0):
    """An onnx.ModelProto; `normalised`: float32 images, for normalisation outside."""
    arrays = {"kernels": KERNELS, "matrix": MATRIX * np.float32(scale), "bias": BIAS, "half": np.float32(1 / 127.5),
              "one": np.float32(1), "axes": np.array([2, 3])}  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "kernels"], ["patches"], strides=[4, 4], name="patches"),
        helper.make_node("Relu", ["patches"], ["bent"], domain=domain),
        helper.make_node("ReduceMean", ["bent", "axes"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "matrix"], ["scores"]),
        helper.make_node("Add", ["scores", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    first = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "half"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "one"], ["x"]),
    ]
    nodes = [helper.make_node("Identity", ["images"], ["x"]), *nodes] if normalised else [*first, *nodes]
    nodes[0].doc_string = "File /opt/somebody/model.py, line 3"  # as exporters leave it
    kind = TensorProto.FLOAT if normalised else TensorProto.UINT8
    graph = helper.make_graph(
        nodes, "network",
        [helper.make_tensor_value_info("images", kind, ["batch", 3, "height", "width"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", len(CLASSES)])
         for name in ("logits", "probabilities")],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in arrays.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def onnx_bytes(model=None, **changes):
    content = (model or network()).SerializeToString()
    return b"".join(onnx_file.stamped(content, passport(**changes)))


def serialised(model, folder):
    """model.xml and model.bin of an ONNX model."""
    import openvino

    converted = openvino.Core().read_model(model.SerializeToString())
    openvino.serialize(converted, folder / "model.xml", folder / "model.bin")
    return (folder / "model.xml").read_bytes(), (folder / "model.bin").read_bytes()


def openvino_bytes(folder, model=None, **changes):
    return openvino_file.stamped(*serialised(model or network(), folder), passport("openvino", **changes))


def sealed_onnx(model, **changes):
    """A model with a passport that fits it, put together without Vitrail's writer: what an attacker would make."""
    from vitrail.deployment.passport import KEY, sealed

    body = model.SerializeToString()
    last = onnx.ModelProto()
    last.metadata_props.add(key=KEY, value=sealed(passport(**changes), [body]).text())
    return body + last.SerializeToString()


def images(count=3, size=SIZES[0]):
    return np.random.default_rng(count).integers(0, 256, (count, 3, *size), dtype=np.uint8)
