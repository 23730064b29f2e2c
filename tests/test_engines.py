"""A run answers the same in every engine; those that are no PyTorch get it exported in memory."""

import json
import shutil

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


def test_another_engine_leaves_the_runs_own_results_alone(run, vitrail_command, tmp_path):
    """The report shows them, and what it shows was said by one engine."""
    model = shutil.copytree(run, tmp_path / "run")
    own = {path: path.read_bytes() for path in (model / "eval").rglob("*") if path.is_file()}
    found = json.loads(vitrail_command("eval", model, "--json", "--engine", "openvino", "--precision", "bfloat16").out)
    assert (found["engine"], found["precision"]) == ("openvino", "bfloat16")
    assert {path: path.read_bytes() for path in own} == own
    summary = json.loads((model / "eval" / "test-openvino-bfloat16" / "summary.json").read_text())
    assert summary["precision"] == "bfloat16"
    assert json.loads(vitrail_command("eval", model, "--json", "--precision", "bfloat16").out)["engine"] == "pytorch"
    (model / "eval" / "test-broken").mkdir()
    (model / "eval" / "test-broken" / "summary.json").write_text('{"engine": "<b>", "n": "many"}')
    assert vitrail_command("report", model).status == 0
    page, card = (model / "report.html").read_text(), (model / "README.md").read_text()
    assert sorted(path.name for path in (model / "eval").glob("test-*-*")) == [
        "test-openvino-bfloat16", "test-pytorch-bfloat16"]  # fmt: skip
    for name in ("openvino", "pytorch"):
        assert f"the same on {name} in bfloat16" in page and f"the same on {name} in bfloat16" in card
    assert "test-broken/summary.json cannot be read" in page


def test_flags_may_stand_before_several_files(run, pictures, vitrail_command):
    names = sorted(map(str, pictures.rglob("*.png")))[:3]
    found = [vitrail_command("predict", *words) for words in
             ((run, "--top", 1, *names), (run, *names, "--top", 1), ("--top", 1, run, *names))]  # fmt: skip
    assert [one.status for one in found] == [0] * 3
    assert found[0].out == found[1].out == found[2].out and len(found[0].out.splitlines()) >= 3


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
