"""The first look at a report: whether its headline can be believed, what it says to do, and commands that can be typed."""

import re
from dataclasses import replace

import pytest

from stories import CLASSES, predictions, problem, rich, story, with_problems, with_summary
from vitrail.evaluation.labels import Suspect
from vitrail.recipes.show import OF_A_CLASS, SUSPECTS, of_every_class
from vitrail.report.card import card
from vitrail.report.findings import findings, next_steps
from vitrail.report.page import run_page
from vitrail.report.trust import doubtful_test, reservations
from vitrail.report.typed import anywhere, command_of, train_command


def first_card(whole):
    """The words of the card "How good is it?"."""
    found = re.search(r'id="lead-good".*?</section>', run_page(whole), re.S)[0]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", found).replace("&nbsp;", " "))


def kinds(whole):
    return {finding.kind: finding for finding in findings(whole)}


def leaking(tmp_path, indices):
    return with_problems(story(tmp_path), problem("leak", members=[(f"test/{i}.png", "test") for i in indices]))


def suspects(*members, label="ash"):
    return tuple(
        {"id": name, "split": split, "label": label, "suggested": "beech", "doubt": 2.0} for name, split in members
    )


def test_a_leaked_figure_is_not_the_headline(tmp_path):
    """300 test pictures, 270 right; of the last 210 all are right, of the first 90 there are 60."""
    whole = leaking(tmp_path, range(90, 300))
    said = first_card(whole)
    assert "66.7 % right on 90 test pictures that it had not seen" in said
    assert "90.0 % on all 300 is too good: 210 of them were in train or val too" in said
    assert "95 % interval 56.4 to 75.5 %" in said  # Wilson, 60 of 90, by hand
    assert "<title>run: 66.7 % right (90.0 % with leaked test pictures)</title>" in run_page(whole)
    written = card(whole)
    assert "value: 0.6667" in written and "accuracy without 210 leaked" in written and "is too good" in written
    assert "value: 0.9000" in card(story(tmp_path)) and "too good" not in card(story(tmp_path))


def test_a_leak_that_did_not_help_is_not_called_too_good(tmp_path):
    said = first_card(leaking(tmp_path, range(0, 90, 3)))  # the thirty mistakes
    assert "100.0 % right on 270 test pictures" in said and "90.0 % on all 300, 30 of them were" in said
    assert "they did not help" in kinds(leaking(tmp_path, range(0, 90, 3)))["data-leak"].evidence
    assert "they did not help" not in kinds(leaking(tmp_path, range(90, 300)))["data-leak"].evidence


def test_a_test_that_was_seen_whole_gives_no_figure(tmp_path):
    whole = leaking(tmp_path, range(300))
    assert "not to be believed" in first_card(whole)


def test_a_clean_test_is_said_to_be_clean_only_where_it_was_looked_at(tmp_path):
    whole = story(tmp_path)
    assert "No test picture was found in training" in first_card(whole)
    part = replace(whole, data={**whole.data, "examination": {"seen": 700, "of": 1500, "problems": []}})
    assert "No test picture was found in training, among the 700 pictures that were looked at" in first_card(part)
    unseen = replace(whole, data={key: value for key, value in whole.data.items() if key != "examination"})
    assert list(reservations(unseen)) == [] and "found in training" not in first_card(unseen)
    assert "found in training" not in first_card(leaking(tmp_path, [1]))


def test_wrong_test_labels_pull_the_figure_down(tmp_path):
    """test/0.png and test/3.png count as mistakes, test/1.png does not."""
    whole = story(tmp_path, suspects=suspects(("test/0.png", "test"), ("test/1.png", "test"), ("test/3.png", "test"),
                                              ("train/0.png", "train")))  # fmt: skip
    doubt = doubtful_test(whole)
    assert (doubt.count, doubt.missed) == (3, 2) and doubt.points == pytest.approx(100 * 2 / 300)
    assert "3 test labels look wrong: if they are, the true figure is up to 0.7 points higher" in first_card(whole)
    assert "understated by up to 0.7 points" in kinds(whole)["labels"].evidence
    train_only = story(tmp_path, suspects=suspects(("train/0.png", "train")))
    assert doubtful_test(train_only) is None and "higher" not in first_card(train_only)
    both = replace(whole, data=leaking(tmp_path, range(90, 300)).data)
    assert "pull the other way: 3 of" in kinds(both)["data-leak"].evidence and "too good" in first_card(both)
    assert doubtful_test(both).points == pytest.approx(100 * 2 / 90)  # of those that were not seen before
    leaked = replace(whole, data=leaking(tmp_path, [0, 1, 3]).data)
    assert doubtful_test(leaked) is None and "pull the other way" not in kinds(leaked)["data-leak"].evidence


def test_test_pictures_that_cannot_be_read_are_accounted_for(tmp_path):
    whole = story(tmp_path)
    counts = {**whole.data["counts"], "test": {"ash": 102, "beech": 100, "cedar": 100}}
    assert "2 of the 302 test pictures cannot be read" in first_card(
        replace(whole, data={**whole.data, "counts": counts})
    )
    assert "cannot be read" not in first_card(whole)


def test_what_to_do_is_an_order_with_its_command(tmp_path):
    whole = with_problems(
        story(tmp_path, suspects=suspects(("train/0.png", "train"))),
        problem(
            "leak", fix="Keep copies together: vitrail data split trees --out split.csv, then vitrail train split.csv"
        ),
        problem(
            "missing-class", fix="Give val some: vitrail data split trees --out split.csv, then vitrail train split.csv"
        ),
    )
    found = kinds(whole)
    command = f"vitrail data split trees --out split.csv && vitrail train split.csv --epochs 10 --out {tmp_path}/run-2"
    assert found["data-leak"].action == "Keep copies together" and found["data-leak"].command == command
    assert "--relabel reviewed.csv --out corrected.csv && vitrail train corrected.csv" in found["labels"].command
    page = run_page(whole)
    todo = re.search(r'id="lead-next".*?</section>', page, re.S)[0]
    assert todo.count("<pre>") == 2 and "(the same command)" in todo and "Keep copies together</a>" in todo
    built_in = replace(whole, data={**whole.data, "source": "fashion-mini"})
    assert kinds(built_in)["labels"].command == "" and "built in" in kinds(built_in)["labels"].advice


def test_every_finding_that_is_not_good_says_what_to_do(tmp_path):
    worse = [
        {
            "name": "nearest neighbours",
            "top1": 0.95,
            "interval": [0.9, 1],
            "how": "",
            "only_model": 1,
            "only_baseline": 20,
        }
    ]
    whole = with_summary(rich(tmp_path), baselines=worse, train={"n": 9, "top1": 1.0, "top1_interval": [0, 1]}, n=30,
                         top1_interval=[0.7, 0.96])  # fmt: skip
    found = findings(whole)
    assert {"baseline", "overfit", "few-images", "labels", "confusion", "data-leak"} <= {f.kind for f in found}
    assert all(bool(finding.action) == (finding.severity != "good") for finding in found)


def test_one_class_does_not_fill_the_gallery():
    every = [Suspect(f"{i}", "train", CLASSES[0 if i < 60 else i % 3], "x", 100.0 - i) for i in range(90)]
    chosen = of_every_class(every)
    assert [s.id for s in chosen[:3]] == ["0", "1", "2"] and len(chosen) == 3 * OF_A_CLASS
    assert {label: sum(s.label == label for s in chosen) for label in CLASSES} == dict.fromkeys(CLASSES, OF_A_CLASS)
    many = [Suspect(f"{i}", "train", f"class {i}", "x", 100.0 - i) for i in range(90)]
    assert [s.id for s in of_every_class(many)] == [str(i) for i in range(SUSPECTS)]


def test_suspects_are_counted_by_class_and_split(tmp_path):
    whole = story(
        tmp_path,
        suspects=suspects(("train/0", "train"), ("val/1", "val")) + suspects(("train/2", "train"), label="cedar"),
    )
    assert "ash 2, cedar 1; train 2, val 1." in kinds(whole)["labels"].evidence


def test_commands_hold_wherever_they_are_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = story(tmp_path, command="vitrail train trees --out run --lr 0.1\ncd /pictures\n", folder=tmp_path / "run")
    whole = replace(whole, folder=(tmp_path / "run").relative_to(tmp_path))
    assert anywhere(whole, train_command(whole, epochs="20")) == (
        f"vitrail train /pictures/trees --lr 0.1 --epochs 20 --out {tmp_path}/run-2"
    )
    assert anywhere(whole, "vitrail data split trees --out a.csv && vitrail train a.csv") == (
        "vitrail data split /pictures/trees --out a.csv && vitrail train a.csv"
    )
    built_in = replace(whole, data={**whole.data, "source": "fashion-mini"})
    assert anywhere(built_in, "vitrail eval run --data fashion-mini").endswith("--data fashion-mini")
    assert f"vitrail predict {tmp_path}/run PICTURE.png" in run_page(whole) and "cd /pictures\n" in run_page(whole)
    assert next_steps(whole)[-1][1] == "vitrail compare run OTHER_RUN"  # on the terminal as it was typed


def test_a_run_that_a_program_started_shows_a_command_that_works(tmp_path):
    origin = {"training.epochs": "command line", "training.seed": "recipe demo", "data.source": "command line"}
    whole = story(tmp_path, command="vitrail --out planted\ncd /somewhere\n")
    whole = replace(whole, config={**whole.config, "origin": origin})
    assert command_of(whole) == "" and "vitrail --out planted" not in run_page(whole)
    assert "A Python program started this run" in run_page(whole)
    assert train_command(whole) == f"vitrail train trees --set training.epochs=10.0 --out {tmp_path}/run-2"
    assert "A Python program" not in run_page(story(tmp_path))
    stopped = replace(whole, status={"status": "interrupted"}, summary={})
    assert kinds(stopped)["unfinished"].command == ""


def test_parts_of_the_curve_from_few_answers_stand_in_the_table_alone(tmp_path):
    found = predictions([(index, "beech") for index in range(0, 90, 3)])
    found.probability[:2] = 0.31
    page = run_page(story(tmp_path, found))
    assert "1 of the 2 bins have fewer than 10 answers" in page and "0.3-0.4 (n = 2)" in page
    line = re.search(r'aria-label="Share of right answers.*?<path class="line-0" d="([^"]+)"', page, re.S)[1]
    assert line.count("L") == 0  # one point; the two answers draw none
    found.probability[:12] = 0.31
    page = run_page(story(tmp_path, found))
    assert "fewer than 10 answers" not in page


def test_notes_are_folded_and_the_words_explained(tmp_path):
    page = run_page(rich(tmp_path))
    folded = re.search(r"<details><summary>1 note: tiny</summary>(.*?)</details>", page, re.S)[1]
    assert 'id="data-tiny"' in folded and 'id="data-leak"' not in folded
    for word in ("95 % interval", "top-1", "nearest neighbours", "McNemar p", "leak", "attention rollout", "FLOPs"):
        assert re.search(rf"<dt>[^<]*{word}", page), word


def test_a_list_that_is_cut_says_so(tmp_path):
    def listing(groups, of_each=1):
        item = problem("blank", "warning")
        member = {"split": "train", "label": "ash"}
        item |= {"groups": [[{**member, "id": f"{i}-{j}"} for j in range(of_each)] for i in range(groups)],
                 "count": 124}  # fmt: skip
        return re.search(r"<summary>(List[^<]*)", run_page(with_problems(story(tmp_path), item)))[1]

    assert listing(99) == "List of them" and listing(100) == "List of the first 100 of 124"
    assert listing(100, 2) == "List of the first 100 groups"


def test_weak_classes_stand_before_blemishes_of_the_data(tmp_path):
    whole = with_problems(story(tmp_path), problem("blank", "warning", fix="Remove the blank pictures."))
    order = [finding.kind for finding in findings(whole)]
    assert order.index("weak-classes") < order.index("data-blank")
