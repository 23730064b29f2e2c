"""The rule of the trust table: from measured figures to supported, weak or not supported, with the reasons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from vitrail.statistics import Spread

Word = Literal["supported", "weak", "not supported"]

FEWEST = 10  # images for an interval
HALF = 0.5  # of a rank correlation: above it two maps are alike, below it they are not
SAME = 0.95  # above it two classes have one map

RULE = (
    "not supported: taking parts in the order of the map is not ahead of a random order, or the map stays (rank "
    f"correlation {HALF} or more) when all weights are shuffled. "
    "supported: it is ahead of random (in deletion and in insertion), of centre first and of edges first; SaCo is above "
    f"0; the map is lost (below {HALF}) when all weights are shuffled; it stays (above {HALF}) under small changes; a "
    f"class-specific method has another map for the second class (below {SAME}); and the model's answers on these images "
    "are better than their most common class. weak: anything else. Each by the end of the 95 % interval that is on the "
    "wrong side."
)


@dataclass(frozen=True)
class Measured:
    """A mean over images with its 95 % interval (Student's t)."""

    mean: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float | int]:
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n}


def measured(values: Float[np.ndarray, " images"]) -> Measured | None:
    """None where there are fewer than ten: an interval of them would be a guess."""
    if len(values) < FEWEST:
        return None
    spread = Spread.of(np.asarray(values, dtype=np.float64).tolist())
    assert spread.interval is not None
    return Measured(spread.mean, *spread.interval, spread.n)


Figures = Mapping[str, Measured | None]
"""By name: ahead of random, centre and edges; saco; shuffled; classes; stable."""


def judged(figures: Figures, class_specific: bool, knows: bool) -> tuple[Word, tuple[str, ...]]:
    """The verdict and its reasons, gravest first.

    Args:
        figures: those of one method. What could not be measured (None) supports nothing.
        class_specific: whether the method says it is.
        knows: whether the model's answers are better than the most common class.
    """
    grave, light = tuple(_grave(figures)), tuple(_light(figures, class_specific, knows))
    if grave:
        return "not supported", grave + light
    return ("weak", light) if light else ("supported", ())


def _grave(figures: Figures) -> Iterator[str]:
    if not _above(figures["ahead of random"], 0):
        yield "its order is not ahead of a random one"
    shuffled = figures["shuffled"]
    if shuffled is not None and shuffled.low >= HALF:
        yield "the map stays when all weights are shuffled: it shows the picture, not what was learned"


def _light(figures: Figures, class_specific: bool, knows: bool) -> Iterator[str]:
    if _above(figures["ahead of random"], 0):
        for name, words in (("deletion", "when parts go"), ("insertion", "when parts come")):
            if not _above(figures[f"{name} ahead of random"], 0):
                yield f"not ahead of a random order {words} ({name})"
    for name, words in (("centre", "what is in the middle"), ("edges", "what has edges")):
        if not _above(figures[f"ahead of {name}"], 0):
            yield f"not ahead of {words} first"
    if not _above(figures["saco"], 0):
        yield "its numbers do not follow what parts cost (SaCo)"
    shuffled, classes = figures["shuffled"], figures["classes"]
    if shuffled is None or shuffled.low < HALF <= shuffled.high:
        yield "not clearly lost when all weights are shuffled"
    if not _above(figures["stable"], HALF):
        yield "not stable under small changes that leave the answer"
    if class_specific and (classes is None or classes.high >= SAME):
        yield "hardly another map for another class"
    if not knows:
        yield "the model itself answers no better than the most common class"


def _above(figure: Measured | None, bound: float) -> bool:
    return figure is not None and figure.low > bound
