"""Closed-form few-shot: the official code's answers, a direct solve in float64, and what cannot be measured."""

import json

import numpy as np
import pytest
from scipy import stats

from vitrail.errors import DataError, UsageError
from vitrail.evaluation.features import Features
from vitrail.evaluation.fewshot import FewShot, drawn
from vitrail.evaluation.least_squares import Moments, dual
from vitrail.statistics import Spread, spread_text, t_quantile


def made(counts, dim=12, seed=0, spread=1.0):
    """Features around a mean per class; `counts` images of each."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(len(counts)), counts))
    means = np.random.default_rng(1).normal(size=(len(counts), dim))
    values = (means[labels] + spread * random.normal(size=(len(labels), dim))).astype(np.float32)
    return Features(values, labels, tuple(f"class {number}" for number in range(len(counts))))


def by_hand(features, penalty):
    """(X'X + l)^-1 X'Y with the constant 100 as a column, from the equations of evaluators/fewshot_lsr.py."""
    values = features.values.astype(np.float64)
    mean, deviation = values.mean(axis=0), values.std(axis=0) + 1e-5

    def rows(inputs):
        return np.hstack([(inputs.astype(np.float64) - mean) / deviation, np.full((len(inputs), 1), 100.0)])

    x, y = rows(values), 2 * np.eye(len(features.classes))[features.labels] - 1
    weights = np.linalg.inv(x.T @ x + penalty * np.eye(x.shape[1])) @ (x.T @ y)
    return lambda inputs: rows(inputs) @ weights


@pytest.mark.parametrize("solve", [lambda f, p: Moments.of(f).solved(p), dual], ids=["primal", "dual"])
@pytest.mark.parametrize("shape", ["wide", "tall"])
def test_scores_are_those_of_the_official_code(parity, shape, solve):
    """Its float32 decomposition is 3e-5 off at 2^10 and up to 1e-2 below; the answers agree everywhere."""
    fixture = parity("m_fewshot_lsr.io")
    train = Features(fixture[f"{shape}_x"], fixture[f"{shape}_y"], tuple("abcde"))
    for penalty, tolerance in ((1024.0, 1e-4), (1.0, 2e-2), (2.0**-10, 2e-2)):
        scores = fixture[f"{shape}_scores_l2_{penalty}"]
        linear = solve(train, penalty)
        np.testing.assert_allclose(linear.scores(fixture[f"{shape}_xt"]), scores, rtol=0, atol=tolerance)
        answers = linear.answers(fixture[f"{shape}_xt"])
        assert (answers == scores.argmax(axis=1)).all()
        assert (answers == fixture[f"{shape}_yt"]).mean() == pytest.approx(float(fixture[f"{shape}_acc_l2_{penalty}"]))


@pytest.mark.parametrize(("counts", "dim"), [((9, 3, 5), 12), ((40, 12, 30), 12), ((2, 1), 30)])
def test_scores_are_those_of_a_direct_solve(counts, dim):
    """Classes of unequal size move the bias; a large mean and a constant feature cost no digits; one that hardly
    changes is damped by the 1e-5 that is added to its deviation.
    """
    train = made(counts, dim)
    train.values[:, 0] = 7.5
    train.values[:, 1] += 300
    inputs = made([20] * len(counts), dim, seed=2).values
    inputs[:, 0], inputs[:, 1] = 7.5, inputs[:, 1] + 300
    train.values[:, 2] *= 1e-5
    inputs[:, 2] *= 1e-5
    for penalty in (1024.0, 1.0):
        expected = by_hand(train, penalty)(inputs)
        for linear in (Moments.of(train).solved(penalty), dual(train, penalty)):
            np.testing.assert_allclose(linear.scores(inputs), expected, rtol=0, atol=2e-4)


def test_moments_grow(monkeypatch):
    """Images added in portions, and blocks of any size, give the same map."""
    train = made((30, 25))
    whole = Moments.of(train).solved(1.0)
    monkeypatch.setattr("vitrail.evaluation.features.BLOCK_BYTES", 4 * 12 * 7)
    parts = Moments(train.dim, 2)
    for start in range(0, 55, 20):
        parts.add(train.subset(range(start, min(start + 20, 55))))
    np.testing.assert_allclose(parts.solved(1.0).scores(train.values), whole.scores(train.values), atol=1e-5)


def test_the_protocol_is_the_mean_over_seeds():
    """Every seed counted again by the direct solve, wide and tall; fewer shots are a part of more; t interval by SciPy."""
    train, test = made((30, 40, 50), spread=2.0), made((50, 50, 50), seed=3, spread=2.0)
    record = FewShot(shots=(1, 5, 10), seeds=4, penalty=64.0).measure(train, None, test)
    assert record["n"] == 150 and [row["shots"] for row in record["shots"]] == [1, 5, 10]
    for row in record["shots"]:
        again = []
        for seed in range(4):
            chosen = drawn(train, row["shots"], seed).ravel()
            assert set(chosen) <= set(drawn(train, 10, seed).ravel())
            assert (np.bincount(train.labels[chosen]) == row["shots"]).all()
            few = Features(train.values[chosen], train.labels[chosen], train.classes)
            again.append((by_hand(few, 64.0)(test.values).argmax(axis=1) == test.labels).mean())
        assert row["seeds"] == pytest.approx(again)
        low, high = stats.t.interval(0.95, 3, np.mean(again), stats.sem(again))
        assert (row["mean"], row["std"]) == pytest.approx((np.mean(again), np.std(again, ddof=1)))
        assert row["interval"] == pytest.approx([low, high]) and row["n"] == 4
    assert json.loads(json.dumps(record)) == record
    assert len({tuple(drawn(train, 5, seed).ravel()) for seed in range(4)}) == 4


def test_no_interval_of_shares_leaves_0_to_1():
    """Two seeds of one shot, nearly all right or nearly all wrong: Student's t alone would promise more than all."""
    train, test = made((30, 30), spread=0.3), made((20, 20), seed=3, spread=0.3)
    turned = Features(test.values, 1 - test.labels, test.classes)
    sides = set()
    for asked in (test, turned):
        for count in range(2, 8):
            (row,) = FewShot(shots=(1,), seeds=count, penalty=1.0).measure(train, None, asked)["shots"]
            low, high = stats.t.interval(0.95, count - 1, np.mean(row["seeds"]), stats.sem(row["seeds"]))
            sides |= {"below"} if low < 0 else set()
            sides |= {"above"} if high > 1 else set()
            assert row["interval"] == pytest.approx([max(0.0, low), min(1.0, high)])
            assert 0 <= row["interval"][0] <= row["mean"] <= row["interval"][1] <= 1
    assert sides == {"below", "above"}
    assert Spread.of([0.5]).as_share() == Spread.of([0.5])


def test_a_class_with_too_few_images_is_named():
    """That number of shots is left out for all classes; where nothing is left, an error."""
    train, test = made((30, 4, 50)), made((5, 5, 5), seed=3)
    record = FewShot(shots=(1, 5), seeds=2).measure(train, None, test)
    assert record["shots"][1] == {"shots": 5, "lacking": {"class 1": 4}} and "mean" in record["shots"][0]
    with pytest.raises(DataError, match=r"too few training images for 5 shots: class 1 \(4\)") as refused:
        FewShot(shots=(5, 10)).measure(train, None, test)
    assert refused.value.code == "VT103"
    for wrong in ({"shots": ()}, {"shots": (0,)}, {"seeds": 0}, {"penalty": 0.0}, {"penalty": float("nan")}):
        with pytest.raises(UsageError):
            FewShot(**wrong)


def test_students_t_and_what_is_printed():
    for degrees in (1, 2, 3, 4, 9, 10, 49, 500):
        assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees))
        assert t_quantile(degrees, 0.99) == pytest.approx(stats.t.ppf(0.995, degrees))
    spread = Spread.of([0.87, 0.88, 0.86])
    assert spread_text(spread) == "87.0 % ± 1.0 (95 % CI 84.5-89.5, n = 3)"
    assert Spread.from_json(json.loads(json.dumps(spread.to_json()))) == spread
    assert Spread.of([0.5]) == Spread(0.5, None, None, 1) and spread_text(Spread.of([0.5])) == "50.0 % (n = 1)"
    assert "(95 % CI 26.5-100.0, n = 2)" in spread_text(Spread.of([0.95, 0.85])), "no share beyond 100 %"
    with pytest.raises(ValueError, match="no values"):
        Spread.of([])
