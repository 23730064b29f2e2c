"""Smoothing, pictures without their amplitudes, and a saliency that asks no model. NumPy alone."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Planes = Float[np.ndarray, "*batch height width"]
"""Float images; the last two axes are the picture."""


def blurred(images: Planes, sigma: float) -> Planes:
    """Gaussian smoothing; the picture goes on beyond its edges as in a mirror.

    Args:
        sigma: standard deviation in pixels; 0 changes nothing.
    """
    if sigma <= 0:
        return images
    for axis in (-2, -1):
        images = np.moveaxis(np.moveaxis(images, axis, -1) @ _gaussian_matrix(images.shape[axis], sigma).T, -1, axis)
    return images


def _gaussian_matrix(side: int, sigma: float) -> Float[np.ndarray, "side side"]:
    """Rows that sum to 1: how a pixel mixes those beside it, mirrored at the edges."""
    reach = max(1, int(4 * sigma + 0.5))
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    places = mirrored(np.arange(side)[:, None] + offsets, side)
    matrix = np.zeros((side, side))
    np.add.at(matrix, (np.arange(side)[:, None], places), np.broadcast_to(weights / weights.sum(), places.shape))
    return matrix.astype(np.float32)


def mirrored(places: np.ndarray, side: int) -> np.ndarray:
    """Whole places beyond the edges as those of the picture that a mirror on the edge shows there."""
    places = np.mod(places, 2 * side)
    return np.where(places < side, places, 2 * side - 1 - places)


def whitened(images: Planes, strength: float) -> Planes:
    """Amplitudes a to a^(1 - strength): 0 changes nothing, 1 leaves the phases alone; mean and contrast stay."""
    if strength == 0:
        return images
    mean = images.mean(axis=(-2, -1), keepdims=True)
    waves = np.fft.rfft2(images - mean)
    sizes = np.abs(waves)
    # Waves that are not there have no phase.
    there = sizes > 1e-6 * sizes.max(axis=(-2, -1), keepdims=True)
    changed = np.where(there, waves * np.where(there, sizes, 1) ** -strength, 0)
    found = np.fft.irfft2(changed, s=images.shape[-2:])
    contrast = found.std(axis=(-2, -1), keepdims=True)
    scale = images.std(axis=(-2, -1), keepdims=True) / np.where(contrast > 0, contrast, 1)
    return mean + found * scale


def spectral_residual(
    images: Float[np.ndarray, "batch channels height width"],
) -> Float[np.ndarray, "batch height width"]:
    """Saliency without a model: what of the log amplitudes is unlike their neighbourhood (Hou & Zhang 2007).

    The intensity is reduced to 64 px where it is larger, as the authors do, and the map enlarged again.
    """
    grey = images.astype(np.float64).mean(axis=1)
    height, width = grey.shape[1:]
    small = tuple(max(1, round(side * min(1, 64 / max(height, width)))) for side in (height, width))
    grey = averaged(grey, small)
    waves = np.fft.fft2(grey)
    sizes = np.abs(waves)
    logs = np.log(sizes + 1e-8 * sizes.max(axis=(1, 2), keepdims=True) + 1e-12)
    around = np.pad(logs, ((0, 0), (1, 1), (1, 1)), mode="wrap")
    mean = sum(around[:, r : r + small[0], c : c + small[1]] for r in range(3) for c in range(3)) / 9
    found = np.abs(np.fft.ifft2(np.exp(logs - mean + 1j * np.angle(waves)))) ** 2
    return averaged(blurred(found, 2.5 * max(small) / 64), (height, width))


def averaged(maps: Planes, size: tuple[int, int]) -> Planes:
    """Maps on another grid of (rows, cols): each cell is the mean over the area that it covers."""
    rows, cols = (_overlap(old, new) for old, new in zip(maps.shape[-2:], size, strict=True))
    return rows @ maps @ cols.T


def _overlap(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Which share of each new cell lies on each old one."""
    edges = np.arange(new + 1) * old / new
    low, high = edges[:-1, None], edges[1:, None]
    cells = np.arange(old)
    return np.clip(np.minimum(high, cells + 1) - np.maximum(low, cells), 0, None) * new / old
