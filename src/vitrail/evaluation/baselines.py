"""What a model must beat: the most common class, and the nearest neighbours of the plain pixels."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vitrail.data.batches import Pictures
from vitrail.data.sources import most_common
from vitrail.evaluation.neighbours import Known, best_count, by_place, right_of
from vitrail.images import resized
from vitrail.statistics import wilson_interval

CHOICES = (1, 3, 5, 10)
SIDE = 32  # larger pictures are reduced to this side first


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
    known = Known(pixels(train), train.dataset.targets)
    k = best_count(known, None if val is None else (pixels(val), val.dataset.targets), CHOICES)
    where = "train, each left out" if val is None else "val"
    places, near = known.neighbours(pixels(test), k)
    right = right_of(places, by_place(near), known.labels, test.dataset.targets)
    how = (
        f"the class of the {k} most similar of {len(known.labels):,} training pictures, pixel by pixel ({k} was best on {where})"
        if k > 1
        else f"the class of the most similar of {len(known.labels):,} training pictures, pixel by pixel"
    )
    return Baseline.of("nearest neighbours", right, how)


def pixels(pictures: Pictures) -> NDArray[np.uint8]:
    """Every image as one row of pixels at the model's size, or smaller."""
    height, width = (min(SIDE, side) for side in pictures.preprocessing.image_size)
    rows = np.empty((len(pictures.dataset), height * width * pictures.preprocessing.channels), dtype=np.uint8)
    for index, row in enumerate(rows):
        image = pictures.preprocessing(pictures[index]).transpose(1, 2, 0)
        row[:] = resized(image, (height, width)).reshape(-1)
    return rows
