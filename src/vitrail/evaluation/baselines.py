"""What a model must beat: the most common class, and the nearest neighbours of the plain pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitrail.data.batches import Pictures
from vitrail.data.sources import most_common
from vitrail.images import resized
from vitrail.statistics import wilson_interval

CHOICES = (1, 3, 5, 10)
SIDE = 32  # larger pictures are reduced to this side first
_DISTANCES = 16_000_000  # kept at a time: 200 MB with their order
_PART = 8192


@dataclass(frozen=True)
class Baseline:
    """A share of right answers with its interval, and how it came about."""

    name: str
    top1: float
    interval: tuple[float, float]
    how: str


def majority(train: Pictures, test: Pictures) -> Baseline:
    """Always the class that is most common in training."""
    index, _ = most_common(train.dataset)
    hits, total = int(test.dataset.targets[:, index].sum()), len(test.dataset)
    return Baseline(
        "majority class", hits / max(1, total), wilson_interval(hits, total), "the most common training class"
    )


def nearest_pixels(train: Pictures, val: Pictures, test: Pictures) -> Baseline:
    """k nearest training images by the distance of their pixels; k is chosen on the validation split."""
    reference, labels = pixels(train), train.dataset.targets
    choices = [k for k in CHOICES if k <= len(reference)]
    found = neighbours(reference, pixels(val), max(choices))
    shares = {k: hits_of(found[:, :k], labels, val.dataset.targets) for k in choices}
    k = max(shares, key=lambda choice: (shares[choice], -choice))
    hits = hits_of(neighbours(reference, pixels(test), k), labels, test.dataset.targets)
    how = f"{k} nearest of {len(reference)} training images by pixels, k chosen on val"
    total = len(test.dataset)
    return Baseline("nearest neighbours", hits / max(1, total), wilson_interval(hits, total), how)


def hits_of(found: NDArray[np.int64], labels: NDArray[np.float32], targets: NDArray[np.float32]) -> int:
    """How many queries have their most voted class among their true ones; a tie goes to the nearer neighbour.

    Args:
        found: the neighbours of each query, nearest first.
        labels: of the reference, one column per class; targets: of the queries.
    """
    # A vote weighs a little less with each place, so that ties fall to the nearest.
    weights = 1 - 1e-3 * np.arange(found.shape[1])
    votes = (labels[found] * weights[None, :, None]).sum(axis=1)
    return int((targets[np.arange(len(votes)), votes.argmax(axis=1)] > 0).sum())


def neighbours(reference: NDArray[np.uint8], queries: NDArray[np.uint8], k: int) -> NDArray[np.int64]:
    """Indices of the k nearest rows of `reference` by Euclidean distance, nearest first; queries k."""
    found = np.empty((len(queries), k), dtype=np.int64)
    size = max(1, _DISTANCES // len(reference))
    for start in range(0, len(queries), size):
        chunk = queries[start : start + size].astype(np.float32)
        distances = np.empty((len(chunk), len(reference)), dtype=np.float32)
        for at in range(0, len(reference), _PART):
            part = reference[at : at + _PART].astype(np.float32)
            # |q|^2 is the same for every reference and does not change the order.
            distances[:, at : at + _PART] = (part * part).sum(axis=1)[None] - 2 * chunk @ part.T
        nearest = np.argpartition(distances, min(k, len(reference)) - 1, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(distances, nearest, axis=1), axis=1, kind="stable")
        found[start : start + len(chunk)] = np.take_along_axis(nearest, order, axis=1)
    return found


def pixels(pictures: Pictures) -> NDArray[np.uint8]:
    """Every image as one row of pixels at the model's size, or smaller."""
    height, width = (min(SIDE, side) for side in pictures.preprocessing.image_size)
    rows = [
        resized(pictures.preprocessing(pictures[index]).transpose(1, 2, 0), (height, width)).reshape(-1)
        for index in range(len(pictures.dataset))
    ]
    return np.stack(rows)
