"""What a model must beat: the most common class, and the nearest neighbours of the plain pixels."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vitrail.data.batches import Pictures
from vitrail.data.sources import most_common
from vitrail.images import resized
from vitrail.statistics import wilson_interval

CHOICES = (1, 3, 5, 10)
LEFT_OUT = 2000  # training images that choose k where there is no val
SIDE = 32  # larger pictures are reduced to this side first
# Distances are computed for so many queries and references at a time, of so many pixels: some 15 MB in all.
_QUERIES, _REFERENCES, _PIXELS = 512, 1024, 2**20


@dataclass(frozen=True)
class Baseline:
    """A share of right answers with its interval, and how it came about.

    Attributes:
        right: image by image, while the images are at hand.
    """

    name: str
    top1: float
    interval: tuple[float, float]
    how: str
    right: NDArray[np.bool_] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, name: str, right: NDArray[np.bool_], how: str) -> Baseline:
        hits, total = int(right.sum()), len(right)
        return cls(name, hits / max(1, total), wilson_interval(hits, total), how, right)


def majority(train: Pictures, test: Pictures) -> Baseline:
    """Always the class that is most common in training."""
    index, _ = most_common(train.dataset)
    return Baseline.of("majority class", test.dataset.targets[:, index] > 0, "the most common training class")


def nearest_pixels(train: Pictures, val: Pictures | None, test: Pictures) -> Baseline:
    """k nearest training images by the distance of their pixels.

    k is chosen on the validation split; without one, on some training images, each among the others.
    """
    reference, labels = pixels(train), train.dataset.targets
    choices = [k for k in CHOICES if k <= len(reference) - (val is None)] or [1]
    if val is None:
        chosen = np.unique(np.linspace(0, len(labels) - 1, min(LEFT_OUT, len(labels))).astype(np.int64))
        nearest = neighbours(reference, reference[chosen], max(choices) + 1)
        # Each is its own nearest, or as near as a copy of it.
        others = [row[row != own][: max(choices)] for row, own in zip(nearest, chosen, strict=True)]
        found, asked, where = np.stack(others), labels[chosen], "train, each left out"
    else:
        found, asked, where = neighbours(reference, pixels(val), max(choices)), val.dataset.targets, "val"
    shares = {k: int(right_of(found[:, :k], labels, asked).sum()) for k in choices}
    k = max(shares, key=lambda choice: (shares[choice], -choice))
    right = right_of(neighbours(reference, pixels(test), k), labels, test.dataset.targets)
    how = (
        f"the class of the {k} most similar of {len(reference):,} training pictures, pixel by pixel ({k} was best on {where})"
        if k > 1
        else f"the class of the most similar of {len(reference):,} training pictures, pixel by pixel"
    )
    return Baseline.of("nearest neighbours", right, how)


def right_of(found: NDArray[np.int64], labels: NDArray[np.float32], targets: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which queries have their most voted class among their true ones; a tie goes to the nearer neighbour.

    Args:
        found: the neighbours of each query, nearest first.
        labels: of the reference, one column per class; targets: of the queries.
    """
    # A vote weighs a little less with each place, so that ties fall to the nearest.
    weights = 1 - 1e-3 * np.arange(found.shape[1])
    right = np.empty(len(found), dtype=bool)
    for start in range(0, len(found), _QUERIES):
        chunk = found[start : start + _QUERIES]
        votes = sum(labels[chunk[:, place]] * weight for place, weight in enumerate(weights))
        right[start : start + len(chunk)] = targets[start + np.arange(len(chunk)), np.argmax(votes, axis=1)] > 0
    return right


def neighbours(reference: NDArray[np.uint8], queries: NDArray[np.uint8], k: int) -> NDArray[np.int64]:
    """Indices of the k nearest rows of `reference` by Euclidean distance, nearest first; queries k."""
    k = min(k, len(reference))
    rows = min(_REFERENCES, max(1, _PIXELS // reference.shape[1]))
    found = np.empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), _QUERIES):
        chunk = queries[start : start + _QUERIES].astype(np.float32)
        # The nearest of each part, and of those the nearest: memory does not grow with the number of references.
        places, distances = [], []
        for at in range(0, len(reference), rows):
            part = reference[at : at + rows].astype(np.float32)
            # |q|^2 is the same for every reference and does not change the order.
            far = chunk @ part.T
            far *= -2
            far += (part * part).sum(axis=1)
            nearest = np.argpartition(far, min(k, len(part)) - 1, axis=1)[:, :k]
            places.append(nearest + at)
            distances.append(np.take_along_axis(far, nearest, axis=1))
        order = np.argsort(np.concatenate(distances, axis=1), axis=1, kind="stable")[:, :k]
        found[start : start + len(chunk)] = np.take_along_axis(np.concatenate(places, axis=1), order, axis=1)
    return found


def pixels(pictures: Pictures) -> NDArray[np.uint8]:
    """Every image as one row of pixels at the model's size, or smaller."""
    height, width = (min(SIDE, side) for side in pictures.preprocessing.image_size)
    rows = np.empty((len(pictures.dataset), height * width * pictures.preprocessing.channels), dtype=np.uint8)
    for index, row in enumerate(rows):
        image = pictures.preprocessing(pictures[index]).transpose(1, 2, 0)
        row[:] = resized(image, (height, width)).reshape(-1)
    return rows
