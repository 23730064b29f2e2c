"""Differences between two models against scipy, against brute force, and against what chance does in simulations."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vitrail.evaluation import significance
from vitrail.evaluation.predictions import Predictions
from vitrail.evaluation.significance import (
    Fourfold,
    bootstrap,
    changed_sides,
    class_differences,
    holm,
    paired,
    resamples_for,
)


def predictions(rows):
    """From (file, label, predicted, probability, loss)."""
    files, labels, predicted, probability, loss = zip(*rows, strict=True)
    rank = np.array([1 if label == said else 2 for label, said in zip(labels, predicted, strict=True)])
    return Predictions(files, labels, predicted, np.array(probability), np.array(loss), rank)


def answers(hits, labels=None, prefix=""):
    """A model that is right where `hits` is true; the classes are called x unless said otherwise."""
    labels = ["x"] * len(hits) if labels is None else labels
    return predictions([
        (f"{prefix}{row}", label, label if hit else "?", 0.5, float(not hit))
        for row, (label, hit) in enumerate(zip(labels, hits, strict=True))
    ])  # fmt: skip


@pytest.mark.parametrize(("only_a", "only_b"), [
    (0, 0), (0, 5), (0, 6), (1, 8), (74, 109), (500, 500), (2000, 2300), (30_000, 31_000),
])  # fmt: skip
def test_p_is_the_exact_one(only_a, only_b):
    expected = stats.binomtest(only_a, only_a + only_b, 0.5).pvalue if only_a + only_b else 1.0
    assert Fourfold(9, only_a, only_b, 9).p == pytest.approx(expected, rel=1e-7)
    assert Fourfold(9, only_b, only_a, 9).p == Fourfold(9, only_a, only_b, 9).p


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_what_would_have_been_needed(only_a, only_b, same):
    """The smallest lead among as many images in dispute that scipy's exact test calls significant."""
    table = Fourfold(same, only_a, only_b, 0)
    disputed = max(6, only_a + only_b)  # 2 / 2^5 is more than 0.05
    if disputed > table.total:
        assert table.needed is None
        return
    leads = [disputed - 2 * k for k in range(disputed // 2 + 1) if stats.binomtest(k, disputed).pvalue < 0.05]
    assert table.needed == pytest.approx(min(leads) / table.total)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
@settings(max_examples=80, deadline=None)
def test_holm_is_the_closed_test_of_bonferroni(chances):
    """A hypothesis is rejected when Bonferroni rejects every set of hypotheses that it belongs to."""
    sets = [part for size in range(1, len(chances) + 1) for part in combinations(range(len(chances)), size)]
    for index, adjusted in enumerate(holm(chances)):
        worst = max(len(part) * min(chances[i] for i in part) for part in sets if index in part)
        assert adjusted == pytest.approx(min(1.0, worst))
    assert holm([]) == []


def test_the_interval_is_that_of_scipy():
    random = np.random.default_rng(1)
    values = np.stack([random.choice([-1.0, 0.0, 1.0], 400, p=[0.05, 0.8, 0.15]), random.gamma(1, 2, 400)], axis=1)
    ours = bootstrap(values)
    assert ours.shape == (2, 2)
    for column in range(2):
        theirs = stats.bootstrap((values[:, column],), np.mean, method="percentile", rng=2).confidence_interval
        spread = values[:, column].std() / np.sqrt(400)
        step = 1 / 400 if column == 0 else 0  # means of whole numbers
        # The noise of 10,000 resamples is about 0.03 spreads.
        assert np.abs(ours[:, column] - theirs).max() < 0.1 * spread + 1.01 * step


def test_the_interval_is_exactly_mirrored_and_hangs_neither_on_portions_nor_on_the_other_column(monkeypatch):
    values = np.random.default_rng(3).normal(0.1, 1, (300, 2))
    whole = bootstrap(values, 1000)
    assert (bootstrap(-values, 1000) == -whole[::-1]).all()
    assert (bootstrap(values[:, 1:], 1000) == whole[:, 1:]).all()
    monkeypatch.setattr(significance, "_AT_ONCE", 700)
    assert (bootstrap(values, 1000) == whole).all()


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Paired answers: A is right on 70 %, B on 76 %, both at once on 62 %; 400 test sets of 250 images."""
    random, covered = np.random.default_rng(4), 0
    for trial in range(400):
        kinds = random.choice(4, 250, p=[0.62, 0.08, 0.14, 0.16])  # both, only A, only B, neither
        low, high = bootstrap((kinds == 2).astype(float)[:, None] - (kinds == 1)[:, None], 400, seed=trial)[:, 0]
        covered += low <= 0.06 <= high
    assert 0.92 <= covered / 400 <= 0.975  # 95 % within three standard errors, a little less for few images


def test_equal_models_are_seldom_called_different():
    """Two models of the same accuracy on every image: the exact test raises a false alarm in at most 5 %."""
    random = np.random.default_rng(5)
    easy = random.beta(4, 1, (600, 300))
    alarms = [Fourfold.of(one, two).p < 0.05 for one, two in zip(random.random(easy.shape) < easy,
                                                                 random.random(easy.shape) < easy, strict=True)]  # fmt: skip
    assert 0.01 < np.mean(alarms) < 0.06


def test_fewer_resamples_for_very_many_images():
    assert [resamples_for(n) for n in (1, 2000, 100_000, 200_000, 10**9)] == [10_000, 10_000, 10_000, 5_000, 1_000]


def test_images_are_matched_by_name_and_label():
    a = predictions([("1", "x", "x", 0.9, 0.1), ("2", "x", "y", 0.8, 1.5), ("3", "y", "y", 0.7, 0.3), ("5", "x", "x", 0.6, 0.5),
                     ("6", "x", "x", 0.6, 0.5), ("6", "x", "y", 0.3, 2.5)])  # fmt: skip
    b = predictions([("6", "x", "x", 0.5, 0.7), ("4", "x", "x", 0.9, 0.1), ("3", "x", "x", 0.8, 0.2), ("2", "x", "x", 0.7, 0.4),
                     ("5", "x", "y", 0.6, 0.9)])  # fmt: skip
    found = paired(a, b, left_out={"5", "elsewhere"})
    assert (found.a.files, found.b.files) == (("2", "6"), ("2", "6"))
    assert found.a.predicted == ("y", "y") and found.b.predicted == ("x", "x")
    assert found.a.loss.tolist() == [1.5, 2.5] and found.b.loss.tolist() == [0.4, 0.7]
    counts = (found.only_a, found.only_b, found.other_label, found.left_out, found.repeated)
    assert counts == (1, 1, 1, 1, 1) and len(found) == 2


def test_classes_are_compared_one_by_one():
    random = np.random.default_rng(6)
    labels = random.choice(["ant", "bee", "cow"], 300, p=[0.5, 0.3, 0.2]).tolist()
    better = np.array([random.random() < {"ant": 0.6, "bee": 0.9, "cow": 0.2}[label] for label in labels])
    worse = np.array([random.random() < {"ant": 0.6, "bee": 0.4, "cow": 0.2}[label] for label in labels])
    rows = {row.name: row for row in class_differences(paired(answers(worse, labels), answers(better, labels)))}
    assert next(iter(rows)) == "bee" and set(rows) == {"ant", "bee", "cow"}
    chances = []
    for name, row in rows.items():
        of = np.array([label == name for label in labels])
        lost, gained = int((worse & ~better & of).sum()), int((~worse & better & of).sum())
        chances.append(stats.binomtest(lost, lost + gained).pvalue)
        assert row.count == of.sum() and row.difference == pytest.approx((gained - lost) / of.sum())
        assert (row.a, row.b) == (worse[of].mean(), better[of].mean()) and row.p == pytest.approx(chances[-1])
    assert [row.adjusted for row in rows.values()] == pytest.approx(holm(chances))
    assert [name for name, row in rows.items() if row.significant] == ["bee"]


def test_changed_sides_come_surest_first():
    a = predictions([("1", "x", "x", 0.9, 0), ("2", "x", "x", 0.6, 0), ("3", "x", "y", 0.9, 0), ("4", "x", "x", 1.0, 0),
                     ("5", "x", "y", 0.4, 0), ("6", "x", "y", 0.9, 0)])  # fmt: skip
    b = predictions([("1", "x", "y", 0.5, 0), ("2", "x", "y", 0.9, 0), ("3", "x", "x", 0.7, 0), ("4", "x", "x", 0.2, 0),
                     ("5", "x", "x", 0.9, 0), ("6", "x", "y", 0.9, 0)])  # fmt: skip
    assert changed_sides(paired(a, b)) == ([1, 0], [2, 4])
    assert changed_sides(paired(b, a)) != ([1, 0], [2, 4]) and changed_sides(paired(a, a)) == ([], [])
