"""Whether two pictures are one: saved again, resized, made lighter or darker, or with a margin of up to 5 % cut off."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from vitrail.images import Picture, resized

# Luminance and the two colour differences of JPEG (ITU-T T.871), by red, green and blue.
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_COLOURS = np.array([[-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], dtype=np.float32).T
MAX_CUT = 0.06  # of a side: 5 %, and what rounding adds
TINY = 32  # pixels; below, a crop of one picture looks like another picture
_SMALL, _LONGEST = 128, 512
_GAIN = (0.85, 1.18)
# How far two copies may differ: a share of the picture's contrast, and grey levels that compression costs everywhere.
# Measured on photographs and clip art, saved again, resized and cropped, against the most alike distinct ones.
_LUMINANCE, _COLOUR, _TINY_LUMINANCE = (0.06, 0.5), (0.09, 0.5), (0.07, 0.0)
_FINE = (0.2, 0.2)  # at full resolution, where drawings of thin lines that look alike from afar differ
_WORST = 2.6  # times as much in the worst of 64 parts, so that a small new object is seen

Greys = Float[np.ndarray, "pairs side side"]
Window = NDArray[np.float32]  # four shares of a side that are cut off: left, right, top, bottom
Windows = Float[np.ndarray, "pairs 4"]


class Fit(NamedTuple):
    """Where in each first picture the second was found, and what still differs by the second's contrast."""

    windows: Windows
    difference: Float[np.ndarray, " pairs"]


def small(picture: Picture) -> Picture:
    """As much of a picture as `same` looks at."""
    height, width = picture.shape[:2]
    scale = min(1.0, _SMALL / min(height, width))
    size = (min(_LONGEST, max(1, round(height * scale))), min(_LONGEST, max(1, round(width * scale))))
    return resized(picture, size)


def same(first: Picture, second: Picture, window: Window) -> bool:
    """Whether `second` is `first` or a window of it.

    Args:
        first, second: as `small` makes them, uint8, height width channels.
        window: where to begin the search; what a crop took from left, right, top and bottom, as shares of the side.
    """
    shortest = min(*first.shape[:2], *second.shape[:2])
    if shortest < TINY:
        side = max(8, shortest // 8 * 8)
        return _agree(resized(first, (side, side)), resized(second, (side, side)), _TINY_LUMINANCE)
    # At half the resolution the noise of compression and the losses of resizing have averaged out.
    side = min(64, shortest // 16 * 8)
    whole, target = (resized(picture, (side, side)) for picture in (first, second))
    box = None
    if not _agree(whole, target, _LUMINANCE):
        starts = np.stack([window, np.full(4, MAX_CUT / 2, dtype=np.float32)])
        found = fit(np.stack([grey(whole)] * 2), np.stack([grey(target)] * 2), starts, rounds=5)
        left, right, top, bottom = (float(share) for share in found.windows[found.difference.argmin()])
        height, width = first.shape[:2]
        box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
        if not _agree(resized(first, (side, side), box=box), target, _LUMINANCE):
            return False
    side = min(_SMALL, shortest // 8 * 8)
    return _agree(resized(first, (side, side), box=box), resized(second, (side, side)), _FINE, _FINE)


def grey(picture: Picture | NDArray[np.float32]) -> Float[np.ndarray, "height width"]:
    """Luminance in [0, 255]."""
    return picture @ _LUMA if picture.shape[2] == 3 else picture[:, :, 0].astype(np.float32)


def fit(first: Greys, second: Greys, windows: Windows, rounds: int) -> Fit:
    """Moves windows of the first pictures until they look like the second ones, up to brightness and contrast.

    Gauss-Newton on the four edges of each window, after Lucas and Kanade (1981); all pairs at once.
    """
    side = first.shape[1]
    place = ((np.arange(side) + 0.5) / side).astype(np.float32)
    target = _centred(second)
    contrast = np.sqrt((target * target).mean(axis=1)).clip(1)
    for step in range(rounds + 1):
        across, across_slope = sampling(windows[:, 0], windows[:, 1], side)
        down, down_slope = sampling(windows[:, 2], windows[:, 3], side)
        seen = _centred(down @ first @ across.transpose(0, 2, 1))
        gain = (seen * target).sum(axis=1) / (seen * seen).sum(axis=1).clip(1e-3)
        gain = gain.clip(*_GAIN)[:, None]
        missing = target - gain * seen
        if step == rounds:
            break
        x_slope = down @ first @ across_slope.transpose(0, 2, 1)
        y_slope = (down_slope @ first @ across.transpose(0, 2, 1)).transpose(0, 2, 1)
        slopes = [x_slope * (1 - place), x_slope * -place]
        slopes += [(y_slope * edge).transpose(0, 2, 1) for edge in (1 - place, -place)]
        jacobian = np.stack([_centred(slope) * gain for slope in slopes], axis=1)
        curvature = jacobian @ jacobian.transpose(0, 2, 1)
        damping = 1e-3 * np.trace(curvature, axis1=1, axis2=2) + 1e-2
        curvature += damping[:, None, None] * np.eye(4, dtype=np.float32)
        move = np.linalg.solve(curvature, jacobian @ missing[:, :, None])[:, :, 0]
        windows = (windows + move).clip(0, MAX_CUT)
    return Fit(windows, np.sqrt((missing * missing).mean(axis=1)) / contrast)


def sampling(low: Float[np.ndarray, " pairs"], high: Float[np.ndarray, " pairs"], side: int) -> tuple[Greys, Greys]:
    """Matrices that sample `side` pixels from what is left of `side` pixels when the shares `low` and `high` are cut
    off its ends, and their derivatives by position in units of the side; cubic convolution (Keys 1981).
    """
    place = (np.arange(side, dtype=np.float32) + 0.5) / side
    position = (low[:, None] + place * (1 - low - high)[:, None]) * side - 0.5
    offset = position[:, :, None] - np.arange(side, dtype=np.float32)
    away = np.abs(offset).clip(0, 2)
    values = np.where(away < 1, (1.5 * away - 2.5) * away**2 + 1, ((2.5 - 0.5 * away) * away - 4) * away + 2)
    slopes = np.where(away < 1, (4.5 * away - 5) * away, (5 - 1.5 * away) * away - 4) * np.sign(offset) * side
    values /= values.sum(axis=2, keepdims=True)  # at the borders, where neighbours are missing
    return values.astype(np.float32), slopes.astype(np.float32)


def _agree(
    seen: Picture, target: Picture, luminance: tuple[float, float], colour: tuple[float, float] = _COLOUR
) -> bool:
    """Whether two pictures of one size differ by no more than what compression, resizing and brightness do."""
    contrast = float(target.std())
    difference = target - _as_bright(seen.astype(np.float32), target.astype(np.float32))
    layers = [(grey(difference), luminance)]
    if target.shape[2] == 3:
        layers += [(difference @ _COLOURS[:, index], colour) for index in (0, 1)]
    for layer, (share, noise) in layers:
        parts = reduce(layer * layer, "(down rows) (across cols) -> down across", "mean", down=8, across=8)
        allowed = share * contrast + noise
        if np.sqrt(parts.mean()) > allowed or np.sqrt(parts.max()) > _WORST * allowed:
            return False
    return True


def _as_bright(seen: NDArray[np.float32], target: NDArray[np.float32]) -> NDArray[np.float32]:
    """`seen` with the brightness and contrast of `target`, judged where neither is white or black."""
    inside: Bool[np.ndarray, "height width channels"] = (np.minimum(seen, target) > 2) & (
        np.maximum(seen, target) < 253
    )
    if inside.mean() < 0.05:
        inside[:] = True
    x, y = seen[inside], target[inside]
    gain = ((x - x.mean()) * (y - y.mean())).sum() / max(1e-3, float(((x - x.mean()) ** 2).sum()))
    return ((seen - x.mean()) * float(np.clip(gain, *_GAIN)) + y.mean()).clip(0, 255)


def _centred(pictures: Greys) -> Float[np.ndarray, "pairs pixels"]:
    flat = rearrange(pictures, "pairs rows cols -> pairs (rows cols)")
    return flat - flat.mean(axis=1, keepdims=True)
