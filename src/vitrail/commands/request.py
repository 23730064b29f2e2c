"""What a protocol of `vitrail eval` is asked, and what a protocol is. To add one: commands/protocols.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.data.batches import Pictures, readable
from vitrail.data.sources import Source
from vitrail.deployment.classifier import Classifier
from vitrail.errors import DataError

MAX_BAD_SHARE = 0.05


@dataclass(frozen=True)
class Request:
    """One protocol on one model and one source.

    Attributes:
        model: its path as typed; classifier: the model, which may have no classes.
        source: the images with their labels; data: as typed, or None where it is the run's own.
        split: what is measured on; train, val or test.
        place: eval/PROTOCOL of --out or of the run folder, for figures and tables; None where nothing is written.
            It does not exist before the protocol makes it. The record itself is written by the caller.
        settings: a frozen dataclass, the protocol's own with what --set changed.
        beside: the model of --beside; other: its path as typed.
        way: engine and precision, where they are other than those by which a run judges itself.
        kept: what protocols of one command share (pictures that were read, features).
        until_the_end: is closed when the last protocol has run.
    """

    model: Path
    classifier: Classifier
    source: Source
    data: str | None
    split: str
    place: Path | None = None
    settings: Any = None
    beside: Classifier | None = None
    other: Path | None = None
    way: tuple[str, ...] = ()
    kept: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    until_the_end: ExitStack = field(default_factory=ExitStack, compare=False, repr=False)

    def pictures(self, split: str | None = None) -> Pictures:
        """The pictures of a split that can be read, at the model's preprocessing; targets in the source's classes.

        Raises:
            DataError: VT010, no such split; VT019, too many that cannot be read; VT012, none that can.
        """
        name = split or self.split
        if ("pictures", name) not in self.kept:
            checked = Pictures(self.source.split(name), self.classifier.preprocessing).check()
            self.kept["pictures", name] = readable({name: checked}, MAX_BAD_SHARE)[name]
        return self.kept["pictures", name]

    def matched(self, split: str | None = None) -> Pictures:
        """The same pictures with targets in the model's order of classes, by name.

        Raises:
            DataError: VT025, the model does not know a class.
        """
        places = positions(self.source, self.classifier)  # a wrong model is told before pictures are read
        pictures = self.pictures(split)
        targets = np.zeros((len(pictures.dataset), len(self.classifier.classes)), dtype=np.float32)
        targets[:, places] = pictures.dataset.targets
        return replace(pictures, dataset=replace(pictures.dataset, targets=targets))

    @property
    def file(self) -> str:
        """How files of this split are called: test, DATA-test, test-openvino-bfloat16."""
        return "-".join(([] if self.data is None else [Path(self.data).stem]) + [self.split, *self.way])


@dataclass(frozen=True)
class Protocol:
    """A way to measure.

    Attributes:
        summary: a line for people.
        run: gives a record of plain JSON facts (None for what is not a number, never NaN).
        text: the record as lines of at most 80 columns.
        settings: a frozen dataclass with the defaults of what --set may change.
        opens: whether its images are those of the source; where not, it opens what --data names by itself.
        compares: whether it puts the model of --beside next to the first.
    """

    summary: str
    run: Callable[[Request], dict[str, Any]]
    text: Callable[[Mapping[str, Any]], list[str]]
    settings: Any = None
    opens: bool = True
    compares: bool = False


def positions(source: Source, classifier: Classifier) -> list[int]:
    """Where the model has each class of the source.

    Raises:
        DataError: VT025, it does not know one.
    """
    position = {name: index for index, name in enumerate(classifier.classes)}
    if unknown := [name for name in source.classes if name not in position]:
        raise DataError(
            "VT025", f"the model does not know the classes {', '.join(unknown[:10])}",
            f"classes among {', '.join(classifier.classes[:10])}{' ...' if len(classifier.classes) > 10 else ''}",
        )  # fmt: skip
    return [position[name] for name in source.classes]
