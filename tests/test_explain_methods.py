"""`vitrail explain --method --class` and `--check`: what is said, drawn and written, and every refusal."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evidence
import vitrail
from test_explain import noise
from test_flags import FROZEN
from test_methods import HYBRID, SMALL
from test_model import stirred
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.commands.trust import text
from vitrail.deployment.classifier import Classifier
from vitrail.errors import UsageError
from vitrail.inspection.checking import check
from vitrail.inspection.explanation import class_index, explain, positive_shares
from vitrail.inspection.gradients import IntegratedGradients
from vitrail.inspection.occlusion import TokenDrop
from vitrail.inspection.sheet import sheet
from vitrail.model.heads import Features
from vitrail.preprocessing import Preprocessing


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model of planted evidence, and pictures of it as a folder of classes."""
    folder = tmp_path_factory.mktemp("methods")
    model = evidence.model()
    weights = model.module.state_dict()
    vitrail.save(Checkpoint(model.module.config, weights, model.preprocessing, evidence.CLASSES), folder / "model")
    images, targets, _ = evidence.pictures(36)
    for number, (image, target) in enumerate(zip(images, targets, strict=True)):
        name = folder / "data" / ("test" if number < 30 else "train") / evidence.CLASSES[int(target.argmax())]
        name.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(name / f"{number}.png")
    Image.fromarray(images[0, 0]).save(folder / "one.png")
    return folder


def test_a_class_is_explained_by_name_or_number_and_by_default_the_answer(place):
    model = vitrail.load(place / "model")
    picture = place / "one.png"
    answer = model.predict(picture)
    found = vitrail.explain(model, picture, method="token-drop")
    assert (found.target, found.method, found.query, found.layer) == (answer.label, "token-drop", None, None)
    assert found.class_specific and "1311.2901" in found.definition and found.map.sum() == pytest.approx(1)
    np.testing.assert_allclose(found.map, found.values.clip(min=0) / found.values.clip(min=0).sum(), rtol=1e-5)
    other = next(name for name in evidence.CLASSES if name != answer.label)
    named = vitrail.explain(model, picture, method=TokenDrop(), target=other)
    number = vitrail.explain(model, picture, method="token-drop", target=evidence.CLASSES.index(other))
    assert named.target == other and (named.map == number.map).all() and not np.allclose(named.map, found.map)
    assert "This class is not the model's answer." in named.caveats
    assert "This class is not the model's answer." not in found.caveats
    assert any("speak against the class" in caveat for caveat in named.caveats)
    plain = vitrail.explain(model, picture)
    assert plain.target is None and plain.gap is None and (plain.values == plain.map).all()


def test_the_sum_of_integrated_gradients_is_checked_and_said(place):
    model = vitrail.load(place / "model")
    good = explain(model, place / "one.png", method="integrated-gradients")
    coarse = explain(model, place / "one.png", method=IntegratedGradients(steps=1, most=1))
    assert good.gap < 0.01 and not any("miss the sum" in caveat for caveat in good.caveats)
    assert coarse.gap > 0.05 and any(f"by {100 * coarse.gap:.0f} %" in caveat for caveat in coarse.caveats)


def test_nothing_speaks_for_a_class():
    assert positive_shares(np.array([[-1.0, -2.0]])).tolist() == [[0, 0]]
    assert positive_shares(np.array([[3.0, -2.0], [1.0, 0.0]])).tolist() == [[0.75, 0], [0.25, 0]]


def test_in_a_hybrid_pixels_reach_the_neighbours(place):
    weights = stirred(HYBRID).state_dict()
    preprocessing = Preprocessing(HYBRID.image_size, 1, mean=(0.5,), std=(0.5,))
    model = Classifier(Checkpoint(HYBRID, weights, preprocessing, evidence.CLASSES))
    found = explain(model, noise()[..., :1], method="token-drop")
    assert any("trunk" in caveat for caveat in found.caveats)
    assert not any("trunk" in caveat for caveat in explain(vitrail.load(place / "model"), noise()[..., :1],
                                                           method="token-drop").caveats)  # fmt: skip


REFUSED = {
    "no such class": ({"method": "token-drop", "target": "rwo"}, "VT140"),
    "no such number": ({"method": "token-drop", "target": 3}, "VT140"),
    "no such method": ({"method": "gradcam"}, "VT141"),
    "a class for attention": ({"method": "attention", "target": "row"}, "VT141"),
    "a class for rollout": ({"target": "row"}, "VT141"),
    "a layer for a gradient": ({"method": "grad-cam", "layer": 0}, "VT141"),
    "a layer for rollout": ({"method": "rollout", "layer": 0}, "VT141"),
    "a query for occlusion": ({"method": "token-drop", "query": "mean"}, "VT141"),
    "heads for rollout": ({"method": "rollout", "heads": [0]}, "VT040"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_questions_that_have_no_answer(case, place):
    asked, code = REFUSED[case]
    with pytest.raises(UsageError) as refused:
        explain(vitrail.load(place / "model"), place / "one.png", **asked)
    assert refused.value.code == code
    with pytest.raises(UsageError, match="did you mean row"):
        class_index(evidence.CLASSES, "rwo")


def test_a_model_without_classes_is_refused(tmp_path):
    config = replace(SMALL, head=Features())
    preprocessing = Preprocessing(config.image_size, 1, mean=(0.5,), std=(0.5,))
    model = Classifier(Checkpoint(config, config.build().state_dict(), preprocessing, ()))
    for name in ("token-drop", "grad-cam"):
        with pytest.raises(UsageError) as refused:
            explain(model, noise()[..., :1], method=name)
        assert refused.value.code == "VT045"
    assert explain(model, noise()[..., :1]).method == "rollout"


def test_the_verb_explains_by_several_methods_and_draws_them(place, vitrail_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = Path("deep/sheet.png")
    names = ("attention", "token-drop", "grad-cam")
    methods = [text for name in names for text in ("--method", name)]
    found = vitrail_command("explain", place / "model", place / "one.png", *methods, "--json", "--out", out)
    records = json.loads(found.out)
    assert found.status == 0 and [record["method"] for record in records] == list(names)
    assert records[0]["class"] is None and records[1]["class"] == records[1]["label"] and records[1]["query"] is None
    assert np.shape(records[1]["values"]) == (4, 5) and min(map(min, records[1]["values"])) < 0
    with Image.open(out) as drawn:
        assert drawn.width > 4 * 200
    one = vitrail_command("explain", place / "model", place / "one.png", "--method", "token-drop", "--class", "square",
                          "--out", out)  # fmt: skip
    assert one.status == 0 and "token-drop, for square" in one.out
    assert max(map(len, one.out.splitlines())) <= 80


def test_a_sheet_has_a_panel_a_map_and_says_what_its_colours_mean():
    maps = [(f"method {number}", np.full((2, 3), 1 / 6, np.float32)) for number in range(4)]
    drawn = sheet(noise(), maps, (0, 0, 70, 50), "title")
    fewer = sheet(noise(), maps[:1], (0, 0, 70, 50), "title")
    assert drawn.shape[0] > fewer.shape[0] and drawn.shape[1] > fewer.shape[1] and drawn.dtype == np.uint8
    shaped = np.zeros((2, 3), np.float32)
    shaped[0, 0] = 1
    assert (sheet(noise(), [("m", shaped)], (0, 0, 70, 50), "title") != fewer).any()


def test_the_check_prints_a_table_in_a_narrow_terminal_and_draws_it(place, vitrail_command, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "72")
    methods = ("--method", "rollout", "--method", "token-drop", "--method", "grad-cam-stem")
    found = vitrail_command("explain", place / "model", "--check", "--data", place / "data", "--images", "20", *methods,
                            "--out", tmp_path / "trust.png")  # fmt: skip
    lines = found.out.splitlines()
    assert found.status == 0 and max(map(len, lines[1:])) <= 72  # the first one has the path
    assert any(line.split()[:2] == ["token-drop", "supported"] for line in lines)
    assert any(line.split()[:3] == ["rollout", "not", "supported"] for line in lines)
    assert any(line.split()[:3] == ["grad-cam-stem", "cannot", "run"] for line in lines)
    with Image.open(tmp_path / "trust.png") as drawn:
        assert drawn.width > 1000


def test_the_check_gives_every_figure(place, vitrail_command, tmp_path):
    asked = ("explain", place / "model", "--check", "--data", place / "data", "--images", "10", "--method", "rollout",
             "--method", "token-drop", "--method", "grad-cam-stem", "--json")  # fmt: skip
    record = json.loads(vitrail_command(*asked, "--out", tmp_path / "trust.md").out)
    assert record["images"] == 10 and record["methods"][1]["figures"]["saco"]["n"] == 10
    assert record["refused"].keys() == {"grad-cam-stem"} and record["rule"].startswith("not supported: ")
    rows = (tmp_path / "trust.md").read_text().splitlines()
    assert len({row.count("|") for row in rows}) == 1 and rows[2].startswith("| rollout | not supported |")
    other = json.loads(vitrail_command(*asked, "--seed", "1", "--out", tmp_path / "trust.json").out)
    assert other["methods"][1]["figures"] != record["methods"][1]["figures"]
    assert json.loads((tmp_path / "trust.json").read_text())["methods"] == other["methods"]


WRONG = {
    "a picture and --check": (("one.png", "--check"), "VT002", 2),
    "--class and --check": (("--check", "--class", "row"), "VT002", 2),
    "no picture": ((), "VT002", 2),
    "--data without --check": (("one.png", "--data", "data"), "VT002", 2),
    "too few asked for": (("--check", "--data", "data", "--images", "9"), "VT002", 2),
    "too few there": (("--check", "--data", "data", "--split", "train"), "VT143", 3),
    "no such split": (("--check", "--data", "data", "--split", "tset"), "VT010", 3),
    "no data": (("--check",), "VT002", 2),
    "another suffix": (("--check", "--data", "data", "--out", "trust.pdf"), "VT002", 2),
    "no such method": (("--check", "--data", "data", "--method", "lime"), "VT141", 2),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_commands_write_nothing(case, place, vitrail_command, monkeypatch):
    monkeypatch.chdir(place)
    arguments, code, status = WRONG[case]
    before = sorted(path.name for path in place.rglob("*"))
    found = vitrail_command("explain", "model", *arguments)
    assert (found.status, f"[{code}]" in found.err) == (status, True), found.err
    assert sorted(path.name for path in place.rglob("*")) == before


def test_figures_that_could_not_be_measured_have_a_dash():
    images, targets, _ = evidence.pictures(12)
    images[:] = 0  # nothing is seen: every answer is the same, a shift changes none
    table = check(evidence.model(), [(images, targets)], (TokenDrop(),))
    row = replace(table.rows[0], figures={**table.rows[0].figures, "shift": None, "stable": None})
    shown = "\n".join(text(replace(table, rows=(row,)), "title"))
    assert row.verdict == "not supported" and " - " in shown
    assert {"--method", "--class", "--check"} <= FROZEN["explain"]
