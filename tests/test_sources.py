"""Folders and CSV files to samples with named classes and splits, and what is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrail.data.sources import Dataset, Source, most_common, open_source, stratified, with_held_out
from vitrail.errors import DataError


def pictures(root, *names):
    """One small picture per name; its grey level is its place in the list."""
    for value, name in enumerate(names):
        path = Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (3, 2), value).save(path)
    return str(root)


def numbered(folder, count, start=0):
    return [f"{folder}/{index:03d}.png" for index in range(start, start + count)]


def labelled(source, split):
    """{sample id: names of its classes}."""
    dataset = source.split(split)
    rows = zip(dataset.ids, dataset.targets, strict=True)
    return {identity: ";".join(source.classes[i] for i in np.flatnonzero(target)) for identity, target in rows}


def refused(text, code, *mentions):
    with pytest.raises(DataError) as caught:
        open_source(str(text))
    assert caught.value.code == code and caught.value.exit_status == 3, caught.value
    for mention in mentions:
        assert mention in str(caught.value)


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("training", "validation", "testing"),
        ("Train", "VALID", "Test"),
        ("train", "dev", "test"),
    ],
)
def test_split_folders_under_their_usual_names(tmp_path, train, val, test):
    names = [f"{train}/b/1.png", f"{train}/a/2.jpg", f"{val}/a/3.gif", f"{test}/b/deep/er/4.png", "notes/a/5.png"]
    source = open_source(pictures(tmp_path, *names))
    assert source.classes == ("a", "b") and not source.multi_label
    assert labelled(source, "train") == {names[0]: "b", names[1]: "a"}
    assert labelled(source, "val") == {names[2]: "a"} and labelled(source, "test") == {names[3]: "b"}
    assert (source.split("test").read(0, 3) == 3).all() and source.split("test").read(0, 1).shape == (2, 3, 1)
    assert source.counts()["val"] == {"a": 1, "b": 0} and source.origin["val"] == "given"
    with pytest.raises(DataError, match="no split 'tests'"):
        source.split("tests")


def test_what_is_missing_of_val_and_test_is_held_out(tmp_path):
    """Test but no val: val comes from train. Val but no test: val stands for both, and says so."""
    names = [*numbered("train/a", 20), *numbered("train/b", 10)]
    with_test = open_source(pictures(tmp_path / "one", *names, "test/a/x.png"))
    assert {name: len(split) for name, split in with_test.splits.items()} == {"train": 27, "val": 3, "test": 1}
    with_val = open_source(pictures(tmp_path / "two", *names, "val/a/x.png"))
    assert {name: len(split) for name, split in with_val.splits.items()} == {"train": 30, "val": 1, "test": 1}
    assert "same images as val" in with_val.origin["test"]


def test_flat_classes_are_split_evenly_by_seed(tmp_path):
    """A tenth of each class, at least one image, to test and then to val; every image is in one split."""
    root = pictures(tmp_path, *numbered("a", 40), *numbered("b", 23), *numbered("rare", 3))
    source = open_source(root, seed=5)
    assert source.counts() == {
        "train": {"a": 32, "b": 19, "rare": 1},
        "val": {"a": 4, "b": 2, "rare": 1},
        "test": {"a": 4, "b": 2, "rare": 1},
    }
    ids = [identity for split in source.splits.values() for identity in split.ids]
    assert sorted(ids) == sorted(str(p.relative_to(root)) for p in tmp_path.rglob("*.png"))
    again, other = open_source(root, seed=5), open_source(root, seed=6)
    assert all(again.splits[name].ids == source.splits[name].ids for name in source.splits)
    assert other.splits["test"].ids != source.splits["test"].ids
    for name in source.splits:
        assert all(label == identity.split("/")[0] for identity, label in labelled(source, name).items())


def test_new_files_hardly_move_old_ones(tmp_path):
    """Per new file at most one old one comes or goes, in its own class; other classes stay as they are."""
    root = pictures(tmp_path, *numbered("a", 60), *numbered("b", 60))
    before = open_source(root).splits
    pictures(tmp_path, *numbered("a", 6, start=500))
    after = open_source(root).splits
    for name in ("test", "val"):
        old = {identity for identity in after[name].ids if not identity.startswith("a/50")}
        assert {i for i in old if i[0] == "b"} == {i for i in before[name].ids if i[0] == "b"}
        assert len(old ^ set(before[name].ids)) <= 6 and len(after[name]) >= len(before[name])


def test_several_labels_are_held_out_evenly_too():
    """A tenth each also where nearly every image has a set of labels of its own; no class leaves train."""
    targets = (np.random.default_rng(0).random((300, 8)) < 0.5).astype(np.float32)
    targets[:, 7] = 0
    targets[[3, 200], 7] = 1  # a rare class
    dataset = Dataset(tuple(map(str, range(300))), targets, lambda index, channels: None)
    held, kept = stratified(dataset, 0.1, 0, "test")
    assert sorted([*held, *kept]) == list(range(300)) and 26 <= len(held) <= 34
    assert (targets[kept].sum(axis=0) >= 1).all()
    assert np.abs(targets[held, :7].mean(axis=0) - targets[:, :7].mean(axis=0)).max() < 0.25


def test_at_most_2000_are_held_out():
    targets = np.eye(2, dtype=np.float32)[np.arange(50_000) % 2]
    dataset = Dataset(tuple(map(str, range(50_000))), targets, lambda index, channels: None)
    source = with_held_out(Source("x", ("a", "b"), {"train": dataset}), seed=0)
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 46_000, "val": 2000, "test": 2000}


def test_too_few_images_to_hold_any_out(tmp_path):
    refused(pictures(tmp_path / "one", "a/1.png", "b/1.png"), "VT012", "too few", "2 training images")
    refused(pictures(tmp_path / "two", *numbered("a", 2), *numbered("b", 2)), "VT012", "too few", "val")
    assert len(open_source(pictures(tmp_path / "three", *numbered("a", 3), "b/1.png")).splits["val"]) == 1


def test_what_is_hidden_or_no_picture_is_left_alone(tmp_path):
    names = [*numbered("a", 4), *numbered("b", 4)]
    hidden = ["a/.x.png", "a/.thumbs/x.png", "b/deep/.cache/x.png", ".git/x.png", "loose.png"]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "a" / "folder.png").mkdir()
    source = open_source(pictures(tmp_path, *names, *hidden))
    assert sorted(identity for split in source.splits.values() for identity in split.ids) == sorted(names)


def test_names_that_are_not_utf8(tmp_path):
    """Ids and classes are text that can be hashed and written; the picture is found all the same."""
    names = [os.fsdecode(b"caf\xe9/%d.png" % index) for index in range(4)] + [
        f"Größe/写真 {index}.png" for index in range(4)
    ]
    source = open_source(pictures(tmp_path, *names))
    for split in source.splits.values():
        for index, identity in enumerate(split.ids):
            identity.encode()
            expected = names.index(identity.replace("\\udce9", "\udce9"))
            assert (split.read(index, 1) == expected).all()
    assert source.classes == ("Größe", "caf\\udce9")


def csv_file(folder, *lines, encoding="utf-8"):
    path = Path(folder, "labels.csv")
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return str(path)


def test_csv_with_splits(tmp_path):
    """Paths lie beside the file; columns in any order, with others; a byte order mark and spaces do not matter."""
    pictures(tmp_path, *(f"{index}.png" for index in range(4)))
    lines = [
        "label, path ,split,note",
        "b,0.png,train,x",
        'a,"1.png",training,"y, z"',
        "a, 2.png ,Val,",
        "b,3.png,test,",
    ]
    source = open_source(csv_file(tmp_path, *lines, encoding="utf-8-sig"))
    assert source.classes == ("a", "b") and not source.multi_label
    assert labelled(source, "train") == {"0.png": "b", "1.png": "a"}
    assert labelled(source, "val") == {"2.png": "a"} and labelled(source, "test") == {"3.png": "b"}
    assert (source.split("test").read(0, 1) == 3).all()


def test_csv_without_splits_is_split_like_a_folder(tmp_path):
    names = [*numbered("pictures/x", 20), *numbered("pictures/y", 20)]
    pictures(tmp_path, *names)
    source = open_source(csv_file(tmp_path, "path,label", *(f"{name},{name[9]}" for name in names)))
    assert source.counts() == {"train": {"x": 16, "y": 16}, "val": {"x": 2, "y": 2}, "test": {"x": 2, "y": 2}}
    absolute = csv_file(tmp_path, "path,label", *(f"{tmp_path / name},{name[9]}" for name in names))
    assert sum(len(split) for split in open_source(absolute).splits.values()) == 40


def test_several_labels(tmp_path):
    names = numbered("p", 40)
    pictures(tmp_path, *names)
    labels = ["sea; sky", "sky;sea;sky", "", "sun"] * 10
    source = open_source(csv_file(tmp_path, "path,label", *(f"{n},{x}" for n, x in zip(names, labels, strict=True))))
    assert source.multi_label and source.classes == ("sea", "sky", "sun")
    found = {key: value for name in source.splits for key, value in labelled(source, name).items()}
    assert found == dict(zip(names, ["sea;sky", "sea;sky", "", "sun"] * 10, strict=True))
    assert all(len(source.splits[name]) >= 3 for name in ("val", "test"))


def test_bad_csv(tmp_path):
    pictures(tmp_path, "1.png", "2.png")
    refused(csv_file(tmp_path, "file,label", "1.png,a"), "VT016", "'path'", "file, label")
    refused(csv_file(tmp_path, "path,labels", "1.png,a"), "VT016", "'label'", "did you mean labels?")
    refused(csv_file(tmp_path), "VT016", "none")
    refused(csv_file(tmp_path, "path,label"), "VT012", "no images")
    refused(csv_file(tmp_path, "path,label", "1.png,a", "no.png,b", "nor.png,b"), "VT017", "2 files", "no.png, nor.png")
    refused(csv_file(tmp_path, "path,label,split", "1.png,a,trian"), "VT018", "'trian'", "did you mean train")
    refused(csv_file(tmp_path, "path,label,split", "1.png,a,val", "2.png,b,test"), "VT014", "no training images")
    refused(csv_file(tmp_path, "path,label", "1.png,a", "2.png,a"), "VT013", "one class only: a")
    refused(csv_file(tmp_path, "path,label", "1.png,a", "2.png,"), "VT018", "1 images have no label", "2.png")
    refused(csv_file(tmp_path, "path,label", "1.png,käse", encoding="latin-1"), "VT016", "UTF-8")
    refused(tmp_path / "1.png", "VT016", "1.png")  # a picture instead of a list of pictures
    refused(csv_file(tmp_path, "path,label", '"' + "x" * 200_000), "VT016")


def test_bad_folders(tmp_path):
    """Each problem has its own message, and each a way out."""
    refused(tmp_path / "none", "VT011", "does not exist", "fashion-mini")
    refused("fashon-mini", "VT011", "did you mean fashion-mini")
    refused(tmp_path, "VT012", "0 folders")
    refused(pictures(tmp_path / "loose", "1.png", "2.jpg"), "VT012", "2 loose pictures", "CSV")
    (tmp_path / "hollow" / "cats").mkdir(parents=True)
    refused(tmp_path / "hollow", "VT012", "1 folders and no pictures")
    refused(pictures(tmp_path / "one", "cats/1.png", "cats/2.png"), "VT013", "cats")
    refused(pictures(tmp_path / "late", "val/a/1.png", "test/b/1.png"), "VT014", "test and val", "no training images")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "VT011", "neither a folder nor a file")
    refused(tmp_path / ("x" * 5000), "VT011", "does not exist")


def test_a_split_that_lacks_a_class_shifts_nothing(tmp_path):
    names = ["train/a/1.png", "train/b/1.png", "train/c/1.png", "val/c/1.png", "val/b/1.png", "test/b/1.png"]
    source = open_source(pictures(tmp_path, *names))
    for split in source.splits:
        assert all(identity.split("/")[1] == label for identity, label in labelled(source, split).items())
        assert source.split(split).targets.shape[1] == 3
    assert most_common(source.split("val"))[1] == 1 and most_common(source.split("test")) == (1, 1)
    refused(pictures(tmp_path, "val/unseen/1.png"), "VT015", "unseen", "every class among the training images")


def test_the_fingerprint_sees_every_change(tmp_path):
    """Adding, removing, renaming, resizing, relabelling: each gives another one; doing nothing the same."""
    root = Path(pictures(tmp_path, *numbered("a", 4), *numbered("b", 4)))
    prints = [open_source(str(root)).fingerprint]
    assert open_source(str(root)).fingerprint == prints[0] == open_source(str(root), seed=3).fingerprint
    for change in (
        lambda: pictures(root, "a/new.png"),
        lambda: (root / "a/new.png").rename(root / "a/newer.png"),
        lambda: (root / "a/newer.png").rename(root / "b/newer.png"),
        lambda: (root / "b/newer.png").write_bytes((root / "b/newer.png").read_bytes() + b"\0"),
        lambda: (root / "b/newer.png").unlink() or (root / "b/000.png").unlink(),
    ):
        change()
        prints.append(open_source(str(root)).fingerprint)
    assert len(set(prints)) == len(prints) == 6
    lists = ["a/001.png,x,", "a/001.png,z,", "a/001.png,x,test"]
    rows = [f"{name},y," for name in numbered("b", 3, start=1)] + [
        f"{name},{x}," for name in numbered("a", 2, 2) for x in "xz"
    ]
    prints = [open_source(csv_file(root, "path,label,split", *rows, first)).fingerprint for first in lists]
    assert len(set(prints)) == 3  # the same files with another label, or in another split
