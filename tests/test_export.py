"""`vitrail export`: three kinds of files, each opened by its own runtime and compared with PyTorch."""

import json
import shutil
import zipfile
from pathlib import Path

import jaxtyping
import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch

import vitrail
from vitrail.commands.export import run_export
from vitrail.deployment.passport import KEY, read_passport

SIZES = ((8, 8), (12, 8))
TARGETS = {"onnx": ".onnx", "openvino": ".openvino", "torch-export": ".pt2"}


def images(count, size, channels=1):
    return np.random.default_rng(count).integers(0, 256, (count, channels, *size), dtype=np.uint8)


def onnx_home(path):
    session = onnxruntime.InferenceSession(path)
    return lambda pixels: session.run(None, {"images": pixels})


def openvino_home(path):
    """The lines of docs/deployment.md."""
    core = openvino.Core()
    with zipfile.ZipFile(path) as file:
        model = core.read_model(file.read("model.xml"), file.read("model.bin"))
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda pixels: [compiled(pixels)[name] for name in ("logits", "probabilities")]


def torch_home(path):
    run = torch.export.load(path).module()
    return lambda pixels: [answer.numpy() for answer in run(torch.from_numpy(pixels))]


HOMES = {"onnx": onnx_home, "openvino": openvino_home, "torch-export": torch_home}


@pytest.fixture(autouse=True, scope="module")
def unhooked():
    """Sides that are dynamic are no ints to beartype; without the tests' hook nobody looks."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="module")
def model(run, tmp_path_factory):
    """A run of this module alone, which has an export folder afterwards."""
    return shutil.copytree(run, tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def exports(model, tmp_path_factory):
    """The tiny run in every kind of file, each for two sizes."""
    folder = tmp_path_factory.mktemp("exports")
    for target, suffix in TARGETS.items():
        run_export(model, target, "float32", SIZES, None, folder / f"tiny{suffix}", None, 0.5, False, None, True)
    return folder


@pytest.mark.parametrize("target", TARGETS)
def test_home_runtime_answers_as_the_classifier(model, exports, target):
    answer = HOMES[target](exports / f"tiny{TARGETS[target]}")
    for size in SIZES:
        classifier = vitrail.load(model, image_size=size)
        for batch in (1, 2, 5):
            pixels = images(batch, size)
            logits, probabilities = answer(pixels)
            expected = classifier.logits(pixels)
            np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
            np.testing.assert_allclose(probabilities, classifier.probabilities(expected), atol=1e-5)


def test_files_say_nothing_of_this_machine(exports):
    for suffix in TARGETS.values():
        assert str(Path(vitrail.__file__).parent).encode() not in (exports / f"tiny{suffix}").read_bytes()


def test_onnx_file_is_whole(exports):
    model = onnx.load(exports / "tiny.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert not any(array.external_data for array in model.graph.initializer)
    assert {entry.key for entry in model.metadata_props} == {KEY}


def test_unlisted_size_is_no_answer(exports):
    """10 rows lie between those that are listed."""
    logits, _ = onnx_home(exports / "tiny.onnx")(images(2, (10, 8)))
    assert np.isnan(logits).all()


def test_passport_tells_of_the_check(model, exports):
    archive = {"vitrail.json": ""}
    torch.export.load(exports / "tiny.pt2", extra_files=archive)
    with zipfile.ZipFile(exports / "tiny.openvino") as file:
        texts = [archive["vitrail.json"], file.read("passport.json")]
    kept = json.loads((model / "export" / "parity.json").read_text())
    for text, name in zip(texts, ("tiny.pt2", "tiny.openvino"), strict=True):
        passport = read_passport(text, name)
        assert passport.sizes == SIZES and passport.classes == vitrail.load(model).classes
        assert [(tuple(row["size"]), row["batch"]) for row in passport.check["rows"]] == [
            (size, batch) for size in SIZES for batch in (1, 2, 8)
        ]
        assert all(row["same"] == row["images"] == 4 for row in passport.check["rows"]), passport.check
        assert kept[name] == json.loads(text)["check"]
