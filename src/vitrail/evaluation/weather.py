"""Snow, frost and fog as corruptions.py asks for them: textures drawn from the luck of each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vitrail.evaluation.warping import convolved, line, zoomed

Pictures = Float[np.ndarray, "batch channels height width"]
Layer = Float[np.ndarray, "batch one height width"]
Luck = Sequence[np.random.Generator]

# Mean and spread of the flakes, their size, what is too thin to see, length and fading of their trails, light left.
SNOW_SMALL = (
    (0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
)  # fmt: skip
SNOW_LARGE = (
    (0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7), (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)  # fmt: skip
# Light of the picture, light of the frost.
FROST_SMALL = (1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)
FROST_LARGE = (1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)
# How thick, and by how much each finer octave is weaker.
FOG_SMALL = (0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)
FOG_LARGE = (1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)
ICE = (0.82, 0.92, 1.0)  # red, green, blue of frost


def snow(images: Pictures, luck: Luck, strength: Any, unit: float) -> Pictures:
    mean, spread, size, least, radius, sigma, light = strength
    flakes = mean + spread * np.stack([source.standard_normal((1, *images.shape[2:]), np.float32) for source in luck])
    flakes = zoomed(flakes, size)
    flakes = np.clip(np.where(flakes < least, 0, flakes), 0, 1)
    angles = np.array([source.uniform(-135, -45) for source in luck])
    flakes = convolved(flakes, line(radius * unit, sigma * unit, angles))
    grey = images.mean(axis=1, keepdims=True)
    pale = light * images + (1 - light) * np.maximum(images, grey * 1.5 + 0.5)
    return pale + flakes + flakes[:, :, ::-1, ::-1]


def frost(images: Pictures, luck: Luck, strength: Any, unit: float) -> Pictures:
    """Ridges of a fractal, which look like ferns of ice, in place of the five photographs of the original."""
    kept, added = strength
    ridges = 1 - np.abs(2 * fractal(luck, images.shape[2:], 1.6) - 1)
    colours = np.array(ICE if images.shape[1] == 3 else [np.mean(ICE)] * images.shape[1], dtype=np.float32)
    return kept * images + added * ridges**2 * colours[:, None, None]


def fog(images: Pictures, luck: Luck, strength: Any, unit: float) -> Pictures:
    thick, decay = strength
    highest = images.max(axis=(1, 2, 3), keepdims=True)
    return (images + thick * fractal(luck, images.shape[2:], decay)) * highest / (highest + thick)


def fractal(luck: Luck, size: tuple[int, ...], decay: float) -> Layer:
    """Clouds in [0, 1]: random grids of 2, 4, 8 ... cells, each finer one weaker by `decay`, added up."""
    layers = np.zeros((len(luck), 1, *size), dtype=np.float32)
    cells, weight = 2, 1.0
    while True:
        rows, cols = (min(cells, side) for side in size)
        grid = np.stack([source.uniform(-1, 1, (1, rows, cols)) for source in luck])
        layers += (weight * _smooth(grid, size)).astype(np.float32)
        if cells >= max(size):
            break
        cells, weight = cells * 2, weight / decay
    low, high = layers.min(axis=(2, 3), keepdims=True), layers.max(axis=(2, 3), keepdims=True)
    return (layers - low) / np.where(high > low, high - low, 1)


def _smooth(grid: Layer, size: tuple[int, ...]) -> Layer:
    """Enlarged, linear between the middles of the cells."""
    height, width = size
    rows, cols = (_between(old, new) for old, new in zip(grid.shape[2:], (height, width), strict=True))
    return rows @ grid @ cols.T


def _between(old: int, new: int) -> Float[np.ndarray, "new old"]:
    places = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.clip(1 - np.abs(places[:, None] - np.arange(old)), 0, None)
