"""Convolution, enlargement and displacement of pictures, in NumPy, a batch at a time."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from vitrail.evaluation.frequencies import mirrored

Pictures = Float[np.ndarray, "batch channels height width"]
_FINE = 8  # points per pixel where a kernel is drawn


def convolved(images: Pictures, kernels: Float[np.ndarray, "kernels rows cols"]) -> Pictures:
    """Each image with its kernel, or all with the one; odd sides, their middle is the pixel itself; mirrored edges."""
    reach = [side // 2 for side in kernels.shape[1:]]
    rows, cols = (mirrored(np.arange(-r, side + r), side) for r, side in zip(reach, images.shape[2:], strict=True))
    wide = images[:, :, rows][:, :, :, cols]
    size = [a + b - 1 for a, b in zip(wide.shape[2:], kernels.shape[1:], strict=True)]
    product = np.fft.rfft2(wide, size) * np.fft.rfft2(kernels, size)[:, None]
    found = np.fft.irfft2(product, size)
    height, width = images.shape[2:]
    top, left = 2 * reach[0], 2 * reach[1]
    return found[:, :, top : top + height, left : left + width].astype(np.float32)


def disk(radius: float) -> Float[np.ndarray, "rows cols"]:
    """A disk of any radius in pixels, with the share of each pixel that it covers; sums to 1."""
    reach = int(np.ceil(radius))
    places = (np.arange((2 * reach + 1) * _FINE) + 0.5) / _FINE - reach - 0.5
    inside = (places[:, None] ** 2 + places**2 <= radius**2).astype(np.float64)
    side = 2 * reach + 1
    kernel = inside.reshape(side, _FINE, side, _FINE).mean(axis=(1, 3))
    if not kernel.sum():
        kernel[reach, reach] = 1
    return kernel / kernel.sum()


def line(radius: float, sigma: float, degrees: Float[np.ndarray, " batch"]) -> Float[np.ndarray, "batch rows cols"]:
    """A trail that begins at the pixel and fades as half a Gaussian, in a direction of its own; each sums to 1."""
    reach = max(1, int(np.ceil(radius)))
    steps = np.arange(0, reach * _FINE + 1) / _FINE
    steps = steps[steps <= max(radius, 1e-9)]
    weights = np.exp(-0.5 * (steps / max(sigma, 1e-6)) ** 2)
    turns = np.deg2rad(degrees)[:, None]
    kernels = np.zeros((len(degrees), 2 * reach + 1, 2 * reach + 1))
    rows, cols = reach + steps * np.sin(turns), reach + steps * np.cos(turns)
    batch = np.broadcast_to(np.arange(len(degrees))[:, None], rows.shape)
    for down in (0, 1):
        for right in (0, 1):
            row, col = np.floor(rows).astype(int) + down, np.floor(cols).astype(int) + right
            share = (1 - np.abs(rows - row)) * (1 - np.abs(cols - col)) * weights
            inside = (row < 2 * reach + 1) & (col < 2 * reach + 1)  # a share of 0 may lie beyond
            np.add.at(kernels, (batch[inside], row[inside], col[inside]), share[inside])
    return kernels / kernels.sum(axis=(1, 2), keepdims=True)


def zoomed(images: Pictures, factor: float) -> Pictures:
    """Enlarged about the middle, same size; linear between pixels."""
    rows, cols = (_zoom_matrix(side, factor) for side in images.shape[2:])
    return rows @ images @ cols.T


def _zoom_matrix(side: int, factor: float) -> Float[np.ndarray, "side side"]:
    places = (np.arange(side) - (side - 1) / 2) / factor + (side - 1) / 2
    return np.clip(1 - np.abs(places[:, None] - np.arange(side)), 0, None).astype(np.float32)


def fetched(images: Pictures, steps: Int[np.ndarray, "batch two height width"]) -> Pictures:
    """Every pixel from so many whole pixels further (down, right); mirrored edges."""
    height, width = images.shape[2:]
    rows = mirrored(np.arange(height)[:, None] + steps[:, 0], height)
    cols = mirrored(np.arange(width) + steps[:, 1], width)
    flat = images.reshape(*images.shape[:2], -1)
    return np.take_along_axis(flat, (rows * width + cols).reshape(len(images), 1, -1), axis=2).reshape(images.shape)


def warped(images: Pictures, steps: Float[np.ndarray, "batch two height width"]) -> Pictures:
    """The same by fractions of a pixel, linear between pixels."""
    whole = np.floor(steps).astype(np.int64)
    part = (steps - whole).astype(np.float32)
    found = np.zeros_like(images)
    for down in (0, 1):
        for right in (0, 1):
            share = np.abs(1 - down - part[:, 0]) * np.abs(1 - right - part[:, 1])
            found += fetched(images, whole + np.array([down, right])[:, None, None]) * share[:, None]
    return found
