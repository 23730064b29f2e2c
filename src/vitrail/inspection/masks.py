"""A map as a mask over its picture, as figures 6 and 14 of the paper are drawn. NumPy and Pillow alone; no torch."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageFilter

from vitrail.images import Picture, to_pillow


def masked(picture: Picture, weights: Float[np.ndarray, "rows cols"], smooth: bool = True) -> Picture:
    """The picture times its map: bright where the weights are large, black where they are none.

    As the authors do: the map is divided by its maximum, resized to the picture by Lanczos' filter, blurred by a Gaussian
    whose deviation is a patch, and stretched to 0 .. 1. Blur and stretching make a shape of anything: a map that is even
    but for rounding looks as sharp as any other.

    Args:
        picture: uint8 height width channels.
        weights: not negative; the map covers the whole picture.
        smooth: False leaves each patch as it is, one brightness, divided by the maximum alone.

    Returns:
        uint8 height width 3.

    Source: google-research/vision_transformer, issues 18 and 27.
    """
    height, width = picture.shape[:2]
    scaled = (weights / (float(weights.max()) or 1.0)).astype(np.float32)
    if smooth:
        patch = width / weights.shape[1], height / weights.shape[0]
        soft = Image.fromarray(scaled).resize((width, height), Image.Resampling.LANCZOS)
        mask = np.asarray(_blurred(soft, patch), dtype=np.float64)
        span = np.ptp(mask)
        mask = (mask - mask.min()) / span if span else np.ones_like(mask)  # an even map darkens nothing
    else:
        mask = np.asarray(Image.fromarray(scaled).resize((width, height), Image.Resampling.NEAREST), dtype=np.float64)
    colours = np.asarray(to_pillow(picture).convert("RGB"), dtype=np.float64)
    return (colours * mask.clip(0, 1)[..., None]).round().astype(np.uint8)


def _blurred(image: Image.Image, radius: tuple[float, float]) -> Image.Image:
    """Pillow blurs bytes alone: the numbers are put between 0 and 255 before."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    grey = Image.fromarray(((values - low) / ((high - low) or 1.0) * 255).round().astype(np.uint8))
    return grey.filter(ImageFilter.GaussianBlur(radius))
