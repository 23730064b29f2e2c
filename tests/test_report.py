"""The report says what the folder holds: every verdict follows its input, nothing from outside becomes markup."""

import json
import os
import re
import shutil
import signal
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from stories import CLASSES, predictions, problem, story, with_problems, with_summary
from vitrail.errors import UsageError
from vitrail.evaluation.predictions import read_predictions
from vitrail.report.card import card
from vitrail.report.charts import Series, line_chart, ticks
from vitrail.report.findings import advice_and_command, findings, next_steps
from vitrail.report.gallery import Tile, read_gallery, webp, write_gallery
from vitrail.report.page import run_page
from vitrail.report.story import read_story
from vitrail.report.trust import without_leaks
from vitrail.report.typed import train_command
from vitrail.statistics import wilson_interval
from vitrail.training.loop import Trainer


def kinds(whole):
    return {finding.kind: finding for finding in findings(whole)}


def test_the_baseline_decides_the_verdict(tmp_path):
    def against(top1, interval, better, worse):
        baseline = {"name": "nearest neighbours", "top1": top1, "interval": interval, "how": "",
                    "only_model": better, "only_baseline": worse}  # fmt: skip
        return kinds(with_summary(story(tmp_path), baselines=[baseline]))["baseline"]

    assert (
        against(0.5, [0.45, 0.55], 150, 20).severity == "good"
        and "40.0 points" in against(0.5, [0.45, 0.55], 150, 20).title
    )
    assert against(0.89, [0.86, 0.92], 23, 20).severity == "look"
    worse = against(0.95, [0.92, 0.97], 5, 20)
    assert worse.severity == "act" and "does not beat" in worse.title and "--epochs 20" in worse.command


def test_the_most_confused_pair_is_named_with_its_numbers(tmp_path):
    wrong = (
        [(index, "cedar") for index in range(1, 60, 3)]
        + [(index, "beech") for index in range(2, 24, 3)]
        + [(0, "cedar")]
    )
    found = kinds(story(tmp_path, predictions(wrong)))["confusion"]
    assert "beech and cedar" in found.title and "20 beech taken for cedar, 8 the other way" in found.evidence
    assert "28 of 29 mistakes" in found.evidence
    swapped = [(index, "ash") for index in range(2, 24, 3)]
    assert "cedar and ash" in kinds(story(tmp_path, predictions(swapped)))["confusion"].title
    assert "confusion" not in kinds(story(tmp_path, predictions()))


def test_weak_classes_are_told_from_chance(tmp_path):
    weak = kinds(story(tmp_path, predictions([(index, "beech") for index in range(0, 90, 3)])))["weak-classes"]
    assert "ash (70.0 %)" in weak.title and "Right on: ash (70.0 %); on all pictures 90.0 %" in weak.evidence
    even = [(index, CLASSES[(index + 1) % 3]) for index in range(30)]
    assert "weak-classes" not in kinds(story(tmp_path, predictions(even)))


@pytest.mark.parametrize(
    ("train", "verdict"), [(0.99, "fit"), (1.0 + 0.02, "overfit"), (0.905, "underfit"), (0.95, "fit")]
)
def test_learned_by_heart_or_too_little(tmp_path, train, verdict):
    whole = story(tmp_path)
    found = kinds(with_summary(whole, train={"n": 10, "top1": train, "top1_interval": [0, 1]}))
    assert {"overfit", "underfit", "fit"} & set(found) == {verdict}
    assert f"Right on {100 * train:.1f} % of training pictures, on 90.0 %" in found[verdict].evidence


def test_calibration_follows_the_probabilities(tmp_path):
    wrong = [(index, CLASSES[(index + 1) % 3]) for index in range(0, 300, 5)]  # 80 % are right
    verdicts = {p: kinds(story(tmp_path, predictions(wrong, p)))["calibration"] for p in (0.99, 0.8, 0.745, 0.5)}
    assert verdicts[0.8].severity == "good" and "right on average" in verdicts[0.8].title
    assert verdicts[0.745].severity == "good" and "slightly too cautious" in verdicts[0.745].title
    assert "are too sure" in verdicts[0.99].title and "are too cautious" in verdicts[0.5].title
    assert {verdicts[0.99].severity, verdicts[0.5].severity} == {"look"}
    assert "says 99.0 % and is right in 80.0 %" in verdicts[0.99].title
    for p, word in ((0.99, "too sure"), (0.745, "slightly too cautious")):  # the curve says what the finding says
        assert f"its probabilities are {word} (" in run_page(story(tmp_path, predictions(wrong, p)))


def test_problems_of_the_data_become_findings_with_their_command(tmp_path):
    whole = with_problems(story(tmp_path), problem("missing-class", fix="Add images."), problem("rotated", "note"))
    found = kinds(whole)
    assert found["data-missing-class"].severity == "act" and found["data-missing-class"].action == "Add images"
    assert "data-rotated" not in found
    assert not [kind for kind in kinds(story(tmp_path)) if kind.startswith("data-")]


def test_a_fix_is_taken_apart_into_words_and_what_can_be_typed():
    assert advice_and_command("Keep copies together: vitrail data split a --out b, then vitrail train b") == (
        "Keep copies together", "vitrail data split a --out b && vitrail train b")  # fmt: skip
    assert advice_and_command("vitrail data split a") == ("", "vitrail data split a")
    assert advice_and_command("Remove them.") == ("Remove them.", "")


def test_a_leak_is_told_with_what_it_does_to_the_result(tmp_path):
    members = [*((f"test/{index}.png", "test") for index in range(90, 300)), ("train/1.png", "train")]
    whole = with_problems(story(tmp_path), problem("leak", members=members))
    clean = without_leaks(whole)
    assert (clean.leaked, clean.n) == (210, 90) and clean.top1 == pytest.approx(60 / 90)
    assert clean.interval == wilson_interval(60, 90)
    found = kinds(whole)["data-leak"]
    assert "Without the 210 test pictures that were seen before, top-1 is 66.7 % (95 % CI" in found.evidence
    assert found.command == "vitrail data split trees --out split.csv" and found.command in [
        c for _, c in next_steps(whole)
    ]
    assert without_leaks(story(tmp_path)) is None


def test_suspected_labels_small_tests_waiting_and_unfinished_runs(tmp_path):
    suspect = {"id": "train/7.png", "split": "train", "label": "ash", "suggested": "beech", "doubt": 2.0}
    assert (
        "train/7.png is labelled ash; the model says beech"
        in kinds(story(tmp_path, suspects=(suspect,)))["labels"].evidence
    )
    assert "labels" not in kinds(story(tmp_path))
    small = with_summary(story(tmp_path), n=30, top1_interval=[0.7, 0.96])
    assert "few-images" in kinds(small) and "few-images" not in kinds(story(tmp_path))
    waiting = story(tmp_path, records=({"step": 20, "epoch": 1.0, "train/loss": 1.0, "data_wait": 0.5},))
    assert "--workers 2" in kinds(waiting)["data-wait"].command
    assert "data-wait" not in kinds(replace(waiting, config={"machine": {"workers": 2}}))
    stopped = story(tmp_path, status={"status": "interrupted", "step": 120, "steps": 400})
    assert "step 120 of 400" in kinds(stopped)["unfinished"].title and "unfinished" not in kinds(story(tmp_path))


def test_what_needs_action_comes_first(tmp_path):
    whole = with_problems(story(tmp_path), problem("leak"))
    order = [finding.severity for finding in findings(whole)]
    assert order == sorted(order, key=["act", "look", "good"].index) and order[0] == "act"


def test_a_train_command_keeps_what_was_typed(tmp_path):
    whole = story(
        tmp_path, command="vitrail train 'my trees' --out=run --epochs 10 --overwrite --lr 0.1\ncd /somewhere\n"
    )
    assert train_command(whole, epochs="20") == f"vitrail train 'my trees' --lr 0.1 --epochs 20 --out {tmp_path}/run-2"
    for typed in ("--set training.epochs=10", "--set=training.epochs=10", "--epochs=10", "--time-limit 30m"):
        whole = story(tmp_path, command=f"vitrail train trees {typed} --set training.clip=2\n")
        expected = f"vitrail train trees --set training.clip=2 --epochs 20 --out {tmp_path}/run-2"
        assert train_command(whole, epochs="20") == expected
    assert train_command(story(tmp_path, command="")).startswith("vitrail train trees")
    named = story(tmp_path, command="vitrail train ./trees/ --recipe trees\n")  # as fashion-mnist, which is both
    assert train_command(named, "split.csv") == f"vitrail train split.csv --recipe trees --out {tmp_path}/run-2"


class Reader(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.addresses, self.words = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attributes]
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action", "data", "srcset")]

    def handle_data(self, data):
        self.words.append(data)


HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(2)>'


def test_a_class_called_script_stays_text(tmp_path):
    names = (HOSTILE, "beech", "cedar")
    wrong = [(index, "beech") for index in range(0, 90, 3)]
    whole = story(tmp_path, predictions(wrong, classes=names))
    tile = Tile("worst", HOSTILE, "test", HOSTILE, HOSTILE, 0.9, picture=b"x")
    whole = replace(
        whole, data={**whole.data, "classes": list(names), "source": HOSTILE}, gallery=(tile,), command=HOSTILE
    )
    page = run_page(with_problems(whole, problem("leak", fix=HOSTILE, members=[(HOSTILE, "test")])))
    read = Reader(page)
    assert "script" not in read.tags and not [name for name in read.attributes if name.startswith("on")]
    assert any(HOSTILE in words for words in read.words)
    assert all(address.startswith(("#", "data:image/webp;base64,")) for address in read.addresses)
    assert "<script" not in card(whole)


def test_the_page_asks_no_host(tmp_path):
    page = run_page(story(tmp_path))
    assert "default-src 'none'" in page and not re.findall(r"https?://(?!www\.w3\.org)", page)
    assert "url(" not in page and "@import" not in page


def test_a_thousand_classes_stay_readable(tmp_path):
    names = tuple(f"class {index:04d}" for index in range(1000))
    wrong = [(index, names[(index + 1) % 1000]) for index in range(0, 3000, 7)]
    whole = story(tmp_path, predictions(wrong, count=3000, classes=names))
    counts = {"train": dict.fromkeys(names, 3)}
    whole = replace(whole, data={**whole.data, "classes": list(names), "counts": counts})
    page = run_page(whole)
    heat = re.search(r'<table class="heat">(.*?)</table>', page, re.S)[1]
    assert heat.count('scope="row"') == 20 and len(page) < 2_000_000
    open_part = re.sub(r"<details>.*?</details>", "", page, flags=re.S)
    assert open_part.count('class="name">class ') == 30


numbers = st.floats(-1e9, 1e9) | st.floats(-1e-9, 1e-9)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=400))
def test_charts_hold_their_points(points):
    """Every point lies in the square, the ticks are round and enclose the values, and long courses are thinned."""
    chart = line_chart("t", "x", "y", [Series("a", [abs(x) for x, _ in points], [y for _, y in points])])
    places = [float(number) for number in re.findall(r"-?[\d.e-]+", chart.lines[0].path.removesuffix("h0.01"))]
    assert all(-0.01 <= place <= 100.01 for place in places) and len(places) <= 600
    least, most = min(y for _, y in points), max(y for _, y in points)
    found, (low, high) = ticks(least, most)
    slack = 1e-6 * (high - low)
    assert low <= least + slack and high >= most - slack and 2 <= len(found) <= 12


def test_every_section_of_the_menu_exists_and_every_anchor(tmp_path, run):
    for page in (run_page(read_story(run)), run_page(story(tmp_path))):
        identities = re.findall(r'\bid="([^"]+)"', page)
        assert len(identities) == len(set(identities))
        assert {address[1:] for address in Reader(page).addresses if address.startswith("#")} <= set(identities)


def test_the_card_has_the_numbers_of_the_report(run):
    summary = json.loads((run / "eval" / "test" / "summary.json").read_text())
    text, page = (run / "README.md").read_text(), (run / "report.html").read_text()
    number = f"{100 * summary['top1']:.1f} %"
    assert f"| this model | {number}" in text and number in page
    assert f"value: {summary['top1']:.4f}" in text and all(f"plots/{n}.png" in text for n in ("curves", "confusion"))


def test_any_part_of_a_folder_may_be_missing_or_broken(run, tmp_path, vitrail_command):
    """Each file alone is removed, then cut in half: the report is made all the same and names it."""
    names = ("command.txt", "environment.json", "status.json", "metrics.jsonl", "eval/test/predictions.csv",
             "eval/test/summary.json", "eval/suspects.json", "samples/gallery.json", "data.json")  # fmt: skip
    for number, name in enumerate(names):
        for broken in (False, True):
            folder = tmp_path / f"{number}{broken}"
            shutil.copytree(run, folder)
            content = (folder / name).read_bytes()
            (folder / name).unlink()
            if broken:
                (folder / name).write_bytes(content[: len(content) // 2])
            done = vitrail_command("report", folder)
            page = (folder / "report.html").read_text()
            assert done.status == 0 and "</html>" in page
            if not broken or name.endswith(".json"):
                assert name in re.search(r'id="missing".*', page, re.S)[0]
    (tmp_path / "no run").mkdir()
    refused = vitrail_command("report", tmp_path / "no run")
    assert refused.status == 2 and "VT026" in refused.err


def test_files_that_do_not_fit_together_are_said_to(run, tmp_path, vitrail_command):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "eval" / "test" / "summary.json").write_text('{"n": 4, "top1": "high"}')
    (folder / "data.json").write_text('{"counts": [], "classes": 3}')
    done = vitrail_command("report", folder)
    page = (folder / "report.html").read_text()
    assert done.status == 0 and "</html>" in page
    assert (
        "summary.json cannot be read (top1 is &#39;high&#39;)" in page
        and "data.json cannot be read (source is missing)" in page
    )


def test_report_prints_the_findings(run, vitrail_command):
    told = json.loads(vitrail_command("report", run, "--json").out)
    assert {finding["kind"] for finding in told["findings"]} == set(kinds(read_story(run))) and told["missing"] == []


def test_a_run_with_several_labels(pictures, tmp_path, vitrail_command):
    """Nothing is "taken for" another thing there; the classes are told one by one."""
    names = sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.png"))
    rows = [
        f"{pictures / name},{name.split('/')[0]}{';odd' if index % 3 == 0 else ''}" for index, name in enumerate(names)
    ]
    (tmp_path / "data.csv").write_text("\n".join(["path,label", *rows]))
    done = vitrail_command("train", tmp_path / "data.csv", "--out", tmp_path / "run", *tiny.flags())
    page = (tmp_path / "run" / "report.html").read_text()
    assert done.status == 0, done.err
    assert "Pictures may have several labels here" in page and 'id="confusion"' not in page and 'id="classes"' in page
    assert not {"confusion", "labels", "calibration", "weak-classes"} & set(kinds(read_story(tmp_path / "run")))


def test_a_stopped_run_leaves_a_report(pictures, tmp_path, monkeypatch, vitrail_command):
    """Ctrl-C after a few steps: what there is so far is told, with the way to go on."""
    advance = Trainer.advance

    def stop(self, batch):
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return advance(self, batch)

    monkeypatch.setattr(Trainer, "advance", stop)
    done = vitrail_command("train", pictures, "--out", tmp_path / "run", *tiny.flags())
    page = (tmp_path / "run" / "report.html").read_text()
    assert done.status == 130 and "This run was stopped, at step 4 of 12" in page and "vitrail train" in page
    assert "eval/test/summary.json is not there" in page
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["vitrail"])
    tiny.tiny(pictures, tmp_path / "run")
    assert "finished" in (tmp_path / "run" / "report.html").read_text()


def test_no_run_folder_no_story(tmp_path):
    with pytest.raises(UsageError, match="no run folder"):
        read_story(tmp_path)


def test_predictions_come_back_as_they_went(tmp_path):
    found = predictions([(3, "beech")])
    odd = replace(found, files=('a,b"c\n.png', *found.files[1:]))
    odd.write(tmp_path / "predictions.csv")
    back = read_predictions(tmp_path / "predictions.csv")
    assert back.files == odd.files and back.predicted == odd.predicted and (back.rank == odd.rank).all()
    np.testing.assert_allclose(back.loss, odd.loss, atol=1e-6)


def test_the_gallery_keeps_small_pictures_exactly(tmp_path):
    from io import BytesIO

    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 255, (28, 20, 3), dtype=np.uint8)
    write_gallery(tmp_path, [Tile("worst", "a.png", "test", "ash", picture=webp(picture))])
    write_gallery(tmp_path, [Tile("pair", "b.png", "test", "ash", picture=webp(picture))])
    (tile,) = read_gallery(tmp_path / "samples" / "gallery.json")
    assert tile.id == "b.png" and (np.asarray(Image.open(BytesIO(tile.picture))) == picture).all()
    assert max(Image.open(BytesIO(webp(np.zeros((2000, 900, 3), np.uint8)))).size) == 192
    next((tmp_path / "samples" / "gallery").iterdir()).write_bytes(b"<svg onload=alert(1)>")
    assert read_gallery(tmp_path / "samples" / "gallery.json")[0].picture == b""
