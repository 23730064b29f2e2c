"""vitrail data check, preview and split, as they are typed."""

import csv
import json
import shutil
from io import BytesIO
from itertools import islice

import numpy as np
import pytest
from PIL import Image

import tiny
from planted import NEAR, Planted, tiles
from vitrail.commands.data import THUMBNAIL_SIDE, THUMBNAILS, _thumbnails
from vitrail.data.batches import Pictures, StepBatches
from vitrail.data.check import examine
from vitrail.data.preview import contact_sheet
from vitrail.data.sources import open_source
from vitrail.data.transforms import Flip, Shift
from vitrail.preprocessing import Preprocessing


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return Planted(tmp_path_factory.mktemp("planted") / "data")


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """Sixty different pictures in two classes; every third has an exact and a cropped or smaller copy. One is broken."""
    root = tmp_path_factory.mktemp("copies") / "photos"
    families = []
    for number, image in enumerate(islice(tiles(), 60)):
        place = root / ("cats", "dogs")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        made = [image, image, NEAR["crop" if number % 2 else "half"](image)] if number % 3 == 0 else [image]
        for copy, one in enumerate(made):
            one.save(place / f"{number:02d}-{copy}.png")
        families.append({f"{place.name}/{number:02d}-{copy}.png" for copy in range(len(made))})
    (root / "dogs" / "broken.png").write_bytes(b"no picture")
    return root, families


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_check_prints_what_is_wrong_and_ends_with_3(vitrail_command, planted):
    done = vitrail_command("data", "check", planted.root)
    assert done.status == 3 and done.err == ""
    assert "error    5 pictures are in two splits: 3 of 16 test pictures are also in train" in done.out
    assert "2 of 18 val pictures are also in train" in " ".join(done.out.split())
    assert "verdict  3 errors, 7 warnings, 5 notes" in done.out
    commands = [line for line in done.out.splitlines() if line.strip().startswith("vitrail data check")]
    assert f"vitrail data split {planted.root} --out split.csv" in done.out
    assert commands and all(line.endswith("--out check.html") for line in commands)  # whole, to be copied
    wide = [line for line in done.out.splitlines() if len(line) > 80 and str(planted.root) not in line]
    assert not wide


def test_check_as_json(vitrail_command, planted):
    done = vitrail_command("data", "check", planted.root, "--json")
    facts = json.loads(done.out)
    source = open_source(str(planted.root))
    assert done.status == 3 and facts["counts"] == source.counts() and facts["classes"] == list(source.classes)
    assert facts["examination"] == examine(source).to_json()


def test_check_of_sound_pictures_ends_with_0(vitrail_command, tmp_path):
    for number, image in enumerate(islice(tiles(), 60)):
        path = tmp_path / "sound" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    done = vitrail_command("data", "check", tmp_path / "sound")
    assert done.status == 0 and "verdict  nothing wrong was found" in done.out


def test_the_page_shows_the_problems_and_names_stay_text(vitrail_command, tmp_path):
    for number, image in enumerate(islice(tiles(), 24)):
        path = tmp_path / "data" / ("a", "<img src=x onerror=alert(1)>")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        image.save(path.with_name(f"{number} again.png"))
    done = vitrail_command("data", "check", tmp_path / "data", "--out", tmp_path / "new" / "page.html", "--quiet")
    page = (tmp_path / "new" / "page.html").read_text()
    assert done.status == 3 and "page.html" in done.out  # copies in several of the splits that were held out
    assert "<img src=x" not in page and "&lt;img src=x" in page
    assert page.count("data:image/webp;base64,") >= 24 and "also in train" in page


def test_thumbnails_are_few_and_small(planted):
    source = open_source(str(planted.root))
    found = examine(source)
    made = _thumbnails(source, found)
    kinds = {problem.kind for problem in found.problems for group in problem.groups for m in group if m["id"] in made}
    assert len(made) <= THUMBNAILS == 60 and kinds == {problem.kind for problem in found.problems} - {"unreadable"}
    for content in made.values():
        with Image.open(BytesIO(content)) as image:
            assert max(image.size) <= THUMBNAIL_SIDE == 96
    leak = next(problem for problem in found.problems if problem.kind == "leak")
    assert {member["id"] for member in leak.groups[0]} <= set(made)  # both sides of a pair


def test_split_keeps_copies_together(vitrail_command, copies, tmp_path):
    root, families = copies
    done = vitrail_command("data", "split", root, "--out", tmp_path / "split.csv", "--val", "0.2", "--test", "0.1")
    assert done.status == 0 and "20 groups of copies kept together" in done.out
    assert "left out, because they cannot be read: 1 picture, such as dogs/broken.png" in done.out
    split_of = {row["path"].removeprefix(f"{root}/"): row["split"] for row in rows(tmp_path / "split.csv")}
    assert set(split_of) == set.union(*families)
    sizes = dict.fromkeys(("train", "val", "test"), 0)
    for family in families:
        (split,) = {split_of[id] for id in family}
        sizes[split] += 1
    assert sizes == {"train": 42, "val": 12, "test": 6}  # of the 60 different pictures
    for row in rows(tmp_path / "split.csv"):
        assert row["label"] == row["path"].split("/")[-2]


def test_a_split_has_no_leak(vitrail_command, copies, tmp_path):
    """Which the folder divided without looking has."""
    root, _ = copies
    folder = vitrail_command("data", "check", root, "--json")
    vitrail_command("data", "split", root, "--out", tmp_path / "split.csv")
    table = vitrail_command("data", "check", tmp_path / "split.csv", "--json")
    kinds = [
        {problem["kind"] for problem in json.loads(done.out)["examination"]["problems"]} for done in (folder, table)
    ]
    assert "leak" in kinds[0] and kinds[1] == {"exact-duplicates", "near-duplicates"} and table.status == 0


def test_every_class_is_held_out_and_the_seed_decides(vitrail_command, copies, tmp_path):
    root, _ = copies
    tables = []
    for number, seed in enumerate((0, 0, 5)):
        vitrail_command("data", "split", root, "--out", tmp_path / f"{number}.csv", "--seed", seed)
        tables.append(rows(tmp_path / f"{number}.csv"))
    assert tables[0] == tables[1] != tables[2]
    for table in tables:
        assert {(row["split"], row["label"]) for row in table} == {
            (split, label) for split in ("train", "val", "test") for label in ("cats", "dogs")
        }


def test_train_takes_the_split_from_any_folder(vitrail_command, pictures, tmp_path, monkeypatch):
    """Absolute where the pictures lie elsewhere; beside them relative, so that the folder can move."""
    vitrail_command("data", "split", pictures, "--out", tmp_path / "lists" / "split.csv", "--test", "0")
    shutil.copytree(pictures, tmp_path / "moving")
    vitrail_command("data", "split", tmp_path / "moving", "--out", tmp_path / "moving" / "split.csv")
    shutil.move(tmp_path / "moving", tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    given = open_source("../lists/split.csv")
    assert given.counts()["val"] == {"dark below": 2, "light below": 2} and given.splits["test"] is given.splits["val"]
    done = vitrail_command("train", "../moved/split.csv", "--out", "run", "--quiet", *tiny.flags())
    assert done.status == 0 and (tmp_path / "elsewhere" / "run" / "eval" / "test" / "summary.json").is_file()


def test_data_that_cannot_be_divided(vitrail_command, copies, planted, tmp_path):
    root, _ = copies
    done = vitrail_command("data", "split", "fashion-mini", "--out", tmp_path / "no.csv")
    assert done.status == 3 and "VT029" in done.err and "its own splits" in done.err
    for name in ("a;b", " a"):
        folder = tmp_path / name.replace(" ", "_")
        shutil.copytree(root, folder)
        (folder / "cats").rename(folder / name)
        done = vitrail_command("data", "split", folder, "--out", tmp_path / "no.csv")
        assert done.status == 3 and "VT029" in done.err and "rename" in done.err
    shutil.copytree(root, tmp_path / " spaced")
    done = vitrail_command("data", "split", tmp_path / " spaced", "--out", tmp_path / "no.csv")
    assert done.status == 3 and "VT029" in done.err
    for shares in (("--val", "0"), ("--val", "0.6", "--test", "0.5"), ("--test", "-0.1")):
        done = vitrail_command("data", "split", root, "--out", tmp_path / "no.csv", *shares)
        assert done.status == 2 and "VT002" in done.err
    assert not (tmp_path / "no.csv").exists()


def test_splits_of_their_own_are_kept_and_repaired(vitrail_command, planted, tmp_path):
    """Copies leave the earlier split, val gets some of the class that it lacks, everything else stays where it was."""
    done = vitrail_command("data", "split", planted.root, "--out", tmp_path / "split.csv")
    table = {row["path"].removeprefix(f"{planted.root}/"): row["split"] for row in rows(tmp_path / "split.csv")}
    everything = {p.relative_to(planted.root).as_posix() for p in planted.root.rglob("*") if p.is_file()}
    broken = set.union(*planted.groups["unreadable"])
    given_up = {id for pair in planted.groups["leak"] for id in pair if id.startswith("train/")}
    assert done.status == 0 and len(given_up) == 5 and set(table) == everything - broken - given_up
    changed = {id for id, split in table.items() if id.split("/")[0] != split}
    assert changed and all(id.startswith("train/rare/") and table[id] == "val" for id in changed)
    assert (
        f"{len(changed)} picture" in done.out
        and "rare to val" in done.out
        and "5 pictures, such as train/some" in done.out
    )
    check = vitrail_command("data", "check", tmp_path / "split.csv", "--json")
    kinds = {problem["kind"] for problem in json.loads(check.out)["examination"]["problems"]}
    assert not kinds & {"leak", "missing-class", "unreadable"} and {"label-conflict", "exact-duplicates"} <= kinds


def test_labels_that_a_person_corrected_are_taken_over(vitrail_command, copies, tmp_path):
    root, _ = copies
    list_of = tmp_path / "reviewed.csv"

    def split(*lines, head="file,split,label,suggested,doubt", out="split.csv"):
        list_of.write_text("\n".join([head, *lines]))
        return vitrail_command("data", "split", root, "--out", tmp_path / out, "--relabel", list_of)

    done = split("cats/02-0.png,train,cats,dogs,2.0", "dogs/01-0.png,test,dogs,,1.5")
    assert done.status == 0 and "labels corrected: 1; left out: 1" in done.out
    table = {row["path"].removeprefix(f"{root}/"): row["label"] for row in rows(tmp_path / "split.csv")}
    assert table.pop("cats/02-0.png") == "dogs" and "dogs/01-0.png" not in table
    assert all(label == id.split("/")[0] for id, label in table.items())
    for line, code, word in (
        ("cats/none.png,,,dogs,", "VT017", "cats/none.png"), ("cats/02-0.png,,,dgos,", "VT018", "did you mean dogs?"),
    ):  # fmt: skip
        refused = split(line, out="no.csv")
        assert refused.status == 3 and code in refused.err and word in refused.err
    assert "VT016" in split(head="file,label", out="no.csv").err and not (tmp_path / "no.csv").exists()


def test_split_overwrites_nothing(vitrail_command, copies, tmp_path):
    (tmp_path / "split.csv").write_text("by hand")
    done = vitrail_command("data", "split", copies[0], "--out", tmp_path / "split.csv")
    assert done.status == 1 and "VT064" in done.err and (tmp_path / "split.csv").read_text() == "by hand"


def test_preview_draws_what_training_sees(pictures):
    """The cells of the first two epochs hold the very images of the batches."""
    train = open_source(str(pictures)).split("train")
    preprocessing = Preprocessing((8, 8), channels=1, mean=(0.5,), std=(0.5,))
    transforms = (Shift(0.2), Flip())
    sheet = contact_sheet(train, ("dark below", "light below"), transforms, preprocessing, 3, "title")
    drawn = np.asarray(Image.open(BytesIO(sheet)).convert("L"))
    batches = StepBatches(Pictures(train, preprocessing).check(), transforms, 3, len(train))
    row, column, place = 0, 0, train.ids.index(next(id for id in train.ids if id.startswith("dark")))
    for epoch in range(2):
        batch = batches[epoch]  # one step is one epoch
        image = batch.views[0][batch.ids.index(train.ids[place]), 0].numpy()
        top, left = 44 + row * 102, 170 + (1 + epoch) * (4 * 98 + 14) + column * 98
        np.testing.assert_array_equal(drawn[top : top + 96 : 12, left : left + 96 : 12], image)
    whole = train.read(place, 1)[:, :, 0]
    np.testing.assert_array_equal(drawn[44:140:12, 170:266:12], whole)


def test_preview_of_hostile_names_and_broken_pictures(vitrail_command, tmp_path):
    names = ["\u202eevil\x1b[31m", "x" * 200, "Ελληνικά", *(f"class {number}" for number in range(12))]
    for name in names:
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (30, 20 + number), "red").save(tmp_path / "data" / name / f"{number}.png")
        (tmp_path / "data" / name / "0.png").write_bytes(b"")
    done = vitrail_command("data", "preview", tmp_path / "data", "--out", tmp_path / "new" / "sheet.png", "--seed", "1")
    with Image.open(tmp_path / "new" / "sheet.png") as image:
        assert done.status == 0 and image.height == 44 + 12 * 102


def test_errors_of_the_verbs(vitrail_command, tmp_path):
    assert "VT011" in vitrail_command("data", "check", tmp_path / "nowhere").err
    assert "VT005" in vitrail_command("data", "preview", "fashion-mini", "--out", "x.png", "--recipe", "nothing").err
    assert vitrail_command("data", "preview", "fashion-mini").status == 2  # --out is needed
