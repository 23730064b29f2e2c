"""What happens to a picture before a model sees it. It travels with the weights. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import DataError
from vitrail.images import Interpolation, Picture, resized

Pixels = TypeVar("Pixels")


@dataclass(frozen=True)
class Preprocessing:
    """Size, crop, interpolation and normalisation of a family of models.

    Attributes:
        image_size: (height, width) that the model reads.
        channels: 3 for colour, 1 for grey.
        fit: "stretch" resizes to the size and ignores the aspect (the official evaluation); "crop" cuts a centred window
            of the size's aspect that covers `crop_share` of the picture's shorter side.
        mean, std: per channel, in units of [0, 1].
    """

    image_size: tuple[int, int] = (224, 224)
    channels: int = 3
    fit: Literal["stretch", "crop"] = "stretch"
    crop_share: float = 1.0
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if len(self.mean) != self.channels or len(self.std) != self.channels or min(self.std) <= 0:
            raise DataError(
                "VT034",
                f"mean {self.mean} and std {self.std} for {self.channels} channels",
                "one positive std a channel",
            )

    def __call__(self, picture: Picture) -> NDArray[np.uint8]:
        """A picture, uint8 height width channels, as the model's size: uint8, channels height width."""
        box = self.window(picture.shape[:2]) if self.fit == "crop" else None
        fitted = resized(picture, self.image_size, self.interpolation, box)
        return np.array(fitted.transpose(2, 0, 1), order="C")  # a copy: Pillow's own arrays cannot be written

    def window(self, size: tuple[int, ...]) -> tuple[float, float, float, float]:
        """What the model sees of a picture of (height, width): left, top, right, bottom in the picture's pixels."""
        height, width = size
        if self.fit == "stretch":
            return 0.0, 0.0, float(width), float(height)
        aspect = self.image_size[0] / self.image_size[1]
        tall = min(height, width * aspect) * self.crop_share
        wide = min(tall / aspect, width)  # rounding must not put an edge outside
        top, left = (height - tall) / 2, (width - wide) / 2
        return left, top, width - left, height - top

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
