"""What every protocol on frozen features is, and how several of them share one pass while a model trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.data.batches import Pictures
from vitrail.errors import DataError
from vitrail.evaluation.features import Features, features_of, labels_of
from vitrail.predictor import Predictor


class Watching:
    """What may be measured at every evaluation of a run, beside accuracy."""


class Frozen(Watching, ABC):
    """A protocol: its settings are a frozen dataclass, comparable and JSON-serialisable."""

    @abstractmethod
    def measure(self, train: Features, held: Features | None, test: Features) -> dict[str, Any]:
        """A record of plain facts.

        Args:
            train: what is learnt from; `held` is what choices (k, a penalty) are made on, a part of train where it is
                None; `test` is what is measured on.

        Raises:
            DataError: it cannot be measured on these.
        """

    @abstractmethod
    def obstacle(self, counts: Mapping[str, int]) -> DataError | None:
        """Why it cannot be measured with so many training images of each class; None where it can."""

    @abstractmethod
    def numbers(self, record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
        """What of a record stands in a training log: short names and values."""


@dataclass(frozen=True)
class Evaluations:
    """An evaluator: protocols on the features of one pass over train and one over what is measured on.

    Attributes:
        protocols: by name.
        most: training images that are passed at most, spread evenly over the split, so that a look costs little.
    """

    protocols: Mapping[str, Frozen]
    train: Pictures
    test: Pictures
    classes: tuple[str, ...]
    most: int = 5000

    @classmethod
    def of(
        cls, protocols: Mapping[str, Frozen], train: Pictures, test: Pictures, classes: tuple[str, ...]
    ) -> Evaluations:
        """Raises DataError where these images cannot be measured so: VT103, VT104. Later it would be too late."""
        count = len(train.dataset)
        chosen = np.unique(np.linspace(0, count - 1, min(count, cls.most)).astype(np.int64))
        some = train.subset(chosen)
        labels_of(test.dataset.targets)
        counts = count_classes(labels_of(some.dataset.targets), classes)
        for protocol in protocols.values():
            if (problem := protocol.obstacle(counts)) is not None:
                raise problem
        return cls(protocols, some, test, classes)

    def run(self, predictor: Predictor) -> Iterator[tuple[str, float]]:
        """NAME/NUMBER and its value for every protocol; nothing while the features tell nothing (VT101, VT102)."""
        try:
            train = features_of(predictor, self.train, self.classes, "train")
            test = features_of(predictor, self.test, self.classes, "val")
        except DataError:  # as in the first steps of some models; the training goes on
            return
        for name, protocol in self.protocols.items():
            for key, value in protocol.numbers(protocol.measure(train, None, test)):
                yield f"{name}/{key}", value


def count_classes(labels: NDArray[np.int64], classes: Sequence[str]) -> dict[str, int]:
    """Images of each class."""
    counts = np.bincount(labels, minlength=len(classes))
    return {name: int(count) for name, count in zip(classes, counts, strict=True)}
