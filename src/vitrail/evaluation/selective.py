"""Answering only where sure: how many errors are left at which share of answers, and which threshold promises what."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitrail.statistics import binomial_below, binomial_upper

RANKS = 20  # thresholds tried, at every twentieth of the answers: few, for each costs some of the doubt


@dataclass(frozen=True)
class Curve:
    """Risk by coverage: answers are given from the surest on.

    Attributes:
        coverage: share of images answered, 1/n to 1; risk: share of errors among those answered.
        area: mean risk over all coverages (AURC, Geifman 2019, arXiv 1805.08206).
        best: the area were every right answer surer than every wrong one; `even`: were they in any order.
    """

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]
    area: float
    best: float
    even: float

    @property
    def gain(self) -> float:
        """Of what sorting can win over any order, the share that this one wins; NaN where it can win nothing."""
        return (self.even - self.area) / (self.even - self.best) if self.even > self.best else math.nan


def risk_coverage(confidence: NDArray[np.float64], hit: NDArray[np.bool_]) -> Curve:
    """The curve of answers that are this sure; equally sure ones come in any order, of which the mean is taken."""
    total = len(hit)
    order = np.argsort(-confidence, kind="stable")
    wrong = (~hit[order]).astype(np.float64)
    _, starts, counts = np.unique(-confidence[order], return_index=True, return_counts=True)
    wrong = np.repeat(np.add.reduceat(wrong, starts) / counts, counts)
    numbers = np.arange(1, total + 1)
    risk = np.cumsum(wrong) / numbers
    errors = int((~hit).sum())
    sorted_risk = np.maximum(numbers - (total - errors), 0) / numbers
    return Curve(numbers / total, risk, float(risk.mean()), float(sorted_risk.mean()), errors / total)


@dataclass(frozen=True)
class Threshold:
    """Answers above `confidence` are wrong with at most the wished risk, save with probability `doubt`.

    Attributes:
        coverage, risk: of the images that it was chosen on; bound: the exact upper bound of the risk there.
    """

    confidence: float
    coverage: float
    risk: float
    bound: float
    wished: float
    doubt: float


def threshold(
    confidence: NDArray[np.float64], hit: NDArray[np.bool_], wished: float, doubt: float = 0.05
) -> Threshold | None:
    """The threshold of the largest coverage whose risk is at most `wished`, with probability 1 - doubt; None without one.

    Tried are the confidences at every twentieth of the images. Given one of them, the answers above it are independent,
    so that their errors are binomial; each is bounded exactly with a twentieth of the doubt, which makes the promise hold
    for whichever is taken (Geifman & El-Yaniv 2017, arXiv 1705.08500, with ranks fixed beforehand).

    Args:
        wished: the share of errors among the answers given, 0 to 1.
        doubt: the probability, over the draw of these images, that the promise does not hold.
    """
    falling = np.sort(confidence)[::-1]
    best: tuple[float, int, int] | None = None
    for rank in range(1, RANKS + 1):
        # The last one answers everything.
        limit = -math.inf if rank == RANKS else float(falling[min(len(hit) - 1, len(hit) * rank // RANKS)])
        above = confidence > limit
        count, errors = int(above.sum()), int((~hit[above]).sum())
        # As unlikely as that are so few errors at the wished risk: their bound lies below it.
        if count and errors < count and binomial_below(errors, count, wished) <= doubt / RANKS:
            best = limit, count, errors
    if best is None:
        return None
    limit, count, errors = best
    bound = binomial_upper(errors, count, doubt / RANKS)
    return Threshold(max(limit, 0.0), count / len(hit), errors / count, bound, wished, doubt)
