"""Estimators of scikit-learn (extra `sklearn`): pictures to features, and pictures to classes.

What may be given as X, to both:

- paths of pictures: a list, or an array of text;
- pictures: uint8 arrays of images rows columns, or images rows columns channels, or a list of such pictures of any sizes;
- rows of numbers, images values, as scikit-learn has them: each is a picture of `shape`, or where that is None of the
  smallest square that holds it, filled with zeros; the numbers of the training rows, least to greatest, become 0 to 255.
"""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.data.batches import Pictures, evaluation_size
from vitrail.data.sources import Dataset, Source
from vitrail.deployment.classifier import Classifier
from vitrail.deployment.loading import load_classifier
from vitrail.errors import UsageError
from vitrail.evaluation.features import Features
from vitrail.evaluation.frozen import count_classes
from vitrail.evaluation.least_squares import Linear
from vitrail.evaluation.probes import LinearProbe, LogisticProbe
from vitrail.images import Picture, picture_of
from vitrail.memory import Usage
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import Size, ViTConfig, build
from vitrail.preprocessing import Preprocessing
from vitrail.recipes.assembly import Machine, checkpoint_of, trainer_of
from vitrail.recipes.classification import fine_tune

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
except ImportError:
    raise UsageError(
        "VT107", "vitrail.sklearn needs the package scikit-learn, which is not installed",
        "the packages of Vitrail's extra `sklearn`", "pip install 'vitrail[sklearn]'",
    ) from None  # fmt: skip

Method = Literal["logistic", "linear", "fine-tuning"]
PROBES: dict[str, type[LogisticProbe | LinearProbe]] = {"logistic": LogisticProbe, "linear": LinearProbe}
UNCHOSEN = 0.01  # the penalty where there are too few images to choose one by
_SIDE = 8  # pixels of the model that stands in where none is given


class _Pictured(BaseEstimator):
    """What both estimators do with X: pictures, and their features."""

    def _begun(self, X: Any, y: Any = None) -> Any:
        """Learns what rows of numbers mean, and loads the model; y checked."""
        self.model_ = _loaded(self.model)
        if _pictures(X):
            self.rows_ = False
            return y
        checked = validate_data(self, X, dtype="numeric") if y is None else validate_data(self, X, y, dtype="numeric")
        rows, labels = (checked, None) if y is None else checked
        self.rows_ = True
        self.low_, self.high_ = (0.0, 255.0) if rows.dtype == np.uint8 else (float(rows.min()), float(rows.max()))
        self.shape_ = _shape(self.shape, rows.shape[1])
        return labels

    def _seen(self, X: Any) -> Any:
        """X, or where it is rows of numbers the pictures that they are."""
        check_is_fitted(self, "model_")
        if _pictures(X):
            if self.rows_:
                raise ValueError("X holds pictures, but rows of numbers were given to fit")
            return X
        if not self.rows_:
            raise ValueError("X holds rows of numbers, but pictures were given to fit")
        rows = validate_data(self, X, dtype="numeric", reset=False).astype(np.float64)
        span = (self.high_ / 2 - self.low_ / 2) or 1.0  # halves, as the greatest numbers have no difference
        values = np.clip((rows / 2 - self.low_ / 2) / span, 0, 1) * 255
        squares = np.zeros((len(rows), math.prod(self.shape_)), dtype=np.uint8)
        squares[:, : rows.shape[1]] = np.rint(values)
        return squares.reshape(len(rows), *self.shape_)

    def _features(self, X: Any) -> NDArray[np.float32]:
        """Features of every picture. Batches are always full, so that those of a picture hang on no other."""
        size = min(32, evaluation_size(self.model_.preprocessing))
        found, seen = [], self._seen(X)
        for start in range(0, len(seen), size):
            chunk = seen[start : start + size]
            images = np.stack([self.model_.preprocessing(_picture(one, self.model_)) for one in chunk])
            filled = np.concatenate([images, np.zeros((size - len(images), *images.shape[1:]), dtype=np.uint8)])
            found.append(self.model_.represent(filled)[: len(images)])
        return np.concatenate(found)


class ViTEmbedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, _Pictured):
    """Pictures to the features that a model's last layer reads, float32 images features.

    Args:
        model: a path for `vitrail.load`, or a loaded model. None is a tiny Vision Transformer with random weights, which
            shows that a pipeline runs and knows nothing.
        shape: (rows, columns) or (rows, columns, channels) of pictures that are given as rows of numbers.
    """

    def __init__(self, model: Any = None, shape: tuple[int, ...] | None = None) -> None:
        self.model = model
        self.shape = shape

    def fit(self, X: Any, y: Any = None) -> ViTEmbedder:
        """Loads the model; of rows of numbers it learns the least and the greatest."""
        self._begun(X)
        channels, size = self.model_.preprocessing.channels, self.model_.preprocessing.image_size
        self._n_features_out = self.model_.represent(np.zeros((1, channels, *size), dtype=np.uint8)).shape[1]
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Raises DataError where a picture cannot be read."""
        return self._features(X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # float32, whatever comes
        return tags


class ViTClassifier(ClassifierMixin, _Pictured):
    """Classes from a probe on frozen features, or from a fine-tuned model.

    Args:
        model, shape: as in ViTEmbedder.
        method: "logistic" or "linear" regression on the features, the penalty chosen on a fifth of the images, and then
            fitted to all; or "fine-tuning", the recipe fine-tune from the path in `model`.
        epochs: of fine-tuning; None for the recipe's.
        random_state: decides which fifth, and the order of fine-tuning.
    """

    def __init__(
        self,
        model: Any = None,
        method: Method = "logistic",
        shape: tuple[int, ...] | None = None,
        epochs: float | None = None,
        random_state: int = 0,
    ) -> None:
        self.model = model
        self.method = method
        self.shape = shape
        self.epochs = epochs
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> ViTClassifier:
        if self.method not in (*PROBES, "fine-tuning"):
            raise ValueError(f"method is {self.method!r}; expected logistic, linear or fine-tuning")
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        checked = self._begun(X, y)
        labels = column_or_1d(y if checked is None else checked, warn=True)
        check_classification_targets(labels)
        if not self.rows_ and len(labels) != len(X):
            raise ValueError(f"{len(X)} pictures and {len(labels)} labels; one label per picture expected")
        self.classes_, places = np.unique(labels, return_inverse=True)
        if self.method == "fine-tuning":
            self.model_ = self._tuned(X, places)
        else:
            names = tuple(map(str, range(len(self.classes_))))
            self.linear_ = self._probed(Features(self._features(X), places, names))
        return self

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Scores, images classes; of two classes the second one's lead, images."""
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Softmax of the scores, images classes; of the method linear they are no probabilities, only in their order."""
        scores = self._scores(X)
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def predict(self, X: Any) -> NDArray[Any]:
        scores = self._scores(X)
        return self.classes_[scores.argmax(axis=1)]

    def _scores(self, X: Any) -> NDArray[np.float64]:
        check_is_fitted(self, "classes_")
        if self.method != "fine-tuning":
            linear = self.linear_  # in float64, so that no score hangs on how many are asked for
            return (self._features(X).astype(np.float64) - linear.centre) @ linear.weights + linear.bias
        found, seen, size = [], self._seen(X), evaluation_size(self.model_.preprocessing)
        for start in range(0, len(seen), size):
            images = [self.model_.preprocessing(_picture(one, self.model_)) for one in seen[start : start + size]]
            found.append(self.model_.logits(np.stack(images)))
        return np.concatenate(found).astype(np.float64)

    def _probed(self, features: Features) -> Linear:
        probe = PROBES[self.method](seed=self.random_state)
        counts = count_classes(features.labels, features.classes)
        if probe.obstacle(counts) is None and len(counts) > 1:
            return probe.chosen(features, None)[0]
        single = PROBES[self.method](penalties=(UNCHOSEN,))
        return next(linear for _, linear in single.tried(features))

    def _tuned(self, X: Any, places: NDArray[np.int64]) -> Classifier:
        """The recipe fine-tune on all images; nothing is held out, and the last weights are taken."""
        if not isinstance(self.model, (str, os.PathLike)):
            raise ValueError("method fine-tuning starts from weights: model must be their path")
        seen, model = self._seen(X), self.model_
        dataset = Dataset(
            tuple(f"{number:08d}" for number in range(len(places))),
            np.eye(len(self.classes_), dtype=np.float32)[places],
            lambda index, channels: _picture(seen[index], model),
        )
        source = Source("X", tuple(str(name) for name in self.classes_), {"train": dataset})
        run = fine_tune(source, os.fspath(self.model), model.preprocessing.image_size)
        run = run.changed({"training.seed": str(self.random_state), "training.evaluations": "1"})
        if self.epochs is not None:
            run = run.changed({"training.epochs": repr(float(self.epochs))})
        pictures = {"train": Pictures(dataset, run.preprocessing).check()}
        with tempfile.TemporaryDirectory(prefix="vitrail-") as scratch:
            trainer = trainer_of(run, source, pictures, Machine("cpu"), Path(scratch), True, Usage.begin())
            trainer.fit()
        return Classifier(checkpoint_of(run, source, trainer.parts.objective.backbone))


def _pictures(X: Any) -> bool:
    """Whether X holds paths or pictures, and no rows of numbers."""
    if isinstance(X, np.ndarray) and X.dtype != object:
        return X.dtype.kind == "U" or (X.ndim >= 3 and X.dtype == np.uint8)
    if isinstance(X, (list, tuple)) or (isinstance(X, np.ndarray) and X.ndim == 1):
        first = X[0] if len(X) else None
        return isinstance(first, (str, os.PathLike)) or (isinstance(first, np.ndarray) and first.ndim >= 2)
    return False


def _picture(one: Any, model: Classifier) -> Picture:
    """A path's picture, or an array as one of the model's channels."""
    channels = model.preprocessing.channels
    if not isinstance(one, np.ndarray):
        return picture_of(os.fspath(one), channels)
    grey = one[:, :, None] if one.ndim == 2 else one
    if channels == 3 and grey.shape[2] == 1:
        grey = np.repeat(grey, 3, axis=2)
    elif channels == 1 and grey.shape[2] == 3:  # as Pillow makes grey of colour (ITU-R 601-2)
        grey = np.rint(grey @ np.array([0.299, 0.587, 0.114]))[:, :, None].astype(np.uint8)
    return picture_of(np.ascontiguousarray(grey), channels)


def _shape(shape: tuple[int, ...] | None, count: int) -> tuple[int, ...]:
    if shape is None:
        side = math.isqrt(count - 1) + 1
        return side, side
    if len(shape) not in (2, 3) or math.prod(shape) != count:
        raise ValueError(f"shape is {shape}, but a row has {count} values")
    return tuple(shape)


def _loaded(model: Any) -> Classifier:
    if isinstance(model, Classifier):
        return model
    if model is not None:
        return load_classifier(model)
    config = ViTConfig(Size(32, 1, 2, 64), LinearPatches((2, 2), 1), image_size=(_SIDE, _SIDE))
    preprocessing = Preprocessing((_SIDE, _SIDE), 1, mean=(0.5,), std=(0.5,))
    return Classifier(Checkpoint(config, build(config, 0).state_dict(), preprocessing, ()))
