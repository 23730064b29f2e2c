"""Whether a probability means what it says: of the answers given with 80 %, are 80 % right?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitrail.statistics import wilson_interval

BINS = 10
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Bin:
    """The answers whose probability lies in (low, high], the first bin with its lower end."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Calibration:
    """Calibration of the most probable class.

    Attributes:
        error: expected calibration error, sum over bins of n_b / n |accuracy_b - confidence_b| (Guo 2017, arXiv
            1706.04599, eq. 3), with ten bins of equal width.
        gap: mean probability minus share of right answers; above zero is overconfident.
        gap_interval: its 95 % interval, from the spread of (probability - right) over the images.
    """

    bins: tuple[Bin, ...]
    error: float
    gap: float
    gap_interval: tuple[float, float]


def calibration(probability: NDArray[np.float64], hit: NDArray[np.bool_], bins: int = BINS) -> Calibration | None:
    """Calibration of answers with these probabilities; None where there are fewer than two."""
    total = len(hit)
    if total < 2:
        return None
    places = np.clip(np.ceil(probability * bins).astype(np.int64) - 1, 0, bins - 1)
    found, error = [], 0.0
    for place in range(bins):
        inside = places == place
        count, right = int(inside.sum()), int(hit[inside].sum())
        if not count:
            continue
        confidence, accuracy = float(probability[inside].mean()), right / count
        error += count / total * abs(accuracy - confidence)
        found.append(Bin(place / bins, (place + 1) / bins, count, confidence, accuracy, wilson_interval(right, count)))
    differences = probability - hit
    gap, half = float(differences.mean()), _Z95 * float(differences.std(ddof=1)) / math.sqrt(total)
    return Calibration(tuple(found), error, gap, (gap - half, gap + half))
