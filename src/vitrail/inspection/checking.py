"""`vitrail explain --check`: how far each explanation method can be believed on one model, measured on images."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vitrail.errors import DataError, UsageError
from vitrail.inspection.faithfulness import SHARES, Asked, Faithfulness, faithfulness
from vitrail.inspection.method import Method, cells
from vitrail.inspection.methods import METHODS
from vitrail.inspection.opening import opened
from vitrail.inspection.orders import Centre, Edges, Random
from vitrail.inspection.removal import removal_for
from vitrail.inspection.sanity import disturbed, rank_correlation, shuffled, shuffled_down
from vitrail.inspection.verdicts import FEWEST, RULE, Measured, Word, judged, measured
from vitrail.model.backbone import Backbone
from vitrail.preprocessing import Preprocessing
from vitrail.statistics import wilson_interval

Batches = Iterable[tuple[UInt8[np.ndarray, "batch channels height width"], Float[np.ndarray, "batch classes"]]]

COMPARED = 20  # images whose maps are made again, for shuffled weights, another class and small changes
_TOGETHER = 16
_RANDOM_ORDERS = 3  # their mean is what a random order comes to
_SHUFFLES = 3  # of all weights; likewise


@dataclass(frozen=True)
class Row:
    """What was measured of one method.

    Attributes:
        figures: by name, None where there were too few images: deletion and insertion (the class's mean probability),
            either of them "ahead of" random, centre and edges (positive is better, paired by image) and both together
            ("ahead of random"), saco, shuffled, classes, noise, shift, stable, gap.
        cascade: the absolute rank correlation with the map of the trained weights as more of them are shuffled.
        seconds: of one map, of one image.
        verdict, reasons: by `verdicts.RULE`.
    """

    method: str
    class_specific: bool
    figures: Mapping[str, Measured | None]
    cascade: tuple[tuple[str, Measured | None], ...]
    seconds: float
    verdict: Word
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class TrustTable:
    """One model, some images, several methods.

    Attributes:
        images: how many were asked; compared: of how many the maps were made again.
        grid: (rows, cols) of the maps; removal: how parts went.
        top1, top1_interval, majority: the model's answers on these images, and the share of the most common class.
        baselines: deletion and insertion of the orders that know nothing of the model, and their SaCo.
        curves: of each order, the class's mean probability at 10 to 90 % of the parts gone, and kept.
        refused: method to the reason.
    """

    images: int
    compared: int
    grid: tuple[int, int]
    removal: str
    top1: float
    top1_interval: tuple[float, float]
    majority: float
    rows: tuple[Row, ...]
    baselines: Mapping[str, Mapping[str, Measured | None]]
    curves: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]
    refused: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain facts; None for what could not be measured."""
        return {
            "images": self.images, "compared": self.compared, "grid": list(self.grid), "removal": self.removal,
            "top1": self.top1, "top1_interval": list(self.top1_interval), "majority": self.majority, "rule": RULE,
            "methods": [
                {
                    "method": row.method, "verdict": row.verdict, "reasons": list(row.reasons),
                    "class_specific": row.class_specific, "seconds": row.seconds, "figures": _plain(row.figures),
                    "cascade": [{"shuffled": name, "correlation": figure and figure.to_json()}
                                for name, figure in row.cascade],
                }
                for row in self.rows
            ],
            "baselines": {name: _plain(figures) for name, figures in self.baselines.items()},
            "curves": {name: {"deletion": list(falls), "insertion": list(returns)}
                       for name, (falls, returns) in self.curves.items()},
            "shares": list(SHARES), "refused": dict(self.refused),
        }  # fmt: skip


def _plain(figures: Mapping[str, Measured | None]) -> dict[str, Any]:
    return {name: figure and figure.to_json() for name, figure in figures.items()}


def check(
    model: Any, batches: Batches, methods: Sequence[Method] | None = None, seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> TrustTable:  # fmt: skip
    """Measures explanation methods on a model.

    Args:
        model: what `vitrail.load` gives.
        batches: images of the model's size with what is true of them, in the model's order of classes; read once.
        methods: all of them by default.
        seed: of random orders, shuffled weights and noise.
        say: is told how far it is.

    Raises:
        DataError: VT143, fewer than ten images; VT144, images that are not the model's.
        UsageError: VT045 no classes; VT041, VT142 where no method can run.
    """
    module, preprocessing = opened(model)
    able, refused = _admitted(module, [method() for method in METHODS.values()] if methods is None else methods)
    several = bool(getattr(model, "multi_label", False))
    tally = _Tally(_Subject(module, preprocessing, several, seed))
    for images, targets in _small(batches, preprocessing):
        say(f"{tally.images} images")
        tally.add(images, targets, able)
    if tally.images < FEWEST:
        raise DataError("VT143", f"{tally.images} images", f"{FEWEST} or more: an interval of fewer would be a guess",
                        "a split with more of them, or a larger --images")  # fmt: skip
    kept = tally.compared()
    rows = []
    for method in able:
        say(f"{method.name}: maps of shuffled weights, another class, small changes")
        figures, cascade = _compared(tally.subject, method, *kept)
        rows.append(_row(tally, method, figures, cascade))
    return tally.table(tuple(rows), refused, len(kept[0]))


def _admitted(module: Backbone, methods: Sequence[Method]) -> tuple[list[Method], dict[str, str]]:
    able, refusals = [], {}
    for method in methods:
        try:
            method.admit(module)
            able.append(method)
        except UsageError as error:
            refusals[method.name] = error
    if not able:
        raise next(iter(refusals.values()), UsageError("VT141", "no method was named", "one or more"))
    if not module.config.head.classes:
        raise UsageError("VT045", "these weights have no classes, whose probability could fall", "a classifier",
                         "vitrail train YOUR_IMAGES --weights THESE_WEIGHTS gives classes")  # fmt: skip
    return able, {name: error.what for name, error in refusals.items()}


def _small(batches: Batches, preprocessing: Preprocessing) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A few images at a time, whatever the batches are."""
    expected = (preprocessing.channels, *preprocessing.image_size)
    for images, targets in batches:
        if getattr(images, "ndim", 0) != 4 or images.dtype != np.uint8 or images.shape[1:] != expected:
            shape, kind = getattr(images, "shape", "none"), getattr(images, "dtype", type(images).__name__)
            raise DataError("VT144", f"images of shape {shape}, {kind}", f"uint8, batch and {expected}, all of one size",
                            "model.preprocessing brings pictures of any size to the model's")  # fmt: skip
        if len(targets) != len(images):
            raise DataError("VT144", f"{len(images)} images with {len(targets)} targets", "a row of targets an image")
        for start in range(0, len(images), _TOGETHER):
            yield images[start : start + _TOGETHER], targets[start : start + _TOGETHER]


@dataclass(frozen=True, eq=False)
class _Subject:
    module: Backbone
    preprocessing: Preprocessing
    multi_label: bool
    seed: int

    def normalised(self, images: UInt8[np.ndarray, "batch channels height width"]) -> Tensor:
        device = next(self.module.parameters()).device
        return self.preprocessing.normalise(torch.from_numpy(images).to(device))

    def first_two(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The most and the second most probable class."""
        with torch.inference_mode():
            best = self.module(images).topk(min(2, self.module.config.head.classes), dim=1).indices
        return best[:, 0].clone(), best[:, -1].clone()


@dataclass(eq=False)
class _Tally:
    """Some numbers an image, whatever its size; and a few images, of which maps are made again."""

    subject: _Subject
    images: int = 0
    hits: int = 0
    labels: Any = 0
    grid: tuple[int, int] = (0, 0)
    found: dict[str, list[Faithfulness]] = field(default_factory=lambda: defaultdict(list))
    gaps: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    kept: list[np.ndarray] = field(default_factory=list)

    def add(self, pictures: np.ndarray, targets: np.ndarray, methods: Sequence[Method]) -> None:
        subject = self.subject
        images = subject.normalised(pictures)
        classes = subject.first_two(images)[0]
        asked = Asked(subject.module, images, classes, removal_for(subject.module), subject.multi_label)
        self.grid = cells(subject.module, images)
        for method in methods:
            begun = time.perf_counter()
            maps = method.maps(subject.module, images, classes)
            self.seconds[method.name] += time.perf_counter() - begun
            self.found[method.name].append(faithfulness(asked, maps.values, subject.seed))
            if maps.gap is not None:
                self.gaps[method.name].append(maps.gap)
        for order in (Centre(), Edges(), *(Random(subject.seed + number) for number in range(_RANDOM_ORDERS))):
            maps = order.maps(subject.module, images, classes)
            name = f"random {order.seed - subject.seed}" if isinstance(order, Random) else order.name
            self.found[name].append(faithfulness(asked, maps.values, subject.seed))
        self.images += len(pictures)
        self.hits += int((np.take_along_axis(targets, classes.cpu().numpy()[:, None], axis=1) > 0).sum())
        self.labels = self.labels + (targets > 0).sum(axis=0)
        if len(self.kept) < COMPARED:
            self.kept.extend(pictures[: COMPARED - len(self.kept)].copy())

    def compared(self) -> tuple[Tensor, Tensor, Tensor]:
        """The images that were kept, and their first and second class."""
        images = self.subject.normalised(np.stack(self.kept))
        return images, *self.subject.first_two(images)

    def of(self, name: str, fact: str) -> np.ndarray:
        """One number an image, or a curve; a random order's is the mean of several."""
        if name == "random":
            return np.mean([self.of(f"random {number}", fact) for number in range(_RANDOM_ORDERS)], axis=0)
        return np.concatenate([getattr(part, fact) for part in self.found[name]])

    def ahead(self, name: str) -> dict[str, Measured | None]:
        """By how much probability an order is better than those that know nothing, image by image."""
        figures = {}
        for other in ("random", "centre", "edges"):
            deletion = self.of(other, "deletion") - self.of(name, "deletion")
            insertion = self.of(name, "insertion") - self.of(other, "insertion")
            figures[f"deletion ahead of {other}"] = measured(deletion)
            figures[f"insertion ahead of {other}"] = measured(insertion)
            figures[f"ahead of {other}"] = measured((deletion + insertion) / 2)
        return figures

    def plain(self, name: str) -> dict[str, Measured | None]:
        return {fact: measured(self.of(name, fact)) for fact in ("deletion", "insertion", "saco")}

    @property
    def majority(self) -> float:
        return float(np.max(self.labels) / self.images)

    @property
    def knows(self) -> bool:
        """Whether the answers are better than the most common class."""
        return wilson_interval(self.hits, self.images)[0] > self.majority

    def table(self, rows: tuple[Row, ...], refused: Mapping[str, str], compared: int) -> TrustTable:
        orders = ("random", "centre", "edges")
        names = (*(row.method for row in rows), *orders)
        curves = {
            name: tuple(tuple(self.of(name, fact).mean(axis=0).tolist()) for fact in ("falls", "returns"))
            for name in names
        }
        return TrustTable(
            images=self.images, compared=compared, grid=self.grid, removal=removal_for(self.subject.module).words,
            top1=self.hits / self.images, top1_interval=wilson_interval(self.hits, self.images),
            majority=self.majority, rows=rows, baselines={name: self.plain(name) for name in orders},
            curves=curves, refused=refused,  # type: ignore[arg-type]
        )  # fmt: skip


def _compared(
    subject: _Subject, method: Method, images: Tensor, first: Tensor, second: Tensor
) -> tuple[dict[str, Measured | None], tuple[tuple[str, Measured | None], ...]]:
    """Maps made again: with shuffled weights, of another class, of images with small changes."""
    own = method.maps(subject.module, images, first).values

    def kept_by(wrong: Backbone) -> Float[np.ndarray, " images"]:
        return np.abs(rank_correlation(own, method.maps(wrong, images, first).values))

    stages = [(name, kept_by(wrong)) for name, wrong in shuffled_down(subject.module, subject.seed)]
    others = [kept_by(shuffled(subject.module, subject.seed + number)) for number in range(1, _SHUFFLES)]
    cascade = tuple((name, measured(values)) for name, values in stages)
    figures = {
        "shuffled": measured(np.mean([stages[-1][1], *others], axis=0)),  # one shuffle may be like the model by chance
        "classes": measured(rank_correlation(own, method.maps(subject.module, images, second).values)),
    }
    kept, alike = np.zeros(len(images)), np.zeros(len(images))
    ends = subject.normalised(np.array([[0, 255]], np.uint8).repeat(images.shape[1], 0)[None, ..., None])
    for name, changed in disturbed(images, ends, subject.seed).items():
        same = (subject.first_two(changed)[0] == first).cpu().numpy()
        values = rank_correlation(own, method.maps(subject.module, changed, first).values)
        figures[name] = measured(values[same])
        kept, alike = kept + same, alike + np.where(same, values, 0)
    figures["stable"] = measured(alike[kept > 0] / kept[kept > 0])
    return figures, cascade


def _row(
    tally: _Tally, method: Method, compared: Mapping[str, Measured | None],
    cascade: tuple[tuple[str, Measured | None], ...],
) -> Row:  # fmt: skip
    name = method.name
    figures = {**tally.plain(name), **tally.ahead(name), **compared}
    if tally.gaps[name]:
        figures["gap"] = measured(np.concatenate(tally.gaps[name]))
    verdict, reasons = judged(figures, method.class_specific, tally.knows)
    return Row(name, method.class_specific, figures, cascade, tally.seconds[name] / tally.images, verdict, reasons)
