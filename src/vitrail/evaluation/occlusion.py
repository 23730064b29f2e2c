"""Parts of a picture hidden: patches in pixels, and tokens that are left out (PatchDrop of arXiv 2105.10497).

The grid is the published 14 x 14 whatever the model's own patch is, or as many cells as a smaller picture has pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from vitrail.evaluation.frequencies import averaged
from vitrail.evaluation.trials import Answer, Curve, Images, PixelTrial, Shown, Subject, Trial, Values

GRID = 14
SHARES = (0.1, 0.25, 0.5, 0.75, 0.8, 0.9)
HIDDEN = "share of patches hidden"
Fill = Literal["black", "mean", "noise"]
Which = Literal["random", "salient", "non-salient"]
Order = Int[np.ndarray, "batch patches"]


def grid_of(size: tuple[int, int]) -> tuple[int, int]:
    """(rows, cols) of an occlusion of images of (height, width)."""
    return min(GRID, size[0]), min(GRID, size[1])


def order_of(which: Which, shown: Shown, maps: Float[np.ndarray, "batch rows cols"]) -> Order:
    """Places in the order in which they are hidden; places that are alike come in a random order.

    Args:
        which: random ignores the values of `maps`.
    """
    flat = maps.reshape(len(maps), -1)
    luck = shown.uniform("occlusion", flat.shape[1])
    worth = {"random": np.zeros_like(flat), "salient": -flat, "non-salient": flat}[which]
    return np.lexsort((luck, worth), axis=1)


def hidden(order: Order, share: float) -> Bool[np.ndarray, "batch patches"]:
    """The first of an order: as near to `share` as whole patches allow."""
    mask = np.zeros(order.shape, dtype=bool)
    np.put_along_axis(mask, order[:, : round(share * order.shape[1])], True, axis=1)
    return mask


def covered(images: Images, mask: Bool[np.ndarray, "batch rows cols"], fill: Fill, shown: Shown) -> Images:
    """Images with the cells of a mask filled: black (0, before normalisation), each image's mean colour, or noise."""
    height, width = images.shape[2:]
    rows, cols = (np.arange(side) * parts // side for side, parts in zip((height, width), mask.shape[1:], strict=True))
    pixels = mask[:, rows][:, :, cols][:, None]
    if fill == "black":
        return np.where(pixels, np.uint8(0), images)
    if fill == "mean":
        return np.where(pixels, np.round(images.mean(axis=(2, 3), keepdims=True)).astype(np.uint8), images)
    noise = np.stack([luck.integers(0, 256, images.shape[1:], dtype=np.uint8) for luck in shown.luck("fill")])
    return np.where(pixels, noise, images)


@dataclass(frozen=True)
class Occlusion(PixelTrial):
    """Random patches, or those that the spectral residual, which asks no model, finds salient or not."""

    which: Which
    fill: Fill = "black"
    shares: tuple[float, ...] = SHARES

    @property
    def curve(self) -> Curve:
        by = "" if self.which == "random" else " (spectral residual)"
        note = f"{GRID} x {GRID} cells of the image, whatever the model's patch; other cells for every image"
        return Curve("occlusion", f"{self.which}{by}, {self.fill}", HIDDEN, self.shares, note)

    def changed(self, shown: Shown, point: float) -> Images:
        grid = grid_of(shown.size)
        maps = np.zeros((len(shown.images), *grid))
        if self.which != "random":
            maps = averaged(shown.residual, grid)
        mask = hidden(order_of(self.which, shown, maps), point).reshape(maps.shape)
        return covered(shown.images, mask, self.fill, shown)


@dataclass(frozen=True)
class OwnOcclusion(Trial):
    """Patches that the model itself looks at, or does not."""

    which: Which
    fill: Fill = "black"
    shares: tuple[float, ...] = SHARES

    @property
    def curve(self) -> Curve:
        note = "the model's own saliency, brought to the cells by area"
        return Curve("occlusion", f"{self.which} (the model's own), {self.fill}", HIDDEN, self.shares, note)

    def refusal(self, subject: Subject) -> str:
        return "" if subject.saliency else subject.reason

    def answers(self, subjects: Sequence[Subject], shown: Shown) -> Iterator[Answer]:
        grid = grid_of(shown.size)
        for subject in subjects:
            maps = averaged(shown.looked_at(subject), grid)
            order = order_of(self.which, shown, maps)
            for index, share in enumerate(self.shares):
                images = covered(shown.images, hidden(order, share).reshape(maps.shape), self.fill, shown)
                yield Answer(subject.name, index, shown.right(subject.predictor.logits(images)))


@dataclass(frozen=True)
class DroppedTokens(Trial):
    """Tokens that never reach the encoder: nothing stands in their place, and the others keep their positions."""

    which: Which
    shares: tuple[float, ...] = SHARES

    @property
    def curve(self) -> Curve:
        by = "" if self.which == "random" else " (the model's own)"
        note = "patches of the model's own grid, left out after their positions were added; one stays at least"
        return Curve("tokens", f"{self.which}{by}", "share of tokens dropped", self.shares, note)

    def refusal(self, subject: Subject) -> str:
        return "" if subject.without and (self.which == "random" or subject.saliency) else subject.reason

    def answers(self, subjects: Sequence[Subject], shown: Shown) -> Iterator[Answer]:
        for subject in subjects:
            assert subject.without is not None
            maps = np.zeros((len(shown.images), *subject.grid))
            if self.which != "random":
                maps = shown.looked_at(subject)
            order = order_of(self.which, shown, maps)
            for index, share in enumerate(self.shares):
                gone = min(order.shape[1] - 1, round(share * order.shape[1]))
                logits = subject.without(shown.images, np.sort(order[:, gone:], axis=1))
                yield Answer(subject.name, index, shown.right(logits))


@dataclass(frozen=True)
class FeatureCorrelation(Trial):
    """How alike what the head reads is before and after random patches were hidden (table 1 of arXiv 2105.10497)."""

    shares: tuple[float, ...] = (0.25, 0.5, 0.75)

    @property
    def curve(self) -> Curve:
        note = "Pearson correlation of the vector that the head reads, over its dimensions, mean over images"
        return Curve("features", "random, black", HIDDEN, self.shares, note, measure="correlation")

    def refusal(self, subject: Subject) -> str:
        return ""

    def answers(self, subjects: Sequence[Subject], shown: Shown) -> Iterator[Answer]:
        same = Occlusion("random", "black", self.shares)
        before = {subject.name: subject.predictor.represent(shown.images) for subject in subjects}
        for index, share in enumerate(self.shares):
            images = same.changed(shown, share)
            for subject in subjects:
                yield Answer(
                    subject.name, index, correlation(before[subject.name], subject.predictor.represent(images))
                )


def correlation(first: Float[np.ndarray, "batch dim"], second: Float[np.ndarray, "batch dim"]) -> Values:
    """Pearson's, row by row; 0 where a row is constant."""
    first, second = (
        rows.astype(np.float64) - rows.mean(axis=1, keepdims=True, dtype=np.float64) for rows in (first, second)
    )
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(axis=1) / np.where(lengths > 0, lengths, np.inf)
