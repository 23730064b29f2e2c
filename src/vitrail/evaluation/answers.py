"""Protocols on a model's own answers, watched while it trains: how honest its probabilities are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vitrail.configuration import require
from vitrail.data.batches import Pictures
from vitrail.evaluation.accuracy import Outcome, outcome
from vitrail.evaluation.calibration import BINS, brier, equal_width_error
from vitrail.evaluation.conformal import SCORES, conformal, drawn
from vitrail.evaluation.frozen import Watching
from vitrail.evaluation.selective import risk_coverage, threshold
from vitrail.evaluation.temperature import Classified, classified
from vitrail.predictor import Predictor


class OnAnswers(Watching, ABC):
    """A protocol on logits; its settings are a frozen dataclass, comparable and JSON-serialisable."""

    @abstractmethod
    def numbers(self, answers: Classified, luck: NDArray[np.float64]) -> Iterator[tuple[str, float]]:
        """Short names and values for the log.

        Args:
            luck: a number in [0, 1) for each image, the same at every look.
        """


@dataclass(frozen=True)
class CalibrationError(OnAnswers):
    """By how much the probability of the answer is off (expected calibration error), and Brier's score; no temperature."""

    bins: int = BINS

    def numbers(self, answers: Classified, luck: NDArray[np.float64]) -> Iterator[tuple[str, float]]:
        yield "ece", equal_width_error(*answers.surest(), self.bins)
        yield "brier", float(brier(answers).mean())


@dataclass(frozen=True)
class Abstention(OnAnswers):
    """Area below the risk by coverage; and every second image sets the threshold above which at most `risk` of the
    answers are wrong, of the others how many are answered, and how many of these answers are wrong.
    """

    risk: float = 0.05
    doubt: float = 0.05

    def __post_init__(self) -> None:
        require(0 < self.risk < 1, "risk", self.risk, "above 0 and below 1")
        require(0 < self.doubt < 1, "doubt", self.doubt, "above 0 and below 1")

    def numbers(self, answers: Classified, luck: NDArray[np.float64]) -> Iterator[tuple[str, float]]:
        confidence, hit = answers.surest()
        yield "aurc", risk_coverage(confidence, hit).area
        if not len(confidence[1::2]):
            return
        found = threshold(confidence[::2], hit[::2], self.risk, self.doubt)
        answered = confidence[1::2] > (
            1.0 if found is None else found.confidence
        )  # none can be promised: none is given
        yield "answered", float(answered.mean())
        if answered.any():
            yield "risk", float((~hit[1::2][answered]).mean())


@dataclass(frozen=True)
class ConformalSets(OnAnswers):
    """Every second image sets the threshold; of the others, how many sets hold the true class, and how large they are."""

    score: Literal["lac", "aps"] = "lac"
    alpha: float = 0.1

    def numbers(self, answers: Classified, luck: NDArray[np.float64]) -> Iterator[tuple[str, float]]:
        first, second = slice(0, None, 2), slice(1, None, 2)
        known, asked = answers.subset(first), answers.subset(second)
        if not len(asked):
            return
        sets = conformal(
            SCORES[self.score], known.probabilities(), known.labels, asked.probabilities(), self.alpha,
            (luck[first], luck[second]),
        )  # fmt: skip
        yield "coverage", float(sets.covered(asked.labels).mean())
        yield "set-size", float(sets.sizes.mean())


ON_ANSWERS: dict[str, type[OnAnswers]] = {
    "calibration": CalibrationError, "abstention": Abstention, "conformal": ConformalSets
}  # fmt: skip


@dataclass(frozen=True)
class Answers:
    """An evaluator: protocols on one pass over what is measured on."""

    protocols: Mapping[str, OnAnswers]
    pictures: Pictures

    @classmethod
    def of(
        cls, protocols: Mapping[str, OnAnswers], pictures: Pictures, classes: tuple[str, ...], multi_label: bool
    ) -> Answers:
        """Raises DataError VT110 where these images cannot be measured so. Later it would be too late."""
        dataset = pictures.dataset
        blank = np.zeros((len(dataset), len(classes)), dtype=np.float32)
        classified(Outcome(dataset.ids, blank, dataset.targets, classes, multi_label), "val")
        return cls(protocols, pictures)

    def run(self, predictor: Predictor) -> Iterator[tuple[str, float]]:
        """NAME/NUMBER and its value for every protocol."""
        found = outcome(predictor, self.pictures)
        answers, luck = classified(found, "val"), drawn(found.ids, 0)
        for name, protocol in self.protocols.items():
            for key, value in protocol.numbers(answers, luck):
                yield f"{name}/{key}", value
