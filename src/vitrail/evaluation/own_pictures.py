"""Protocols that bring pictures of their own: ImageNet's other test sets and ReaL, alone and while a model trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.data.batches import Pictures, readable
from vitrail.data.imagenet import names_in
from vitrail.data.sources import Dataset
from vitrail.data.testsets import open_test_set, open_validation
from vitrail.errors import DataError, UsageError
from vitrail.evaluation.accuracy import outcome
from vitrail.evaluation.frozen import Watching
from vitrail.evaluation.mapped import checked_real, matched, official, real_scored, scored
from vitrail.files import read_json
from vitrail.predictor import Predictor
from vitrail.preprocessing import Preprocessing

Score = Callable[[NDArray[np.float32], Dataset], dict[str, Any]]


class OwnPictures(Watching, ABC):
    """A protocol with a path; its settings are a frozen dataclass, comparable and JSON-serialisable."""

    @abstractmethod
    def matched(self, classes: Sequence[str]) -> tuple[Dataset, Score]:
        """Its pictures, and what makes a record of their logits in this order of classes; no picture is read.

        Raises:
            DataError: VT011, VT012, VT117 or VT118: the set is not there, or its classes are none of these.
        """

    @abstractmethod
    def numbers(self, record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
        """What of a record stands in a training log: short names and values."""


@dataclass(frozen=True)
class MappedSet(OwnPictures):
    """ImageNet-A, -R, V2, Sketch or ObjectNet, as it was unpacked.

    Attributes:
        path: its folder.
        classes: a file that tells the model's classes, a line each: n01440764 tench; "" where their names do.
    """

    path: str
    classes: str = ""

    def matched(self, classes: Sequence[str]) -> tuple[Dataset, Score]:
        words = _words(self.classes)
        found = open_test_set(self.path)
        columns = matched(found.classes, found.named_by, classes, words, found.indices)

        def score(logits: NDArray[np.float32], images: Dataset) -> dict[str, Any]:
            record = scored(logits, images.targets.argmax(axis=1), columns)
            return {"data": found.name, "left_out": list(found.left_out), **record}

        return found.images, score

    def numbers(self, record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
        yield "own-top1", record["own"]["top1"]
        yield "all-top1", record["all"]["top1"]


@dataclass(frozen=True)
class RealLabels(OwnPictures):
    """ImageNet-ReaL: the validation images, of which several labels may be right.

    Attributes:
        path: the folder of the images.
        labels: where real.json is; "" where it lies in or above the folder.
        classes: as of a mapped set.
    """

    path: str
    labels: str = ""
    classes: str = ""

    def matched(self, classes: Sequence[str]) -> tuple[Dataset, Score]:
        words = _words(self.classes)
        official(classes, words)
        places = (
            [Path(self.labels)]
            if self.labels
            else [Path(self.path) / "real.json", Path(self.path).parent / "real.json"]
        )
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            raise DataError("VT118", f"real.json is not at {' or '.join(map(str, places))}", "the labels of ImageNet-ReaL",
                            "--set labels=real.json")  # fmt: skip
        labels = checked_real(read_json(file), str(file))
        found, numbers = open_validation(self.path)
        number_of = dict(zip(found.ids, numbers, strict=True))

        def score(logits: NDArray[np.float32], images: Dataset) -> dict[str, Any]:
            record = real_scored(logits, [number_of[name] for name in images.ids], labels, classes, words)
            return {"data": self.path, **record}

        return found, score

    def numbers(self, record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
        yield "top1", record["real"]


ON_OWN_PICTURES: dict[str, type[OwnPictures]] = {"mapped": MappedSet, "real": RealLabels}


@dataclass(frozen=True)
class Matched:
    """Pictures that were read, and what makes a record of their logits."""

    pictures: Pictures
    score: Score

    @classmethod
    def of(
        cls, protocol: OwnPictures, preprocessing: Preprocessing, classes: Sequence[str], max_bad_share: float
    ) -> Matched:
        """Raises what `OwnPictures.matched` does, and DataError VT019 where too many pictures cannot be read."""
        images, score = protocol.matched(classes)
        checked = Pictures(images, preprocessing).check()
        return cls(readable({"test": checked}, max_bad_share)["test"], score)

    def record(self, predictor: Predictor) -> dict[str, Any]:
        return self.score(outcome(predictor, self.pictures).logits, self.pictures.dataset)


@dataclass(frozen=True)
class Elsewhere:
    """An evaluator: a pass over each set, whose classes were matched to the model's before the training began."""

    protocols: Mapping[str, OwnPictures]
    sets: Mapping[str, Matched]

    @classmethod
    def of(
        cls, protocols: Mapping[str, OwnPictures], preprocessing: Preprocessing, classes: Sequence[str], max_bad_share: float
    ) -> Elsewhere:  # fmt: skip
        """Raises what `Matched.of` does. Later it would be too late."""
        sets = {name: Matched.of(each, preprocessing, classes, max_bad_share) for name, each in protocols.items()}
        return cls(protocols, sets)

    def run(self, predictor: Predictor) -> Iterator[tuple[str, float]]:
        """NAME/NUMBER and its value for every set."""
        for name, protocol in self.protocols.items():
            for key, value in protocol.numbers(self.sets[name].record(predictor)):
                yield f"{name}/{key}", value


def _words(path: str) -> list[tuple[str, str]]:
    """Identity and name of each class of the model, in its order."""
    if path and not Path(path).is_file():
        raise UsageError("VT002", f"classes={path}: there is no such file", "a file such as LOC_synset_mapping.txt")
    return list(names_in(Path(path))) if path else []
