"""What happens to a picture before a model sees it. It travels with the weights. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import DataError
from vitrail.images import MAX_PIXELS, Interpolation, Picture, resized

Pixels = TypeVar("Pixels")
Rounding = Literal["none", "down", "nearest"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of PyTorch's programs


@dataclass(frozen=True)
class Preprocessing:
    """Size, crop, interpolation and normalisation of a family of models.

    Attributes:
        image_size: (height, width) that the model reads.
        channels: 3 for colour, 1 for grey.
        fit: "stretch" ignores the aspect (the official evaluation); "crop" keeps it, in a centred window of the size's.
        crop_share: of the picture's shorter side that this window covers; of each side where it is stretched.
        mean, std: per channel, in units of [0, 1].
        rounding: programs that resize first and cut then do both in whole pixels: the sides are cut to whole numbers, and
            the window begins at the pixel below ("down", Hugging Face) or next to ("nearest", torchvision and timm) its
            place; "none" cuts and resizes in one step, at fractions of a pixel.
    """

    image_size: tuple[int, int] = (224, 224)
    channels: int = 3
    fit: Literal["stretch", "crop"] = "stretch"
    crop_share: float = 1.0
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    rounding: Rounding = "none"

    def __post_init__(self) -> None:
        if len(self.mean) != self.channels or len(self.std) != self.channels or min(self.std) <= 0:
            raise DataError(
                "VT034",
                f"mean {self.mean} and std {self.std} for {self.channels} channels",
                "one positive std a channel",
            )
        if not 0 < self.crop_share <= 1:
            raise DataError("VT034", f"crop_share is {self.crop_share}", "above 0, and at most 1, the whole side")

    def __call__(self, picture: Picture) -> NDArray[np.uint8]:
        """A picture, uint8 height width channels, as the model's size: uint8, channels height width."""
        if self.rounding == "none":
            box = self.window(picture.shape[:2]) if (self.fit, self.crop_share) != ("stretch", 1.0) else None
            fitted = resized(picture, self.image_size, self.interpolation, box)
        else:
            fitted = self._cut(picture)
        return np.array(fitted.transpose(2, 0, 1), order="C")  # a copy: Pillow's own arrays cannot be written

    def window(self, size: tuple[int, ...]) -> tuple[float, float, float, float]:
        """What the model sees of a picture of (height, width): left, top, right, bottom in the picture's pixels."""
        height, width = size
        if self.rounding != "none":
            (top, bottom), (left, right) = (
                (start * side / whole, (start + pixels) * side / whole)
                for start, whole, pixels, side in zip(*self._steps(size), self.image_size, size, strict=True)
            )
            return left, top, right, bottom
        tall, wide = (part * self.crop_share for part in self._largest(size))
        top, left = (height - tall) / 2, (width - wide) / 2
        return left, top, width - left, height - top

    def _largest(self, size: tuple[int, ...]) -> tuple[float, float]:
        """Height and width of the window that a crop share of 1 shows."""
        height, width = size
        if self.fit == "stretch":
            return height, width
        aspect = self.image_size[0] / self.image_size[1]
        tall = min(height, width * aspect)
        return tall, min(tall / aspect, width)  # rounding must not put an edge outside

    def _steps(self, size: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Where the window begins (top, left) in the resized picture, and that picture's (height, width)."""
        starts, sides = [], []
        for side, largest, pixels in zip(size, self._largest(size), self.image_size, strict=True):
            whole = max(int(round(pixels / self.crop_share) * side / largest), pixels)
            spare = whole - pixels
            starts.append(spare // 2 if self.rounding == "down" else round(spare / 2))
            sides.append(whole)
        return (starts[0], starts[1]), (sides[0], sides[1])

    def _cut(self, picture: Picture) -> Picture:
        """First resized, then cut; of very long pictures the window alone is made, which differs by rounding."""
        (top, left), whole = self._steps(picture.shape[:2])
        if whole[0] * whole[1] > MAX_PIXELS:
            return resized(picture, self.image_size, self.interpolation, self.window(picture.shape[:2]))
        height, width = self.image_size
        return resized(picture, whole, self.interpolation)[top : top + height, left : left + width]

    def normalise(self, images: Pixels) -> Pixels:
        """uint8 batch channels height width to float32, in NumPy or torch: (images / 255 - mean) / std."""
        if isinstance(images, np.ndarray):
            scale = (1 / (255 * np.asarray(self.std, dtype=np.float64))).astype(np.float32)
            shift = (np.asarray(self.mean) / np.asarray(self.std)).astype(np.float32)
            return images.astype(np.float32) * scale[:, None, None] - shift[:, None, None]
        tensor: Any = images
        values = tensor.float()
        scale = values.new_tensor([1 / (255 * value) for value in self.std])
        shift = values.new_tensor([mean / std for mean, std in zip(self.mean, self.std, strict=True)])
        return values * scale[:, None, None] - shift[:, None, None]
