"""What a model takes for what: per class how much it finds and how often it is right, and the pairs that it confuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.evaluation.predictions import Predictions
from vitrail.statistics import wilson_interval


@dataclass(frozen=True)
class ClassScore:
    """One class of a split.

    Attributes:
        count: images of the class; predicted: images that the model says are of it; hits: both at once.
        recall, precision: shares of the two with 95 % Wilson intervals; None where there is nothing to divide by.
    """

    name: str
    count: int
    predicted: int
    hits: int
    recall: float | None
    recall_interval: tuple[float, float]
    precision: float | None
    precision_interval: tuple[float, float]

    @classmethod
    def of(cls, name: str, count: int, predicted: int, hits: int) -> ClassScore:
        return cls(
            name, count, predicted, hits,
            hits / count if count else None, wilson_interval(hits, count),
            hits / predicted if predicted else None, wilson_interval(hits, predicted),
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Pair:
    """Two classes that are taken for each other.

    Attributes:
        forward: images of `first` that the model takes for `second`; backward: the reverse.
        files: those images, the most confident mistakes first.
    """

    first: str
    second: str
    forward: int
    backward: int
    files: tuple[str, ...]

    @property
    def count(self) -> int:
        return self.forward + self.backward


def class_scores(targets: NDArray[np.bool_], answers: NDArray[np.bool_], classes: Sequence[str]) -> list[ClassScore]:
    """Scores of every class.

    Args:
        targets, answers: images classes; what is true, and what the model says is true.
    """
    counts, predicted, hits = targets.sum(axis=0), answers.sum(axis=0), (targets & answers).sum(axis=0)
    return [
        ClassScore.of(*row)
        for row in zip(classes, counts.tolist(), predicted.tolist(), hits.tolist(), strict=True)
    ]  # fmt: skip


def scores_of(predictions: Predictions, classes: Sequence[str]) -> list[ClassScore]:
    """Scores of every class from a table in which one class is true of each image."""
    labels, predicted = Counter(predictions.labels), Counter(predictions.predicted)
    hits = Counter(label for label, right in zip(predictions.labels, predictions.hit, strict=True) if right)
    return [ClassScore.of(name, labels[name], predicted[name], hits[name]) for name in classes]


def pairs(predictions: Predictions, limit: int = 20) -> list[Pair]:
    """The most confused pairs, most mistakes first."""
    mistakes: dict[tuple[str, str], list[int]] = {}
    for index in np.flatnonzero(~predictions.hit):
        true, said = predictions.labels[index], predictions.predicted[index]
        mistakes.setdefault((min(true, said), max(true, said)), []).append(int(index))
    found = []
    for (one, other), indices in sorted(mistakes.items(), key=lambda item: (-len(item[1]), item[0]))[:limit]:
        forward = sum(predictions.labels[index] == one for index in indices)
        backward = len(indices) - forward
        first, second = (one, other) if forward >= backward else (other, one)
        ordered = sorted(indices, key=lambda index: -predictions.probability[index])
        files = tuple(predictions.files[index] for index in ordered)
        found.append(Pair(first, second, max(forward, backward), min(forward, backward), files))
    return found


def matrix(predictions: Predictions, classes: Sequence[str]) -> NDArray[np.int64]:
    """Images per true class (rows) and predicted class (columns), of the classes given; others are left out."""
    place = {name: index for index, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for label, said in zip(predictions.labels, predictions.predicted, strict=True):
        if label in place and said in place:
            counts[place[label], place[said]] += 1
    return counts
