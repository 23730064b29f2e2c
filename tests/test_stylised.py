"""Style-randomised sets: whose texture a picture gets, and a set that training reads."""

import json

import numpy as np
import pytest
from PIL import Image

import tiny
from vitrail.data.sources import Dataset, open_source
from vitrail.data.stylised import partners, stylised, write_stylised
from vitrail.errors import DataError, VitrailError


def dataset(labels):
    targets = np.eye(4, dtype=np.float32)[labels]
    return Dataset(tuple(f"{index}" for index in range(len(labels))), targets, lambda index, channels: None)


def test_the_partner_is_of_another_class_and_depends_on_seed_and_id():
    split = dataset(np.arange(200) % 4)
    found = partners(split, 0)
    assert (np.arange(200) % 4 != found % 4).all()
    assert len(set(found.tolist())) > 80  # not one style for all
    np.testing.assert_array_equal(found, partners(split, 0))
    assert (found != partners(split, 1)).mean() > 0.9
    rare = partners(dataset(np.array([0] * 500 + [1])), 0)
    assert (rare[:500] == 500).all() and rare[500] < 500
    assert (partners(dataset(np.zeros(5, dtype=int)), 0) == -1).all()
    assert not len(partners(dataset(np.zeros(0, dtype=int)), 0))


def test_a_picture_keeps_its_size_whatever_the_other_has():
    luck = np.random.default_rng(0)
    picture, texture = (luck.integers(0, 256, size, dtype=np.uint8) for size in ((20, 31, 3), (9, 50, 3)))
    made = stylised(picture, texture)
    assert made.shape == picture.shape and made.dtype == np.uint8 and (made != picture).any()
    assert stylised(picture, picture) is not picture
    np.testing.assert_array_equal(stylised(picture, picture), picture)
    assert stylised(np.zeros((2, 3000, 3), np.uint8), texture).shape == (1, 1024, 3)


def test_a_set_is_written_that_can_be_trained_on(pictures, tmp_path, vitrail_command):
    called = vitrail_command("data", "stylise", pictures, "--out", tmp_path / "styled", "--quiet")
    assert called.status == 0 and not called.err and "0 left out" in called.out
    before, after = open_source(str(pictures)), open_source(str(tmp_path / "styled" / "split.csv"))
    assert after.classes == before.classes and after.counts() == before.counts()
    for name, split in after.splits.items():
        np.testing.assert_array_equal(split.targets, before.split(name).targets)
        with Image.open(tmp_path / "styled" / split.ids[0]) as image:
            assert image.mode == "L"  # grey as they were
    said = json.loads((tmp_path / "styled" / "stylised.json").read_text())
    assert said["seed"] == 0 and sum(said["counts"].values()) == 40
    again = vitrail_command("data", "stylise", pictures, "--out", tmp_path / "styled")
    assert again.status == 1 and "VT064" in again.err


def test_one_class_alone_writes_nothing(tmp_path):
    tiny.write_pictures(tmp_path / "data", per_class=6)
    source = open_source(str(tmp_path / "data"))
    alone = {name: split.subset(np.flatnonzero(split.targets[:, 0])) for name, split in source.splits.items()}
    with pytest.raises(DataError) as told:
        write_stylised(type(source)("one", source.classes, alone), tmp_path / "out")
    assert told.value.code == "VT122" and not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name != "data"]
    with pytest.raises(VitrailError):
        write_stylised(source, tmp_path / "data")
