"""Whether a probability means what it says: of the answers given with 80 %, are 80 % right?

Every quantity is of the most probable class but the Brier score and the loss, which are of all classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitrail.evaluation.temperature import Classified
from vitrail.statistics import wilson_interval

BINS = 10
DRAWS = 1000
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


def equal_mass_error(probability: NDArray[np.float64], hit: NDArray[np.bool_], bins: int = BINS) -> float:
    """Expected calibration error with bins of equally many answers, from the least to the most probable.

    Answers of one probability may fall to two bins; which of them goes where is decided by their order.
    """
    order = np.argsort(probability, kind="stable")
    edges = np.linspace(0, len(order), bins + 1).round().astype(np.int64)
    return _binned(probability[order] - hit[order], np.repeat(np.arange(bins), np.diff(edges)), bins)


def equal_width_error(probability: NDArray[np.float64], hit: NDArray[np.bool_], bins: int = BINS) -> float:
    """Expected calibration error with bins of equal width; the first has its lower end."""
    return _binned(probability - hit, np.clip(np.ceil(probability * bins).astype(np.int64) - 1, 0, bins - 1), bins)


def _binned(difference: NDArray[np.float64], places: NDArray[np.int64], bins: int) -> float:
    # n_b / n |accuracy_b - confidence_b| is |sum of the differences in b| / n.
    return float(np.abs(np.bincount(places, difference, bins)).sum() / max(1, len(places)))


def brier(answers: Classified, temperature: float = 1.0) -> NDArray[np.float64]:
    """Sum over the classes of (probability - truth) squared, per image: 0 to 2 (Brier 1950)."""
    found = []
    for part in answers.parts():
        probabilities = part.probabilities(temperature)
        true = probabilities[np.arange(len(part)), part.labels]
        found.append((probabilities**2).sum(axis=1) - 2 * true + 1)
    return np.concatenate(found)


@dataclass(frozen=True)
class Quality:
    """How good the probabilities of a split are at a temperature.

    Attributes:
        values: ece (equal width), ece_mass (equally many), brier, nll, gap (probability minus accuracy).
        intervals: of each, 95 %, from resampled images (percentiles; of the errors, which no sample puts below zero,
            they lie higher than the value).
        chance: the equal-width error that probabilities which are exactly right exceed in 5 % of samples of this size.
        verdict: "calibrated" where the error does not exceed it; else overconfident, underconfident or miscalibrated.
        bins: for the reliability diagram.
    """

    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    chance: float
    verdict: str
    bins: tuple[Bin, ...]


def quality(answers: Classified, temperature: float = 1.0, draws: int = DRAWS, seed: int = 0) -> Quality:
    """Calibration errors, Brier score and loss, with intervals and a verdict.

    Args:
        draws: resamples of the images; seed: of these.
    """
    confidence, hit = answers.surest(temperature)
    measured = _Measures(confidence, hit, brier(answers, temperature), answers.losses(temperature))
    random = np.random.default_rng(seed)
    samples = [measured.of(random.integers(0, len(answers), len(answers))) for _ in range(draws)]
    values = measured.of(np.arange(len(answers)))
    intervals = {name: _middle([sample[name] for sample in samples]) for name in values}
    # Were every probability right, the hits would be drawn with them (consistency, Broecker & Smith 2007).
    honest = [equal_width_error(confidence, random.random(len(answers)) < confidence) for _ in range(draws)]
    chance = float(np.quantile(honest, 0.95))
    low, high = intervals["gap"]
    direction = "overconfident" if low > 0 else "underconfident" if high < 0 else "miscalibrated"
    found = calibration(confidence, hit)
    return Quality(values, intervals, chance, "calibrated" if values["ece"] <= chance else direction,
                   () if found is None else found.bins)  # fmt: skip


@dataclass(frozen=True)
class _Measures:
    """Per image: the best probability, whether it is right, Brier score and loss."""

    confidence: NDArray[np.float64]
    hit: NDArray[np.bool_]
    brier: NDArray[np.float64]
    loss: NDArray[np.float64]

    def of(self, chosen: NDArray[np.int64]) -> dict[str, float]:
        confidence, hit = self.confidence[chosen], self.hit[chosen]
        return {
            "ece": equal_width_error(confidence, hit), "ece_mass": equal_mass_error(confidence, hit),
            "brier": float(self.brier[chosen].mean()), "nll": float(self.loss[chosen].mean()),
            "gap": float((confidence - hit).mean()),
        }  # fmt: skip


def _middle(values: list[float]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def change(
    answers: Classified, temperature: float, draws: int = DRAWS, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % intervals of Brier score and loss after minus before, image by image; below zero is better."""
    difference = {
        "brier": brier(answers, temperature) - brier(answers), "nll": answers.losses(temperature) - answers.losses()
    }  # fmt: skip
    random = np.random.default_rng(seed)
    drawn = [random.integers(0, len(answers), len(answers)) for _ in range(draws)]
    return {name: _middle([float(values[rows].mean()) for rows in drawn]) for name, values in difference.items()}
