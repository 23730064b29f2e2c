"""Pictures cut into pieces that change places, and pictures that stand elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from einops import rearrange
from jaxtyping import Int

from vitrail.evaluation.frequencies import averaged
from vitrail.evaluation.trials import Curve, Images, PixelTrial, Shown

PUBLISHED = ((2, 2), (2, 4), (4, 4), (4, 8), (7, 7), (8, 8), (14, 14), (16, 16))  # 7 x 7 is ours, for pictures of 28 px
LEAST = 0.9  # of the area must be in pieces: 28 px are no whole number of eighths


def pieces(size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """The published grids, as far as images of (height, width) can be cut so, and 7 x 7."""
    return tuple(grid for grid in PUBLISHED if _cut_share(size, grid) >= LEAST)


def _cut_share(size: tuple[int, int], grid: tuple[int, int]) -> float:
    return math.prod(side // parts * parts / side for side, parts in zip(size, grid, strict=True))


def shuffled(images: Images, grid: tuple[int, int], places: Int[np.ndarray, "batch pieces"]) -> Images:
    """Pieces of a grid in another order: piece i comes from `places[i]`; what is left over below and at the right stays."""
    rows, cols = grid
    height, width = (side // parts * parts for side, parts in zip(images.shape[2:], grid, strict=True))
    cut = rearrange(images[:, :, :height, :width], "b c (r p) (k q) -> b (r k) c p q", r=rows, k=cols)
    moved = np.take_along_axis(cut, places[:, :, None, None, None], axis=1)
    found = images.copy()
    found[:, :, :height, :width] = rearrange(moved, "b (r k) c p q -> b c (r p) (k q)", r=rows, k=cols)
    return found


@dataclass(frozen=True)
class Permutation(PixelTrial):
    """Pieces in a random order of their own for every image; the more pieces, the less of the shape is left."""

    grids: tuple[tuple[int, int], ...]

    @property
    def curve(self) -> Curve:
        points = tuple(float(rows * cols) for rows, cols in self.grids)
        labels = tuple(f"{rows}x{cols}" for rows, cols in self.grids)
        note = "another random order for every image; the published code draws one per batch"
        return Curve("permutation", "shuffled pieces", "pieces", points, note, labels)

    def changed(self, shown: Shown, point: float) -> Images:
        grid = self.grids[self.curve.points.index(point)]
        places = np.stack([luck.permutation(math.prod(grid)) for luck in shown.luck(f"permutation {grid}")])
        return shuffled(shown.images, grid, places)


DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


def moved(image: Images, rows: int, cols: int) -> Images:
    """The picture so many pixels further down and to the right; what comes in from outside is black."""
    height, width = image.shape[-2:]
    found = np.zeros_like(image)
    down, right = max(0, rows), max(0, cols)
    up, left = max(0, -rows), max(0, -cols)
    found[..., down : height - up, right : width - left] = image[..., up : height - down, left : width - right]
    return found


@dataclass(frozen=True)
class Translation(PixelTrial):
    """Every picture pushed in one of eight directions of its own."""

    pixels: tuple[int, ...]

    @property
    def curve(self) -> Curve:
        note = "in one of eight directions, drawn for every image; what comes in is black, what goes out is lost"
        return Curve("position", "pushed, black border", "pixels", tuple(map(float, self.pixels)), note)

    def changed(self, shown: Shown, point: float) -> Images:
        turns = (shown.uniform("direction", 1)[:, 0] * len(DIRECTIONS)).astype(int)
        pixels = round(point)
        return np.stack([moved(image, *(pixels * step for step in DIRECTIONS[turn]))
                         for image, turn in zip(shown.images, turns, strict=True)])  # fmt: skip


@dataclass(frozen=True)
class MovingCrop(PixelTrial):
    """A window over a slightly larger picture, moved along both axes: nothing comes in but the picture itself.

    The points run over one patch of the model, so that the same content meets every phase of its grid of patches.
    """

    reach: tuple[int, int]
    shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)

    @property
    def curve(self) -> Curve:
        note = f"pictures enlarged by {self.reach[0]} x {self.reach[1]} px, one patch, and the window moved over them"
        return Curve("position", "crop against the patch grid", "share of a patch", self.shares, note)

    def changed(self, shown: Shown, point: float) -> Images:
        height, width = shown.images.shape[2:]
        top, left = (round(point * side) for side in self.reach)
        return np.ascontiguousarray(shown.larger(self.reach)[:, :, top : top + height, left : left + width])


@dataclass(frozen=True)
class Corner(PixelTrial):
    """The picture at 4/7 of its side (128 of 224 px) in a corner of black; the corner changes with the image."""

    share: float = 4 / 7

    @property
    def curve(self) -> Curve:
        note = "128 px in 224, or the same share of another side; one of the four corners, drawn for every image"
        return Curve("position", "in a corner of black", "share of the side", (self.share,), note, ("4/7",))

    def changed(self, shown: Shown, point: float) -> Images:
        height, width = shown.images.shape[2:]
        tall, wide = max(1, round(point * height)), max(1, round(point * width))
        small = np.round(averaged(shown.images.astype(np.float64), (tall, wide))).astype(np.uint8)
        found = np.zeros_like(shown.images)
        corners = (shown.uniform("corner", 1)[:, 0] * 4).astype(int)
        for image, part, corner in zip(found, small, corners, strict=True):
            top, left = (corner // 2) * (height - tall), (corner % 2) * (width - wide)
            image[:, top : top + tall, left : left + wide] = part
        return found
