"""Sets that measure models of ImageNet, as folders on the disk; scores by plain loops."""

import json

import numpy as np
import pytest
from PIL import Image

from vitrail.data.testsets import MAPPINGS, open_test_set, open_validation
from vitrail.errors import DataError
from vitrail.evaluation.mapped import checked_real, matched, real_scored, scored

RANDOM = np.random.default_rng(5)
WNIDS = tuple(f"n{10_000_000 + 7 * number:08d}" for number in range(1000))
NUMBERED = tuple(f"class {number}" for number in range(1000))
WORDS = [(wnid, f"thing {number}") for number, wnid in enumerate(WNIDS)]


def picture(path, value=0, size=(6, 5)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path, "PNG")


def columns(folder, model, words=()):
    found = open_test_set(str(folder))
    return matched(found.classes, found.named_by, model, words, found.indices)


def unmatched(folder, model, mention, words=()):
    with pytest.raises(DataError, match=mention) as caught:
        columns(folder, model, words)
    assert caught.value.code == "VT117" and "LOC_synset_mapping" in str(caught.value)


def test_two_hundred_classes_by_identity(tmp_path):
    """As ImageNet-A and -R: folders of WordNet identities, one folder deeper than the archive, a README beside."""
    chosen = [WNIDS[index] for index in (3, 500, 998)]
    for place, wnid in enumerate(chosen):
        picture(tmp_path / "imagenet-a" / wnid / "a.jpg", place)
    (tmp_path / "imagenet-a" / "README.txt").write_text("x")
    found = open_test_set(str(tmp_path))
    assert found.named_by == "wnid" and found.classes == tuple(chosen) and found.images.read(2, 3)[0, 0, 0] == 2
    shuffled = [int(i) for i in RANDOM.permutation(1000)]
    named = tuple(f"{WNIDS[i]} thing {i}" for i in shuffled)  # a model with another order of classes
    assert columns(tmp_path, named).columns == tuple((shuffled.index(i),) for i in (3, 500, 998))
    assert columns(tmp_path, NUMBERED, WORDS).columns == ((3,), (500,), (998,))
    unmatched(tmp_path, NUMBERED, "have no such identities: class 0")
    unmatched(tmp_path, tuple(named[:400]), "none of the model's")
    with pytest.raises(DataError, match="999 lines"):
        columns(tmp_path, NUMBERED, WORDS[:-1])


def test_all_thousand_identities_are_matched_by_their_order(tmp_path):
    """As Sketch, on a model whose classes have no names; a thousand tiny files would cost a second, links do not."""
    found = matched(WNIDS, "wnid", NUMBERED)
    assert found.columns == tuple((index,) for index in range(1000)) and "order" in found.how


def test_folders_by_index(tmp_path):
    """As V2: 0, 1, 10 ... are no text to be sorted."""
    for index in (0, 2, 10, 999):
        picture(tmp_path / str(index) / "x.jpeg")
    assert open_test_set(str(tmp_path)).named_by == "index"
    found = columns(tmp_path, NUMBERED)
    assert dict(zip(open_test_set(str(tmp_path)).classes, found.columns, strict=True)) == {
        "0": (0,), "10": (10,), "2": (2,), "999": (999,)
    }  # fmt: skip
    assert columns(tmp_path, NUMBERED, WORDS[::-1]).columns[0] == (999,)  # the model's order is the other way round
    unmatched(tmp_path, NUMBERED[:10], "the model has 10")
    picture(tmp_path / "1000" / "x.jpeg")
    unmatched(tmp_path, NUMBERED, "such as 1000")


def test_folders_by_name(tmp_path):
    for name in ("great_white_shark", "Tench"):
        picture(tmp_path / name / "x.png")
    model = ("tench, Tinca tinca", "great white shark, white shark", "crane", "crane")
    assert columns(tmp_path, model).columns == ((0,), (1,)) or columns(tmp_path, model).columns == ((1,), (0,))
    picture(tmp_path / "crane" / "x.png")
    unmatched(tmp_path, model, "such as crane")  # the bird or the machine


def objectnet(folder):
    """Its own four tables: folder, label, names of ImageNet, line, place in PyTorch's order."""
    tables = [
        {"alarm_clock": "Alarm clock", "bench": "Bench", "odd_thing": "Odd thing"},
        {"Alarm clock": "analog clock; digital clock", "Bench": "park bench"},
        {str(index): 999 - index for index in range(1000)},
    ]
    names = [f"name {line}" for line in range(1000)]
    names[999 - 409], names[999 - 530], names[999 - 703] = "analog clock", "digital clock", "park bench"
    (folder / "mappings").mkdir(parents=True)
    for file, table in zip(MAPPINGS[:3], tables, strict=True):
        (folder / "mappings" / file).write_text(json.dumps(table))
    (folder / "mappings" / MAPPINGS[3]).write_text("\n".join(names) + "\n")
    for name in tables[0]:
        picture(folder / "images" / name / "1.png", size=(20, 10))
    return folder


def test_objectnet_by_its_own_tables(tmp_path):
    found = open_test_set(str(objectnet(tmp_path)))
    assert found.classes == ("alarm_clock", "bench") and found.left_out == ("odd_thing",)
    assert columns(tmp_path, NUMBERED).columns == ((409, 530), (703,))
    assert found.images.read(0, 3).shape == (6, 16, 3)  # without the red frame
    (tmp_path / "mappings" / MAPPINGS[2]).write_text(json.dumps({"0": 5}))
    with pytest.raises(DataError, match="do not fit each other"):
        open_test_set(str(tmp_path))
    (tmp_path / "mappings" / MAPPINGS[2]).unlink()
    with pytest.raises(DataError, match="missing"):
        open_test_set(str(tmp_path))


def test_scores_by_loops():
    """Two of the model's classes stand for the first class of the set; other classes of the model may win."""
    logits = RANDOM.normal(size=(200, 30)).astype(np.float32)
    labels = RANDOM.integers(0, 8, 200)
    map_ = matched([str(i) for i in range(8)], "table", NUMBERED, (), [(4, 9), *((10 + i,) for i in range(7))])
    own = {1: 0, 5: 0}
    among = {1: 0, 5: 0}
    for row, label in zip(logits, labels, strict=True):
        best = [max(row[c] for c in map_.columns[k]) for k in range(8)]
        rank = sum(score > best[label] for score in best)
        order = sorted(range(30), key=lambda c: -row[c])
        for k in (1, 5):
            own[k] += rank < k
            among[k] += bool(set(order[:k]) & set(map_.columns[label]))
    found = scored(logits, labels, map_)
    assert (found["own"]["top1"], found["own"]["top5"]) == (own[1] / 200, own[5] / 200)
    assert (found["all"]["top1"], found["all"]["top5"]) == (among[1] / 200, among[5] / 200)
    assert found["all"]["top1"] < found["own"]["top1"] and found["n"] == 200
    with pytest.raises(DataError, match="not finite"):
        scored(logits * np.nan, labels, map_)


def test_real_counts_any_of_its_labels_and_leaves_out_the_empty():
    logits = np.zeros((4, 1000), np.float32)
    logits[np.arange(4), [7, 8, 9, 10]] = 1
    labels = [[], [7, 3], [1], [999], [9], []]
    found = real_scored(logits, [2, 3, 5, 6], labels, NUMBERED)
    assert (found["real"], found["n"], found["left_out"], found["of"]) == (2 / 3, 3, 1, 6)
    turned = real_scored(logits, [2, 3, 5, 6], labels, NUMBERED, WORDS[::-1])
    assert turned["real"] == 0  # the model's classes are in another order
    for numbers, model, code in (([7], NUMBERED, "VT118"), ([1], NUMBERED, "VT118"), ([2], NUMBERED[:9], "VT117")):
        with pytest.raises(DataError) as caught:
            real_scored(logits[:1], numbers, labels, model)
        assert caught.value.code == code


@pytest.mark.parametrize("data", [{}, [], [3], [[1.0]], [[True]], [["1"]], [[1000]], [[-1]], [[0] * 1001]])
def test_damaged_real_labels(data):
    with pytest.raises(DataError, match="ReaL"):
        checked_real(data, "real.json")


def test_validation_images_tell_their_number(tmp_path):
    for folder, number in (("n2", 12), ("n1", 3), (".", 7)):
        picture(tmp_path / "val" / folder / f"ILSVRC2012_val_{number:08d}.JPEG", number)
    picture(tmp_path / "val" / "n1" / "other.JPEG")
    images, numbers = open_validation(str(tmp_path))
    assert numbers == [3, 7, 12] and [int(images.read(i, 3)[0, 0, 0]) for i in range(3)] == numbers
    picture(tmp_path / "val" / "n2" / "ILSVRC2012_val_00000003.JPEG")
    with pytest.raises(DataError, match="3 different numbers"):
        open_validation(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="named as the official"):
        open_validation(str(tmp_path / "empty"))


def test_hostile_sets(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        open_test_set(str(tmp_path / "none"))
    with pytest.raises(DataError, match="class folders"):
        open_test_set(str(tmp_path))
