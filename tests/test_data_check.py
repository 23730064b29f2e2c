"""The data check says what was planted, all of it, and nothing of the pictures that are sound."""

import json
import re
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image

import tiny
from planted import Planted, tiles
from vitrail.data.check import Examiner, examine
from vitrail.data.problems import MOST_GROUPS, MOST_MEMBERS
from vitrail.data.sources import Dataset, Source, open_source
from vitrail.errors import DataError
from vitrail.images import FileFacts, read_file
from vitrail.recipes import execute

ABOUT_CLASSES = {"missing-class", "few-images", "imbalance"}
SEVERITY = dict.fromkeys(("leak", "label-conflict", "missing-class"), "error")
SEVERITY |= dict.fromkeys(("near-duplicates", "huge", "extreme-aspect", "transparent", "rotated"), "note")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return Planted(tmp_path_factory.mktemp("planted") / "data")


@pytest.fixture(scope="module")
def found(planted):
    return examine(open_source(str(planted.root))).to_json()


def problems(examination):
    return {problem["kind"]: problem for problem in examination["problems"]}


def ids(problem):
    return [{member["id"] for member in group} for group in problem["groups"]]


def in_memory(pictures, labels, classes=("a", "b"), splits=None):
    """A source of arrays; `splits` names the split of each picture."""
    splits = np.array(splits or ["train"] * len(pictures))
    targets = np.eye(len(classes), dtype=np.float32)[labels]

    def dataset(name):
        rows = np.flatnonzero(splits == name)
        return Dataset(
            tuple(f"{name}/{row}" for row in rows), targets[rows], lambda index, channels: pictures[rows[index]]
        )

    return Source("memory", classes, {name: dataset(name) for name in dict.fromkeys(splits.tolist())})


def test_every_planted_fault_is_found_and_no_other(planted, found):
    said = problems(found)
    assert set(said) == set(planted.groups)
    for kind, groups in planted.groups.items():
        assert sorted(map(sorted, ids(said[kind]))) == sorted(map(sorted, groups)), kind
        assert said[kind]["severity"] == SEVERITY.get(kind, "warning")


def test_no_clean_picture_is_accused(planted, found):
    accused = {id for problem in found["problems"] if problem["kind"] not in ABOUT_CLASSES
               for group in ids(problem) for id in group}  # fmt: skip
    assert len(planted.clean) > 100 and not accused & planted.clean


def test_titles_have_the_numbers(planted, found):
    said, total = problems(found), found["of"]
    assert found["seen"] == total == sum(1 for path in planted.root.rglob("*") if path.is_file())
    for kind in (
        "blank",
        "rotated",
        "transparent",
        "tiny",
        "huge",
        "unreadable",
        "grey-among-colour",
        "near-duplicates",
    ):
        count = len(planted.groups[kind])
        assert said[kind]["count"] == count and said[kind]["title"].startswith(f"{count} of {total} pictures"), kind
    surplus = sum(len(group) - 1 for group in planted.groups["exact-duplicates"])
    assert said["exact-duplicates"]["title"].startswith(f"{surplus} of {total} pictures are exact copies")
    sizes = {name: sum(1 for path in (planted.root / name).rglob("*") if path.is_file()) for name in ("val", "test")}
    in_val, in_test = f"2 of {sizes['val']} val", f"3 of {sizes['test']} test"
    assert said["leak"]["title"] == f"5 pictures are in two splits: {in_test} pictures are also in train"
    assert f"{in_val} pictures are also in train; {in_test} pictures are also in train" in said["leak"]["why"]
    assert "2 are exactly the same, 3 nearly" in said["leak"]["why"]
    assert said["label-conflict"]["title"].endswith("(2 exactly the same, 2 nearly)")
    assert said["missing-class"]["title"] == "val has no picture of rare" and "blind" in said["missing-class"]["why"]
    assert "1 empty, 1 of another kind, 1 damaged" in said["unreadable"]["title"]
    assert all(problem["why"] and problem["fix"] for problem in found["problems"])


def test_labels_and_splits_of_the_members(planted, found):
    for problem in found["problems"]:
        for member in (member for group in problem["groups"] for member in group):
            assert member["id"].split("/")[:2] == [member["split"], member["label"]]


def test_sound_pictures_have_no_problem(planted, tmp_path):
    """What is left when every fault is taken away again."""
    for id in planted.clean:
        (tmp_path / id).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(planted.root / id, tmp_path / id)
    shutil.rmtree(tmp_path / "train" / "rare")
    shutil.rmtree(tmp_path / "test" / "rare")
    examination = examine(open_source(str(tmp_path)))
    assert examination.problems == () and not examination.has_errors


def test_sizes_modes_and_formats(planted, found):
    """Against a count by Pillow alone."""
    facts = []
    for path in planted.root.rglob("*"):
        if path.is_file():
            try:
                with Image.open(path) as image:
                    image.load()
                    turned = image.getexif().get(0x0112, 1) >= 5
                    facts.append((image.size[:: -1 if turned else 1], image.mode, image.format))
            except OSError:
                continue
    areas = sorted(size[0] * size[1] for size, *_ in facts)
    small, median, large = (found["sizes"][name] for name in ("smallest", "median", "largest"))
    assert [np.prod(size) for size in (small, median, large)] == [areas[0], areas[len(areas) // 2], areas[-1]]
    assert found["modes"] == Counter(mode for _, mode, _ in facts)
    assert found["formats"] == Counter(form for *_, form in facts)
    histogram = found["sizes"]["shorter_side"]
    expected, _ = np.histogram([min(size) for size, *_ in facts], histogram["edges"])
    assert histogram["counts"] == expected.tolist() and sum(histogram["counts"]) == len(facts)


def test_the_number_of_threads_changes_nothing(planted, found):
    assert examine(open_source(str(planted.root)), threads=5).to_json() == found


def test_a_sample_says_that_it_is_one(planted, found):
    source = open_source(str(planted.root))
    examiner = Examiner(source)
    train = source.split("train")
    chosen = [index for index, id in enumerate(train.ids) if "/rare/" not in id]
    for index in chosen:
        try:
            examiner.see("train", index, *train.examine(index))
        except DataError as error:
            examiner.see("train", index, error)
    examination = examiner.examination().to_json()
    seen = len(chosen)
    assert (examination["seen"], examination["of"]) == (seen, found["of"])
    for kind, problem in problems(examination).items():
        expected = f"of the {seen} pictures that were read (of {found['of']})"
        assert (expected in problem["title"]) == (kind not in ABOUT_CLASSES | {"label-conflict"}), kind
    assert f"among the {seen} of {found['of']} that were read" in problems(examination)["label-conflict"]["title"]


def test_time_is_kept_and_spread(monkeypatch):
    """With no time at all every thread reads one picture; the order of a sample is even from its beginning on."""
    pictures = [np.full((9, 9, 3), value, dtype=np.uint8) for value in range(200)]
    read = []
    source = in_memory(pictures, np.arange(200) % 2)
    train = source.splits["train"]
    source.splits["train"] = Dataset(
        train.ids, train.targets, lambda index, channels: (read.append(index), pictures[index])[1]
    )
    assert examine(source, threads=1, seconds=0).seen == 1
    read.clear()
    assert examine(source, threads=1, seconds=60).seen == 200
    for count in (10, 40, 100):
        gaps = np.diff([0, *sorted(read[:count]), 200])
        assert gaps.max() <= 3 * 200 / count


def test_sizes_of_pictures_of_all_sizes():
    """Width before height; the middle one by area."""
    every = [np.full((side, 2 * side, 3), side, dtype=np.uint8) for side in (9, 3, 40, 6, 4)]
    sizes = examine(in_memory(every, [0, 1, 0, 1, 0])).sizes
    assert [sizes[name] for name in ("smallest", "median", "largest")] == [[6, 3], [12, 6], [80, 40]]
    assert sizes["shorter_side"]["edges"][0] == 3 and sizes["shorter_side"]["edges"][-1] == 41
    assert sum(sizes["shorter_side"]["counts"]) == 5


def test_a_class_whose_pictures_cannot_be_read_is_missing():
    every = [np.asarray(tile) for _, tile in zip(range(12), tiles(40, 40), strict=False)]
    source = in_memory(every, [0, 1] * 6, splits=["train"] * 10 + ["val"] * 2)
    examiner = Examiner(source)
    for row in range(10):
        examiner.see("train", row, every[row])
    examiner.see("val", 0, every[10])
    examiner.see("val", 1, DataError("VT053", "it is damaged"))
    assert problems(examiner.examination().to_json())["missing-class"]["title"] == "val has no picture of b"


def test_lists_are_bounded():
    """150 copies of one picture, and 120 pairs."""
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (24, 24, 3), dtype=np.uint8) for _ in range(121)]
    every = [pictures[0]] * 150 + [picture for picture in pictures[1:] for _ in range(2)]
    problem = problems(examine(in_memory(every, [0] * len(every))).to_json())["exact-duplicates"]
    assert problem["count"] == 149 + 120
    assert len(problem["groups"]) == MOST_GROUPS == 100
    assert [len(group) for group in problem["groups"]] == [MOST_MEMBERS] + [2] * 99 and MOST_MEMBERS == 20


def test_blank_pictures_are_one_statement_and_no_copies():
    every = [np.full((20, 30, 3), value, dtype=np.uint8) for value in (0, 0, 0, 90, 255, 255)]
    every += [np.asarray(tile) for _, tile in zip(range(2), tiles(40, 40), strict=False)]
    source = in_memory(every, [0, 1, 0, 0, 1, 1, 0, 1], splits=["train"] * 4 + ["test"] * 2 + ["train"] * 2)
    said = problems(examine(source).to_json())
    assert said["blank"]["count"] == 6
    assert not {"exact-duplicates", "near-duplicates", "leak", "label-conflict"} & set(said)


def test_val_that_stands_for_test_is_no_leak():
    every = [np.asarray(tile) for _, tile in zip(range(8), tiles(40, 40), strict=False)]
    source = in_memory(every, [0, 1] * 4, splits=["train"] * 4 + ["val"] * 4)
    source.splits["test"] = source.splits["val"]
    examination = examine(source)
    assert examination.of == 8 and "leak" not in problems(examination.to_json())


def test_a_mirrored_picture_under_another_label_is_another_picture():
    """b and d, left and right; under the same label it is a copy."""
    every = [np.asarray(tile) for _, tile in zip(range(4), tiles(60, 60), strict=False)]
    every += [every[0][:, ::-1], every[1][:, ::-1]]
    said = problems(examine(in_memory(every, [0, 0, 1, 1, 0, 1])).to_json())
    assert ids(said["near-duplicates"]) == [{"train/0", "train/4"}] and "label-conflict" not in said


def test_several_labels_conflict_as_sets():
    every = [np.asarray(tile) for _, tile in zip(range(3), tiles(40, 40), strict=False)]
    source = in_memory(every * 2, [0] * 6)
    source.splits["train"].targets[:] = [[1, 1], [1, 0], [0, 0], [1, 1], [1, 1], [0, 0]]
    said = problems(examine(source).to_json())
    assert [[member["label"] for member in group] for group in said["label-conflict"]["groups"]] == [["a", "a;b"]]
    assert [group[0]["label"] for group in said["exact-duplicates"]["groups"]] == ["a;b", ""]


def test_a_picture_that_vanishes_before_the_second_look_is_no_copy():
    every = [np.asarray(tile) for _, tile in zip(range(4), tiles(60, 60), strict=False)]
    examiner = Examiner(in_memory([*every, every[0][1:-1, 1:-1]], [0, 0, 1, 1, 0]))

    def gone(split, index):
        raise DataError("VT050", "it is gone")

    for index, picture in enumerate([*every, every[0][1:-1, 1:-1]]):
        examiner.see("train", index, picture)
    assert len(examiner.copies()) == 1
    examiner.look = gone
    assert examiner.copies() == []


def test_many_unreadable_pictures_are_an_error():
    """Training stops at more than 5 %."""
    tile = next(tiles(40, 40))
    examiner = Examiner(in_memory([None] * 40, [0, 1] * 20))
    for index in range(40):
        examiner.see("train", index, DataError("VT053", f"{index} is damaged") if index < 2 else np.asarray(tile))
    assert problems(examiner.examination().to_json())["unreadable"]["severity"] == "warning"
    examiner.see("train", 2, DataError("VT051", "2 is empty"))
    assert problems(examiner.examination().to_json())["unreadable"]["severity"] == "error"


def test_names_in_titles_are_short_and_visible():
    classes = ("a\x1b[31m\nred", "b" * 300)
    every = [np.asarray(tile) for _, tile in zip(range(12), tiles(40, 40), strict=False)]
    examination = examine(in_memory(every, [0] * 11 + [1], classes)).to_json()
    titles = [problem["title"] for problem in examination["problems"]]
    assert any(r"a\x1b[31m\nred has 11 times as many" in title for title in titles)
    assert all(len(title) < 200 and title.isprintable() for title in titles)


def test_what_a_file_says(tmp_path):
    image = next(tiles(30, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.convert("P").save(tmp_path / "palette.png")
    opaque, holes = image.convert("RGBA"), image.convert("RGBA")
    holes.putpixel((3, 4), (0, 0, 0, 254))
    opaque.save(tmp_path / "opaque.png")
    holes.save(tmp_path / "holes.png")
    facts = {path.stem: read_file(path)[1] for path in tmp_path.iterdir()}
    assert facts == {
        "turned": FileFacts("JPEG", "RGB", True, False), "palette": FileFacts("PNG", "P", False, False),
        "opaque": FileFacts("PNG", "RGBA", False, False), "holes": FileFacts("PNG", "RGBA", False, True),
    }  # fmt: skip


def test_a_run_writes_down_its_data_and_reads_every_picture_once_for_it(pictures, tmp_path, monkeypatch):
    reads = Counter()
    original = Dataset.examine
    monkeypatch.setattr(
        Dataset,
        "examine",
        lambda self, index, channels=3: (reads.update([self.ids[index]]), original(self, index, channels))[1],
    )
    tiny.tiny(pictures, tmp_path / "run")
    assert len(reads) == 40 and set(reads.values()) == {1}
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert data["examination"] == examine(open_source(str(pictures))).to_json()


def test_the_second_look_is_at_what_the_run_keeps_in_memory(tmp_path, monkeypatch):
    for number, tile in zip(range(20), tiles(40, 40), strict=False):
        path = tmp_path / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        tile.save(path)
        tile.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path.with_name(f"{number:02d} mirrored.png"))
    source, run = execute.plan_run(str(tmp_path))
    examiner = Examiner(source)
    execute.checked_pictures(source, run, examiner)
    monkeypatch.setattr("vitrail.data.sources.read_picture", lambda *_: pytest.fail("read again"))
    assert len(examiner.copies()) == 20


def test_a_run_writes_down_what_it_could_not_read(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "data")
    (tmp_path / "data" / "dark below" / "07.png").write_bytes(b"no picture")
    tiny.tiny(tmp_path / "data", tmp_path / "run")
    (problem,) = json.loads((tmp_path / "run" / "data.json").read_text())["examination"]["problems"]
    assert problem["kind"] == "unreadable" and ids(problem) == [{"dark below/07.png"}]


def test_looking_at_the_data_changes_no_bit_of_a_run(pictures, run, tmp_path, monkeypatch):
    class Blind(execute.Examiner):
        def watching(self, split):
            return None

    monkeypatch.setattr(execute, "Examiner", Blind)
    tiny.tiny(pictures, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "data.json").read_text())["examination"]["seen"] == 0
    assert tiny.digests(tmp_path / "run") == tiny.digests(run)


def test_blank_pictures_are_told_apart(tmp_path):
    """Empty files, white drawings that vanish on white, and plain colours need different things done."""
    for number, tile in zip(range(20), tiles(40, 40), strict=False):
        path = tmp_path / "data" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        tile.save(path)
    drawing = Image.new("RGBA", (40, 40), (255, 255, 255, 0))
    drawing.paste((255, 255, 255, 255), (10, 10, 30, 30))
    made = {
        "plain": Image.new("RGB", (40, 40), "red"),
        "white": drawing,
        "empty": Image.new("RGBA", (40, 40), (9, 8, 7, 0)),
    }

    def said(*names):
        for path in (tmp_path / "data" / "a").glob("*[a-z].png"):
            path.unlink()
        for name in names:
            made[name.rstrip("2")].save(tmp_path / "data" / "a" / f"{name}.png")
        return problems(examine(open_source(str(tmp_path / "data"))).to_json()).get("blank")

    assert said() is None and said("plain")["title"] == "1 of 21 pictures is of one colour only"
    assert said("empty")["title"] == "1 of 21 pictures is empty (fully transparent)"
    whole = said("plain", "white", "empty", "empty2")
    assert whole["title"] == (
        "4 of 24 pictures are blank: 2 empty (fully transparent), 1 of one colour only, 1 white on a transparent ground"
    )
    assert "white disappears" in whole["why"] and "white disappears" not in said("empty")["why"]
    assert ids(whole)[0] == {"a/white.png"}  # the odd one first, not behind a hundred empty ones


def test_what_to_do_about_unreadable_pictures_hangs_on_why():
    every = [np.asarray(tile) for _, tile in zip(range(9), tiles(40, 40), strict=False)]

    def fix(*codes):
        examiner = Examiner(in_memory(every, [0, 1, 0, 1, 0, 1, 0, 1, 0]))
        for row, code in enumerate([*codes, None, None][:9]):
            examiner.see("train", row, DataError(code, "x is wrong") if code else every[row])
        return problems(examiner.examination().to_json())["unreadable"]["fix"]

    assert "smaller" in fix("VT054") and "opy" not in fix("VT054")
    assert "Copy" in fix("VT053") and "smaller" not in fix("VT053")
    assert "Copy" in fix("VT053", "VT054") and "smaller" in fix("VT053", "VT054")


def test_a_leak_that_vitrail_made_is_answered_with_the_way_out(tmp_path):
    """Where no splits were given, copies end up on both sides."""
    for number, tile in zip(range(40), tiles(40, 40), strict=False):
        for copy in range(2):
            path = tmp_path / "photos of cats" / ("a", "b")[number % 2] / f"{number}-{copy}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            tile.save(path)
    said = problems(examine(open_source(str(tmp_path / "photos of cats"))).to_json())
    assert re.search(r"vitrail data split '.*/photos of cats' --out split.csv", said["leak"]["fix"])
