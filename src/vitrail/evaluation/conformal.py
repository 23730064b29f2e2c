"""Sets of classes that hold the true one with a promised probability, whatever the model (split conformal prediction).

The promise: over the draw of calibration and test images together, were they drawn alike, the true class is in the set
with probability at least 1 - alpha (Vovk 2005). It is of the mean over images, not of each class.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import UsageError
from vitrail.statistics import beta_binomial_band


class Score(ABC):
    """How badly a class fits an image; the set holds every class that fits no worse than the threshold."""

    @abstractmethod
    def scores(self, probabilities: NDArray[np.float64], luck: NDArray[np.float64]) -> NDArray[np.float64]:
        """Images classes, of probabilities, images classes, and a number in [0, 1) for each image."""


@dataclass(frozen=True)
class LeastAmbiguous(Score):
    """LAC: one minus the probability (Sadinle 2019). The smallest sets on average; may be empty. Draws nothing."""

    def scores(self, probabilities: NDArray[np.float64], luck: NDArray[np.float64]) -> NDArray[np.float64]:
        return 1 - probabilities


@dataclass(frozen=True)
class Adaptive(Score):
    """APS (Romano 2020, arXiv 2006.02544): the mass of all more probable classes, and a drawn part of its own.

    Sets grow where the model is unsure. The part is `luck`, drawn for each image; without it coverage is above 1 - alpha.
    """

    def scores(self, probabilities: NDArray[np.float64], luck: NDArray[np.float64]) -> NDArray[np.float64]:
        order = np.argsort(-probabilities, axis=1, kind="stable")
        falling = np.take_along_axis(probabilities, order, axis=1)
        mass = np.cumsum(falling, axis=1) - falling * (1 - luck[:, None])
        found = np.empty_like(mass)
        np.put_along_axis(found, order, mass, axis=1)
        return found


SCORES: Mapping[str, Score] = {"lac": LeastAmbiguous(), "aps": Adaptive()}


@dataclass(frozen=True)
class Sets:
    """Which classes are in the set of each image.

    Attributes:
        members: images classes; threshold: infinite where so few calibration images promise nothing but every class.
        rank: the place of the threshold among the `calibration` sorted scores of true classes, 1 the smallest.
    """

    members: NDArray[np.bool_]
    threshold: float
    rank: int
    calibration: int
    alpha: float

    @property
    def sizes(self) -> NDArray[np.int64]:
        return self.members.sum(axis=1)

    def covered(self, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        return self.members[np.arange(len(labels)), labels]

    def band(self, images: int) -> tuple[float, float]:
        """Shares of covered images that 95 % of such draws give: beta-binomial, exactly, where no scores are equal."""
        if self.rank > self.calibration:
            return 1.0, 1.0
        low, high = beta_binomial_band(images, self.rank, self.calibration + 1 - self.rank)
        return low / images, high / images


def rank_of(calibration: int, alpha: float) -> int:
    """ceil((n + 1)(1 - alpha)); rounding must not lift it over a whole number."""
    return math.ceil((calibration + 1) * (1 - alpha) - 1e-9)


def conformal(
    score: Score, calibration: NDArray[np.float64], labels: NDArray[np.int64], test: NDArray[np.float64], alpha: float,
    luck: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> Sets:  # fmt: skip
    """Sets for test images, from calibration images whose classes are known.

    Args:
        calibration, test: probabilities, images classes.
        alpha: the share of true classes that may be left out, above 0 and below 1.
        luck: a number in [0, 1) for each calibration and each test image.

    Raises:
        UsageError: VT115, alpha is no such share.
    """
    if not 0 < alpha < 1:
        raise UsageError(
            "VT115", f"alpha is {alpha}", "above 0 and below 1: the share of true classes that may be left out"
        )
    own = score.scores(calibration, luck[0])[np.arange(len(labels)), labels]
    rank = rank_of(len(labels), alpha)
    limit = math.inf if rank > len(labels) else float(np.partition(own, rank - 1)[rank - 1])
    return Sets(score.scores(test, luck[1]) <= limit, limit, rank, len(labels), alpha)


def drawn(ids: Sequence[str], seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each image, from the seed and its name: the same wherever and whenever it is asked."""
    words = (
        hashlib.blake2b(f"{seed}/conformal/{name}".encode(errors="backslashreplace"), digest_size=8).digest()
        for name in ids
    )
    return np.array([int.from_bytes(word, "big") >> 11 for word in words], dtype=np.float64) / 2**53
