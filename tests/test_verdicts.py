"""What the report is made of: per-class scores, calibration and suspected labels, against scikit-learn and by hand."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

import tiny
from stories import CLASSES, predictions
from vitrail.data.sources import open_source
from vitrail.evaluation.accuracy import Outcome
from vitrail.evaluation.calibration import calibration
from vitrail.evaluation.confusion import class_scores, matrix, pairs, scores_of
from vitrail.evaluation.labels import FAR, held_out, margins, resisting, trained_on, write_suspects
from vitrail.objectives.supervised import SupervisedObjective
from vitrail.training.margins import Margins


@pytest.fixture
def found():
    """Logits of 400 images that are often, not always right."""
    random = np.random.default_rng(0)
    targets = np.eye(3, dtype=np.float32)[random.integers(0, 3, 400)]
    logits = (random.normal(size=(400, 3)) + 1.5 * targets).astype(np.float32)
    return Outcome(tuple(map(str, range(400))), logits, targets, CLASSES, False)


def test_scores_are_those_of_scikit_learn(found):
    true, said = found.targets.argmax(1), found.logits.argmax(1)
    precision, recall, _, support = precision_recall_fscore_support(true, said)
    for scores in (class_scores(found.targets > 0, found.answers(), CLASSES), scores_of(found.predictions(), CLASSES)):
        assert [s.recall for s in scores] == pytest.approx(recall.tolist())
        assert [s.precision for s in scores] == pytest.approx(precision.tolist())
        assert [s.count for s in scores] == support.tolist()
    assert (matrix(found.predictions(), CLASSES) == confusion_matrix(true, said)).all()


def test_scores_of_several_labels_and_of_absent_classes():
    targets = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 0]], dtype=bool)
    answers = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0]], dtype=bool)
    first, second, absent = class_scores(targets, answers, CLASSES)
    assert (first.recall, first.precision, second.recall, second.precision) == (1.0, 1.0, 0.5, 0.5)
    assert absent.recall is None and absent.precision is None and absent.recall_interval == (0.0, 1.0)


def test_pairs_count_both_ways_and_show_the_surest_mistakes_first():
    wrong = [(0, "cedar"), (3, "cedar"), (6, "cedar"), (2, "ash"), (1, "ash")]
    table = predictions(wrong, count=9)
    table = replace(table, probability=np.linspace(0.1, 0.9, 9))
    first, second = pairs(table)
    assert (first.first, first.second, first.forward, first.backward, first.count) == ("ash", "cedar", 3, 1, 4)
    assert first.files == ("test/6.png", "test/3.png", "test/2.png", "test/0.png")
    assert (second.first, second.second, second.count) == ("beech", "ash", 1)


def test_calibration_by_hand():
    """Ten answers at 0.75, six of them right; ten at 0.95, all right: |0.6 - 0.75| / 2 + |1 - 0.95| / 2 = 0.1."""
    probability = np.array([0.75] * 10 + [0.95] * 10)
    hit = np.array([True] * 6 + [False] * 4 + [True] * 10)
    measured = calibration(probability, hit)
    assert measured.error == pytest.approx(0.1)
    assert [(b.count, b.accuracy, b.confidence) for b in measured.bins] == [
        (10, 0.6, pytest.approx(0.75)),
        (10, 1.0, pytest.approx(0.95)),
    ]
    assert measured.gap == pytest.approx(0.85 - 0.8)
    differences = probability - hit
    half = 1.96 * differences.std(ddof=1) / 20**0.5
    assert measured.gap_interval == pytest.approx((0.05 - half, 0.05 + half), abs=1e-4)
    assert calibration(probability[:1], hit[:1]) is None


@pytest.mark.parametrize("probability", [0.0, 0.1, 1.0])
def test_every_probability_falls_into_one_bin(probability):
    measured = calibration(np.full(4, probability), np.array([True, False, True, True]))
    (only,) = measured.bins
    assert only.count == 4 and (only.low < probability <= only.high or probability == only.low == 0)


def test_the_interval_of_the_gap_covers_the_truth():
    """Answers that are right exactly as often as they say: the interval holds zero in about 95 of 100 tries."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        probability = random.uniform(0.3, 1, 200)
        low, high = calibration(probability, random.uniform(size=200) < probability).gap_interval
        covered += low <= 0 <= high
    assert 0.92 <= covered / 400 <= 0.98


def planted(count=1200, share=0.05):
    """Logits of a good model, and labels of which some are swapped."""
    random = np.random.default_rng(1)
    true = random.integers(0, 3, count)
    logits = random.normal(size=(count, 3)) + 6.0 * np.eye(3)[true]
    swapped = random.choice(count, int(share * count), replace=False)
    labels = true.copy()
    labels[swapped] = (true[swapped] + random.integers(1, 3, len(swapped))) % 3
    return logits.astype(np.float32), labels, set(swapped.tolist())


def test_swapped_labels_of_held_out_images_are_found():
    logits, labels, swapped = planted()
    suspects = held_out(
        Outcome(tuple(map(str, range(1200))), logits, np.eye(3, dtype=np.float32)[labels], CLASSES, False), "val"
    )
    named = {int(suspect.id) for suspect in suspects}
    # By construction as sure as the surest quarter of their true class: a quarter of the swapped ones, and no other.
    assert named <= swapped and len(named) >= 0.15 * len(swapped)
    first = suspects[0]
    assert first.label == CLASSES[labels[int(first.id)]] and first.suggested == CLASSES[logits[int(first.id)].argmax()]
    clean = Outcome(tuple(map(str, range(1200))), logits, np.eye(3, dtype=np.float32)[logits.argmax(1)], CLASSES, False)
    assert held_out(clean, "val") == []


def test_margins_that_stay_far_below_their_class_are_found():
    logits, labels, swapped = planted()
    average, _ = margins(logits, labels)
    doubt = resisting(average, labels)
    named = set(np.flatnonzero(doubt).tolist())
    assert named == swapped
    by_hand = average[labels == 0]
    centre, spread = np.median(by_hand), 1.4826 * np.median(abs(by_hand - np.median(by_hand)))
    worst = np.flatnonzero((labels == 0) & (doubt > 0))[0]
    assert doubt[worst] == pytest.approx((centre - average[worst]) / (FAR * spread))
    average[3] = np.nan
    assert resisting(average, labels)[3] == 0 and not resisting(average[:9], labels[:9] * 0 + np.arange(9)).any()


def test_the_final_model_must_doubt_the_label_too(tmp_path):
    logits, labels, _ = planted(30)
    found = Outcome(tuple(map(str, range(30))), logits, np.eye(3, dtype=np.float32)[labels], CLASSES, False)
    suspects = trained_on(found, np.full(30, 2.0))
    assert {int(s.id) for s in suspects} == set(np.flatnonzero(logits.argmax(1) != labels).tolist())
    write_suspects(suspects, tmp_path)
    with open(tmp_path / "suspects.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [s.id for s in suspects] and rows[0]["doubt"] == "2.000"


def test_margins_are_summed_per_image_and_forget_what_was_not_read():
    book = Margins(4)
    book.add(np.array([2, 0, 2, 3]), torch.tensor([1.0, 2.0, 5.0, 9.0]), torch.tensor([1.0, 1.0, 1.0, 0.0]))
    np.testing.assert_array_equal(book.mean(), [2.0, np.nan, 3.0, np.nan])
    other = Margins(4)
    other.restore(book.tensors())
    np.testing.assert_array_equal(other.mean(), book.mean())
    smaller = Margins(3)
    smaller.restore(book.tensors())
    assert np.isnan(smaller.mean()).all()


def test_the_loop_books_every_image_under_its_own_name(pictures, tmp_path, monkeypatch):
    """What passed through the model, image by image, is what the saved state holds; also in micro-batches."""
    seen, forward = {}, SupervisedObjective.forward

    def watched(self, batch):
        logits = self.backbone(self.preprocessing.normalise(batch.views[0])).detach().double().numpy()
        for name, values, label in zip(batch.ids, logits, batch.labels.argmax(1).tolist(), strict=True):
            seen.setdefault(name, []).append(values[label] - np.delete(values, label).max())
        return forward(self, batch)

    monkeypatch.setattr(SupervisedObjective, "forward", watched)
    tiny.tiny(pictures, tmp_path, training__epochs="2.5", training__micro_batch="3")
    last = tmp_path / "checkpoints" / (tmp_path / "checkpoints" / "latest").read_text().strip()
    tensors = load_file(last / "training.safetensors")
    names = open_source(str(pictures)).split("train").ids
    assert tensors["margins.counts"].tolist() == [len(seen[name]) for name in names]
    np.testing.assert_allclose(tensors["margins.sums"].numpy(), [sum(seen[name]) for name in names], atol=1e-5)
    assert np.std([sum(values) for values in seen.values()]) > 1e-2


def test_a_mixed_image_has_no_margin(pictures, tmp_path):
    tiny.tiny(pictures, tmp_path / "run", augmentation__mixup='{"alpha": 0.3}')
    saved = load_file(tmp_path / "run" / "checkpoints" / "step-12" / "training.safetensors")
    assert not saved["margins.counts"].any() and not saved["margins.sums"].any()
