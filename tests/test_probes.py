"""Neighbours and probes beside scikit-learn and float64; the same protocols on the command line and while a model trains."""

import json

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier

from test_fewshot import made
from vitrail.errors import DataError
from vitrail.evaluation import logistic
from vitrail.evaluation.features import Features
from vitrail.evaluation.logistic import Regression
from vitrail.evaluation.neighbours import Known, Neighbours, best_count
from vitrail.evaluation.probes import LinearProbe, LogisticProbe
from vitrail.nearest import cosine, nearest

PROTOCOLS = ("few-shot", "neighbours", "linear-probe", "logistic-probe")


@pytest.fixture
def parts():
    """Train, held-out and test images of four classes that overlap."""
    return tuple(
        made(counts, dim=10, seed=seed, spread=2.5)
        for seed, counts in enumerate(((60, 70, 80, 40), (30,) * 4, (50,) * 4))
    )


def whitened(train, *others):
    mean, deviation = train.values.astype(float).mean(axis=0), train.values.astype(float).std(axis=0)
    return [(part.values.astype(float) - mean) / deviation for part in (train, *others)]


@pytest.mark.parametrize("sizes", [(512, 1024), (7, 9)])
def test_nearest_by_cosine_are_those_of_brute_force(sizes, monkeypatch):
    """In blocks of any size, from a float16 table, a row of zeros among them."""
    monkeypatch.setattr("vitrail.nearest._QUERIES", sizes[0])
    monkeypatch.setattr("vitrail.nearest._REFERENCES", sizes[1])
    random = np.random.default_rng(0)
    references, queries = random.normal(size=(50, 6)).astype(np.float16), random.normal(size=(20, 6)).astype(np.float32)
    references[17] = 0
    places, near = nearest(references, queries, 4, cosine)
    a, b = queries.astype(float), references.astype(float)
    lengths = np.linalg.norm(b, axis=1)
    similar = (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.where(lengths > 0, lengths, 1)
    expected = np.argsort(-similar, axis=1, kind="stable")[:, :4]
    assert (places == expected).all()
    np.testing.assert_allclose(near, np.take_along_axis(similar, expected, axis=1), atol=1e-6)
    assert nearest(references[:3], queries, 10, cosine)[0].shape == (20, 3)


def test_each_is_left_out_of_its_own_neighbours():
    """Also where it has copies, more than neighbours are asked for."""
    rows = np.concatenate([np.zeros((5, 2)), np.eye(2), 3 * np.eye(2)]).astype(np.float32)
    known = Known(rows, np.eye(2, dtype=np.float32)[[0] * 5 + [0, 1, 0, 1]])
    which, places, _ = known.others(3)
    assert which.tolist() == list(range(9)) and places.shape == (9, 3)
    assert not (places == which[:, None]).any()


def test_of_equally_good_numbers_of_neighbours_the_smallest_is_taken():
    """Two far groups of six: one neighbour is as right as three or five are."""
    rows = np.concatenate([np.full((6, 2), 1.0), np.full((6, 2), -1.0)]).astype(np.float32) + np.eye(
        12, 2, dtype=np.float32
    )
    known = Known(rows, np.eye(2, dtype=np.float32)[[0] * 6 + [1] * 6])
    assert best_count(known, None, [5, 1, 3]) == 1


@pytest.mark.parametrize("weighting", ["place", "likeness"])
def test_neighbours_vote_as_scikit_learn_counts(parts, weighting):
    """DINO's weights are exp(cosine / 0.07); k is the one that knows most of the held-out images."""
    train, held, test = parts

    def right(k, queries):
        def votes(distances):
            return (
                np.exp((1 - distances) / 0.07)
                if weighting == "likeness"
                else 1 - 1e-3 * np.tile(np.arange(k), (len(distances), 1))
            )

        classifier = KNeighborsClassifier(k, algorithm="brute", metric="cosine", weights=votes)
        return int((classifier.fit(train.values, train.labels).predict(queries.values) == queries.labels).sum())

    record = Neighbours((1, 5, 15), weighting).measure(train, held, test)
    scores = {k: right(k, held) for k in (1, 5, 15)}
    assert record["k"] == max(scores, key=lambda k: (scores[k], -k)) and record["chosen on"] == "val"
    assert abs(round(record["top1"] * 200) - right(record["k"], test)) <= 1  # a tie of float32 or of float64
    assert Neighbours((1, 5, 15), weighting).measure(train, None, test)["chosen on"] == "train, each left out"


def test_the_linear_probe_is_ridge_regression(parts):
    """The penalty is per image, and the one chosen on the held-out images is fitted to all."""
    train, held, test = parts
    penalties = (1e-3, 0.1, 10.0)
    record = LinearProbe(penalties).measure(train, held, test)

    def right(penalty, fitted, queries):
        x, y = whitened(fitted, queries)
        ridge = Ridge(alpha=penalty * len(fitted)).fit(x, 2 * np.eye(4)[fitted.labels] - 1)
        return int((ridge.predict(y).argmax(axis=1) == queries.labels).sum())

    scores = {penalty: right(penalty, train, held) for penalty in penalties}
    assert {row["penalty"]: round(row["top1"] * 120) for row in record["tried"]} == scores
    assert record["penalty"] == max(scores, key=lambda penalty: (scores[penalty], penalty))
    whole = Features(
        np.concatenate([train.values, held.values]), np.concatenate([train.labels, held.labels]), train.classes
    )
    assert round(record["top1"] * 200) == right(record["penalty"], whole, test) and record["train"] == 370


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-5])
def test_the_logistic_minimum_is_the_minimum(parts, penalty, monkeypatch):
    """Beside SciPy's in float64, from zeros and from far away, whitened once or again in every pass."""
    train = parts[0]
    (x,) = whitened(train)

    def loss(flat):
        weights = flat.reshape(11, 4)
        scores = x @ weights[:-1] + weights[-1]
        top = scores.max(axis=1, keepdims=True)
        logs = scores - top - np.log(np.exp(scores - top).sum(axis=1, keepdims=True))
        slopes = (np.exp(logs) - np.eye(4)[train.labels]) / len(x)
        gradient = np.vstack([x.T @ slopes + penalty * weights[:-1], slopes.sum(axis=0)])
        return -logs[np.arange(len(x)), train.labels].mean() + penalty / 2 * (weights[:-1] ** 2).sum(), gradient.ravel()

    least = minimize(
        loss, np.zeros(44), jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 5000}
    )
    for start, room in (
        (None, 2**30),
        (None, 0),
        (np.random.default_rng(0).normal(size=(11, 4)).astype(np.float32), 0),
    ):
        monkeypatch.setattr(logistic, "KEPT_BYTES", room)
        regression = Regression(train, tolerance=1e-7)
        weights = regression.minimum(penalty, start)
        assert loss(weights.astype(float).ravel())[0] == pytest.approx(least.fun, rel=1e-6)
        assert regression.passes < 80
        scores = regression.linear(weights).scores(train.values)
        centred = scores - scores.mean(axis=1, keepdims=True)
        expected = x @ least.x.reshape(11, 4)[:-1] + least.x.reshape(11, 4)[-1]
        np.testing.assert_allclose(centred, expected - expected.mean(axis=1, keepdims=True), atol=0.02)
        np.testing.assert_allclose(regression.weights(regression.linear(weights)), weights, atol=1e-4)


def test_the_logistic_sweep_is_scikit_learns(parts):
    """On the same features and penalties: as many held-out and test images right, within two."""
    train, held, test = parts
    penalties = (1e-4, 1e-2, 1.0)
    record = LogisticProbe(penalties).measure(train, held, test)
    x, y = whitened(train, held)
    for row in record["tried"]:
        model = LogisticRegression(C=1 / (row["penalty"] * len(x)), tol=1e-8, max_iter=5000).fit(x, train.labels)
        assert abs((model.predict(y) == held.labels).sum() - row["top1"] * 120) <= 2
    assert record["top1"] > LogisticProbe((1.0,)).measure(train, held, test)["top1"] - 0.05
    alone = LogisticProbe(penalties).measure(train, None, test)
    assert alone["train"] == 250 and alone["held"] == 50 and "held out, seed 0" in alone["chosen on"]


def test_a_probe_needs_an_image_to_choose_by():
    single = made((1, 1, 1))
    for probe in (LinearProbe(), LogisticProbe()):
        with pytest.raises(DataError, match="one training image") as refused:
            probe.measure(single, None, made((2, 2, 2)))
        assert refused.value.code == "VT103"


def test_protocols_on_the_command_line(run, tmp_path, vitrail_command):
    """They share one pass; each writes its record; --set is for those that have the key; features stay."""
    named = [word for name in PROTOCOLS for word in ("--protocol", name)]
    settings = ["--set", "shots=[1,2,100]", "--set", "seeds=3", "--set", "penalties=[0.01,1]"]
    text = vitrail_command("eval", run, "--out", tmp_path, *named, *settings)
    assert text.status == 0, text.err
    assert "2 shots" in text.out and "100 shots             left out: dark below has" in text.out
    assert max(map(len, text.out.splitlines())) <= 80 + len(str(tmp_path))
    assert len(list((tmp_path / "eval" / "features").glob("*.npy"))) == 3
    answer = json.loads(vitrail_command("eval", run, "--out", tmp_path, *named, *settings, "--json").out)["protocols"]
    assert list(answer) == list(PROTOCOLS)
    for name in PROTOCOLS:
        written = json.loads((tmp_path / "eval" / name / "test.json").read_text())
        assert written == {key: value for key, value in answer[name].items() if key != "written"}
    assert answer["few-shot"]["shots"][0]["n"] == 3 and len(answer["logistic-probe"]["tried"]) == 2


def test_protocols_refuse_slips_of_the_pen(run, vitrail_command):
    assert "VT100" in vitrail_command("eval", run, "--protocol", "few-shots").err
    assert "did you mean few-shot" in vitrail_command("eval", run, "--protocol", "few-shots").err
    wrong = vitrail_command("eval", run, "--protocol", "few-shot", "--set", "seed=3")
    assert wrong.status == 2 and "did you mean seeds" in wrong.err
    for name in ("few-shot", "calibration"):
        wrong = vitrail_command("eval", run, "--protocol", name, "--split", "tset")
        assert (wrong.status, wrong.out) == (3, "") and "VT010" in wrong.err and "did you mean test" in wrong.err
    wrong = vitrail_command("eval", run, "--protocol", "neighbours", "--beside", run)
    assert wrong.status == 2 and "--protocol robustness" in wrong.err
    assert "no such setting of accuracy" in vitrail_command("eval", run, "--set", "seeds=3").err


def test_too_few_images_are_told_before_a_picture_is_passed(run, tmp_path, vitrail_command):
    few = vitrail_command("eval", run, "--protocol", "few-shot", "--set", "shots=[100]", "--out", tmp_path)
    assert few.status == 3 and "VT103" in few.err and not list(tmp_path.iterdir())


def test_more_neighbours_than_there_are_images_are_refused(parts):
    train, held, test = parts
    for others, most in ((held, 250), (None, 249)):
        assert Neighbours((most,)).measure(train, others, test)["k"] == most
        with pytest.raises(DataError, match=f"there are {most} to choose from") as refused:
            Neighbours((most + 1, 5000)).measure(train, others, test)
        assert refused.value.code == "VT103"
    assert Neighbours((250,)).obstacle({"a": 100, "b": 150}) and not Neighbours((249,)).obstacle({"a": 100, "b": 150})


@pytest.mark.slow
def test_fine_tuning_is_a_run_of_its_own(run, pictures, tmp_path, vitrail_command):
    """Two rates on held-out images, then the best on all; --set reaches the run."""
    typed = ["--protocol", "fine-tuning", "--set", "rates=[0.01,0.03]", "--set", "image_size=8"]
    typed += [
        "--set",
        'run=["training.epochs=0.5","training.batch_size=8","training.micro_batch=8","schedule.warmup=0"]',
    ]
    answer = vitrail_command("eval", run, "--data", pictures, "--out", tmp_path, *typed, "--json")
    assert answer.status == 0, answer.err
    record = json.loads(answer.out)["protocols"]["fine-tuning"]
    summary = json.loads((tmp_path / "eval/fine-tuning/run/data-test/eval/test/summary.json").read_text())
    assert record["top1"] == summary["top1"] and [row["lr"] for row in record["grid"]["rows"]] == [0.01, 0.03]
    refused = vitrail_command("eval", run, "--split", "val", "--protocol", "fine-tuning")
    assert refused.status == 2 and "rates are chosen on val" in refused.err


def test_without_a_place_features_leave_nothing(pictures, run, vitrail_command, tmp_path, monkeypatch):
    """Weights in a model folder, no --out: they lie in a temporary folder while the command runs."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = next((run / "checkpoints").glob("step-*"))
    answer = vitrail_command(
        "eval", folder, "--data", pictures, "--protocol", "neighbours", "--protocol", "linear-probe"
    )
    assert answer.status == 0 and "where" not in answer.out, answer.err
    assert not list(tmp_path.iterdir())
