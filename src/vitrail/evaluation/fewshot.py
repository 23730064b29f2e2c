"""Few-shot accuracy of frozen features, as the paper measures it while it pre-trains (section 4.1, tables of figure 4 and 5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.configuration import require
from vitrail.errors import DataError
from vitrail.evaluation.features import Features
from vitrail.evaluation.frozen import Frozen, count_classes
from vitrail.evaluation.least_squares import Linear, Moments, dual, shares_right
from vitrail.statistics import Spread


@dataclass(frozen=True)
class FewShot(Frozen):
    """Least squares from some images of each class to {-1, 1}, all others tested on.

    Attributes:
        shots: training images of each class. Where a class has fewer, this number of shots is left out for all classes,
            and the class is named, as a mean over other classes would be another measure.
        seeds: how many draws of these images, from 0; the draw of fewer shots is a part of the one of more.
        penalty: l2 = 2^10 of the official evaluators/fewshot_lsr.py; the paper gives none.
    """

    shots: tuple[int, ...] = (1, 5, 10, 25)
    seeds: int = 10
    penalty: float = 1024.0

    def __post_init__(self) -> None:
        good = 0 < len(self.shots) <= 100 and all(0 < count <= 100_000 for count in self.shots)
        require(good, "shots", self.shots, "a list of numbers of images, such as [1, 5, 10, 25]")
        require(1 <= self.seeds <= 100, "seeds", self.seeds, "1 to 100")
        require(1e-6 <= self.penalty <= 1e12, "penalty", self.penalty, "1e-6 to 1e12")

    def measure(self, train: Features, held: Features | None, test: Features) -> dict[str, Any]:
        """Args as in `Frozen`; `held` is not looked at.

        Raises:
            DataError: VT103, no number of shots that every class has.
        """
        counts = count_classes(train.labels, train.classes)
        if (problem := self.obstacle(counts)) is not None:
            raise problem
        lacking = {count: _lacking(counts, count) for count in sorted(set(self.shots))}
        possible = [count for count in lacking if not lacking[count]]
        shares: dict[int, list[float]] = {count: [] for count in possible}
        for seed in range(self.seeds):
            maps = list(learnt(train, possible, seed, self.penalty))
            for count, share in zip(possible, shares_right(maps, test), strict=True):
                shares[count].append(share)
        rows: list[dict[str, Any]] = []
        for count, names in lacking.items():
            if names:
                rows.append({"shots": count, "lacking": names})
            else:
                spread = Spread.of(shares[count]).as_share()
                rows.append({"shots": count, "seeds": shares[count], **spread.to_json()})
        return {"n": len(test), "classes": len(train.classes), "penalty": self.penalty, "shots": rows}

    def numbers(self, record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
        for row in record["shots"]:
            if "mean" in row:
                yield f"{row['shots']}-shot", row["mean"]

    def obstacle(self, counts: Mapping[str, int]) -> DataError | None:
        fewest = min(self.shots)
        if not (lacking := _lacking(counts, fewest)):
            return None
        named = ", ".join(f"{name} ({number})" for name, number in list(lacking.items())[:10])
        return DataError(
            "VT103", f"too few training images for {fewest} shots: {named}", f"at least {fewest} of every class",
            "fewer shots: --set shots=[1]; or more images",
        )  # fmt: skip


def _lacking(counts: Mapping[str, int], count: int) -> dict[str, int]:
    """The classes with fewer images than these shots."""
    return {name: number for name, number in counts.items() if number < count}


def learnt(train: Features, shots: Sequence[int], seed: int, penalty: float) -> Iterator[Linear]:
    """The map of each number of shots, fewest first; a draw of more holds the draw of fewer."""
    places, moments, before = drawn(train, max(shots), seed), Moments(train.dim, len(train.classes)), 0
    for count in shots:
        tall = count * len(train.classes) > train.dim
        if tall:
            moments.add(train.subset(places[:, before:count].ravel()))
            before = count
        yield moments.solved(penalty) if tall else dual(train.subset(places[:, :count].ravel()), penalty)


def drawn(train: Features, count: int, seed: int) -> NDArray[np.int64]:
    """Indices of `count` images of every class; classes count."""
    order = np.argsort(train.labels, kind="stable")
    ends = np.cumsum(np.bincount(train.labels, minlength=len(train.classes)))
    members = np.split(order, ends[:-1])
    return np.stack(
        [np.random.default_rng((seed, label)).permutation(own)[:count] for label, own in enumerate(members)]
    )
