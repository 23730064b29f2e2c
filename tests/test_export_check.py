"""What the check of an export finds, and that nothing is left where it fails."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch.nn.functional as F

import vitrail
from vitrail.commands.export import _keep
from vitrail.deployment import export as exporting
from vitrail.deployment import graph
from vitrail.deployment.passport import Passport
from vitrail.deployment.verification import Check, Evidence, compared
from vitrail.errors import DataError, Disagreement
from vitrail.preprocessing import Preprocessing

SIZE = (2, 2)
PASSPORT = Passport("onnx", "float32", (SIZE,), ("a", "b", "c"), False, 1.0, Preprocessing(image_size=SIZE))


def wrong_mean(module):
    module.normalise = lambda images: images.float() / 255


def wrong_gelu(module):
    for block in module.backbone.blocks:
        block.mlp.activate = F.relu


def other_weights(module):
    module.backbone.head.linear.weight *= 1.01


@pytest.mark.parametrize("fault", [wrong_mean, wrong_gelu, other_weights])
def test_planted_fault_is_found_and_leaves_no_file(run, tmp_path, monkeypatch, vitrail_command, fault):
    made = graph.deployed

    def faulty(*arguments):
        module = made(*arguments)
        fault(module)
        return module

    monkeypatch.setattr(graph, "deployed", faulty)
    told = vitrail_command("export", run, "--to", "torch-export", "--out", tmp_path / "new" / "export" / "model.pt2")
    assert told.status == 5 and "error[VT155]" in told.err, told
    assert not list(tmp_path.iterdir())  # nor the folders that were made for it


def test_a_file_of_bfloat16_is_not_checked_in_float32(run, tmp_path, monkeypatch, vitrail_command):
    monkeypatch.setattr("vitrail.deployment.engine_openvino.has_bfloat16", lambda: False)
    told = vitrail_command(
        "export", run, "--to", "openvino", "--precision", "bfloat16", "--out", tmp_path / "model.openvino"
    )
    assert told.status == 2 and "error[VT152]" in told.err and not list(tmp_path.iterdir())


def test_too_many_sizes_are_told_at_once(run, tmp_path, vitrail_command):
    sizes = ",".join(str(8 * count) for count in range(1, 18))
    told = vitrail_command("export", run, "--to", "onnx", "--image-size", sizes, "--out", tmp_path / "model.onnx")
    assert told.status == 2 and "at most 16 sizes" in told.err and not list(tmp_path.iterdir())


def test_a_file_beside_weights_is_not_replaced_unasked(tmp_path, vitrail_command):
    """The default name beside weights may be somebody else's; in RUN/export it is Vitrail's. Told before weights are read."""
    (tmp_path / "weights").mkdir()
    other = tmp_path / "weights.pt2"
    other.write_bytes(b"mine")
    told = vitrail_command("export", tmp_path / "weights", "--to", "torch-export")
    assert told.status == 2 and "error[VT153]" in told.err and other.read_bytes() == b"mine"


def test_a_damaged_record_of_former_exports_costs_no_export(tmp_path, capsys):
    """The new file is good and in its place; what was measured of it is kept anew."""
    path = tmp_path / "export" / "parity.json"
    path.parent.mkdir()
    path.write_text("{broken")
    passport = SimpleNamespace(check={"rows": [1]}, source={})
    _keep(path, SimpleNamespace(passport=passport, path=Path("model.onnx")))
    assert json.loads(path.read_text()) == {"model.onnx": {"rows": [1]}}
    assert "parity.json" in capsys.readouterr().err


def test_swapped_labels_are_found(run, tmp_path, monkeypatch, vitrail_command):
    honest = exporting._passport

    def swapped(*arguments):
        passport = honest(*arguments)
        return replace(passport, classes=passport.classes[::-1])

    monkeypatch.setattr(exporting, "_passport", swapped)
    told = vitrail_command("export", run, "--to", "torch-export", "--out", tmp_path / "model.pt2")
    assert told.status == 5 and "classes" in told.err, told
    assert not list(tmp_path.iterdir())


def rows(expected, answers, targets=None, multi_label=False):
    """The check of a model that gives `answers`, by position of the picture, whose first pixel is its number."""
    expected, answers = (np.asarray(values, dtype=np.float32) for values in (expected, answers))
    pictures = [np.full((2, 2, 3), index, dtype=np.uint8) for index in range(len(expected))]
    ids = tuple(f"{index}.png" for index in range(len(expected)))
    evidence = Evidence("numbers", ids, lambda index: pictures[index], targets)

    def of(values):
        return lambda size: lambda images: values[images[:, 0, 0, 0]]

    return compared(of(answers), of(expected), evidence, replace(PASSPORT, multi_label=multi_label))


def demanded(found, precision="float32", budget=0.5):
    Check(found, precision, "numpy", "numbers", budget).demand()


def flipped(count, total=200, margin=1.0):
    """`total` answers; the first `count` name the other of two classes."""
    expected = np.tile([margin, 0.0, -1.0], (total, 1))
    answers = expected.copy()
    answers[:count] = answers[:count][:, [1, 0, 2]]
    return expected, answers


def test_float32_must_agree_wherever_the_margin_can_be_told():
    expected, answers = flipped(1, margin=9e-5)
    found = rows(expected, answers)
    assert [row.batch for row in found] == [1, 2, 8]
    assert all(row.close == ("0.png",) and row.same == 199 and not row.differing for row in found)
    demanded(found)
    far = rows(*flipped(1, margin=2e-4))
    assert far[0].differing == ("0.png",)
    with pytest.raises(Disagreement, match=r"1 of 200 pictures .* 0\.png"):
        demanded(far)


def test_float32_must_agree_in_every_logit():
    expected = np.tile([1.0, 0.0, -2.0], (9, 1))
    nearly, off = expected.copy(), expected.copy()
    nearly[8, 2] += 1.9e-4  # of 2
    off[8, 2] += 2.1e-4
    demanded(rows(expected, nearly))
    with pytest.raises(Disagreement, match="of the largest"):
        demanded(rows(expected, off))
    off[8, 2] = np.nan
    with pytest.raises(Disagreement):
        demanded(rows(expected, off))


def test_bfloat16_keeps_the_first_class_of_995_of_1000():
    demanded(rows(*flipped(1)), "bfloat16")
    with pytest.raises(Disagreement):
        demanded(rows(*flipped(2)), "bfloat16")


def test_int8_keeps_its_budget_of_top1():
    expected, answers = flipped(5)
    targets = np.tile([1, 0, 0], (200, 1))
    targets[:4] = [0, 1, 0]  # four of five are right now, and were not before
    demanded(rows(expected, answers, targets), "int8", 0.0)
    found = rows(answers, expected, targets)  # the other way round: three are lost
    assert found[0].drop is not None and found[0].drop[0] == pytest.approx(1.5)
    assert found[0].drop[1] < 1.5 < found[0].drop[2]
    with pytest.raises(Disagreement, match=r"1\.50 points"):
        demanded(found, "int8", 1.4)
    demanded(found, "int8", 1.5)


def test_int8_without_labels_keeps_its_budget_of_first_classes():
    demanded(rows(*flipped(1)), "int8", 0.5)
    with pytest.raises(Disagreement):
        demanded(rows(*flipped(2)), "int8", 0.5)


def test_several_labels_are_compared_one_by_one():
    expected = np.tile([3.0, 2.0, -1.0], (8, 1))
    answers = expected.copy()
    answers[3, 1] = -0.1  # the first class is the same
    found = rows(expected, answers, multi_label=True)
    assert found[0].differing == ("3.png",)
    expected[3, 1], answers[3, 1] = 5e-5, -5e-5
    assert rows(expected, answers, multi_label=True)[0].close == ("3.png",)


def test_pictures_that_cannot_be_read_are_left_out():
    def read(index):
        if index == 1:
            raise DataError("VT012", "damaged")
        return np.zeros((2, 2, 3), dtype=np.uint8)

    def answer(size):
        return lambda images: np.zeros((len(images), 3), dtype=np.float32)

    found = compared(answer, answer, Evidence("three", ("a", "b", "c"), read), PASSPORT)
    assert found[0].images == 2
    with pytest.raises(DataError) as refused:
        compared(answer, answer, Evidence("none", (), read), PASSPORT)
    assert refused.value.code == "VT154"


def test_evidence_is_spread_over_all_pictures():
    kept = Evidence("many", tuple(map(str, range(1000))), lambda index: index).spread(200)
    assert len(kept.ids) == 200 and (kept.ids[0], kept.ids[-1]) == ("0", "999")
    assert kept.read(10) == int(kept.ids[10])
    assert np.diff([int(name) for name in kept.ids]).max() <= 6


REFUSED = [
    (["--to", "onnx", "--precision", "bfloat16"], "VT152", 2),
    (["--to", "torch-export", "--precision", "int8"], "VT152", 2),
    (["--to", "onnx", "--out", "model.openvino"], "VT152", 2),
    (["--to", "onxx"], "VT002", 2),
    (["--to", "onnx", "--inside", "softmax,decoding"], "VT002", 2),
    (["--to", "onnx", "--image-size", ","], "VT002", 2),
    (["--to", "onnx", "--image-size", "9"], "VT032", 3),
    (["--to", "onnx", "--data", "nothing"], "VT154", 3),
]


@pytest.mark.parametrize(("flags", "code", "status"), REFUSED)
def test_refusals(run, tmp_path, vitrail_command, monkeypatch, flags, code, status):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nothing").mkdir()
    before = set(run.rglob("*"))
    told = vitrail_command("export", run, *flags)
    assert f"error[{code}]" in told.err and told.status == status, told.err
    assert set(run.rglob("*")) == before


def test_nothing_is_overwritten_unasked(run, tmp_path, vitrail_command):
    kept = tmp_path / "model.pt2"
    kept.write_bytes(b"somebody's")
    told = vitrail_command("export", run, "--to", "torch-export", "--out", kept)
    assert told.status == 2 and "error[VT153]" in told.err and kept.read_bytes() == b"somebody's"


def test_weights_without_pictures(run, tmp_path, vitrail_command, monkeypatch):
    """float32 is checked on Vitrail's own pictures; what may change answers asks for the user's."""
    monkeypatch.setattr("vitrail.commands.export.MOST_IMAGES", 8)
    weights = tmp_path / "tiny.safetensors"
    assert vitrail_command("convert", run, weights).status == 0
    told = vitrail_command("export", weights, "--to", "torch-export")
    assert told.status == 0 and "Vitrail's own pictures" in told.err + told.out, told
    assert (tmp_path / "tiny.pt2").is_file()
    refused = vitrail_command("export", weights, "--to", "openvino", "--precision", "bfloat16")
    assert refused.status == 3 and "error[VT154]" in refused.err
    assert vitrail.load(weights).classes == vitrail.load(run).classes
