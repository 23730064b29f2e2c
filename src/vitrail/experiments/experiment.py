"""What every experiment of `vitrail reproduce` is: models and pictures in, numbers, words and drawings out."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vitrail.deployment.classifier import Classifier
from vitrail.errors import DataError, UsageError
from vitrail.images import Picture
from vitrail.model.vit import ViT

_MAP_VALUES = 2**24  # attention weights of a layer at a time: 64 MiB
MOST_AT_A_TIME = 32


@dataclass(frozen=True)
class Subject:
    """A model: what to call it, how it was trained (empty where nothing says so), and the model itself."""

    name: str
    training: str
    classifier: Classifier


@dataclass(frozen=True)
class Album:
    """Pictures, and what is on them where that is known.

    Attributes:
        read: place in the album and number of channels to a picture; raises DataError where it cannot be read.
        classes: the name of the class of every picture; None where they have none.
    """

    name: str
    names: tuple[str, ...]
    read: Callable[[int, int], Picture]
    classes: tuple[str, ...] | None = None

    def drawn(self, count: int, seed: int) -> list[int]:
        """Places of at most `count` pictures, by chance, in the album's order."""
        if len(self.names) <= count:
            return list(range(len(self.names)))
        return sorted(np.random.default_rng(seed).choice(len(self.names), count, replace=False).tolist())


@dataclass(frozen=True)
class Looking:
    """Settings that every experiment on pictures has: how many, and which, are drawn."""

    images: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images < 1 or self.seed < 0:
            raise UsageError("VT003", f"{self}", "one image or more, and a seed of 0 or more")


@dataclass(frozen=True)
class Asked:
    """What an experiment is given: one model or more, pictures where it looks at any, and its settings."""

    subjects: tuple[Subject, ...]
    album: Album | None
    settings: Any = None

    @property
    def pictures(self) -> Album:
        assert self.album is not None, "the command gives pictures to every experiment that looks at some"
        return self.album

    @property
    def places(self) -> list[int]:
        """Of the pictures that the settings draw."""
        return self.pictures.drawn(self.settings.images, self.settings.seed)

    def images(self, subject: Subject, at_a_time: int | None = None) -> Iterator[Tensor]:
        """The drawn pictures as this model reads them, normalised, a batch at a time; none is kept."""
        preprocessing, places = subject.classifier.preprocessing, self.places
        at_a_time = at_a_time or _at_a_time(subject)
        for start in range(0, len(places), at_a_time):
            chosen = places[start : start + at_a_time]
            pictures = [preprocessing(self.pictures.read(place, preprocessing.channels)) for place in chosen]
            yield preprocessing.normalise(torch.from_numpy(np.stack(pictures)).to(subject.classifier.device))

    def labelled(self, subject: Subject) -> Iterator[tuple[Tensor, Tensor]]:
        """The same with the index of each picture's class among the model's.

        Raises:
            UsageError: VT134, the pictures have no classes. DataError: VT025, the model does not know one.
        """
        labels = iter(self._labels(subject))
        for images in self.images(subject):
            yield images, torch.tensor([next(labels) for _ in images])

    def _labels(self, subject: Subject) -> list[int]:
        known, classes = subject.classifier.classes, self.pictures.classes
        if not known:
            return [0] * len(self.places)  # the quantity itself refuses, in its own words
        if classes is None:
            raise UsageError(
                "VT134", f"{self.pictures.name}: nothing says what is on these pictures", "pictures with their classes",
                "--data with one folder a class, a CSV or a built-in set",
            )  # fmt: skip
        position = {name: index for index, name in enumerate(known)}
        if unknown := sorted({classes[place] for place in self.places} - set(position)):
            raise DataError(
                "VT025", f"the model does not know the classes {', '.join(unknown[:10])}",
                f"classes among {', '.join(known[:10])}{' ...' if len(known) > 10 else ''}",
            )  # fmt: skip
        return [position[classes[place]] for place in self.places]

    def facts(self) -> dict[str, Any]:
        """What every record says."""
        said: dict[str, Any] = {"models": [subject.name for subject in self.subjects]}
        if self.album is not None:
            said |= {"data": self.album.name, "images": len(self.places), "seed": self.settings.seed}
        return said


@dataclass(frozen=True)
class Outcome:
    """What came out.

    Attributes:
        facts: every number that is drawn, as plain JSON.
        text: lines of at most 80 columns.
        drawings: the PNG of every figure, by the name of its file.
    """

    facts: dict[str, Any]
    text: list[str]
    drawings: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """A table, figure or claim that one command makes again.

    Attributes:
        run: makes it.
        models: how many models it takes at most.
        looks: whether it looks at pictures; "labelled" where it needs their classes too.
        settings: a frozen dataclass with the defaults of what --set may change.
    """

    run: Callable[[Asked], Outcome]
    models: int = 1
    looks: Literal["no", "pictures", "labelled"] = "pictures"
    settings: Any = Looking()

    @property
    def text(self) -> str:
        """Command, cost, what the paper shows, what to expect: the docstring of its file."""
        return inspect.getdoc(sys.modules[self.run.__module__]) or ""


def _at_a_time(subject: Subject) -> int:
    """Images whose attention in one layer fits into `_MAP_VALUES`."""
    model = subject.classifier.module
    if not isinstance(model, ViT):
        return MOST_AT_A_TIME
    weights = model.config.size.heads * model.config.num_tokens**2
    return max(1, min(MOST_AT_A_TIME, _MAP_VALUES // weights))
