"""What a robustness trial is: pictures changed by degrees, shown to several models, and counts of what they then know."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import NDArray

from vitrail.evaluation.frequencies import spectral_residual
from vitrail.predictor import Predictor
from vitrail.statistics import mcnemar, wilson_interval

Images = UInt8[np.ndarray, "batch channels height width"]
Logits = Float[np.ndarray, "batch classes"]
Maps = Float[np.ndarray, "batch rows cols"]
Values = Float[np.ndarray, " batch"]
Z95 = 1.959963984540054


@dataclass(frozen=True)
class Subject:
    """A model under test.

    Attributes:
        name: how tables and figures call it.
        predictor: its logits; gradients too where it is `Differentiable`.
        kind: "ViT", "hybrid", "Mixer" or "CNN".
        patch: (height, width) of its own patch, or the stride of its last map.
        grid: (rows, cols) of its tokens.
        saliency: uint8 images to maps, batch rows cols, of where it looks; None where it has no attention.
        without: uint8 images and the places of the patches that stay, batch kept, to logits; None where tokens cannot be
            dropped.
        reason: why it has neither, where it has not.
    """

    name: str
    predictor: Predictor
    kind: str
    patch: tuple[int, int]
    grid: tuple[int, int]
    saliency: Callable[[Images], Float[np.ndarray, "batch rows cols"]] | None = None
    without: Callable[[Images, Int[np.ndarray, "batch kept"]], Logits] | None = None
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Shown:
    """A batch of images at the size of the models that see it.

    Attributes:
        ids: stable names; whatever is random is drawn from (seed, what it is for, id).
        targets: batch classes, 1 where the class is true.
        other: reads the partner of every image, a picture of another class: images, targets.
        larger: the same pictures with the sides enlarged by (rows, cols) pixels, for crops that move.
    """

    images: Images
    ids: tuple[str, ...]
    targets: Float[np.ndarray, "batch classes"]
    seed: int
    other: Callable[[], tuple[Images, NDArray[np.float32]]]
    larger: Callable[[tuple[int, int]], Images]

    def __post_init__(self) -> None:
        self._maps: dict[str, Maps] = {}

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.images.shape[2], self.images.shape[3]

    def looked_at(self, subject: Subject) -> Maps:
        """Where a model looks in the unchanged images, computed once."""
        if subject.name not in self._maps:
            assert subject.saliency is not None, "a subject without saliency refuses before it is asked"
            self._maps[subject.name] = subject.saliency(self.images).astype(np.float64)
        return self._maps[subject.name]

    @cached_property
    def residual(self) -> Maps:
        """What is salient by the spectral residual, which asks no model."""
        return spectral_residual(self.images)

    @cached_property
    def partners(self) -> tuple[Images, NDArray[np.float32]]:
        return self.other()

    def part(self, chosen: Bool[np.ndarray, " batch"]) -> Shown:
        """Some of the images."""
        places = np.flatnonzero(chosen)

        def other() -> tuple[Images, NDArray[np.float32]]:
            return self.partners[0][places], self.partners[1][places]

        ids = tuple(self.ids[place] for place in places)
        images, targets = self.images[places], self.targets[places]
        return Shown(images, ids, targets, self.seed, other, lambda more: self.larger(more)[places])

    def luck(self, purpose: str) -> list[np.random.Generator]:
        """A source of random numbers for each image; the same numbers for the same (seed, purpose, id)."""
        return [generator(self.seed, purpose, name) for name in self.ids]

    def uniform(self, purpose: str, *shape: int) -> Float[np.ndarray, "batch ..."]:
        return np.stack([luck.random(shape) for luck in self.luck(purpose)])

    def right(self, logits: Logits) -> Values:
        """1 where the most probable class is true."""
        best = np.argmax(logits, axis=1)
        return (self.targets[np.arange(len(best)), best] > 0).astype(np.float64)


def generator(seed: int, purpose: str, name: str) -> np.random.Generator:
    """Random numbers that depend on nothing but these three."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{name}".encode(errors="surrogateescape"), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64)))


@dataclass(frozen=True)
class Answer:
    """What one model made of a batch at one point: a value per image, NaN where the image does not count.

    `extra` are further values per image, whose means are told beside it.
    """

    subject: str
    point: int
    values: Values
    extra: Mapping[str, Values] = field(default_factory=dict)


@dataclass(frozen=True)
class Curve:
    """What a trial measures, in words.

    Attributes:
        group: the section it belongs to; name: the curve; axis: what its points are.
        points: from weak to strong; labels: the same for people, where a number does not say it.
        measure: "top-1" and "shape bias" are shares of right or counted answers, "correlation" is a mean.
        note: how it is done, in a sentence.
        costly: asked of fewer images.
    """

    group: str
    name: str
    axis: str
    points: tuple[float, ...]
    note: str = ""
    labels: tuple[str, ...] = ()
    measure: str = "top-1"
    costly: bool = False


class Trial(ABC):
    """Pictures changed more and more, and a value per image and point."""

    @property
    @abstractmethod
    def curve(self) -> Curve:
        """What is measured."""

    @abstractmethod
    def refusal(self, subject: Subject) -> str:
        """Why this model cannot be asked; empty where it can."""

    @abstractmethod
    def answers(self, subjects: Sequence[Subject], shown: Shown) -> Iterator[Answer]:
        """One for each subject and point."""


class PixelTrial(Trial):
    """Images are changed before any model sees them: all models see the same."""

    def refusal(self, subject: Subject) -> str:
        return ""

    @abstractmethod
    def changed(self, shown: Shown, point: float) -> Images:
        """The batch at one point of the curve."""

    def answers(self, subjects: Sequence[Subject], shown: Shown) -> Iterator[Answer]:
        for index, point in enumerate(self.curve.points):
            images = self.changed(shown, point)
            for subject in subjects:
                yield Answer(subject.name, index, shown.right(subject.predictor.logits(images)))


@dataclass
class Tally:
    """Values of any number of images in a few numbers, so that memory does not grow with them."""

    asked: int = 0
    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, values: Values) -> None:
        counted = values[~np.isnan(values)]
        self.asked += len(values)
        self.n += len(counted)
        self.total += float(counted.sum())
        self.squares += float((counted * counted).sum())

    def record(self, measure: str) -> dict[str, Any]:
        """Mean, 95 % interval and n as JSON: Wilson for shares, normal for means; None where nothing counted."""
        if not self.n:
            return {"value": None, "interval": None, "n": 0, "asked": self.asked}
        mean = self.total / self.n
        if measure == "correlation":
            spread = math.sqrt(max(0.0, self.squares / self.n - mean * mean))
            half = Z95 * spread / math.sqrt(self.n)
            return {
                "value": mean,
                "interval": [mean - half, mean + half],
                "n": self.n,
                "asked": self.asked,
                "sd": spread,
            }
        interval = list(wilson_interval(round(self.total), self.n))
        return {"value": mean, "interval": interval, "n": self.n, "asked": self.asked}


@dataclass
class Pair:
    """The same images judged by two models: on how many only one of them is right."""

    first: int = 0
    second: int = 0

    def add(self, first: Values, second: Values) -> None:
        both = ~(np.isnan(first) | np.isnan(second))
        won: Bool[np.ndarray, " batch"] = both & (first > second)
        self.first += int(won.sum())
        self.second += int((both & (first < second)).sum())

    def record(self) -> dict[str, Any]:
        return {"only_first": self.first, "only_second": self.second, "p": mcnemar(self.first, self.second)}


Place = tuple[str, str, float, str]
"""Group and name of a curve, a point of it, a subject."""


@dataclass
class Counts:
    """Everything that is measured: a tally for each place, and pairs of the first subject with the others."""

    tallies: dict[Place, Tally] = field(default_factory=dict)
    pairs: dict[Place, Pair] = field(default_factory=dict)
    extras: dict[Place, dict[str, Tally]] = field(default_factory=dict)

    def add(self, curve: tuple[str, str], answers: Sequence[tuple[float, Answer]], first: str) -> None:
        """The answers of all subjects to one trial on one batch, with their points."""
        leading = {point: answer.values for point, answer in answers if answer.subject == first}
        for point, answer in answers:
            place = (*curve, point, answer.subject)
            self.tallies.setdefault(place, Tally()).add(answer.values)
            for name, values in answer.extra.items():
                self.extras.setdefault(place, {}).setdefault(name, Tally()).add(values)
            if answer.subject != first and point in leading:
                self.pairs.setdefault(place, Pair()).add(leading[point], answer.values)
