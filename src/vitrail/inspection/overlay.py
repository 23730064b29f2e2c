"""A map laid on the picture it belongs to, in the picture's own geometry. NumPy and Pillow alone; no torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from vitrail.images import Picture, from_pillow, to_pillow

Box = tuple[float, float, float, float]
"""left, top, right, bottom in pixels of the picture."""

_OPACITY = 0.65
_GREYS = np.linspace(64, 192, 256).astype(np.uint8)  # black and white would make other colours of the map's
_FADED = 0.8  # how far what the model does not see goes to white


@cache
def colours() -> UInt8[np.ndarray, "256 3"]:
    """Viridis (van der Walt and Smith, CC0): even steps look even, also without colour vision and in grey.

    Read from a file: importing Matplotlib for it would take longer than drawing, and write folders in the user's home.
    """
    table = Path(__file__).with_name("viridis.rgb").read_bytes()
    return np.frombuffer(table, dtype=np.uint8).reshape(256, 3)


def overlay(
    picture: Picture, weights: Float[np.ndarray, "rows cols"], box: Box | None = None, highest: float | None = None
) -> Picture:
    """The picture in soft grey under the map's colours, one colour a patch: nothing is smoothed, nothing invented.

    Args:
        picture: uint8 height width channels; the answer has its size.
        weights: not negative.
        box: what of the picture the map covers, `Preprocessing.window`; None for all of it. The rest is faded.
        highest: the weight of the last colour, so that several pictures can share a scale; None for the largest weight.
            The first colour is zero.

    Returns:
        uint8 height width 3.
    """
    left, top, right, bottom = box or (0, 0, picture.shape[1], picture.shape[0])
    scale = highest or float(weights.max()) or 1.0
    palette = colours()[(weights / scale * 255).clip(0, 255).round().astype(np.uint8)]
    rows, below = _places(picture.shape[0], top, bottom, weights.shape[0])
    cols, beside = _places(picture.shape[1], left, right, weights.shape[1])
    grey = np.asarray(to_pillow(picture).convert("L"))
    mixed = _blended(grey, palette[rows[:, None], cols[None]])
    if not (below.all() and beside.all()):
        outside = ~(below[:, None] & beside[None])
        mixed[outside] = (255 - (1 - _FADED) * (255 - grey[outside, None])).astype(np.uint8)
    return mixed


def ramp(length: int) -> UInt8[np.ndarray, "length 3"]:
    """The colours of a map from its largest weight to zero, as they look over a middle grey of the picture."""
    places = np.linspace(255, 0, length).round().astype(int)
    return _blended(np.full((length, 1), 128, np.uint8), colours()[places][:, None])[:, 0]


def _blended(grey: UInt8[np.ndarray, "height width"], paint: UInt8[np.ndarray, "height width 3"]) -> Picture:
    """One over the other; Pillow does it without arrays of floats, which matters for pictures of 50 megapixels."""
    below = Image.fromarray(_GREYS[grey]).convert("RGB")
    return from_pillow(Image.blend(below, Image.fromarray(paint), _OPACITY)).copy()


def patch_box(box: Box, grid: tuple[int, ...], row: int, col: int) -> Box:
    """The pixels of one patch."""
    left, top, right, bottom = box
    wide, tall = (right - left) / grid[1], (bottom - top) / grid[0]
    return left + col * wide, top + row * tall, left + (col + 1) * wide, top + (row + 1) * tall


def _places(length: int, start: float, end: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of `count` patches each pixel's centre lies on, and whether it lies on any."""
    place = np.floor((np.arange(length) + 0.5 - start) / (end - start) * count).astype(np.int64)
    return place.clip(0, count - 1), (place >= 0) & (place < count)
