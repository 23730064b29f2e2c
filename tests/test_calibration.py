"""Temperature, calibration errors, abstention and conformal sets against plain loops in float64 and scipy."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from vitrail.errors import DataError, UsageError
from vitrail.evaluation.accuracy import Outcome
from vitrail.evaluation.answers import Abstention, CalibrationError, ConformalSets
from vitrail.evaluation.calibration import brier, change, equal_mass_error, equal_width_error, quality
from vitrail.evaluation.conformal import SCORES, conformal, drawn, rank_of
from vitrail.evaluation.selective import risk_coverage, threshold
from vitrail.evaluation.temperature import Classified, classified, fit_temperature
from vitrail.statistics import beta_binomial_band, binomial_below, binomial_upper


def answers(count=400, classes=5, heat=1.0, seed=0):
    """Logits whose softmax is exactly the chance of each label, times `heat`: they want that temperature."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (count, classes))
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (chance.cumsum(axis=1) < random.random((count, 1))).sum(axis=1)
    return Classified(logits * heat, labels)


def slow_softmax(row):
    powers = [math.exp(value - max(row)) for value in row]
    return [power / math.fsum(powers) for power in powers]


@pytest.mark.parametrize(("heat", "classes"), [(1, 2), (3, 5), (0.2, 10), (25, 3)])
def test_temperature_is_the_one_of_least_loss(heat, classes):
    found = answers(300, classes, heat)

    def loss(temperature):
        rows = zip(found.logits, found.labels, strict=True)
        return -math.fsum(math.log(slow_softmax(row / temperature)[label]) for row, label in rows)

    oracle = optimize.minimize_scalar(lambda log: loss(math.exp(log)), bounds=(-4.6, 4.6), method="bounded",
                                      options={"xatol": 1e-10}).x  # fmt: skip
    fitted = fit_temperature(found)
    assert fitted == pytest.approx(math.exp(oracle), rel=1e-5) and loss(fitted) <= loss(math.exp(oracle)) + 1e-9
    assert 0.6 * heat < fitted < 1.6 * heat
    assert found.losses(fitted).sum() == pytest.approx(loss(fitted))


def test_temperature_of_far_logits_and_of_many_images(monkeypatch):
    found = answers(200)
    far = Classified(found.logits + 1e6, found.labels)  # a shift of all logits is none of the probabilities
    assert fit_temperature(far) == pytest.approx(fit_temperature(found), rel=1e-6)
    whole = fit_temperature(found)
    monkeypatch.setattr("vitrail.evaluation.temperature._ROWS", 35)
    assert fit_temperature(found) == pytest.approx(whole, rel=1e-9)


def test_no_temperature_where_none_is_best():
    right = Classified(np.eye(3) * 4.0, np.arange(3))
    with pytest.raises(DataError, match="every one of them is answered rightly"):
        fit_temperature(right)
    with pytest.raises(DataError, match="less of the classes than chance"):
        fit_temperature(Classified(right.logits, np.array([1, 2, 0])))


@pytest.mark.parametrize("bins", [1, 3, 10])
def test_errors_of_calibration_by_loops(bins):
    random = np.random.default_rng(1)
    probability = np.round(random.random(57), 2)  # some fall on edges of bins
    hit = random.random(57) < 0.5
    wide = massed = 0.0
    for number in range(bins):
        inside = [
            i for i, p in enumerate(probability) if number / bins < p <= (number + 1) / bins or (p == number == 0)
        ]
        if inside:
            wide += len(inside) / 57 * abs(sum(hit[inside]) / len(inside) - sum(probability[inside]) / len(inside))
    order = sorted(range(57), key=lambda i: (probability[i], i))
    for number in range(bins):
        part = order[round(57 * number / bins) : round(57 * (number + 1) / bins)]
        massed += len(part) / 57 * abs(sum(hit[part]) / len(part) - sum(probability[part]) / len(part))
    assert equal_width_error(probability, hit, bins) == pytest.approx(wide, abs=1e-12)
    assert equal_mass_error(probability, hit, bins) == pytest.approx(massed, abs=1e-12)


def test_brier_score_by_loops():
    found = answers(20, 4)
    for row, label, value in zip(found.logits, found.labels, brier(found, 1.7), strict=True):
        chance = slow_softmax(row / 1.7)
        assert value == pytest.approx(sum((p - (k == label)) ** 2 for k, p in enumerate(chance)))


def test_planted_miscalibration_changes_the_verdict():
    """Honest logits, the same three times too sure, and three times too doubtful; the temperature takes it back."""
    verdicts = {heat: quality(answers(2000, heat=heat), draws=200).verdict for heat in (1, 3, 1 / 3)}
    assert verdicts == {1: "calibrated", 3: "overconfident", 1 / 3: "underconfident"}
    hot = answers(2000, heat=3)
    fitted = fit_temperature(answers(2000, heat=3, seed=5))
    after = quality(hot, fitted, draws=200)
    assert after.verdict == "calibrated" and after.values["nll"] < quality(hot, draws=20).values["nll"]
    assert all(high < 0 for _, high in change(hot, fitted, draws=200).values())
    for name, (low, high) in after.intervals.items():
        assert low < high and (name.startswith("ece") or low <= after.values[name] <= high)


@pytest.mark.slow
def test_calibrated_answers_are_called_so_in_95_of_100_samples():
    verdicts = [quality(answers(500, seed=seed), draws=200).verdict for seed in range(300)]
    assert 0.9 < verdicts.count("calibrated") / 300 < 0.99


def test_intervals_hold_the_true_loss():
    """Of 100 samples some 95 hold the mean of a large one; fewer than 85 would mean a wrong interval."""
    true = answers(200_000, seed=99).losses().mean()
    found = [quality(answers(200, seed=seed), draws=100).intervals["nll"] for seed in range(40)]
    assert 34 <= sum(low <= true <= high for low, high in found) <= 40
    assert np.mean([high - low for low, high in found]) < 0.3


def test_risk_by_coverage_by_loops():
    random = np.random.default_rng(2)
    confidence, hit = random.random(40), random.random(40) < 0.7
    order = sorted(range(40), key=lambda i: -confidence[i])
    risks = [sum(not hit[i] for i in order[:n]) / n for n in range(1, 41)]
    curve = risk_coverage(confidence, hit)
    assert np.allclose(curve.risk, risks) and curve.area == pytest.approx(sum(risks) / 40)
    ideal = sorted(~hit)
    assert curve.best == pytest.approx(sum(sum(ideal[:n]) / n for n in range(1, 41)) / 40)
    assert curve.even == pytest.approx((~hit).mean()) and curve.best < curve.area
    assert risk_coverage(hit.astype(float), hit).gain > 0.9 and risk_coverage(1.0 - hit, hit).gain < 0
    flat = risk_coverage(np.full(40, 0.5), hit)  # no order at all: as good as any
    assert np.allclose(flat.risk, (~hit).mean()) and flat.gain == pytest.approx(0)
    assert math.isnan(risk_coverage(confidence, np.ones(40, bool)).gain)


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (3, 10), (10, 10), (200, 1000), (1, 5000), (0, 0)])
def test_binomial_bounds_are_exact(hits, total):
    expected = stats.beta.ppf(0.9, hits + 1, total - hits) if hits < total else 1.0
    assert binomial_upper(hits, total, 0.1) == pytest.approx(expected, rel=1e-9)
    for chance in (0.0, 0.01, 0.4, 1.0):
        assert binomial_below(hits, total, chance) == pytest.approx(stats.binom.cdf(hits, total, chance), abs=1e-10)


def test_threshold_holds_its_promise():
    """Confidence is the chance of being right. Of 120 draws at most a few may choose a threshold of higher risk."""
    broken = chosen = 0
    for seed in range(120):
        random = np.random.default_rng(seed)
        confidence = random.random(300)
        found = threshold(confidence, random.random(300) < confidence, wished=0.3, doubt=0.1)
        if found is not None:
            chosen += 1
            broken += (1 - found.confidence) / 2 > 0.3  # the mean risk of uniform confidences above it
            assert found.risk <= found.bound <= 0.3 + 1e-12
    assert chosen > 100 and broken <= 0.1 * chosen
    sure = threshold(np.linspace(0.5, 1, 200), np.ones(200, bool), 0.05)
    assert sure is not None and (sure.coverage, sure.confidence) == (1.0, 0.0)
    assert threshold(np.linspace(0.5, 1, 200), np.zeros(200, bool), 0.5) is None
    assert threshold(np.ones(3), np.ones(3, bool), 0.05) is None  # three images promise nothing


def slow_set(kind, row, luck, limit):
    """Classes of the set of one image, from the definitions of LAC and APS."""
    if kind == "lac":
        return {k for k, p in enumerate(row) if 1 - p <= limit}
    above = {k: math.fsum(q for j, q in enumerate(row) if q > row[k]) for k in range(len(row))}
    return {k for k, p in enumerate(row) if above[k] + luck * p <= limit}


@pytest.mark.parametrize("kind", SCORES)
def test_conformal_sets_by_loops(kind):
    known, new = answers(50), answers(30, seed=1)
    luck = drawn([f"a{i}" for i in range(50)], 0), drawn([f"b{i}" for i in range(30)], 0)
    sets = conformal(SCORES[kind], known.probabilities(), known.labels, new.probabilities(), 0.2, luck)
    assert sets.rank == math.ceil(51 * 0.8) == 41
    inside = sum(
        label in slow_set(kind, row, u, sets.threshold + 1e-12)
        for row, label, u in zip(known.probabilities(), known.labels, luck[0], strict=True)
    )
    assert inside == 41
    for row, u, members in zip(new.probabilities(), luck[1], sets.members, strict=True):
        assert set(np.flatnonzero(members)) == slow_set(kind, row, u, sets.threshold)


@pytest.mark.parametrize("kind", SCORES)
def test_coverage_lies_in_the_exact_band(kind):
    """Of 400 draws, the covered counts follow the beta-binomial distribution, whatever the model: here a bad one."""
    n, m, alpha, counts = 60, 40, 0.1, []
    for seed in range(400):
        every = answers(n + m, 4, heat=4, seed=seed)
        chance, luck = every.probabilities(), np.random.default_rng(seed + 10_000).random(n + m)
        sets = conformal(SCORES[kind], chance[:n], every.labels[:n], chance[n:], alpha, (luck[:n], luck[n:]))
        counts.append(int(sets.covered(every.labels[n:]).sum()))
    rank = rank_of(n, alpha)
    law = stats.betabinom(m, rank, n + 1 - rank)
    assert np.mean(counts) / m >= 1 - alpha - 0.01 and abs(np.mean(counts) - law.mean()) < 4 * law.std() / 20
    low, high = beta_binomial_band(m, rank, n + 1 - rank)
    assert (low, high) == (law.ppf(0.025), law.ppf(0.975))
    assert 0.92 < np.mean([low <= count <= high for count in counts]) <= 1


def test_planted_difference_between_val_and_test_leaves_the_band():
    known, new = answers(500), answers(500, seed=1)
    luck = np.zeros(500), np.zeros(500)
    shuffled = np.roll(new.labels, 1)
    for labels, holds in ((new.labels, True), (shuffled, False)):
        sets = conformal(SCORES["lac"], known.probabilities(), known.labels, new.probabilities(), 0.1, luck)
        low, high = sets.band(500)
        assert bool(low <= sets.covered(labels).mean() <= high) is holds


def test_too_few_calibration_images_give_every_class():
    known, new = answers(8), answers(5, seed=1)
    sets = conformal(
        SCORES["lac"], known.probabilities(), known.labels, new.probabilities(), 0.1, (np.zeros(8), np.zeros(5))
    )
    assert sets.threshold == math.inf and sets.members.all() and sets.band(5) == (1.0, 1.0)
    for alpha in (0.0, 1.0, math.nan):
        with pytest.raises(UsageError, match="alpha"):
            conformal(
                SCORES["lac"], known.probabilities(), known.labels, new.probabilities(), alpha, (np.zeros(8),) * 2
            )
    luck = drawn([f"{i}" for i in range(2000)], 3)
    assert luck.min() >= 0 and luck.max() < 1 and abs(luck.mean() - 0.5) < 0.03
    assert (luck == drawn([f"{i}" for i in range(2000)], 3)).all() and (
        luck != drawn([f"{i}" for i in range(2000)], 4)
    ).any()


def outcome_of(logits, targets, multi_label=False):
    logits, targets = np.asarray(logits, np.float32), np.asarray(targets, np.float32)
    names = tuple("abcdef"[: targets.shape[1]])
    return Outcome(tuple(map(str, range(len(targets)))), logits, targets, names, multi_label)


@pytest.mark.parametrize(
    ("found", "mention"),
    [
        (outcome_of(np.zeros((0, 2)), np.zeros((0, 2))), "no images"),
        (outcome_of(np.zeros((3, 1)), np.ones((3, 1))), "one class"),
        (outcome_of(np.zeros((2, 2)), np.ones((2, 2))), "no class or several"),
        (outcome_of(np.zeros((2, 2)), np.eye(2), multi_label=True), "several classes"),
        (outcome_of([[0, math.nan], [0, 1]], np.eye(2)), "1 images of val have logits"),
        (outcome_of([[0, math.inf], [0, 1]], np.eye(2)), "not finite"),
    ],
)
def test_answers_that_cannot_be_judged(found, mention):
    with pytest.raises(DataError, match=mention) as caught:
        classified(found, "val")
    assert caught.value.code == "VT110"


def test_what_is_watched_while_a_model_trains_is_what_the_protocols_measure():
    """Against the sums written out; every second image calibrates, the others are measured."""
    rng = np.random.default_rng(5)
    logits, labels = rng.normal(size=(200, 4)) * 2, rng.integers(0, 4, 200)
    answers = Classified(logits.astype(np.float32), labels)
    powers = np.exp(answers.logits.astype(np.float64))
    shares = powers / powers.sum(axis=1, keepdims=True)
    found = dict(CalibrationError().numbers(answers, np.zeros(200)))
    best, hit = shares.max(axis=1), shares.argmax(axis=1) == labels
    bins = [(best > low / 10) & (best <= (low + 1) / 10) for low in range(10)]
    assert found["ece"] == pytest.approx(sum(abs(best[part].sum() - hit[part].sum()) for part in bins) / 200)
    assert found["brier"] == pytest.approx(((shares - np.eye(4)[labels]) ** 2).sum(axis=1).mean())
    sets = dict(ConformalSets(alpha=0.2).numbers(answers, np.zeros(200)))
    limit = np.sort(1 - shares[::2][np.arange(100), labels[::2]])[int(np.ceil(101 * 0.8)) - 1]
    members = 1 - shares[1::2] <= limit
    assert (
        sets["coverage"] == members[np.arange(100), labels[1::2]].mean()
        and sets["set-size"] == members.sum(axis=1).mean()
    )
    assert not dict(ConformalSets().numbers(answers.subset(slice(0, 1)), np.zeros(1)))


def test_abstention_is_watched():
    """The area by sorting; every second image sets the threshold, of the others the answers are counted."""
    many = answers(2000, classes=3, heat=2.0)
    found = dict(Abstention(risk=0.2).numbers(many, np.zeros(2000)))
    best, said = many.probabilities().max(axis=1), many.logits.argmax(axis=1)
    order = sorted(range(2000), key=lambda i: -best[i])
    wrong = np.cumsum([said[i] != many.labels[i] for i in order])
    assert found["aurc"] == pytest.approx(np.mean(wrong / np.arange(1, 2001)))
    limit = threshold(best[::2], said[::2] == many.labels[::2], 0.2).confidence
    chosen = [i for i in range(1, 2000, 2) if best[i] > limit]
    assert found["answered"] == len(chosen) / 1000 and 0.3 < found["answered"] < 1
    assert found["risk"] == pytest.approx(np.mean([said[i] != many.labels[i] for i in chosen])) and found["risk"] < 0.2
    few = many.subset(slice(0, 12))  # too few to promise anything: no answer is given
    assert {name: value for name, value in Abstention().numbers(few, np.zeros(12)) if name != "aurc"} == {
        "answered": 0.0
    }
    assert list(dict(Abstention().numbers(many.subset(slice(0, 1)), np.zeros(1)))) == ["aurc"]
    for wrong_one in ({"risk": 0.0}, {"doubt": 1.0}):
        with pytest.raises(UsageError):
            Abstention(**wrong_one)
