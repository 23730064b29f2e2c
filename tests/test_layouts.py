"""Tiny copies of the usual data sets in the layouts in which they are handed out."""

import struct

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from vitrail.data import vtab
from vitrail.data.matfile import read_mat
from vitrail.data.sources import open_source, rows_of
from vitrail.errors import DataError
from vitrail.recipes.asked import Asked, plan_run

RANDOM = np.random.default_rng(3)
WNIDS = ("n01440764", "n01443537", "n02084071")


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (value, 0, 0)).save(path, "PNG")


def lines(path, *texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(texts) + "\n")


def truth(source, split):
    """Class of every picture of a split."""
    dataset = source.split(split)
    return dict(zip(dataset.ids, (source.classes[i] for i in dataset.targets.argmax(axis=1)), strict=True))


def refused(folder, code, *mentions):
    with pytest.raises(DataError) as caught:
        open_source(str(folder))
    assert caught.value.code == code, caught.value
    for mention in mentions:
        assert mention in str(caught.value)


def cifar10(folder, per_file=20):
    """The official layout: five training files, one of tests, a label byte before red, green and blue planes."""
    folder.mkdir()
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    lines(folder / "batches.meta.txt", *names, "")
    kept = {}
    for file in [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]:
        labels = np.arange(per_file, dtype=np.uint8) % 10
        images = RANDOM.integers(0, 256, (per_file, 3, 32, 32), dtype=np.uint8)
        content = b"".join(bytes([label]) + image.tobytes() for label, image in zip(labels, images, strict=True))
        (folder / file).write_bytes(content)
        kept[file] = images
    return names, kept


def test_cifar_10_binary(tmp_path):
    names, kept = cifar10(tmp_path / "cifar-10-batches-bin")
    source = open_source(str(tmp_path / "cifar-10-batches-bin"))
    assert list(source.classes) == names and source.origin["test"] == "the official one"
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 90, "val": 10, "test": 20}
    test = source.split("test")
    assert (test.targets.argmax(axis=1) == np.arange(20) % 10).all()
    assert np.array_equal(test.read(7, 3), kept["test_batch.bin"][7].transpose(1, 2, 0))
    red, green, blue = (test.read(7, 3)[:, :, channel].astype(int) for channel in range(3))
    grey = test.read(7, 1)[:, :, 0]
    assert np.abs(grey - (299 * red + 587 * green + 114 * blue) / 1000).max() < 1
    assert {identity.split("/")[0] for split in source.splits.values() for identity in split.ids} == {"train", "test"}


def test_cifar_100_binary_reads_the_fine_label(tmp_path):
    names = [f"class-{number:03d}" for number in range(100)]
    lines(tmp_path / "fine_label_names.txt", *names)
    for file, count in (("train.bin", 300), ("test.bin", 100)):
        fine = np.arange(count) % 100
        planes = np.zeros((count, 3072), np.uint8)
        records = np.concatenate([(fine // 5)[:, None], fine[:, None], planes], axis=1).astype(np.uint8)
        (tmp_path / file).write_bytes(records.tobytes())
    source = open_source(str(tmp_path))
    assert len(source.classes) == 100 and (source.split("test").targets.argmax(axis=1) == np.arange(100)).all()


def test_cifar_as_pickles_is_refused_and_never_opened(tmp_path):
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (tmp_path / name).write_bytes(b"cposix\nsystem\n(S'touch pwned'\ntR.")
    refused(tmp_path, "VT112", "pickles", "cifar-10-binary.tar.gz", "cs.toronto.edu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["batches.meta", "data_batch_1", "test_batch"]
    other = tmp_path / "hundred"
    for name in ("train", "test", "meta"):
        lines(other / name, "x")
    refused(other, "VT112", "cifar-100-binary.tar.gz")


@pytest.mark.parametrize(
    ("file", "content", "mention"),
    [
        ("data_batch_3.bin", b"\0" * 3072, "3,072 bytes"),  # a byte short
        ("test_batch.bin", b"", "0 bytes"),
        ("test_batch.bin", b"\x0a" + b"\0" * 3072, "label is 10"),
        ("batches.meta.txt", b"cat\ndog\n", "2 classes"),
        ("batches.meta.txt", b"\xff\xfe\n", "cannot be read"),
        ("data_batch_4.bin", None, "missing"),
    ],
)
def test_damaged_cifar(tmp_path, file, content, mention):
    folder = tmp_path / "c"
    cifar10(folder)
    (folder / file).unlink() if content is None else (folder / file).write_bytes(content)
    refused(folder, "VT113", mention)


def pets(folder):
    breeds = ("Abyssinian", "american_bulldog")
    listed = {"trainval.txt": [], "test.txt": []}
    for number, breed in enumerate(breeds, 1):
        for index in range(1, 9):
            listed["trainval.txt" if index < 6 else "test.txt"].append(f"{breed}_{index} {number} {number} 1")
            picture(folder / "images" / f"{breed}_{index}.jpg", index)
    for file, texts in listed.items():
        lines(folder / "annotations" / file, *texts)
    lines(folder / "annotations" / "list.txt", "#Image CLASS-ID SPECIES", *listed["trainval.txt"], *listed["test.txt"])


def test_pets(tmp_path):
    pets(tmp_path)
    source = open_source(str(tmp_path))
    assert source.classes == ("Abyssinian", "american_bulldog")
    assert truth(source, "test")["images/american_bulldog_8.jpg"] == "american_bulldog"
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 8, "val": 2, "test": 6}
    assert source.split("test").read(0, 3)[0, 0, 0] == 6  # a PNG called .jpg, as some of the set are
    assert len(rows_of(str(tmp_path))) == 16


@pytest.mark.parametrize(
    ("line", "code", "mention"),
    [
        ("../../etc/passwd 1 1 1", "VT113", "passwd"),
        ("Abyssinian_1 2 1 1", "VT113", "class 2"),
        ("Abyssinian_77 1 1 1", "VT017", "Abyssinian_77"),
        ("Abyssinian_1", "VT113", "such as Abyssinian_100"),
        ("a" * 5000, "VT113", "characters"),
    ],
)
def test_hostile_lists_of_pets(tmp_path, line, code, mention):
    pets(tmp_path)
    with open(tmp_path / "annotations" / "test.txt", "a") as file:
        file.write(line + "\n")
    refused(tmp_path, code, mention)


def flowers(folder, compress, labels=None, **sets):
    count = 30
    labels = np.arange(count) % 3 + 1 if labels is None else labels
    every = {"trnid": np.arange(1, 13), "valid": np.arange(13, 19), "tstid": np.arange(19, 31)} | sets
    folder.mkdir(exist_ok=True)
    savemat(folder / "imagelabels.mat", {"labels": labels[None].astype(np.uint8)}, do_compression=compress)
    savemat(folder / "setid.mat", {k: v[None].astype(np.uint16) for k, v in every.items()}, do_compression=compress)
    for number in range(1, count + 1):
        picture(folder / "jpg" / f"image_{number:05d}.jpg", number)


@pytest.mark.parametrize("compress", [False, True])
def test_flowers(tmp_path, compress):
    flowers(tmp_path, compress)
    source = open_source(str(tmp_path))
    assert source.classes == ("1", "2", "3") and source.origin["val"] == "setid.mat, valid"
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 12, "val": 6, "test": 12}
    assert truth(source, "test")["jpg/image_00020.jpg"] == "2" and source.split("test").read(0, 3)[0, 0, 0] == 19


@pytest.mark.parametrize("compress", [False, True])
def test_matrices_as_scipy_reads_them(tmp_path, compress):
    """Numbers of every type, small ones packed into eight bytes too; what is no matrix of real numbers is left out."""
    kinds = ("u1", "i1", "u2", "i2", "u4", "i4", "i8", "f4", "f8")
    kept = {f"m{kind}": RANDOM.integers(0, 100, (3, 4)).astype(kind) for kind in kinds} | {"one": np.ones((1, 1), "u1")}
    others = {"text": "abc", "cells": np.array([1, "a"], dtype=object), "complex": np.array([[1j]]), "struct": {"a": 1}}
    savemat(tmp_path / "x.mat", kept | others, do_compression=compress)
    found, oracle = read_mat(tmp_path / "x.mat"), loadmat(tmp_path / "x.mat")
    assert set(found) == set(kept)
    for name, values in found.items():
        assert np.array_equal(values, oracle[name]) and np.array_equal(values, kept[name])


def test_a_matrix_that_unpacks_to_more_than_the_limit(tmp_path, monkeypatch):
    savemat(tmp_path / "x.mat", {"zeros": np.zeros((1000, 1000))}, do_compression=True)
    monkeypatch.setattr("vitrail.data.matfile.MAX_BYTES", 100_000)
    with pytest.raises(DataError, match="more than 100,000 bytes"):
        read_mat(tmp_path / "x.mat")


def test_damaged_flowers(tmp_path):
    flowers(tmp_path / "twice", True, valid=np.arange(12, 19))
    refused(tmp_path / "twice", "VT113", "twice")
    flowers(tmp_path / "beyond", True, tstid=np.arange(19, 32))
    refused(tmp_path / "beyond", "VT113", "19 to 31")
    flowers(tmp_path / "other", True)
    savemat(tmp_path / "other" / "setid.mat", {"elsewhere": np.ones((1, 3))})
    refused(tmp_path / "other", "VT113", "no matrix 'trnid'")
    whole = (tmp_path / "other" / "imagelabels.mat").read_bytes()
    rest = struct.pack("<II", 14, 2**31)
    for content in (whole[:100], whole[:-3], whole[:128] + rest, b"PK" + whole[2:], b"MATLAB 7.3" + whole[10:]):
        (tmp_path / "other" / "imagelabels.mat").write_bytes(content)
        refused(tmp_path / "other", "VT113", "MATLAB file")


def imagenet(folder, flat=False, train="train", val="val"):
    for number, wnid in enumerate(WNIDS):
        for index in range(6):
            picture(folder / train / wnid / f"{wnid}_{index}.JPEG", 10 * number + index)
        for index in range(2):
            name = f"ILSVRC2012_val_{1 + 2 * number + index:08d}.JPEG"
            picture(folder / val / name if flat else folder / val / wnid / name, 100 + number)


def test_imagenet_in_folders(tmp_path):
    imagenet(tmp_path)
    source = open_source(str(tmp_path))
    assert source.classes == WNIDS and "official validation images" in source.origin["test"]
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 15, "val": 3, "test": 6}
    lines(tmp_path / "synset_words.txt", *(f"{w} name {w[-2:]}, other" for w in WNIDS))
    assert open_source(str(tmp_path)).classes == tuple(f"{wnid} name {wnid[-2:]}" for wnid in WNIDS)
    assert (
        truth(open_source(str(tmp_path)), "test")["val/n01443537/ILSVRC2012_val_00000003.JPEG"] == "n01443537 name 37"
    )


STEMS = [f"ILSVRC2012_val_{number:08d}" for number in range(1, 7)]
TRUE = [wnid for wnid in WNIDS for _ in range(2)]
FLAT = {
    "LOC_val_solution.csv": [
        "ImageId,PredictionString",
        *(f"{s},{w} 1 2 3 4 {w} 5 6 7 8" for s, w in zip(STEMS, TRUE, strict=True)),
    ],
    "val.txt": [f"{stem}.JPEG {WNIDS.index(wnid)}" for stem, wnid in zip(STEMS, TRUE, strict=True)],
    "imagenet_2012_validation_synset_labels.txt": TRUE,
}


@pytest.mark.parametrize("file", FLAT)
def test_imagenet_with_a_flat_val(tmp_path, file):
    """The three lists say the same; Kaggle's layout has the pictures in Data/CLS-LOC and the list beside the words."""
    kaggle = file.startswith("LOC")
    imagenet(tmp_path, True, *(("Data/CLS-LOC/train", "Data/CLS-LOC/val") if kaggle else ()))
    refused(tmp_path, "VT113", "LOC_val_solution.csv")
    lines(tmp_path / file, *FLAT[file][::-1] if file == "val.txt" else FLAT[file])
    found = truth(open_source(str(tmp_path)), "test")
    assert list(found.values()) == TRUE and [name.split("/")[-1][:-5] for name in found] == STEMS
    lines(tmp_path / file, *FLAT[file][:-1])
    refused(tmp_path, "VT113")
    lines(tmp_path / file, *FLAT[file][:-1], FLAT[file][-1].replace(WNIDS[2], "n09999999").replace(" 2", " 7"))
    refused(tmp_path, "VT113", "that train/ has")


def test_the_numbers_of_the_development_kit_are_refused(tmp_path):
    imagenet(tmp_path, True)
    lines(tmp_path / "ILSVRC2012_validation_ground_truth.txt", *"112233")
    refused(tmp_path, "VT113", "meta.mat")


def task(
    folder, train=("images/a.png 0", "images/b.png 2"), val=("images/c.png 0",), test=("images/d e.png 1",), whole=None
):
    for name in ("a", "b", "c", "d e"):
        picture(folder / "images" / f"{name}.png", ord(name[0]))
    for file, texts in (("train800.txt", train), ("val200.txt", val), ("test.txt", test)):
        lines(folder / file, *texts)
    lines(folder / "train800val200.txt", *(whole or (*train, *val)))
    return folder


def test_a_task_of_vtab(tmp_path):
    """A class may have no image among the 800; the splits are the official ones."""
    source = open_source(str(task(tmp_path)))
    assert source.classes == ("0", "1", "2") and source.origin["val"] == "val200.txt"
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 2, "val": 1, "test": 1}
    assert truth(source, "test") == {"images/d e.png": "1"} and source.split("test").read(0, 3)[0, 0, 0] == ord("d")


def test_a_task_of_vtab_whose_class_has_no_training_image_can_be_trained_on(tmp_path):
    data, balanced = str(task(tmp_path)), {"objective.class_weights": "balanced"}
    weights = [plan_run(data, Asked(settings=settings))[1].objective.class_weights for settings in ({}, balanced)]
    assert weights == [(), (1, 0, 1)]


@pytest.mark.parametrize(
    ("lists", "code", "mention"),
    [
        ({"test": ("../a.png 1",)}, "VT113", "../a.png"),
        ({"test": ("/etc/passwd 1",)}, "VT113", "/etc/passwd"),
        ({"test": ("images/gone.png 1",)}, "VT017", "gone"),
        ({"test": ("images/d e.png -1",)}, "VT113", "-1"),
        ({"test": ("images/d e.png 99999999",)}, "VT113", "99999999"),
        ({"test": ("images/a.png 0",)}, "VT113", "train800.txt and in test.txt"),
        ({"test": ("images/d e.png 1", "images/d e.png 2")}, "VT113", "two labels"),
        ({"whole": ("images/a.png 0",)}, "VT113", "together"),
    ],
)
def test_hostile_lists_of_vtab(tmp_path, lists, code, mention):
    refused(task(tmp_path, **lists), code, mention)


def test_tasks_of_vtab_are_found_by_their_usual_names(tmp_path):
    for name in ("dsprites_loc", "cifar", "oxford_iiit_pet", "smallnorb_ele", "my_own"):
        task(tmp_path / name)
    found, strange = vtab.tasks_in(tmp_path)
    assert [task.name for task in found] == ["CIFAR-100", "Pets", "dSpr-Loc", "sNORB-Elev"] and strange == ["my_own"]
    assert len(vtab.missing(found)) == 15 and [len(tasks) for tasks in vtab.GROUPS.values()] == [7, 4, 8]
    refused(tmp_path, "VT113", "--protocol vtab")
    task(tmp_path / "pets")
    with pytest.raises(DataError, match="both Pets"):
        vtab.tasks_in(tmp_path)
