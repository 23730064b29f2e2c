"""A run answers the same in every engine; those that are no PyTorch get it exported in memory."""

import json

import numpy as np
import pytest

import vitrail
from vitrail.deployment.engines import ENGINES

RUNTIMES = ["openvino", pytest.param("onnxruntime", marks=pytest.mark.slow)]  # 4 s: the exporter of ONNX


@pytest.mark.parametrize("engine", RUNTIMES)
def test_a_run_is_exported_in_memory(run, engine):
    plain = vitrail.load(run)
    height, width = plain.preprocessing.image_size
    shape = (5, plain.preprocessing.channels, height, width)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    model = vitrail.load(run, engine=engine)
    assert (model.engine, model.classes, model.preprocessing) == (engine, plain.classes, plain.preprocessing)
    for count in (1, 5):  # a first answer, then throughput
        np.testing.assert_allclose(model.logits(images[:count]), plain.logits(images[:count]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("engine", RUNTIMES)
def test_predict_and_eval_take_the_engine(run, pictures, vitrail_command, tmp_path, engine):
    picture = next(pictures.rglob("*.png"))
    plain, other = (json.loads(vitrail_command("predict", run, picture, "--json", *flags).out)
                    for flags in ([], ["--engine", engine]))  # fmt: skip
    assert other["label"] == plain["label"]
    np.testing.assert_allclose(other["probability"], plain["probability"], rtol=1e-4)
    before, after = (
        json.loads(vitrail_command(*command, "--engine", name, "--out", tmp_path / name).out)
        for command in [("eval", run, "--split", "val", "--json")]
        for name in ("pytorch", engine)
    )
    assert (after["top1"], after["n"]) == (before["top1"], before["n"])
    np.testing.assert_allclose(after["loss"], before["loss"], rtol=1e-4)
    assert (after["engine"], after["precision"]) == (engine, "float32")


def test_a_wrong_engine_is_told_before_weights_are_read(tmp_path, vitrail_command):
    found = vitrail_command("predict", tmp_path / "nothing", "picture.png", "--engine", "tensorrt")
    assert found.status == 2
    assert "VT167" in found.err


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_names_what_it_needs(name):
    engine = ENGINES[name]
    assert engine.name == name
    assert engine.missing().code == "VT165"
    assert (f"vitrail[{engine.extra}]" if engine.extra else engine.package) in engine.missing().fix
