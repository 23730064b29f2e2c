"""Regularised least squares from features to classes, in closed form and in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.evaluation.features import Features, Table, blocks

# As in the official evaluators/fewshot_lsr.py: added to the standard deviation, and the constant feature that stands for
# the bias, so large that its weight is hardly held back.
EPSILON, BIAS = 1e-5, 100.0


@dataclass(frozen=True)
class Whitening:
    """Features less their mean, divided by their standard deviation; both of the training images.

    Attributes:
        mean, scale: dim; the scale is the population's standard deviation plus 1e-5, so that a feature which never
            changes in training becomes zero there.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def of(cls, features: Features) -> Whitening:
        """In two passes, which lose no digits where a mean is large beside its deviation."""
        mean = sum(rows.sum(axis=0, dtype=np.float64) for rows, _ in features.blocks()) / len(features)
        square = sum(((rows - mean) ** 2).sum(axis=0) for rows, _ in features.blocks()) / len(features)
        return cls(mean, np.sqrt(square) + EPSILON)

    def __call__(self, rows: NDArray[np.floating]) -> NDArray[np.float64]:
        return (rows - self.mean) / self.scale


@dataclass(frozen=True)
class Linear:
    """A linear map of features to a score per class.

    Attributes:
        centre: dim, taken from the features first, as a large mean would cost digits later.
        weights: dim classes; bias: classes.
    """

    centre: NDArray[np.float32]
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]

    @classmethod
    def after(cls, whitening: Whitening, weights: NDArray[np.floating], bias: NDArray[np.floating]) -> Linear:
        """The map from features as they are that a map of whitened ones makes."""
        centre, plain = whitening.mean.astype(np.float32), weights / whitening.scale[:, None]
        shift = (centre - whitening.mean) @ plain  # what rounding the mean would change
        return cls(centre, plain.astype(np.float32), (bias + shift).astype(np.float32))

    def scores(self, values: Table) -> NDArray[np.float32]:
        """Features, images dim, to images classes."""
        scores = np.matmul(np.asarray(values, dtype=np.float32) - self.centre, self.weights, dtype=np.float32)
        scores += self.bias
        return scores

    def answers(self, values: Table) -> NDArray[np.int64]:
        """The class of the highest score of each image, a block at a time; of equal ones the first."""
        found = np.empty(len(values), dtype=np.int64)
        for part in blocks(len(values), sum(self.weights.shape)):
            found[part] = self.scores(values[part]).argmax(axis=1)
        return found

    def right(self, features: Features) -> NDArray[np.bool_]:
        """Which images get their own class."""
        return self.answers(features.values) == features.labels


def shares_right(maps: Sequence[Linear], features: Features) -> list[float]:
    """How often each of several maps is right; the features are gone through once."""
    hits = np.zeros(len(maps), dtype=np.int64)
    for values, labels in features.blocks():
        hits += [int((linear.scores(values).argmax(axis=1) == labels).sum()) for linear in maps]
    return (hits / len(features)).tolist()


class Moments:
    """Sums over images from which least squares of any penalty follow; images may be added later.

    They are taken around the mean of the images that came first, so that no digits are lost where a mean is large.
    """

    def __init__(self, dim: int, classes: int) -> None:
        self.centre = np.zeros(dim)
        self.square = np.zeros((dim, dim))  # of rows less the centre
        self.sums = np.zeros((classes, dim))
        self.counts = np.zeros(classes)

    @classmethod
    def of(cls, features: Features) -> Moments:
        moments = cls(features.dim, len(features.classes))
        moments.add(features)
        return moments

    def add(self, features: Features) -> None:
        for values, labels in features.blocks():
            if not self.counts.any():
                self.centre = values.mean(axis=0, dtype=np.float64)
            rows = values - self.centre
            self.square += rows.T @ rows
            order = np.argsort(labels, kind="stable")
            present, starts = np.unique(labels[order], return_index=True)
            self.sums[present] += np.add.reduceat(rows[order], starts)
            self.counts += np.bincount(labels, minlength=len(self.counts))

    @property
    def count(self) -> float:
        return float(self.counts.sum())

    def whitening(self) -> Whitening:
        mean = self.sums.sum(axis=0) / self.count
        variance = np.maximum(np.einsum("ii->i", self.square) / self.count - mean**2, 0)
        return Whitening(self.centre + mean, np.sqrt(variance) + EPSILON)

    def system(self, whitening: Whitening) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """X'X and X'Y of the whitened images; a constant feature would be orthogonal to them, so the bias stands alone."""
        mean, scale = self.sums.sum(axis=0) / self.count, whitening.scale
        gram = (self.square - self.count * np.outer(mean, mean)) / np.outer(scale, scale)
        return gram, (2 * (self.sums - self.counts[:, None] * mean) / scale).T

    def solved(self, penalty: float) -> Linear:
        """argmin over W of |X W - Y|^2 + penalty |W|^2, with X whitened, a constant of 100 added, and Y of -1 and 1."""
        whitening = self.whitening()
        gram, right = self.system(whitening)
        np.einsum("ii->i", gram)[:] += penalty
        return Linear.after(whitening, np.linalg.solve(gram, right), self.bias(penalty))

    def bias(self, penalty: float) -> NDArray[np.float64]:
        return bias(self.counts, penalty)


def bias(counts: NDArray[Any], penalty: float) -> NDArray[np.float64]:
    """100 times the weight of the constant 100, for so many images of each class."""
    return BIAS**2 * (2 * counts - counts.sum()) / (BIAS**2 * counts.sum() + penalty)


def dual(features: Features, penalty: float) -> Linear:
    """What `Moments.solved` gives, as X'(XX' + penalty)^-1 Y: cheaper where there are fewer images than features."""
    whitening, classes = Whitening.of(features), len(features.classes)
    rows = whitening(np.asarray(features.values, dtype=np.float64))
    gram = rows @ rows.T
    np.einsum("ii->i", gram)[:] += penalty
    targets = np.full((len(features), classes), -1.0)
    targets[np.arange(len(features)), features.labels] = 1.0
    counts = np.bincount(features.labels, minlength=classes)
    return Linear.after(whitening, rows.T @ np.linalg.solve(gram, targets), bias(counts, penalty))
