"""Linear classifiers on frozen features, their penalty chosen on held-out images; then fitted to all."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vitrail.configuration import require
from vitrail.errors import DataError
from vitrail.evaluation.features import Features
from vitrail.evaluation.frozen import Frozen, count_classes
from vitrail.evaluation.least_squares import Linear, Moments, shares_right
from vitrail.evaluation.logistic import Regression
from vitrail.statistics import wilson_interval

HELD_SHARE = 0.2  # of the training images, where none are held out


@dataclass(frozen=True)
class Probe(Frozen):
    """What both have in common.

    Attributes:
        penalties: per training image, so that they mean the same for a part of the images and for all.
        seed: decides which fifth of the training images is held out where there is no validation split.
    """

    penalties: tuple[float, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        good = 0 < len(self.penalties) <= 100 and all(1e-9 <= penalty <= 1e9 for penalty in self.penalties)
        require(good, "penalties", self.penalties, "a list of numbers from 1e-9 to 1e9")

    @abstractmethod
    def tried(self, train: Features) -> Iterator[tuple[float, Linear]]:
        """The map of every penalty, the strongest first."""

    @abstractmethod
    def fitted(self, train: Features, penalty: float, near: Linear) -> Linear:
        """The map of one penalty; `near` is that of a part of the images."""

    def chosen(self, train: Features, held: Features | None) -> tuple[Linear, dict[str, Any]]:
        """The map that is fitted to all, and how its penalty was chosen; of equally good ones the strongest.

        Raises:
            DataError: VT103, no image can be held out.
        """
        problem = self.obstacle(count_classes(train.labels, train.classes)) if held is None else None
        if problem is not None:
            raise problem
        part, judge = (train, held) if held is not None else train.divided(HELD_SHARE, self.seed)
        maps = dict(self.tried(part))
        shares = dict(zip(maps, shares_right(list(maps.values()), judge), strict=True))
        best = max(shares, key=lambda penalty: (shares[penalty], penalty))
        whole = train.joined(held) if held is not None else train
        where = "val" if held is not None else f"a part of train held out, seed {self.seed}"
        edge = len(shares) > 1 and best in (max(shares), min(shares))
        rows = [{"penalty": penalty, "top1": share} for penalty, share in shares.items()]
        record = {"penalty": best, "at the edge": edge, "chosen on": where, "held": len(judge), "train": len(whole),
                  "tried": rows}  # fmt: skip
        return self.fitted(whole, best, maps[best]), record

    def measure(self, train: Features, held: Features | None, test: Features) -> dict[str, Any]:
        linear, record = self.chosen(train, held)
        hits = int(linear.right(test).sum())
        return {
            "n": len(test), "classes": len(train.classes), **record,
            "top1": hits / len(test), "top1_interval": list(wilson_interval(hits, len(test))),
        }  # fmt: skip

    def obstacle(self, counts: Mapping[str, int]) -> DataError | None:
        if max(counts.values()) > 1:
            return None
        return DataError(
            "VT103", "every class has one training image: none can be held out to choose a penalty by",
            "two images of a class, or a validation split", "vitrail eval --protocol few-shot --set shots=[1] needs none",
        )  # fmt: skip

    def numbers(self, record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
        yield "top1", record["top1"]


@dataclass(frozen=True)
class LinearProbe(Probe):
    """Least squares to {-1, 1}, in closed form: the images are gone through once for all penalties."""

    penalties: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)

    def tried(self, train: Features) -> Iterator[tuple[float, Linear]]:
        moments = Moments.of(train)
        for penalty in sorted(self.penalties, reverse=True):
            yield penalty, moments.solved(penalty * len(train))

    def fitted(self, train: Features, penalty: float, near: Linear) -> Linear:
        return Moments.of(train).solved(penalty * len(train))


@dataclass(frozen=True)
class LogisticProbe(Probe):
    """Multinomial logistic regression; each penalty starts from the weights of the next stronger one."""

    penalties: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)

    def tried(self, train: Features) -> Iterator[tuple[float, Linear]]:
        regression, weights = Regression(train), None
        for penalty in sorted(self.penalties, reverse=True):
            weights = regression.minimum(penalty, weights)
            yield penalty, regression.linear(weights)

    def fitted(self, train: Features, penalty: float, near: Linear) -> Linear:
        regression = Regression(train)
        return regression.linear(regression.minimum(penalty, regression.weights(near)))
