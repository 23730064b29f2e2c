"""What a run leaves behind: everything the product page lists, numbers that can be counted again, a model that predicts."""

import csv
import json
import os
import re
import shutil
import subprocess
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import norm
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

import tiny
import vitrail
from vitrail.data.batches import Pictures
from vitrail.data.sources import Dataset, open_source
from vitrail.errors import DataError
from vitrail.evaluation.baselines import majority, nearest_pixels, pixels
from vitrail.evaluation.neighbours import by_place, right_of
from vitrail.nearest import nearest
from vitrail.preprocessing import Preprocessing
from vitrail.recipes.asked import Asked, plan_run
from vitrail.recipes.beginning import default_folder
from vitrail.training.folder import refuse_foreign, remove_run


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def read_json(path):
    return json.loads(path.read_text())


def test_everything_is_there(run):
    contents = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    best, latest = ((run / "checkpoints" / name).read_text().strip() for name in ("best", "latest"))
    model = ["config.json", "model.safetensors", "preprocessor_config.json", "README.md"]
    expected = {
        "command.txt", "config.json", "environment.json", "git.txt", "diff.patch", "data.json", "split.csv",
        "metrics.jsonl", "status.json", "README.md", "samples/train_batch.png", "eval/test/predictions.csv",
        "eval/test/summary.json", "eval/suspects.csv", "eval/suspects.json",
        "report.html", "plots/curves.png", "plots/confusion.png", "plots/reliability.png", "samples/gallery.json",
        "events.log", "checkpoints/latest", "checkpoints/best", ".lock",
    }  # fmt: skip
    for step in {best, latest}:
        expected |= {f"checkpoints/{step}/{name}" for name in (*model, "training.safetensors", "training.json")}
    assert expected <= contents
    extra = {name for name in contents - expected if not name.startswith(("checkpoints/step-", "samples/gallery/"))}
    assert not extra


def test_the_configuration_is_complete_and_gives_the_same_run_again(run, pictures):
    config = read_json(run / "config.json")
    asked = Asked(settings=tiny.SETTINGS)
    _, again = plan_run(str(pictures), asked)
    assert config["run"] == json.loads(json.dumps(again.to_json()))
    assert type(again).from_json(config["run"]) == again
    assert config["run"]["training"]["epochs"] == 3 and config["run"]["model"]["size"]["dim"] == 16
    assert config["why"] and config["machine"] == {"device": "cpu", "workers": 0, "threads": torch.get_num_threads()}


def test_the_split_and_the_data_are_written_down(run, pictures):
    rows = table(run / "split.csv")
    files = {path.relative_to(pictures).as_posix() for path in pictures.rglob("*.png")}
    assert {row["path"] for row in rows} == files and len(rows) == len(files) == 40
    assert all(row["path"].split("/")[0] == row["label"] for row in rows)
    counted = Counter((row["split"], row["label"]) for row in rows)
    facts = read_json(run / "data.json")
    assert {(s, c): n for s, classes in facts["counts"].items() for c, n in classes.items()} == counted
    assert counted == {(s, c): n for s, n in (("train", 16), ("val", 2), ("test", 2)) for c in tiny.CLASSES}
    assert facts["classes"] == list(tiny.CLASSES) and facts["bad_files"] == {} and len(facts["fingerprint"]) == 64


def test_the_log_has_one_schema(run):
    records = tiny.records(run)
    assert [record["step"] for record in records] == sorted(record["step"] for record in records)
    validated = [record for record in records if "val/top1" in record]
    assert [record["step"] for record in validated] == [4, 8, 12] and all("val/loss" in record for record in validated)
    last = next(record for record in records if "train/loss" in record and record["step"] == 12)
    assert {"step", "epoch", "train/loss", "train/top1", "lr", "images_per_second", "data_wait", "memory"} <= set(last)
    assert last["epoch"] == 3 and 0 <= last["data_wait"] <= 1 and last["memory"] > 10**7


def test_the_status_says_what_happened(run, pictures, tmp_path, monkeypatch):
    status = read_json(run / "status.json")
    assert (status["status"], status["step"], status["steps"], status["progress"]) == ("done", 12, 12, 1.0)
    seen = []
    evaluate = vitrail.training.loop.Trainer._evaluate

    def looking(self):
        seen.append(read_json(tmp_path / "run" / "status.json"))
        evaluate(self)
        if len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(vitrail.training.loop.Trainer, "_evaluate", looking)
    with pytest.raises(KeyboardInterrupt):
        tiny.tiny(pictures, tmp_path / "run")
    assert [status["status"] for status in seen] == ["running", "running"]
    assert read_json(tmp_path / "run" / "status.json")["status"] == "interrupted"


def test_command_and_code_are_recorded(pictures, tmp_path, monkeypatch, vitrail_command):
    """In a git folder: the command with its quotes and place, the commit, and what was changed since."""
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    for name in ("GIT_DIR", "GIT_WORK_TREE"):
        monkeypatch.delenv(name, raising=False)
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    (project / "code.py").write_text("old\n")
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "first words"]):
        subprocess.run(["git", *arguments], check=True)
    (project / "code.py").write_text("new\n")
    changed = tiny.flags(training__epochs=0.5)
    answer = vitrail_command("train", pictures, "--out", "runs/with space", "--quiet", *changed)
    assert answer.status == 0 and answer.err == ""
    run = project / "runs" / "with space"
    command, place = (run / "command.txt").read_text().splitlines()
    assert (
        command.startswith(f"vitrail train {pictures} --out 'runs/with space' --quiet --set")
        and place == f"cd {project}"
    )
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert (run / "git.txt").read_text().split()[0] == commit and "first words" in (run / "git.txt").read_text()
    assert "-old" in (run / "diff.patch").read_text() and "+new" in (run / "diff.patch").read_text()
    environment = read_json(run / "environment.json")
    assert environment["packages"]["torch"] == torch.__version__ and environment["cores"] >= 1


def by_hand(run, pictures, split="test"):
    """(names, labels, logits) of a split, with plain Pillow, NumPy and the module."""
    model = vitrail.load(run)
    rows = [row for row in table(run / "split.csv") if row["split"] == split]
    arrays = np.stack([np.asarray(Image.open(pictures / row["path"])) for row in rows])
    preprocessing = model.preprocessing
    values = (arrays / 255 - preprocessing.mean[0]) / preprocessing.std[0]
    with torch.no_grad():
        logits = model.module(torch.from_numpy(values[:, None]).float()).numpy().astype(np.float64)
    return [row["path"] for row in rows], [row["label"] for row in rows], logits


def test_predictions_can_be_computed_again(run, pictures):
    names, labels, logits = by_hand(run, pictures)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    rows = table(run / "eval" / "test" / "predictions.csv")
    assert [row["file"] for row in rows] == names and [row["label"] for row in rows] == labels
    for row, label, logit, share in zip(rows, labels, logits, shares, strict=True):
        true = tiny.CLASSES.index(label)
        assert row["pred"] == tiny.CLASSES[int(share.argmax())]
        assert float(row["prob"]) == pytest.approx(share.max(), abs=2e-6)
        assert float(row["loss"]) == pytest.approx(-np.log(share[true]), abs=2e-6)
        assert int(row["rank"]) == 1 + (logit > logit[true]).sum()


def test_the_summary_can_be_counted_again(run, pictures):
    summary = read_json(run / "eval" / "test" / "summary.json")
    rows = table(run / "eval" / "test" / "predictions.csv")
    hits, total = sum(row["pred"] == row["label"] for row in rows), len(rows)
    assert summary["n"] == total == 4 and summary["top1"] == hits / total
    assert summary["loss"] == pytest.approx(np.mean([float(row["loss"]) for row in rows]), abs=2e-6)
    # The Wilson interval holds every share whose score test does not reject `hits` of `total`: solve it on a grid.
    shares = np.linspace(1e-9, 1 - 1e-9, 2_000_001)
    inside = shares[np.abs(hits / total - shares) <= norm.ppf(0.975) * np.sqrt(shares * (1 - shares) / total)]
    np.testing.assert_allclose(summary["top1_interval"], [inside.min(), inside.max()], atol=2e-6)
    card = (run / "README.md").read_text()
    assert f"{100 * summary['top1']:.1f} %" in card and "on 4 test pictures" in card
    for baseline in summary["baselines"]:
        assert f"| {baseline['name']} | {100 * baseline['top1']:.1f} %" in card


def test_the_best_weights_are_the_ones_that_are_loaded(run):
    scores = {record["step"]: record["val/top1"] for record in tiny.records(run) if "val/top1" in record}
    best = max(scores.values())
    last = max(step for step, score in scores.items() if score == best)  # of equal ones, what has learnt most
    place = run / "checkpoints" / f"step-{last}"
    assert (run / "checkpoints" / "best").read_text() == f"{place.name}\n"
    weights = vitrail.load(place).module.state_dict()
    assert all(torch.equal(values, weights[name]) for name, values in vitrail.load(run).module.state_dict().items())


def test_predict_takes_files_bytes_arrays_lists_and_folders(run, pictures):
    model = vitrail.load(run)
    paths = sorted((pictures / "dark below").iterdir())[:3]
    answer = model.predict(paths[0])
    assert answer == model.predict(str(paths[0])) and answer.file == str(paths[0])
    names, _, logits = by_hand(run, pictures)
    first = model.predict(pictures / names[0])
    shares = np.exp(logits[0]) / np.exp(logits[0]).sum()
    assert first.label == tiny.CLASSES[shares.argmax()] and first.probability == pytest.approx(shares.max(), abs=1e-6)
    assert [label for label, _ in first.top] == [tiny.CLASSES[index] for index in np.argsort(-shares)]
    assert sum(probability for _, probability in first.top) == pytest.approx(1)
    for other in (paths[0].read_bytes(), np.asarray(Image.open(paths[0]))[:, :, None]):
        assert model.predict(other).top == answer.top
    many = model.predict(paths)
    assert [each.file for each in many] == [str(path) for path in paths] and many[0].label == answer.label
    assert [each.file for each in model.predict(pictures / "dark below")][:3] == [str(path) for path in paths]
    assert len(model.predict(pictures)) == 40


@pytest.mark.parametrize("wrong", [
    np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 1), np.float32), "nowhere.png", b"text",
], ids=["no channels", "colour", "float", "missing", "no picture"])  # fmt: skip
def test_predict_refuses_what_is_no_picture(run, pictures, wrong):
    good = next((pictures / "dark below").iterdir())
    with pytest.raises(DataError):
        vitrail.load(run).predict([good, wrong])
    answers = list(vitrail.load(run).stream([good, wrong, good]))
    assert isinstance(answers[1], DataError) and answers[0] == answers[2]


@pytest.fixture(scope="module")
def digits():
    """scikit-learn's digits as pictures that are already checked, without files."""
    data = load_digits()
    images = (data.images * 255 / 16).round().astype(np.uint8)

    def part(start, stop):
        targets = np.eye(10, dtype=np.float32)[data.target[start:stop]]
        ids = tuple(map(str, range(start, stop)))
        dataset = Dataset(ids, targets, lambda index, channels: images[start + index][:, :, None])
        return Pictures(dataset, Preprocessing((8, 8), 1, mean=(0.5,), std=(0.5,)))

    return part(0, 900), part(900, 1100), part(1100, 1400)


def test_nearest_neighbours_equal_scikit_learn(digits, monkeypatch):
    """In one piece and in many; the vote against scikit-learn's, weighted the same way."""
    train, val, test = digits
    reference, labels = pixels(train), train.dataset.targets

    def scikit_learn(queries, k):
        rank = 1 - 1e-3 * np.arange(k)
        classifier = KNeighborsClassifier(
            k, algorithm="brute", weights=lambda distances: np.tile(rank, (len(distances), 1))
        )
        classifier.fit(reference.astype(float), labels.argmax(axis=1))
        return (classifier.predict(pixels(queries).astype(float)) == queries.dataset.targets.argmax(axis=1)).sum()

    for queries, references in ((512, 2048), (37, 100)):
        monkeypatch.setattr("vitrail.nearest._QUERIES", queries)
        monkeypatch.setattr("vitrail.nearest._REFERENCES", references)
        found, near = nearest(reference, pixels(test), 10)
        for k in (1, 3, 5, 10):
            assert abs(_hits(found[:, :k], near[:, :k], labels, test) - scikit_learn(test, k)) <= (k > 1)
    chosen = nearest_pixels(train, val, test)
    k = int(re.search(r"the class of the (\d*)", chosen.how)[1] or 1)
    scores = {k: scikit_learn(val, k) for k in (1, 3, 5, 10)}
    assert scores[k] >= max(scores.values()) - 1
    assert 0.9 < chosen.top1 < 1 and abs(chosen.top1 * 300 - scikit_learn(test, k)) <= (k > 1)


def _hits(found, near, labels, test):
    return right_of(found, by_place(near), labels, test.dataset.targets).sum()


def test_the_majority_is_counted_on_the_training_split(digits):
    train, _, test = digits
    most = np.bincount(train.dataset.targets.argmax(axis=1)).argmax()
    assert majority(train, test).top1 == (test.dataset.targets.argmax(axis=1) == most).mean()


def test_several_labels_per_picture(pictures, tmp_path):
    """Sigmoid outputs: one picture may have two labels or none; counted again by hand."""
    table_path = tmp_path / "labels.csv"
    lines = ["path,label,split"]
    for number, path in enumerate(sorted(pictures.rglob("*.png"))):
        labels = [["light"], []]["dark below" in str(path)] + (["even"] if number % 2 == 0 else [])
        split = ("train", "train", "val", "test")[number // 2 % 4]
        lines.append(f"{path},{';'.join(labels)},{split}")
    table_path.write_text("\n".join(lines))
    result = tiny.tiny(table_path, tmp_path / "run", model__size__depth=2)
    model = vitrail.load(tmp_path / "run")
    assert model.multi_label and model.classes == ("even", "light")
    rows = table(tmp_path / "run" / "eval" / "test" / "predictions.csv")
    logits = model.logits(np.stack([np.asarray(Image.open(row["file"]))[None] for row in rows])).astype(np.float64)
    truth = np.array([[label in row["label"].split(";") for label in model.classes] for row in rows])
    assert result.summary["exact"] == ((logits > 0) == truth).all(axis=1).mean()
    losses = (np.log1p(np.exp(-logits)) * truth + np.log1p(np.exp(logits)) * ~truth).sum(axis=1)
    np.testing.assert_allclose([float(row["loss"]) for row in rows], losses, atol=2e-6)
    first = model.predict(rows[0]["file"])
    assert first.labels == tuple(name for name, value in zip(model.classes, logits[0], strict=True) if value >= 0)
    assert first.probability == pytest.approx((1 / (1 + np.exp(-logits[0]))).max(), abs=1e-6)


def test_a_run_is_found_again_under_its_default_name(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = tiny.tiny(pictures, None)
    assert first.folder.parent.name == "runs" and first.folder.name.startswith("data-vit16x1-")
    older = first.folder.with_name("data-vit16x1-2020-01-31")
    first.folder.rename(older)
    again = tiny.tiny(pictures, None)
    assert again.already and again.folder == older
    source, other = plan_run(str(pictures), Asked(settings=tiny.SETTINGS | {"training.seed": "5"}))
    assert default_folder(source, other) != older
    assert open_source(str(pictures)).fingerprint == source.fingerprint


def test_a_run_that_is_being_removed_is_a_run_until_its_end(run, tmp_path, monkeypatch):
    """Killed at any point, what is left can be begun again: config.json goes after what was made, before the beginning."""
    folder = shutil.copytree(run, tmp_path / "run")
    left = []
    for name in ("unlink", "rmdir"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, real=real, **k: (real(*a, **k), refuse_foreign(folder), left.append(1))
        )
    remove_run(folder)
    assert len(left) > 10 and not [path for path in folder.iterdir() if path.name != ".lock"]
