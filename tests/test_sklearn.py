"""The estimators keep scikit-learn's contract, take pictures in every form, and fit into its searches."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

import vitrail
from vitrail.errors import DataError
from vitrail.images import read_picture
from vitrail.sklearn import ViTClassifier, ViTEmbedder


def files(pictures):
    paths = sorted(str(path) for path in pictures.rglob("*.png"))
    return np.array(paths), np.array([Path(path).parent.name for path in paths])


def test_embedder_gives_the_models_features(run, pictures):
    """Of paths, pictures and rows the same, in batches of any size; names for data frames; equal after a pickle."""
    model, (paths, _) = vitrail.load(run), files(pictures)
    images = np.stack([read_picture(path, 1)[:, :, 0] for path in paths])
    expected = model.represent(np.stack([model.preprocessing(image[:, :, None]) for image in images]))
    embedder = ViTEmbedder(str(run)).fit(paths)
    np.testing.assert_allclose(embedder.transform(paths), expected, atol=1e-5)
    assert (embedder.transform(paths[:3]) == embedder.transform(paths)[:3]).all()
    for given in (images, images[:, :, :, None], [Path(path) for path in paths], list(images)):
        np.testing.assert_allclose(ViTEmbedder(model).fit_transform(given), expected, atol=1e-5)
    rows = images.reshape(len(images), -1)
    np.testing.assert_allclose(ViTEmbedder(model, shape=(8, 8)).fit_transform(rows), expected, atol=1e-5)
    numbers = np.vstack([np.zeros(64), np.full(64, 255), rows]) / 17 - 3  # the range of all pixels, in other units
    np.testing.assert_allclose(ViTEmbedder(model).fit(numbers).transform(numbers[2:]), expected, atol=1e-5)
    assert list(embedder.get_feature_names_out())[:2] == ["vitembedder0", "vitembedder1"]
    assert (pickle.loads(pickle.dumps(embedder)).transform(paths) == embedder.transform(paths)).all()


@pytest.mark.parametrize("method", ["logistic", "linear"])
def test_classifier_learns_from_pictures(run, pictures, method):
    """Classes have the user's names; cross-validation works; a fitted one refuses other kinds of X and missing files."""
    paths, names = files(pictures)
    classifier = ViTClassifier(str(run), method=method)
    assert cross_val_score(classifier, paths, names, cv=2).mean() > 0.9
    classifier.fit(paths[::2], names[::2])
    assert set(classifier.predict(paths[1::2])) == set(names) and classifier.predict_proba(paths).shape == (40, 2)
    with pytest.raises(ValueError, match="rows of numbers"):
        classifier.predict(np.zeros((2, 64)))
    with pytest.raises(DataError, match="No such file"):
        classifier.predict(["nowhere.png"])
    with pytest.raises(ValueError, match="one label per picture"):
        classifier.fit(paths, names[:-1])


def test_classifier_is_fine_tuned(run, pictures):
    paths, names = files(pictures)
    classifier = ViTClassifier(str(run), method="fine-tuning", epochs=2).fit(paths[::2], names[::2])
    assert classifier.score(paths[1::2], names[1::2]) > 0.8
    with pytest.raises(ValueError, match="must be their path"):
        ViTClassifier(method="fine-tuning").fit(paths, names)


def test_digits_through_the_stand_in():
    """Random weights keep something of a picture, far from much: rows of 64 numbers, as scikit-learn has them."""
    X, y = load_digits(return_X_y=True)
    classifier = ViTClassifier(method="linear", shape=(8, 8)).fit(X[:400], y[:400])
    assert classifier.score(X[400:600], y[400:600]) > 0.25  # chance is 0.1
    with pytest.raises(ValueError, match="a row has 64 values"):
        ViTClassifier(shape=(9, 8)).fit(X, y)
    with pytest.raises(ValueError, match="expected logistic, linear or fine-tuning"):
        ViTClassifier(method="svm").fit(X, y)


@pytest.mark.slow
@parametrize_with_checks([ViTEmbedder(), ViTClassifier(), ViTClassifier(method="linear")])
def test_the_contract(estimator, check):
    """Every check of scikit-learn, none excepted."""
    check(estimator)


@pytest.mark.slow
def test_the_contract_of_the_embedder():
    """The quicker estimator of the three; the classifiers are below."""
    results = check_estimator(ViTEmbedder(), on_fail=None, on_skip=None)
    assert not [result["check_name"] for result in results if result["status"] == "failed"] and len(results) > 30
