"""The fifteen common corruptions of Hendrycks & Dietterich (arXiv 1903.12261), made here and now from pixels.

Strengths are those of their programs: CIFAR-10-C's for sides below 128 px, ImageNet-C's from there on; lengths (radii,
shifts) grow with the shorter side, from 32 and from 224 px. What a picture gets is a function of (seed, image id), and
the same luck serves all severities. Other than theirs, stated once: frost and fog are generated textures instead of
photographs and diamond-square; glass moves all pixels at once; elastic has displacements of our own, because theirs do
not grow with the severity.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from vitrail.evaluation import weather
from vitrail.evaluation.frequencies import averaged, blurred
from vitrail.evaluation.trials import Curve, Images, PixelTrial, Shown
from vitrail.evaluation.warping import convolved, disk, fetched, line, warped, zoomed

SEVERITIES = (1, 2, 3, 4, 5)
LARGE = 128  # pixels of the shorter side from which ImageNet-C's strengths hold
Pictures = Float[np.ndarray, "batch channels height width"]
Luck = Sequence[np.random.Generator]
Strength = Any
"""A number, or a tuple of those that their program has for the corruption."""


def gaussian_noise(images: Pictures, luck: Luck, strength: Strength, unit: float) -> Pictures:
    return images + strength * np.stack([source.standard_normal(images.shape[1:], np.float32) for source in luck])


def shot_noise(images: Pictures, luck: Luck, strength: Strength, unit: float) -> Pictures:
    counts = [source.poisson(image * strength) for source, image in zip(luck, images, strict=True)]
    return np.stack(counts).astype(np.float32) / strength


def impulse_noise(images: Pictures, luck: Luck, strength: Strength, unit: float) -> Pictures:
    draws = np.stack([source.random(images.shape[1:], np.float32) for source in luck])
    return np.where(draws < strength / 2, 0, np.where(draws > 1 - strength / 2, 1, images))


def defocus_blur(images: Pictures, luck: Luck, strength: Strength, unit: float) -> Pictures:
    radius, edge = strength
    return blurred(convolved(images, disk(radius * unit)[None]), edge * unit)


def glass_blur(images: Pictures, luck: Luck, strength: Strength, unit: float) -> Pictures:
    sigma, reach, rounds = strength
    images, reach = blurred(images, sigma * unit), max(1, round(reach * unit))
    for _ in range(rounds):
        steps = np.stack([source.integers(-reach, reach, (2, *images.shape[2:])) for source in luck])
        images = fetched(images, steps)
    return blurred(images, sigma * unit)


def motion_blur(images: Pictures, luck: Luck, strength: Strength, unit: float) -> Pictures:
    radius, sigma = strength
    angles = np.array([source.uniform(-45, 45) for source in luck])
    return convolved(images, line(radius * unit, sigma * unit, angles))


def zoom_blur(images: Pictures, luck: Luck, strength: Strength, unit: float) -> Pictures:
    factors = np.arange(*strength).tolist()
    found = images.copy()
    for factor in factors:
        found += zoomed(images, factor)
    return found / (len(factors) + 1)


def brightness(images: Pictures, luck: Luck, strength: Strength, unit: float) -> Pictures:
    """The value of hue, saturation and value is raised: all channels by one factor; black becomes grey."""
    value = images.max(axis=1, keepdims=True)
    raised = np.clip(value + strength, 0, 1)
    return np.where(value > 0, images * raised / np.where(value > 0, value, 1), raised)


def contrast(images: Pictures, luck: Luck, strength: Strength, unit: float) -> Pictures:
    mean = images.mean(axis=(2, 3), keepdims=True)
    return (images - mean) * strength + mean


def elastic_transform(images: Pictures, luck: Luck, strength: Strength, unit: float) -> Pictures:
    """Smooth displacements of `strength` pixels (of 32, root mean square)."""
    side = min(images.shape[2:])
    steps = blurred(np.stack([source.standard_normal((2, *images.shape[2:])) for source in luck]), 0.08 * side)
    length = np.sqrt((steps**2).sum(axis=1, keepdims=True).mean(axis=(2, 3), keepdims=True))
    return warped(images, steps / length * strength * side / 32)


def pixelate(images: Pictures, luck: Luck, strength: Strength, unit: float) -> Pictures:
    height, width = images.shape[2:]
    small = averaged(images, (max(1, int(height * strength)), max(1, int(width * strength))))
    return averaged(small, (height, width))


def jpeg_compression(images: Pictures, luck: Luck, strength: Strength, unit: float) -> Pictures:
    return np.stack([_through_jpeg(image, strength) for image in images])


def _through_jpeg(
    image: Float[np.ndarray, "channels height width"], quality: int
) -> Float[np.ndarray, "channels height width"]:
    pixels = np.round(image * 255).clip(0, 255).astype(np.uint8)
    grey = len(pixels) != 3
    file = io.BytesIO()
    Image.fromarray(pixels[0] if grey else pixels.transpose(1, 2, 0)).save(file, "JPEG", quality=quality)
    found = np.asarray(Image.open(file), dtype=np.float32) / 255
    return np.broadcast_to(found, image.shape) if grey else found.transpose(2, 0, 1)


@dataclass(frozen=True)
class Corruption:
    """How a picture is changed, and five strengths for small and for large pictures."""

    change: Callable[[Pictures, Luck, Strength, float], Pictures]
    small: tuple[Strength, ...]
    large: tuple[Strength, ...]


_ELASTIC = (0.5, 0.75, 1.0, 1.4, 2.0)
CORRUPTIONS: dict[str, Corruption] = {
    "gaussian noise": Corruption(gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot noise": Corruption(shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse noise": Corruption(impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus blur": Corruption(
        defocus_blur,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "glass blur": Corruption(
        glass_blur,
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ),
    "motion blur": Corruption(
        motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)), ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
    ),
    "zoom blur": Corruption(
        zoom_blur,
        ((1, 1.06, 0.01), (1, 1.11, 0.01), (1, 1.16, 0.01), (1, 1.21, 0.01), (1, 1.26, 0.01)),
        ((1, 1.11, 0.01), (1, 1.16, 0.01), (1, 1.21, 0.02), (1, 1.26, 0.02), (1, 1.31, 0.03)),
    ),
    "snow": Corruption(weather.snow, weather.SNOW_SMALL, weather.SNOW_LARGE),
    "frost": Corruption(weather.frost, weather.FROST_SMALL, weather.FROST_LARGE),
    "fog": Corruption(weather.fog, weather.FOG_SMALL, weather.FOG_LARGE),
    "brightness": Corruption(brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Corruption(contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic": Corruption(elastic_transform, _ELASTIC, _ELASTIC),
    "pixelate": Corruption(pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": Corruption(jpeg_compression, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
}


def corrupted(images: Images, name: str, severity: int, luck: Luck) -> Images:
    """Images with one corruption at a severity of 1 to 5; 0 changes nothing."""
    if severity == 0:
        return images
    kind, side = CORRUPTIONS[name], min(images.shape[2:])
    strengths, unit = (kind.large, side / 224) if side >= LARGE else (kind.small, side / 32)
    found = kind.change(images.astype(np.float32) / 255, luck, strengths[severity - 1], unit)
    return np.round(np.clip(found, 0, 1) * 255).astype(np.uint8)


@dataclass(frozen=True)
class Corrupted(PixelTrial):
    """One corruption at its five severities."""

    name: str

    @property
    def curve(self) -> Curve:
        return Curve("corruptions", self.name, "severity", tuple(map(float, SEVERITIES)))

    def changed(self, shown: Shown, point: float) -> Images:
        return corrupted(shown.images, self.name, round(point), shown.luck(self.name))
