"""`vitrail compare`: the verdict, what it rests on and what a reader must know, from two folders alone."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

import tiny
from vitrail.errors import DataError, UsageError, VitrailError
from vitrail.evaluation.predictions import COLUMNS
from vitrail.report import page
from vitrail.report.comparison import comparison

CLASSES = ("ant", "bee", "cow")


def write_run(
    folder, hits, *, split="test", labels=None, files=None, train=(), run=None, data=None, cost=None, **status
):
    """A run folder by hand: right where `hits` is true, 0.9 sure where it is right and 0.6 where it is wrong."""
    labels = [CLASSES[row % 3] for row in range(len(hits))] if labels is None else labels
    files = [f"{row:04d}.png" for row in range(len(hits))] if files is None else files
    place = folder / "eval" / split
    place.mkdir(parents=True)
    with open(place / "predictions.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for name, label, hit in zip(files, labels, hits, strict=True):
            said = label if hit else CLASSES[CLASSES.index(label) - 1]
            writer.writerow((name, label, said, 0.9 if hit else 0.6, 0.1 if hit else 0.8, 1 if hit else 2))
    counts = {"train": dict.fromkeys(CLASSES, 10), "test": {name: labels.count(name) for name in CLASSES}}
    facts = {"source": "zoo", "fingerprint": "f" * 64, "classes": list(CLASSES), "multi_label": False, "counts": counts}
    config = {"training": {"epochs": 3.0, "seed": 0}, "model": {"size": {"dim": 16}}, "why": [f"of {folder.name}"]}
    (folder / "data.json").write_text(json.dumps(facts | (data or {})))
    (folder / "config.json").write_text(json.dumps({"run": config | (run or {}), "cost": cost or {"parameters": 2000}}))
    (folder / "status.json").write_text(json.dumps({"status": "done", "seconds": 10.5, **status}))
    (folder / "split.csv").write_text("path,label,split\n" + "".join(f"{name},ant,train\n" for name in train))
    (folder / "metrics.jsonl").write_text(
        '{"step": 1, "epoch": 1.5, "val/top1": 0.25}\n{"step": 2, "epoch": 3.0, "images_per_second": 100.0}\n'
    )
    return folder


@pytest.fixture
def two(tmp_path):
    """Two runs by the shares of images that both, only A, only B and neither get right."""

    def make(both, only_a, only_b, neither, **changes):
        kinds = np.random.default_rng(0).permutation([0] * both + [1] * only_a + [2] * only_b + [3] * neither)
        a = write_run(tmp_path / "a", (kinds == 0) | (kinds == 1))
        return a, write_run(tmp_path / "b", (kinds == 0) | (kinds == 2), **changes)

    return make


def test_a_better_run_is_called_better(two, vitrail_command):
    a, b = two(1600, 80, 122, 198)
    answer = vitrail_command("compare", a, b)
    p = stats.binomtest(80, 202).pvalue
    assert answer.status == 0 and answer.err == "" and 0.001 < p < 0.01
    text = " ".join(answer.out.split())
    found = comparison(a, b)
    low, high = found["top1"]["interval"]
    assert (
        f"B is better by 2.1 points (95 % CI {100 * low:.1f} to {100 * high:.1f}; McNemar p = {p:.2g}, n = 2,000)"
        in text
    )
    # The normal approximation of the interval for paired shares (Wald).
    half = 1.96 * np.sqrt(202 - 42**2 / 2000) / 2000
    assert low == pytest.approx(0.021 - half, abs=5e-4) and high == pytest.approx(0.021 + half, abs=5e-4)
    assert "right both 1,600, only A 80, only B 122, neither 198" in text
    assert f"A {a}"[-20:] in text and "84.0 % (95 % CI" in text and "86.1 % (95 % CI" in text
    assert "whether it holds for their recipes, more seeds of each would say" in text


def test_a_difference_that_chance_makes_is_none(two, vitrail_command):
    a, b = two(1600, 90, 110, 200)
    text = " ".join(vitrail_command("compare", a, b).out.split())
    lead = next(d for d in range(0, 201, 2) if stats.binomtest((200 - d) // 2, 200).pvalue < 0.05)
    assert "no difference shown: B is 1.0 points ahead (95 % CI " in text and "is better" not in text
    assert f"with n = 2,000 a difference of about {100 * lead / 2000:.1f} points would have been needed" in text


def test_two_seeds_of_one_recipe(two):
    """What is significant between them is the spread of the recipe, and is called that."""
    seed = {"training": {"epochs": 3.0, "seed": 1}, "model": {"size": {"dim": 16}}}
    found = comparison(*two(300, 5, 30, 65, run=seed))
    assert found["verdict"]["better"] == "B" and [row["key"] for row in found["configuration"]] == ["training.seed"]
    assert found["notes"] == [
        "They differ by their seed alone: this is the spread of one recipe, no gain of one over the other."
    ]


def test_two_real_seeds(run, pictures, tmp_path, vitrail_command):
    """Four test images: no difference could be shown, and is not."""
    tiny.tiny(pictures, tmp_path / "other", training__seed=1)
    answer = vitrail_command("compare", run, tmp_path / "other", "--json")
    found = json.loads(answer.out)
    assert answer.status == 0 and found["matched"]["n"] == 4 and found["verdict"]["better"] is None
    assert found["configuration"] == [{"key": "training.seed", "a": 0, "b": 1}] and found["data"] == []
    assert found["notes"] == []
    assert found["top1"]["needed"] is None and found["a"]["baseline"]["name"] == "nearest neighbours"
    summary = json.loads((run / "eval" / "test" / "summary.json").read_text())
    assert found["a"]["top1"] == summary["top1"] and found["loss"]["a"] == pytest.approx(summary["loss"], abs=2e-6)
    assert [point[0] for point in found["curves"]["a"]] == [1, 2, 3]
    assert {"parameters", "training speed"} <= {row["name"] for row in found["cost"]}


def test_a_run_and_itself(run, vitrail_command):
    answer = vitrail_command("compare", run, run)
    assert "the same predictions on all 4 pictures" in answer.out and "config the same" in answer.out
    found = json.loads(vitrail_command("compare", run, run, "--json").out)
    assert found["top1"]["p"] == 1 and found["verdict"]["word"] == "same predictions" and found["notes"] == []
    assert found["changed"] == {"lost": [], "gained": []} and found["loss"]["interval"] == [0, 0]


def flipped(found):
    """The comparison with A and B exchanged, by hand."""

    def negative(part):
        low, high = part["interval"]
        swapped = {"a": part["b"], "b": part["a"], "difference": -part["difference"], "interval": [-high, -low]}
        return {**part, **swapped, **({"only_a": part["only_b"], "only_b": part["only_a"]} if "p" in part else {})}

    def exchanged(row, **more):
        return {**row, "a": row["b"], "b": row["a"], **more}

    sentence = found["verdict"]["sentence"].translate(str.maketrans("AB", "BA"))
    changed = [[exchanged(row, a_prob=row["b_prob"], b_prob=row["a_prob"]) for row in found["changed"][key]]
               for key in ("gained", "lost")]  # fmt: skip
    return found | {
        "a": found["b"], "b": found["a"], "top1": negative(found["top1"]), "loss": negative(found["loss"]),
        "matched": found["matched"] | {"only_a": found["matched"]["only_b"], "only_b": found["matched"]["only_a"]},
        "classes": [exchanged(row, difference=-row["difference"]) for row in found["classes"]],
        "configuration": [exchanged(row) for row in found["configuration"]],
        "data": [exchanged(row) for row in found["data"]], "curves": exchanged(found["curves"]),
        "cost": [exchanged(row, ratio=pytest.approx(1 / row["ratio"])) for row in found["cost"]],
        "changed": dict(zip(("lost", "gained"), changed, strict=True)),
        "verdict": {**found["verdict"], "better": {"A": "B", "B": "A"}[found["verdict"]["better"]],
                    "sentence": sentence.replace("95 % BI", "95 % CI")},
    }  # fmt: skip


def test_exchanging_the_runs_flips_every_sign(two):
    a, b = two(300, 5, 30, 65, cost={"parameters": 5000}, data={"source": "garden"}, seconds=21,
               run={"training": {"epochs": 9.0, "seed": 0}, "extra": [1]})  # fmt: skip
    found = comparison(a, b)
    assert found["top1"]["difference"] == pytest.approx(0.0625) and found["loss"]["difference"] < 0
    assert len(found["cost"]) == 3 and found["cost"][0]["ratio"] == 2.5
    other = comparison(b, a)
    for part in (found, other):
        part["configuration"].sort(key=lambda row: row["key"])
    assert other == flipped(found)


def test_classes_and_images_that_changed(two, vitrail_command):
    a, b = two(300, 5, 30, 65)
    found = comparison(a, b)
    lost, gained = found["changed"]["lost"], found["changed"]["gained"]
    assert (len(lost), len(gained)) == (5, 30)
    assert all(row["a"] == row["label"] != row["b"] and (row["a_prob"], row["b_prob"]) == (0.9, 0.6) for row in lost)
    assert all(row["b"] == row["label"] != row["a"] for row in gained)
    assert {row["name"] for row in found["classes"]} == set(CLASSES)
    assert sum(row["n"] * row["difference"] for row in found["classes"]) == pytest.approx(25)
    out = vitrail_command("compare", a, b).out
    assert "lost   A right, B wrong: 5\n" in out and "gained B right, A wrong: 30, the surest 5\n" in out
    sure = [row["name"] for row in found["classes"] if row["significant"]]
    assert f"class  {len(sure)} of 3 differ beyond chance" in out and sure


def test_what_cannot_be_compared_is_counted_and_said(tmp_path, vitrail_command):
    files = [f"{row}.png" for row in range(60)]
    labels = ["ant"] * 60
    a = write_run(tmp_path / "a", [True] * 60, labels=labels, files=files, train=["3.png", "elsewhere.png"])
    other = ["bee", "cow", *labels[2:]]
    b = write_run(
        tmp_path / "b", [True] * 30 + [False] * 30, labels=other, files=[*files[:59], "new.png"], train=["4.png"]
    )
    found = comparison(a, b)
    assert found["matched"] == {"n": 55, "only_a": 1, "only_b": 1, "other_label": 2, "trained_on": 2, "repeated": 0}
    assert found["top1"]["b"] == 26 / 55 and found["top1"]["only_a"] == 29
    text = " ".join(vitrail_command("compare", a, b).out.split())
    assert "not compared: 1 only A has, 1 only B has, 2 with another label, 2 trained on" in text
    assert "2 pictures are left out because one of the runs was trained on them." in text
    assert {row["key"] for row in found["data"]} == set()


def test_where_nothing_matches_it_says_why(tmp_path, vitrail_command):
    a = write_run(tmp_path / "a", [True] * 3, files=["1", "2", "3"])
    b = write_run(tmp_path / "b", [True] * 3, files=["2", "3", "4"], labels=["ant"] * 3, train=["3"])
    answer = vitrail_command("compare", a, b, "--json")
    assert answer.status == 3 and answer.err.startswith("error[VT028] no picture of the split 'test' can be compared: ")
    for reason in (
        f"1 pictures only {a} has",
        f"1 only {b} has",
        "1 have another label",
        "1 one of the runs was trained on",
    ):
        assert reason in answer.err
    assert json.loads(answer.out)["error"]["code"] == "VT028"


def test_another_split(tmp_path, run):
    """Folders of `eval --data` hold other images, so training images of that name are no reason to leave them out."""
    for name, hits in (("a", [True] * 9), ("b", [False] * 9)):
        write_run(tmp_path / name, hits, split="photos-test", train=["0001.png"])
    assert comparison(tmp_path / "a", tmp_path / "b", "photos-test")["matched"]["n"] == 9
    with pytest.raises(DataError, match="has no predictions of the split 'test'") as refused:
        comparison(tmp_path / "a", tmp_path / "b")
    assert refused.value.code == "VT027" and "one of photos-test" in refused.value.expected
    for split in ("../test", "", "a/b", "..", "."):
        with pytest.raises(UsageError):
            comparison(run, run, split)
    with pytest.raises(UsageError) as refused:
        comparison(run, tmp_path)
    assert refused.value.code == "VT026"


def test_notes_for_the_reader(two):
    found = comparison(*two(300, 5, 30, 65, status="interrupted", data={"fingerprint": "other"}))
    assert "B is not finished (interrupted)." in found["notes"]
    assert any(note.startswith("The pictures have changed between the runs") for note in found["notes"])
    assert [row["key"] for row in found["data"]] == ["fingerprint"]


def test_right_more_often_and_yet_a_higher_loss(tmp_path):
    a = write_run(tmp_path / "a", [True] * 50 + [False] * 50)
    b = write_run(tmp_path / "b", [True] * 70 + [False] * 30)
    path = b / "eval" / "test" / "predictions.csv"
    path.write_text(path.read_text().replace(",0.8,2", ",9.5,2"))
    assert any("B is right more often, but its loss is higher" in note for note in comparison(a, b)["notes"])
    assert not any("its loss is higher" in note for note in comparison(a, a)["notes"])


def test_the_text_fits_and_names_cannot_write_to_the_terminal(tmp_path, vitrail_command):
    evil = "cl\x1b[31mass\n\u202e" + "long " * 30
    files = [f"{'deep folder/' * 20}{row}\t.png" for row in range(40)]
    changes = {"run": {"training": {"epochs": 1, "note": "x" * 300}, evil: [1, {"a": evil}]}, "data": {"source": evil}}
    a = write_run(tmp_path / ("a" * 60), [True] * 40, files=files)
    b = write_run(tmp_path / ("b" * 60), [False] * 40, files=files, **changes)
    for side in (a, b):
        path = side / "eval" / "test" / "predictions.csv"
        rows = list(csv.reader(path.read_text().splitlines()))
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([evil if cell == "ant" else cell for cell in row] for row in rows)
    out = vitrail_command("compare", a, b).out
    assert max(map(len, out.splitlines())) <= 80
    assert all(line.isprintable() for line in out.splitlines()) and "0.90" in out
    found = comparison(a, b)
    assert found["data"] == [{"key": "source", "a": "zoo", "b": evil}] and evil in {
        row["name"] for row in found["classes"]
    }


@pytest.mark.parametrize(("name", "text"), [
    ("data.json", '{"source": "zoo", "classes": ["ant"], "counts": {"train": 3, "test": {"ant": "x", "bee": NaN}}}'),
    ("data.json", "[]"), ("config.json", '{"run": {"lr": NaN, "why": 3}, "cost": [1]}'), ("config.json", "no"),
    ("status.json", '{"status": "done", "seconds": Infinity, "peak_memory_bytes": "many"}'),
    ("metrics.jsonl", '{"val/top1": "high", "epoch": []}\n{"images_per_second": {}}\n'), ("metrics.jsonl", "nothing\n"),
    ("status.json", '{"status": "done", "seconds": 1' + "0" * 400 + "}"),
])  # fmt: skip
def test_damaged_files_cost_their_part_only(two, vitrail_command, name, text):
    a, b = two(30, 1, 9, 10)
    (b / name).write_text(text)
    for sides in ((a, b), (b, a), (b, b)):
        assert vitrail_command("compare", *sides).status == 0
        answer = vitrail_command("compare", *sides, "--json")
        assert answer.status == 0 and json.loads(answer.out)["matched"]["n"] == 50


@pytest.mark.parametrize(("name", "text"), [
    ("eval/test/predictions.csv", "file,label\n"), ("split.csv", "name,split\nx,train\n"),
])  # fmt: skip
def test_damaged_tables_are_named(two, name, text):
    a, b = two(30, 1, 9, 10)
    (b / name).write_text(text)
    with pytest.raises(VitrailError, match=name) as refused:
        comparison(a, b)
    assert refused.value.code == "VT063"


def test_numbers_that_are_none(two):
    a, b = two(30, 1, 9, 10)
    path = b / "eval" / "test" / "predictions.csv"
    path.write_text(path.read_text().replace(",0.6,0.8", ",nan,nan"))
    found = comparison(a, b)
    assert found["loss"] is None and json.dumps(found, allow_nan=False)
    assert {row["b_prob"] for row in found["changed"]["lost"]} == {0.0}


def test_several_labels_have_no_classes_of_their_own(two):
    found = comparison(*two(30, 1, 9, 10, data={"multi_label": True}))
    assert found["classes"] == [] and found["top1"]["only_b"] == 9


def test_the_page_is_made_of_the_same_facts(two, vitrail_command, tmp_path, monkeypatch):
    a, b = two(30, 1, 9, 10)
    out = tmp_path / "new folder" / "page.html"
    seen = []
    monkeypatch.setattr(page, "compare_page", lambda facts: seen.append(facts) or "<!doctype html>", raising=False)
    answer = vitrail_command("compare", a, b, "--out", out)
    assert answer.out.endswith(f"where  {out}\n") and out.read_text() == "<!doctype html>"
    assert seen == [json.loads(vitrail_command("compare", a, b, "--json").out)]


def test_torch_is_not_imported(two):
    a, b = two(30, 1, 9, 10)
    code = (
        "import sys\nfrom pathlib import Path\nfrom vitrail.commands.compare import run_compare\n"
        f"run_compare(Path({str(a)!r}), Path({str(b)!r}), 'test', None, True)\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
