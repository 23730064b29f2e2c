"""The class that the nearest of known images vote for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitrail.configuration import require
from vitrail.errors import DataError
from vitrail.evaluation.features import Features, Selected
from vitrail.evaluation.frozen import Frozen
from vitrail.nearest import Likeness, cosine, euclidean, nearest
from vitrail.statistics import wilson_interval

LEFT_OUT = 2000  # training images that choose k where no others are held out
_AT_ONCE = 512  # queries whose votes are counted

Table = NDArray[Any] | Selected  # rows of numbers of any type; may lie in a file


@dataclass(frozen=True)
class Known:
    """Images with classes that others are compared with.

    Attributes:
        rows: images values; labels: images classes, 1 where the class is true.
    """

    rows: Table
    labels: NDArray[np.float32]
    likeness: Likeness = euclidean

    def neighbours(self, queries: Table, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return nearest(self.rows, queries, k, self.likeness)

    def others(self, k: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Some of the images, and the nearest of the others to each: (which, places, how near)."""
        count = len(self.labels)
        chosen = np.unique(np.linspace(0, count - 1, min(LEFT_OUT, count)).astype(np.int64))
        places, near = self.neighbours(self.rows[chosen], k + 1)
        # Each is its own nearest, or as near as a copy of it.
        keep = places != chosen[:, None]
        keep[keep.all(axis=1), -1] = False
        shape = len(chosen), places.shape[1] - 1
        return chosen, places[keep].reshape(shape), near[keep].reshape(shape)


Weighting = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""How near, queries k, to the weight of each vote."""


def by_place(near: NDArray[np.float32]) -> NDArray[np.float32]:
    """One each, a little less with each place, so that ties fall to the nearest."""
    return np.broadcast_to((1 - 1e-3 * np.arange(near.shape[1])).clip(0.5).astype(np.float32), near.shape)


def right_of(
    places: NDArray[np.int64], votes: NDArray[np.float32], labels: NDArray[np.float32], targets: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Which queries have the class with the most votes among their true ones.

    Args:
        places: the neighbours of each query, nearest first; votes: what each weighs.
        labels: of the references, one column per class; targets: of the queries.
    """
    right = np.empty(len(places), dtype=bool)
    for start in range(0, len(places), _AT_ONCE):
        part = slice(start, min(start + _AT_ONCE, len(places)))
        sums = sum(labels[places[part, place]] * votes[part, place, None] for place in range(places.shape[1]))
        right[part] = targets[np.arange(part.start, part.stop), np.argmax(sums, axis=1)] > 0
    return right


def best_count(
    known: Known,
    held: tuple[Table, NDArray[np.float32]] | None,
    choices: Sequence[int],
    weighting: Weighting = by_place,
) -> int:
    """The k that knows most of some held-out images (rows, targets), or of the known ones themselves, each left out.

    Of equally good ones the smallest.
    """
    possible = [k for k in choices if k <= len(known.labels) - (held is None)] or [1]
    if held is None:
        chosen, places, near = known.others(max(possible))
        targets = known.labels[chosen]
    else:
        (places, near), targets = known.neighbours(held[0], max(possible)), held[1]
    shares = {k: int(right_of(places[:, :k], weighting(near[:, :k]), known.labels, targets).sum()) for k in possible}
    return max(shares, key=lambda k: (shares[k], -k))


@dataclass(frozen=True)
class Neighbours(Frozen):
    """The class of the nearest training images, by the cosine of their features.

    Attributes:
        counts: numbers of neighbours to choose from, on held-out images; where there are none, on training images, each
            among the others.
        weighting: "place", a vote each, ties to the nearer; "likeness", exp(cosine / temperature), as DINO votes (Caron
            2021, arXiv 2104.14294, section 4.1, after Wu 2018).
    """

    counts: tuple[int, ...] = (1, 3, 5, 10, 20)
    weighting: Literal["place", "likeness"] = "place"
    temperature: float = 0.07

    def __post_init__(self) -> None:
        good = 0 < len(self.counts) <= 100 and all(0 < count <= 10_000 for count in self.counts)
        require(good, "counts", self.counts, "a list of numbers of neighbours, such as [1, 5, 10]")
        require(1e-4 <= self.temperature <= 1e4, "temperature", self.temperature, "1e-4 to 1e4")

    def measure(self, train: Features, held: Features | None, test: Features) -> dict[str, Any]:
        # Where none are held out, each is left out of its own neighbours.
        if (problem := self._problem(len(train) - (held is None))) is not None:
            raise problem
        classes = np.eye(len(train.classes), dtype=np.float32)
        known = Known(train.values, classes[train.labels], cosine)
        others = None if held is None else (held.values, classes[held.labels])
        k = best_count(known, others, self.counts, self._weights)
        places, near = known.neighbours(test.values, k)
        right = right_of(places, self._weights(near), known.labels, classes[test.labels])
        hits = int(right.sum())
        return {
            "n": len(test), "train": len(train), "classes": len(train.classes), "k": k,
            "chosen on": "val" if held is not None else "train, each left out", "weighting": self.weighting,
            "top1": hits / len(test), "top1_interval": list(wilson_interval(hits, len(test))),
        }  # fmt: skip

    def obstacle(self, counts: Mapping[str, int]) -> DataError | None:
        return self._problem(sum(counts.values()) - 1)

    def _problem(self, most: int) -> DataError | None:
        fewest = min(self.counts)
        if fewest <= max(1, most):
            return None
        return DataError("VT103", f"too few training images for {fewest} neighbours: there are {most} to choose from",
                         f"at least {fewest}", "fewer neighbours: --set counts=[1,5]; or more images")  # fmt: skip

    def numbers(self, record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
        yield "top1", record["top1"]

    def _weights(self, near: NDArray[np.float32]) -> NDArray[np.float32]:
        # Less the nearest first, which changes no vote and keeps exp finite.
        return by_place(near) if self.weighting == "place" else np.exp((near - near[:, :1]) / self.temperature)
