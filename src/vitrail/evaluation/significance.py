"""Is one model better than another? Differences on the same images, with intervals and exact tests."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitrail.evaluation.predictions import Predictions
from vitrail.statistics import mcnemar

LEVEL = 0.05  # a difference that chance makes less often than this is called one
RESAMPLES = 10_000
MOST_DRAWS = 1_000_000_000  # a bootstrap of more images than 100,000 takes fewer resamples, at least 1,000
_AT_ONCE = 2_000_000  # draws kept at a time: some 50 MB


@dataclass(frozen=True)
class Pairing:
    """What two models say of the same images, row by row.

    Attributes:
        only_a, only_b: images that one of them was not asked about.
        other_label: images that the two were told different things about.
        left_out: images that the caller does not want compared.
        repeated: rows that name an image again; the last one counts.
    """

    a: Predictions
    b: Predictions
    only_a: int = 0
    only_b: int = 0
    other_label: int = 0
    left_out: int = 0
    repeated: int = 0

    def __len__(self) -> int:
        return len(self.a)

    @property
    def fourfold(self) -> Fourfold:
        return Fourfold.of(self.a.hit, self.b.hit)


def paired(a: Predictions, b: Predictions, left_out: Collection[str] = frozenset()) -> Pairing:
    """Matches images by name and keeps those with the same label; in the order of `a`."""
    rows_a = {name: row for row, name in enumerate(a.files)}
    rows_b = {name: row for row, name in enumerate(b.files)}
    common = [name for name in rows_a if name in rows_b]
    wanted = [name for name in common if name not in left_out]
    same = [name for name in wanted if a.labels[rows_a[name]] == b.labels[rows_b[name]]]
    return Pairing(
        a.subset([rows_a[name] for name in same]), b.subset([rows_b[name] for name in same]),
        only_a=len(rows_a) - len(common), only_b=len(rows_b) - len(common),
        other_label=len(wanted) - len(same), left_out=len(common) - len(wanted),
        repeated=len(a) - len(rows_a) + len(b) - len(rows_b),
    )  # fmt: skip


@dataclass(frozen=True)
class Fourfold:
    """How many images both models, one of them or neither gets right."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @classmethod
    def of(cls, a: NDArray[np.bool_], b: NDArray[np.bool_]) -> Fourfold:
        return cls(*(int(np.count_nonzero(part)) for part in (a & b, a & ~b, ~a & b, ~a & ~b)))

    @property
    def total(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def shares(self) -> tuple[float, float]:
        """How often each is right."""
        return (self.both + self.only_a) / self.total, (self.both + self.only_b) / self.total

    @property
    def difference(self) -> float:
        """How much more often B is right than A."""
        return (self.only_b - self.only_a) / self.total

    @property
    def p(self) -> float:
        return mcnemar(self.only_a, self.only_b)

    @property
    def needed(self) -> float | None:
        """The smallest difference that would count as one, were the models at odds on as many images (or just enough).

        None where there are too few images for any.
        """
        disputed = max(1, self.only_a + self.only_b)
        while mcnemar(0, disputed) >= LEVEL:
            disputed += 1
        if disputed > self.total:
            return None
        low, high = 0, disputed // 2  # McNemar's p grows with the smaller part
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if mcnemar(middle, disputed - middle) < LEVEL else (low, middle - 1)
        return (disputed - 2 * low) / self.total


@dataclass(frozen=True)
class ClassDifference:
    """One class of the split: images, how many each model gets right, McNemar's p, and Holm's p among all classes."""

    name: str
    count: int
    a: float
    b: float
    p: float
    adjusted: float

    @property
    def difference(self) -> float:
        return self.b - self.a

    @property
    def significant(self) -> bool:
        return self.adjusted < LEVEL


def class_differences(pairing: Pairing) -> list[ClassDifference]:
    """Every class that has images, the largest difference first."""
    if not len(pairing):
        return []
    names, place = np.unique(np.asarray(pairing.a.labels, dtype=object), return_inverse=True)
    order = np.argsort(place, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(place[order])) + 1)
    tables = [Fourfold.of(pairing.a.hit[part], pairing.b.hit[part]) for part in parts]
    adjusted = holm([table.p for table in tables])
    found = [
        ClassDifference(str(name), table.total, *table.shares, table.p, p)
        for name, table, p in zip(names, tables, adjusted, strict=True)
    ]
    return sorted(found, key=lambda row: (-abs(row.difference), row.name))


def holm(chances: Sequence[float]) -> list[float]:
    """p values that may be read together: the chance of even one false alarm stays below the level (Holm 1979)."""
    adjusted, largest = [0.0] * len(chances), 0.0
    for rank, index in enumerate(sorted(range(len(chances)), key=lambda index: chances[index])):
        largest = max(largest, min(1.0, (len(chances) - rank) * chances[index]))
        adjusted[index] = largest
    return adjusted


def resamples_for(count: int) -> int:
    return max(1_000, min(RESAMPLES, MOST_DRAWS // max(1, count)))


def bootstrap(differences: NDArray[np.float64], resamples: int | None = None, seed: int = 0) -> NDArray[np.float64]:
    """95 % percentile intervals of means, by drawing images again with replacement (Efron 1979).

    The same images are drawn for every column, and the negative of the values gives the negative of the interval.

    Args:
        differences: images values; B less A.
        resamples: how often; by default 10,000 times, less often for very many images.

    Returns:
        2 values; lower and upper bounds.
    """
    count, random = len(differences), np.random.default_rng(seed)
    resamples = resamples or resamples_for(count)
    columns = [np.ascontiguousarray(column) for column in differences.T]
    means = np.empty((resamples, len(columns)))
    rows = max(1, _AT_ONCE // count)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        chosen = random.integers(0, count, (stop - start, count), dtype=np.uint32)
        for index, column in enumerate(columns):
            means[start:stop, index] = column[chosen].mean(axis=1)
    means.sort(axis=0)
    cut = int(resamples * LEVEL / 2)
    return means[[cut, resamples - 1 - cut]]


def changed_sides(pairing: Pairing) -> tuple[list[int], list[int]]:
    """Rows that only A gets right, and rows that only B gets right; those of which both are surest come first."""
    sure = np.minimum(pairing.a.probability, pairing.b.probability)
    order = np.argsort(-sure, kind="stable")
    a, b = pairing.a.hit[order], pairing.b.hit[order]
    return order[a & ~b].tolist(), order[~a & b].tolist()
