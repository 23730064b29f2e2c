"""`vitrail.explain` and the verb: the numbers, what they can and cannot tell, the picture, and every refusal."""

import io
import json
import re
import shlex
from dataclasses import FrozenInstanceError, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from test_model import TINY, images_for, stirred
from test_rollout import FLAT, Averaging
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.deployment.classifier import Classifier
from vitrail.errors import DataError, UsageError, VitrailError
from vitrail.inspection.attention import attention
from vitrail.inspection.caveats import Setting, caveats, tells
from vitrail.inspection.explanation import explain, spread_of
from vitrail.inspection.rollout import rollout
from vitrail.model.block import Block
from vitrail.model.pools import AttentionPool, ClassToken, GlobalAverage
from vitrail.preprocessing import Preprocessing

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")


def checkpoint(config=TINY, fit="stretch", multi_label=False):
    weights = stirred(config, scale=0.25).state_dict()
    return Checkpoint(config, weights, Preprocessing(config.image_size, fit=fit), CLASSES, multi_label)


def noise(size=(50, 70), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model():
    return Classifier(checkpoint(replace(FLAT, pool=ClassToken(registers=2)), "crop"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with models of each pool and a picture."""
    folder = tmp_path_factory.mktemp("explain")
    for name, config in (
        ("class", FLAT),
        ("mean", replace(TINY, pool=GlobalAverage())),
        ("probe", replace(TINY, pool=AttentionPool(registers=1))),
    ):
        vitrail.save(checkpoint(config), folder / name)
    vitrail.save(checkpoint(multi_label=True), folder / "many")
    Image.fromarray(noise()).save(folder / "photo.png")
    return folder


def test_an_explanation_is_the_rollout_of_the_prepared_picture(model):
    picture = noise()
    prepared = model.preprocessing(picture)[None]
    images = model.preprocessing.normalise(torch.from_numpy(prepared))
    found, gaze = vitrail.explain(model, picture), rollout(model.module, images)
    np.testing.assert_allclose(found.map, gaze.maps[0], atol=1e-6)
    assert found.map.shape == (3, 5) and found.map.dtype == np.float32 and found.map.sum() == pytest.approx(1)
    assert found.prefix_share == pytest.approx(gaze.prefix_share[0], abs=1e-6) and found.prefix_share > 0.5**3
    assert (found.method, found.layer, found.heads, found.query) == ("rollout", None, None, "class")
    assert found.prefix == "1 class token and 2 registers" and found.class_specific is False
    assert found.box == pytest.approx((0, 14.5, 70, 35.5)) and "2005.00928" in found.definition
    part = vitrail.explain(model, picture, layer=-1, heads=[-1], query=(2, 4))
    np.testing.assert_allclose(part.map, attention(model.module, images, 2, [3], (2, 4)).maps[0], atol=1e-6)
    assert (part.method, part.layer, part.heads, part.query) == ("attention", 2, (3,), (2, 4))
    with pytest.raises(FrozenInstanceError):
        found.layer = 1


def test_pictures_are_taken_as_predict_takes_them(model, place):
    expected = explain(model, noise()).map
    for picture in (place / "photo.png", str(place / "photo.png"), (place / "photo.png").read_bytes()):
        assert np.array_equal(explain(model, picture).map, expected)
    for wrong in (noise()[..., :1], noise().astype(np.float32), noise()[0], np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(DataError) as caught:
            explain(model, wrong)
        assert caught.value.code == "VT035"
    with pytest.raises(DataError):
        explain(model, "nowhere.png")


def test_top_patches_are_the_heaviest_with_their_pixels(model):
    found = explain(model, noise())
    order = sorted(np.ndindex(3, 5), key=lambda patch: -found.map[patch])
    assert [(patch.row, patch.col) for patch in found.top] == order[:5]
    first = found.top[0]
    assert first.weight == found.map.max()
    wide, tall = 70 / 5, 21 / 3
    left, top = first.col * wide, 14.5 + first.row * tall
    assert first.box == pytest.approx((left, top, left + wide, top + tall))
    small = Classifier(checkpoint(replace(TINY, image_size=(8, 16))))
    assert len(explain(small, noise()).top) == 2


def test_spread_counts_patches_looked_at_alike():
    assert spread_of(np.full((4, 4), 1 / 16)) == pytest.approx(16)
    assert spread_of(np.array([[0.5, 0.5, 0, 0]])) == pytest.approx(2)
    assert spread_of(np.array([[0, 1.0]])) == 1 and spread_of(np.zeros((2, 2))) == 0


def peaked(*heavy, count=16):
    weights = np.full(count, (1 - sum(heavy)) / (count - len(heavy)))
    weights[: len(heavy)] = heavy
    return weights.reshape(4, -1).astype(np.float32)


SETTING = Setting("class", None, None, "class", 12, 6, 1, 0)


def warned(weights=None, prefix_share=0.1, **changes):
    weights = peaked(0.3, 0.2, 0.1) if weights is None else weights
    return " ".join(caveats(replace(SETTING, **changes), weights, spread_of(weights), prefix_share))


def test_each_warning_comes_and_goes_with_its_cause():
    """No sentence about the picture is a constant."""
    for words, without, given in (
        ("nearly even", warned(), warned(peaked(0.08))),
        ("stands alone", warned(peaked(0.4, 0.3)), warned(peaked(0.5, 0.1))),
        ("stands alone", warned(peaked(0.5, 0.1), registers=4), warned(peaked(0.5, 0.1))),
        ("stays on 1 class token", warned(), warned(prefix_share=0.8)),
        ("patch 1,2 was asked for instead", warned(), warned(query=(1, 2))),
        ("keeps at least 0.024 %", warned(), warned(query=(1, 2))),
        ("mixed already", warned(layer=0), warned(layer=3)),
        ("disagree", warned(layer=0, heads=(1,)), warned(layer=0)),
        ("2 of 6 heads", warned(layer=0), warned(layer=0, heads=(1, 4))),
        ("one of 12 layers", warned(), warned(layer=0)),
        ("values and MLPs", warned(layer=0), warned()),
        ("what was read there", warned(), warned(layer=0)),
        ("mean of the patches was asked", warned(query="mean", reads="mean"), warned(query="mean")),
    ):
        assert words in given and words not in without, words
    for always in (warned(), warned(layer=3), warned(query="mean", reads="mean", class_tokens=0)):
        assert "same for every class" in always and "Not importance" in always
    assert "stands alone" not in warned(np.ones((1, 1), np.float32))


def test_what_a_map_shows_is_said_in_words():
    assert "reaches the class token" in tells(SETTING) and "12 layers" in tells(SETTING)
    assert "probe of attention pooling" in tells(replace(SETTING, query="probe", reads="probe"))
    one = tells(replace(SETTING, layer=3, heads=(2,), query=(4, 5)))
    assert "patch 4,5 reads in layer 3, in head 2" in one
    assert "all heads (6)" in tells(replace(SETTING, layer=3))
    assert "these heads (2)" in tells(replace(SETTING, layer=3, heads=(0, 1)))


def refused(model, **asked):
    with pytest.raises(VitrailError) as caught:
        explain(model, noise(), **asked)
    assert caught.value.what and caught.value.expected and caught.value.fix
    return caught.value


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"layer": 3}, "VT040"),
        ({"layer": -4}, "VT040"),
        ({"layer": 10**30}, "VT040"),
        ({"layer": 0, "heads": [4]}, "VT040"),
        ({"layer": 0, "heads": []}, "VT040"),
        ({"heads": [0]}, "VT040"),
        ({"query": "probe"}, "VT042"),
        ({"query": "klass"}, "VT042"),
        ({"query": "1;2"}, "VT042"),
        ({"query": "9" * 100_000}, "VT042"),
        ({"query": "3,0"}, "VT042"),
        ({"query": (0, 5)}, "VT042"),
        ({"layer": 0, "query": (0, -1)}, "VT042"),
    ],
)
def test_what_is_not_there_is_refused(model, asked, code):
    error = refused(model, **asked)
    assert error.code == code and isinstance(error, UsageError) and len(str(error)) < 500


def test_models_that_cannot_be_looked_into():
    module = stirred(TINY)
    for what in (
        module,
        SimpleNamespace(module=torch.nn.Linear(2, 2), preprocessing=Preprocessing((32, 32))),
        SimpleNamespace(module=lambda: module, preprocessing=Preprocessing((32, 32))),  # as an exported program has it
        SimpleNamespace(module=module),
        None,
    ):
        assert refused(what).code == "VT043"
    plain = stirred(replace(TINY, block=Block(mixer=Averaging())))
    error = refused(SimpleNamespace(module=plain, preprocessing=Preprocessing((32, 32))))
    assert error.code == "VT041" and "Average" in error.what
    broken = Classifier(checkpoint())
    with torch.no_grad():
        broken.module.blocks[1].mixer.query_key_value.weight[0, 0] = float("nan")
    assert refused(broken).code == "VT044"


def test_a_compiled_model_is_explained_as_the_plain_one():
    plain = Classifier(checkpoint())
    module = torch.compile(plain.module, backend="eager")
    compiled = SimpleNamespace(module=module, preprocessing=plain.preprocessing)
    assert np.array_equal(explain(compiled, noise()).map, explain(plain, noise()).map)


def test_captures_refuse_what_they_cannot_record():
    module, images = stirred(TINY), images_for(TINY)
    for request in ({"layers": []}, {"heads": []}, {"queries": []}):
        with pytest.raises(UsageError, match="none was asked for"):
            module.capture("attention", **request)
    for query in (17, -18):
        with pytest.raises(UsageError, match=f"no token {query} among 17"), module.capture(queries=[query]):
            module(images)
    with module.capture("attention", layers=[1]):
        with pytest.raises(UsageError, match="already"), module.capture("attention"):
            pass
        module(images)
    with torch.no_grad(), module.capture("attention", layers=[1, -1], into=(seen := [])) as tape:
        module(images)
    assert tape is seen and [entry.layer for entry in seen] == [1, 2]
    assert not any(getattr(part, "request", None) for part in module.modules())


@pytest.mark.parametrize("name", ["class", "mean", "probe"])
def test_the_verbs_numbers_are_those_of_the_function(vitrail_command, place, name):
    answer = vitrail_command("explain", place / name, place / "photo.png", "--json")
    record, model = json.loads(answer.out), vitrail.load(place / name)
    found, said = explain(model, place / "photo.png"), model.predict(place / "photo.png")
    assert answer.status == 0 and answer.err == ""
    np.testing.assert_allclose(record["map"], found.map, atol=1e-6)
    assert (
        record["query"] == name == found.query and record["method"] == "rollout" and record["class_specific"] is False
    )
    assert record["label"] == said.label and record["probability"] == pytest.approx(said.probability, abs=1e-6)
    assert record["prefix_share"] == pytest.approx(found.prefix_share, abs=1e-6) and record["prefix"] == found.prefix
    assert record["caveats"] == list(found.caveats) and record["definition"] == found.definition
    assert record["top"][0]["box"] == list(found.top[0].box) and record["box"] == [0, 0, 70, 50]
    assert record["picture"] is None and record["layer"] is None and record["heads"] is None


def test_the_text_says_who_looks_where_and_what_it_cannot_tell(vitrail_command, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = vitrail_command("explain", place / "class", place / "photo.png")
    found = explain(vitrail.load(place / "class"), place / "photo.png")
    assert answer.status == 0 and list(tmp_path.iterdir()) == []  # nothing is written unless asked
    assert all(len(line) <= 80 for line in answer.out.splitlines())
    text = re.sub(r"\s+", " ", answer.out)
    assert "attention rollout" in text and f"like {found.spread:.1f} of 15 patches" in text
    assert f"{100 * found.prefix_share:.1f} % of the weight stays on 1 class token" in text
    for caveat in found.caveats:
        assert caveat in text
    rows = re.findall(r"(\d+),(\d+) +([\d.]+) % +([\d.]+) +(\d+)-(\d+), (\d+)-(\d+)", answer.out)
    assert len(rows) == 5
    for row, patch in zip(rows, found.top, strict=True):
        assert (int(row[0]), int(row[1])) == (patch.row, patch.col)
        assert float(row[2]) == pytest.approx(100 * patch.weight, abs=0.051)
        assert float(row[3]) == pytest.approx(15 * patch.weight, abs=0.051)
        assert [int(side) for side in row[4:]] == [round(patch.box[side]) for side in (0, 2, 1, 3)]
    words = shlex.split(re.search(r"picture +(--out \S+)", answer.out)[1])
    drawn = vitrail_command("explain", place / "class", place / "photo.png", *words)  # what it says to type works
    assert drawn.status == 0 and [path.name for path in tmp_path.iterdir()] == ["photo.explain.png"]


def test_a_layer_its_heads_and_a_patch_are_drawn(vitrail_command, place, tmp_path):
    out = tmp_path / "new" / "seen.png"
    asked = ("--layer", "-2", "--head", "1", "--head", "-1", "--query", "2,4", "--out", out)
    answer = vitrail_command("explain", place / "class", place / "photo.png", *asked, "--json")
    record = json.loads(answer.out)
    assert answer.status == 0 and record["picture"] == str(out)
    assert (record["layer"], record["heads"], record["query"]) == (1, [1, 3], [2, 4])
    with Image.open(out) as drawn:
        assert drawn.format == "PNG" and drawn.width > 1000
    assert [path.name for path in out.parent.iterdir()] == ["seen.png"]
    text = vitrail_command("explain", place / "class", place / "photo.png", *asked).out
    assert "attention of layer 1, heads 1, 3 (counted from 0)" in text and str(out) in text.replace(
        "\n            ", ""
    )


def test_another_image_size_has_another_grid(vitrail_command, place):
    answer = vitrail_command("explain", place / "mean", place / "photo.png", "--image-size", "40x16", "--json")
    record = json.loads(answer.out)
    assert answer.status == 0 and np.shape(record["map"]) == (5, 2) and record["prefix"] == ""


def test_several_labels_are_named_as_predict_names_them(vitrail_command, place):
    said = vitrail.load(place / "many").predict(place / "photo.png")
    answer = vitrail_command("explain", place / "many", place / "photo.png")
    assert answer.status == 0 and answer.out.startswith(f"prediction  {'; '.join(said.labels) or 'no label'}\n")
    record = json.loads(vitrail_command("explain", place / "many", place / "photo.png", "--json").out)
    assert record["labels"] == list(said.labels)


@pytest.mark.parametrize(
    ("model", "flags", "status", "code", "words"),
    [
        ("class", ["--layer", "3"], 2, "VT040", "there is no 3, the model has 3"),
        ("class", ["--head", "0"], 2, "VT040", "--layer -1"),
        ("class", ["--layer", "0", "--head", "9"], 2, "VT040", "heads: there is no 9"),
        ("class", ["--query", "3,0"], 2, "VT042", "rows 0 to 2 and columns 0 to 4"),
        ("class", ["--query", "clas"], 2, "VT042", "did you mean class"),
        ("mean", ["--query", "class"], 2, "VT042", "has no class token"),
        ("probe", ["--query", "probe", "--layer", "0"], 2, "VT042", "leave out the layer"),
        ("class", ["--image-size", "13"], 3, "VT032", "nearest valid sizes"),
        ("class", ["--layer", "x"], 2, "VT002", "layer"),
        ("class", ["--out", "seen.jpg"], 2, "VT002", ".png"),
        ("class", ["--device", "quantum"], 2, "VT002", "quantum"),
        ("nowhere", [], 1, "VT078", "does not exist"),
    ],
)
def test_refusals_of_the_verb(vitrail_command, place, model, flags, status, code, words):
    answer = vitrail_command("explain", place / model, place / "photo.png", *flags)
    assert answer.status == status and answer.out == "" and f"error[{code}]" in answer.err and words in answer.err
    answer = vitrail_command("explain", place / model, place / "photo.png", *flags, "--json")
    assert json.loads(answer.out)["error"]["code"] == code


def test_pictures_that_are_none_and_places_that_cannot_be_written(vitrail_command, place, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for picture, code in ((tmp_path / "text.png", "VT052"), (tmp_path, "VT050"), (tmp_path / "nowhere.png", "VT050")):
        answer = vitrail_command("explain", place / "class", picture, "--out", tmp_path / "seen.png")
        assert answer.status == 3 and f"error[{code}]" in answer.err
    photo = tmp_path / "photo.png"
    photo.write_bytes(before := (place / "photo.png").read_bytes())
    answer = vitrail_command("explain", place / "class", photo, "--out", photo)
    assert answer.status == 2 and "is the picture itself" in answer.err and photo.read_bytes() == before
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    for out in (tmp_path / "file" / "seen.png", tmp_path / "folder.png"):
        answer = vitrail_command("explain", place / "class", photo, "--out", out)
        assert answer.status == 1 and "error[VT06" in answer.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png", "photo.png", "text.png"]


def test_hostile_names_are_only_words(vitrail_command, tmp_path):
    """In class names and file names: markup, mathematics, line ends, what is not UTF-8."""
    names = ("$x^2$ [red]", "line\nend", *CLASSES[2:])
    vitrail.save(replace(checkpoint(), classes=names), tmp_path / "model")
    content = io.BytesIO()
    Image.fromarray(noise((8, 8))).save(content, "PNG")
    for name in (b"a\nb.png", b"caf\xe9.png", b"$[bold]$.png", b"--x.png"):
        with open(bytes(tmp_path) + b"/" + name, "wb") as file:
            file.write(content.getvalue())
        picture = (bytes(tmp_path) + b"/" + name).decode(errors="surrogateescape")
        for flags in ([], ["--json"], ["--out", tmp_path / "seen.png"]):
            answer = vitrail_command("explain", tmp_path / "model", picture, *flags)
            assert answer.status == 0 and answer.err == ""
            answer.out.encode()
