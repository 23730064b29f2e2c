"""`vitrail reproduce`: every experiment by one command, its record true, its drawing of what it should show."""

import ast
import inspect
import json
import re
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from inside import ATTENDING, FLAT, HYBRID, PLAIN, RESNET, images_for, stirred
from vitrail.canvas import blank, png
from vitrail.errors import DataError, UsageError
from vitrail.experiments import figure_06, figure_07
from vitrail.experiments.catalogue import EXPERIMENTS
from vitrail.experiments.experiment import Album, Asked, Subject
from vitrail.inspection.attention import attention
from vitrail.inspection.distance import attention_distance
from vitrail.inspection.filters import embedding_filters
from vitrail.inspection.masks import masked
from vitrail.inspection.panels import distance_panel, filters_panel, positions_panel
from vitrail.inspection.positions import PositionSimilarity, position_similarity
from vitrail.model.heads import Features
from vitrail.model.positions import SineCosine


@pytest.fixture(scope="module")
def flat(pictures, tmp_path_factory):
    """Pictures of many sizes in one folder, without classes."""
    folder = tmp_path_factory.mktemp("flat")
    generator = np.random.default_rng(0)
    for index, size in enumerate(((30, 50, 3), (40, 20, 3), (9, 70, 3), (33, 33, 3), (60, 60, 3))):
        Image.fromarray(generator.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    """A hybrid of 24 x 16 pixels, saved."""
    return saved(HYBRID, tmp_path_factory.mktemp("hybrid") / "model")


def saved(config, place):
    from vitrail.checkpoints.checkpoint import Checkpoint
    from vitrail.preprocessing import Preprocessing

    model = stirred(config, scale=0.1)
    classes = tuple("abcdefg") if config.head.classes else ()
    preprocessing = Preprocessing(config.image_size, config.channels)
    vitrail.save(Checkpoint(config, model.state_dict(), preprocessing, classes), place)
    return place


def test_the_list_and_the_text_of_one(vitrail_command):
    listed = vitrail_command("reproduce")
    assert listed.status == 0 and all(re.search(rf"^{name} ", listed.out, re.M) for name in EXPERIMENTS)
    assert max(map(len, listed.out.splitlines())) <= 80
    told = vitrail_command("reproduce", "figure-11")
    assert told.status == 0 and "vitrail reproduce figure-11 --model VIT --model HYBRID" in told.out
    names = [entry["name"] for entry in json.loads(vitrail_command("reproduce", "--json").out)["experiments"]]
    assert names == list(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_says_what_to_type_and_what_to_expect(name):
    experiment = EXPERIMENTS[name]
    assert re.search(rf"^Command +vitrail reproduce {name} ", experiment.text, re.M)
    assert all(re.search(rf"^{word} ", experiment.text, re.M) for word in ("Cost", "Expect", "Caveats"))
    assert re.search("^(Paper|Published) ", experiment.text, re.M)
    settings = experiment.settings
    for key in () if settings is None else vars(settings):
        assert re.search(rf"\b{key}=", experiment.text) or name == "attention-heads", f"{key} is no secret"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_one_command_makes_it(name, run, tmp_path, vitrail_command):
    """On a run, whose own test pictures are looked at: numbers, a drawing, and words that fit."""
    done = vitrail_command("reproduce", name, "--model", run, "--out", tmp_path / "out")
    assert done.status == 0, done.err
    record = json.loads((tmp_path / "out" / f"{name}.json").read_text())
    assert record["models"] == ["tiny"] and (EXPERIMENTS[name].looks == "no" or record["data"].endswith(", test"))
    lines = done.out.splitlines()
    assert len(lines) > 3 and max(len(line) for line in lines if not line.startswith("where")) <= 80
    assert [line.split()[1] for line in lines[-2:]] == [
        str(tmp_path / "out" / f"{name}.{kind}") for kind in ("png", "json")
    ]
    with Image.open(tmp_path / "out" / f"{name}.png") as drawn:
        drawn.load()
        assert min(drawn.size) > 150 and len(drawn.convert("L").getcolors()) > 20


def test_the_record_is_what_python_gives(hybrid, flat, tmp_path, vitrail_command):
    """Pictures of a folder are prepared as the model reads them; figure 11 sets a hybrid beside another model."""
    vit = saved(FLAT, tmp_path / "vit")
    done = vitrail_command(
        "reproduce", "figure-11", "--model", vit, "--model", hybrid, "--data", flat, "--out", tmp_path, "--json"
    )
    assert done.status == 0, done.err
    record, kept = json.loads(done.out), json.loads((tmp_path / "figure-11.json").read_text())
    assert {key: record[key] for key in kept} == kept and [path[-4:] for path in record["written"]] == [".png", "json"]
    assert record["images"] == 5 and [entry["pitch"] for entry in record["distances"]] == [[4, 8], [8, 4]]
    loaded = vitrail.load(hybrid)
    pixels = [loaded.preprocessing(vitrail.images.read_picture(path, 3)) for path in sorted(flat.iterdir())]
    images = loaded.preprocessing.normalise(torch.from_numpy(np.stack(pixels)))
    expected = attention_distance(loaded.module, images)
    for form in ("paper", "renormalised"):
        np.testing.assert_allclose(record["distances"][1][form], getattr(expected, form), rtol=1e-5)


def test_pictures_are_drawn_by_chance_and_the_same_again(flat, hybrid, tmp_path, vitrail_command):
    album = Album("album", tuple("abcde"), lambda index, channels: np.zeros((8, 8, channels), np.uint8))
    draws = [album.drawn(3, seed) for seed in range(4)]
    assert album.drawn(3, 2) == draws[2] and len({tuple(draw) for draw in draws}) > 1
    assert all(len(draw) == 3 and draw == sorted(set(draw)) for draw in draws) and album.drawn(9, 0) == [0, 1, 2, 3, 4]
    flags = ("--data", flat, "--out", tmp_path, "--set", "images=3", "--set", "seed=2", "--json")
    found = json.loads(vitrail_command("reproduce", "figure-6", "--model", hybrid, *flags).out)
    assert [entry["file"] for entry in found["pictures"]] == [f"{place}.png" for place in draws[2]]


def test_a_model_without_positions_still_has_the_other_panels(tmp_path, flat, vitrail_command):
    quadratic = saved(ATTENDING["quadratic"], tmp_path / "model")
    done = vitrail_command("reproduce", "figure-7", "--model", quadratic, "--data", flat, "--out", tmp_path, "--json")
    assert done.status == 0 and "NoPosition" in json.loads(done.out)["positions"]["refused"]


def test_attention_pooling_has_a_row_of_its_own(tmp_path, flat, vitrail_command):
    model = saved(PLAIN["attention pool"], tmp_path / "model")
    done = vitrail_command(
        "reproduce", "attention-heads", "--model", model, "--data", flat / "0.png", "--out", tmp_path, "--json"
    )
    record = json.loads(done.out)
    assert record["layers"] == ["0", "1", "pool"] and record["query"] == "mean" and record["file"] == "0.png"
    maps, loaded = np.array(record["maps"]), vitrail.load(model)
    assert maps.shape == (3, 4, 3, 5)
    images = next(loaded.images([flat / "0.png"]))
    for layer, place in ((0, 0), ("pool", 2)):
        for head in (1, 3):
            expected = attention(loaded.module, images, layer, [head]).maps[0]
            np.testing.assert_allclose(maps[place, head], expected, atol=1e-5)


REFUSED = {
    "no such experiment": (["figure-99"], "VT135", 2), "no place": (["figure-7", "--model", "RUN"], "VT002", 2),
    "too many": (["figure-7", "--model", "RUN", "--model", "RUN", "--out", "OUT"], "VT002", 2),
    "a setting": (["figure-7", "--model", "RUN", "--out", "OUT", "--set", "picture=3"], "VT003", 2),
    "settings of none": (["figure-10", "--model", "RUN", "--out", "OUT", "--set", "images=3"], "VT003", 2),
    "no images": (["figure-7", "--model", "RUN", "--out", "OUT", "--set", "images=0"], "VT003", 2),
    "an image": (["attention-heads", "--model", "RUN", "--out", "OUT", "--set", "images=2"], "VT003", 2),
    "factor": (["token-norms", "--model", "RUN", "--out", "OUT", "--set", "factor=1"], "VT003", 2),
    "batch": (["cka", "--model", "RUN", "--out", "OUT", "--set", "batch=3"], "VT003", 2),
    "no pictures of its own": (["figure-7", "--model", "HYBRID", "--out", "OUT"], "VT002", 2),
    "no classes": (["logit-lens", "--model", "HYBRID", "--data", "FLAT", "--out", "OUT"], "VT134", 2),
    "other classes": (["head-ablation", "--model", "HYBRID", "--data", "PICTURES", "--out", "OUT"], "VT025", 3),
    "no attention": (["figure-6", "--model", "RESNET", "--data", "FLAT", "--out", "OUT"], "VT041", 2),
    "no positions": (["figure-10", "--model", "RESNET", "--out", "OUT"], "VT130", 2),
    "a file": (["figure-7", "--model", "RUN", "--out", "FILE"], "VT002", 2),
    "features": (["logit-lens", "--model", "FEATURES", "--data", "FLAT", "--out", "OUT"], "VT133", 2),
}  # fmt: skip


@pytest.fixture(scope="module")
def places(run, pictures, flat, hybrid, tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    resnet, features = saved(RESNET, folder / "resnet"), saved(replace(FLAT, head=Features()), folder / "features")
    return {"RUN": run, "PICTURES": pictures, "FLAT": flat, "HYBRID": hybrid, "RESNET": resnet, "FEATURES": features}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_made_is_refused_and_nothing_is_written(name, places, tmp_path, vitrail_command):
    words, code, status = REFUSED[name]
    (tmp_path / "file").write_text("")
    known = {**places, "OUT": tmp_path / "out", "FILE": tmp_path / "file"}
    done = vitrail_command("reproduce", *(known.get(word, word) for word in words))
    assert (done.status, f"error[{code}]" in done.err) == (status, True), done.err
    assert not (tmp_path / "out").exists()


def test_the_mask_is_the_map_over_the_picture():
    picture = np.full((6, 8, 3), 200, np.uint8)
    weights = np.array([[0.0, 0.1], [0.4, 0.2]])
    hard = masked(picture, weights, smooth=False)
    expected = np.repeat(np.repeat(weights / 0.4 * 200, 3, axis=0), 4, axis=1)
    np.testing.assert_allclose(hard[..., 0], expected, atol=1)
    assert (masked(picture, np.ones((2, 2)) / 4) == picture).all()
    assert masked(picture[..., :1], weights).shape == (6, 8, 3)


def test_the_smooth_mask_is_brightest_where_the_weight_is_and_spans_black_to_white():
    weights = np.zeros((14, 14))
    weights[4, 9] = 1
    mask = masked(np.full((140, 140, 3), 255, np.uint8), weights)[..., 0].astype(float)
    rows, cols = np.indices(mask.shape)
    share = mask / mask.sum()
    assert ((rows * share).sum(), (cols * share).sum()) == (pytest.approx(44.5, abs=1), pytest.approx(94.5, abs=1))
    assert (mask.min(), mask.max()) == (0, 255)
    spread = np.sqrt((((rows - 44.5) ** 2) * share).sum())
    assert spread == pytest.approx(np.sqrt(10**2 + 10**2 / 12), rel=0.15)  # the blur's deviation is a patch


def axes():
    return blank(4, 4).subplots()


def test_a_tile_shows_its_own_row_and_column():
    similarity = position_similarity(stirred(FLAT))
    panel = axes()
    positions_panel(panel, similarity)
    sheet = panel.images[0].get_array().filled(np.nan)
    for r, c in np.ndindex(3, 5):
        np.testing.assert_allclose(sheet[4 * r : 4 * r + 3, 6 * c : 6 * c + 5], similarity.tiles[r, c])
    assert np.isnan(sheet[3]).all() and np.isnan(sheet[:, 5]).all()
    assert [label.get_text() for label in panel.get_xticklabels()] == ["1", "2", "3", "4", "5"]
    assert panel.get_xlabel() == "Input patch column" and panel.get_ylabel() == "Input patch row"


def test_large_grids_have_fewer_tiles_that_say_whose_they_are():
    config = replace(FLAT, position=SineCosine(), image_size=(4 * 37, 8 * 30))
    similarity = position_similarity(stirred(config))
    panel = axes()
    positions_panel(panel, similarity)
    shown = [int(label.get_text()) for label in panel.get_yticklabels()]
    assert len(shown) <= 14 and shown[1] - shown[0] == 3
    sheet = panel.images[0].get_array()
    columns = [int(label.get_text()) for label in panel.get_xticklabels()]
    np.testing.assert_allclose(sheet[40 : 40 + 37, :30], similarity.tiles[shown[1] - 1, columns[0] - 1], atol=1e-6)


def test_a_dot_a_head_and_layer():
    distance = np.arange(12.0).reshape(3, 4)
    panel = axes()
    distance_panel(panel, distance, "ViT", highest=20)
    lines = [line for line in panel.lines if len(line.get_xdata())]
    np.testing.assert_array_equal([line.get_ydata() for line in lines], distance.T)
    assert panel.get_ylim() == (0, 20) and panel.get_ylabel() == "Mean attention distance (pixels)"


@pytest.mark.parametrize(("channels", "word"), [(3, "RGB"), (1, "Grey"), (5, "Input")])
def test_filters_are_stretched_one_by_one(channels, word):
    from vitrail.model.tokenizers import LinearPatches

    filters = embedding_filters(stirred(replace(FLAT, tokenizer=LinearPatches((4, 8), channels))), 9)
    panel = axes()
    filters_panel(panel, filters)
    sheet = np.asarray(panel.images[0].get_array())
    wide = 8 if channels in (1, 3) else 8 * channels
    assert sheet.shape == (4 * 2 + 1, 7 * (wide + 1) - 1, 3) and panel.get_title().startswith(word)
    second = sheet[:4, wide + 1 : 2 * wide + 1]
    component = filters.components[1]
    stretched = (component - component.min()) / np.ptp(component)
    if channels == 3:
        np.testing.assert_allclose(second, stretched)
    else:
        np.testing.assert_allclose(second[..., 0], np.concatenate(np.moveaxis(stretched, 2, 0), axis=1))


def test_a_drawing_is_the_same_again():
    similarity = PositionSimilarity(np.eye(4).reshape(2, 2, 2, 2), None, None)
    drawn = []
    for _ in range(2):
        figure = blank(2, 2)
        positions_panel(figure.subplots(), similarity)
        drawn.append(png(figure))
    assert drawn[0] == drawn[1] and Image.open(BytesIO(drawn[0])).size == (240, 240)


def test_a_picture_that_cannot_be_read_is_named(tmp_path, hybrid):
    album = Album(
        "album",
        ("broken.png",),
        lambda index, channels: (_ for _ in ()).throw(DataError("VT052", "broken.png", "a picture")),
    )
    asked = Asked((Subject("m", "", vitrail.load(hybrid)),), album, figure_07.Settings())
    with pytest.raises(DataError, match=r"broken\.png"):
        figure_07.run(asked)


def test_batches_fit_into_memory(hybrid):
    """An image at a time where one layer's attention is large; no more than 32 where it is small."""
    loaded = vitrail.load(hybrid)
    album = Album("album", tuple(map(str, range(40))), lambda index, channels: np.zeros((24, 16, 3), np.uint8))
    asked = Asked((Subject("m", "", loaded),), album, figure_06.Settings(images=40))
    assert [len(batch) for batch in asked.images(asked.subjects[0])] == [32, 8]
    assert [len(batch) for batch in asked.images(asked.subjects[0], 25)] == [25, 15]


def test_experiments_know_no_command():
    """A file of experiments is of numbers and drawings: it neither prints nor writes."""
    for experiment in EXPERIMENTS.values():
        tree = ast.parse(inspect.getsource(inspect.getmodule(experiment.run)))
        called = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not called & {"print", "open", "write_bytes", "write_json"}


def test_settings_are_checked():
    for wrong in ({"images": 0}, {"seed": -1}):
        with pytest.raises(UsageError):
            figure_07.Settings(**wrong)
    assert images_for(FLAT).shape == (2, 3, 12, 40)
