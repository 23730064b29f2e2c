"""`vitrail export --precision int8`: from a trained run to a file that answers within its budget, or to no file."""

import json

import numpy as np
import pytest

import vitrail
from tiny import tiny, write_pictures
from vitrail.cli import main

pytest.importorskip("nncf")
pytest.importorskip("onnx")


def ended(*arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return caught.value.code


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("int8")
    for split, count in (("train", 60), ("val", 120), ("test", 10)):
        write_pictures(root / "data" / split, per_class=count)
    tiny(root / "data", root / "run", training__epochs=1, training__evaluations=1)
    return root / "run"


@pytest.mark.parametrize(("target", "suffix", "how"), [("openvino", "openvino", "static"), ("onnx", "onnx", "dynamic")])
def test_an_int8_export_answers_as_the_run_and_says_what_it_cost(run, tmp_path, capsys, target, suffix, how):
    out = tmp_path / f"small.{suffix}"
    assert ended("export", run, "--to", target, "--precision", "int8", "--max-drop", "5", "--out", out) == 0
    told = capsys.readouterr().out
    assert "alone in int8" in told and "blocks.0.mlp.expand" in told and how in told
    facts = json.loads((run / "export" / "parity.json").read_text())[out.name]
    assert facts["precision"] == "int8" and facts["rows"][0]["drop"][0] <= 5 and facts["rows"][0]["images"] == 120
    layers = [name for name, *_ in facts["int8"]["sensitivity"]]
    parts = ("mixer", "mixer.project", "mlp.expand", "mlp.contract")
    assert set(layers) == {"tokenizer.project", "head.linear", *(f"blocks.0.{part}" for part in parts)}
    pictures = [np.random.default_rng(seed).integers(0, 256, (8, 8, 1), dtype=np.uint8) for seed in range(20)]
    loaded, original = vitrail.load(out), vitrail.load(run)
    images = np.stack([original.preprocessing(picture) for picture in pictures])
    near, exact = loaded.logits(images), original.logits(images)
    assert 0 < np.abs(near - exact).max() < 0.2 * np.abs(exact).max()


def test_too_few_pictures_leave_no_file(tmp_path, capsys):
    tiny(write_pictures(tmp_path / "data"), tmp_path / "run", training__epochs=1, training__evaluations=1)
    out = tmp_path / "small.openvino"
    assert ended("export", tmp_path / "run", "--to", "openvino", "--precision", "int8", "--out", out) == 3
    assert "VT186" in capsys.readouterr().err and not out.exists()


def test_a_budget_below_nothing_is_refused(run, tmp_path, capsys):
    out = tmp_path / "small.openvino"
    assert ended("export", run, "--to", "openvino", "--precision", "int8", "--max-drop=-1", "--out", out) == 2
    assert "VT187" in capsys.readouterr().err
