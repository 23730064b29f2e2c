"""Augmentation: pictures to other pictures that mean the same. Each draws only from the numbers it is given."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from vitrail.configuration import require
from vitrail.images import Picture, from_pillow, resized, to_pillow
from vitrail.preprocessing import Preprocessing

Draws = NDArray[np.float64]


class Transform(ABC):
    """Axis: one step of augmentation on a uint8 picture, height width channels.

    `num_draws` uniform numbers in [0, 1) decide everything. A transform that resizes comes first and returns the
    model's size; where none does, the picture is fitted as in evaluation before the first.
    """

    num_draws: int
    resizes = False

    @abstractmethod
    def __call__(self, picture: Picture, draws: Draws, preprocessing: Preprocessing) -> Picture:
        """The augmented picture."""


@dataclass(frozen=True)
class RandomResizedCrop(Transform):
    """A window of random area and aspect, resized to the model's size ("inception crop")."""

    min_area: float = 0.35
    max_aspect: float = 4 / 3
    num_draws = 4
    resizes = True

    def __post_init__(self) -> None:
        require(0 < self.min_area <= 1, "random-resized-crop.min_area", self.min_area, "more than 0, at most 1")
        require(1 <= self.max_aspect < math.inf, "random-resized-crop.max_aspect", self.max_aspect, "at least 1")

    def __call__(self, picture: Picture, draws: Draws, preprocessing: Preprocessing) -> Picture:
        height, width = picture.shape[:2]
        area = height * width * (self.min_area + (1 - self.min_area) * draws[0])
        aspect = math.exp((2 * draws[1] - 1) * math.log(self.max_aspect))
        # Where the aspect does not fit into the picture, the area is kept.
        wide = min(width, math.sqrt(area * aspect))
        tall = min(height, area / wide)
        wide = min(width, area / tall)
        left, top = draws[2] * (width - wide), draws[3] * (height - tall)
        # Rounding may put the far corner outside by 1e-13.
        box = (left, top, min(width, left + wide), min(height, top + tall))
        return resized(picture, preprocessing.image_size, preprocessing.interpolation, box)


@dataclass(frozen=True)
class RandomCrop(Transform):
    """A window of `share` of each side, anywhere, resized to the model's size (BiT: resized to 448, cut to 384)."""

    share: float = 384 / 448
    num_draws = 2
    resizes = True

    def __post_init__(self) -> None:
        require(0 < self.share <= 1, "random-crop.share", self.share, "more than 0, at most 1")

    def __call__(self, picture: Picture, draws: Draws, preprocessing: Preprocessing) -> Picture:
        height, width = picture.shape[:2]
        wide, tall = width * self.share, height * self.share
        left, top = draws[0] * (width - wide), draws[1] * (height - tall)
        box = (left, top, min(width, left + wide), min(height, top + tall))
        return resized(picture, preprocessing.image_size, preprocessing.interpolation, box)


@dataclass(frozen=True)
class Shift(Transform):
    """Moved by up to `share` of each side, or by a pixel where that is more; what comes in repeats the border."""

    share: float = 0.04
    num_draws = 2

    def __post_init__(self) -> None:
        require(0 <= self.share <= 1, "shift.share", self.share, "0 to 1")

    def __call__(self, picture: Picture, draws: Draws, preprocessing: Preprocessing) -> Picture:
        height, width = picture.shape[:2]
        reach = max(1, round(self.share * height)), max(1, round(self.share * width))
        down, right = (int(draw * (2 * far + 1)) - far for draw, far in zip(draws, reach, strict=True))
        rows = (np.arange(height) - down).clip(0, height - 1)
        cols = (np.arange(width) - right).clip(0, width - 1)
        return picture[rows[:, None], cols]


@dataclass(frozen=True)
class Flip(Transform):
    """Mirrored left to right, half of the time."""

    num_draws = 1

    def __call__(self, picture: Picture, draws: Draws, preprocessing: Preprocessing) -> Picture:
        return picture[:, ::-1] if draws[0] < 0.5 else picture


@dataclass(frozen=True)
class RandAugment(Transform):
    """`layers` operations chosen at random and always applied, at `magnitude` of 10 (big_vision's variant).

    As there: the probability that it draws is never used, cutout and translation are measured on 224 pixels, and what
    comes in is grey of 128. Not as there: contrast is around the picture's mean brightness, as Pillow has it, where
    big_vision takes pixels / 256 for the mean (196 at 224 px), and what is turned or moved is interpolated.
    """

    layers: int = 2
    magnitude: float = 10.0

    def __post_init__(self) -> None:
        require(self.layers >= 0, "rand-augment.layers", self.layers, "0 or more")
        require(0 <= self.magnitude < math.inf, "rand-augment.magnitude", self.magnitude, "zero or a positive number")

    @property
    def num_draws(self) -> int:  # type: ignore[override]
        return 4 * self.layers

    def __call__(self, picture: Picture, draws: Draws, preprocessing: Preprocessing) -> Picture:
        image = to_pillow(picture)
        for choice, sign, x, y in draws.reshape(self.layers, 4):
            operation = _OPERATIONS[int(choice * len(_OPERATIONS))]
            image = operation(image, self.magnitude / 10, 1.0 if sign < 0.5 else -1.0, (x, y))
        return from_pillow(image)


Operation = Callable[[Image.Image, float, float, tuple[float, float]], Image.Image]


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, level, sign, _: kind(image).enhance(level * 1.8 + 0.1)


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=_grey(image)
    )


def _grey(image: Image.Image) -> int | tuple[int, ...]:
    return 128 if image.mode == "L" else (128,) * len(image.getbands())


def _translate(image: Image.Image, level: float, sign: float, axis: int) -> Image.Image:
    # big_vision moves by up to 100 px of 224.
    distance = sign * level * 100 / 224 * image.size[axis]
    return _affine(image, (1, 0, distance, 0, 1, 0) if axis == 0 else (1, 0, 0, 0, 1, distance))


def _cutout(image: Image.Image, level: float, sign: float, place: tuple[float, float]) -> Image.Image:
    half = level * 40 / 224 * min(image.size)
    x, y = place[0] * image.width, place[1] * image.height
    image = image.copy()
    box = (max(0, round(x - half)), max(0, round(y - half)))
    far = (min(image.width, round(x + half)), min(image.height, round(y + half)))
    if far[0] > box[0] and far[1] > box[1]:
        image.paste(_grey(image), (*box, *far))
    return image


def _solarize_add(image: Image.Image, level: float, sign: float, _: tuple[float, float]) -> Image.Image:
    return image.point([min(255, v + round(110 * level)) if v < 128 else v for v in range(256)] * len(image.getbands()))


_OPERATIONS: tuple[Operation, ...] = (
    lambda image, level, sign, _: ImageOps.autocontrast(image),
    lambda image, level, sign, _: ImageOps.equalize(image),
    lambda image, level, sign, _: ImageOps.invert(image),
    lambda image, level, sign, _: image.rotate(sign * level * 30, Image.Resampling.BILINEAR, fillcolor=_grey(image)),
    # As in big_vision, these two grow weaker with the magnitude: 4 bits are kept at 10, and nothing is solarized.
    lambda image, level, sign, _: ImageOps.posterize(image, min(8, max(1, int(level * 4)))),
    lambda image, level, sign, _: ImageOps.solarize(image, min(256, int(level * 256))),
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Sharpness),
    lambda image, level, sign, _: _affine(image, (1, sign * level * 0.3, 0, 0, 1, 0)),
    lambda image, level, sign, _: _affine(image, (1, 0, 0, sign * level * 0.3, 1, 0)),
    lambda image, level, sign, _: _translate(image, level, sign, 0),
    lambda image, level, sign, _: _translate(image, level, sign, 1),
    _cutout,
    _solarize_add,
)


@dataclass(frozen=True)
class RandomErasing(Transform):
    """A rectangle is lost, with a probability (Zhong et al. 2017, arXiv 1708.04896; DeiT: 0.25, noise).

    Attributes:
        probability: of a picture to lose one.
        min_area, max_area: share of the picture; `max_aspect` of width to height, and the other way round.
        fill: uniform noise, or the mean that the model subtracts.
    """

    probability: float = 0.25
    min_area: float = 0.02
    max_area: float = 1 / 3
    max_aspect: float = 10 / 3
    fill: Literal["noise", "mean"] = "noise"
    num_draws = 6

    def __post_init__(self) -> None:
        require(0 <= self.probability <= 1, "random-erasing.probability", self.probability, "0 to 1")
        require(0 < self.min_area <= self.max_area <= 1, "random-erasing.max_area", self.max_area, "min_area to 1")
        require(1 <= self.max_aspect < math.inf, "random-erasing.max_aspect", self.max_aspect, "at least 1")

    def __call__(self, picture: Picture, draws: Draws, preprocessing: Preprocessing) -> Picture:
        if draws[0] >= self.probability:
            return picture
        height, width, channels = picture.shape
        area = height * width * (self.min_area + (self.max_area - self.min_area) * draws[1])
        aspect = math.exp((2 * draws[2] - 1) * math.log(self.max_aspect))
        wide = min(width, max(1, round(math.sqrt(area * aspect))))
        tall = min(height, max(1, round(math.sqrt(area / aspect))))
        left, top = int(draws[3] * (width - wide + 1)), int(draws[4] * (height - tall + 1))
        picture = picture.copy()
        if self.fill == "noise":
            noise = np.random.Generator(np.random.PCG64(int(draws[5] * 2**53)))
            filling = noise.integers(0, 256, (tall, wide, channels), dtype=np.uint8)
        else:
            filling = np.round(np.array(preprocessing.mean) * 255).astype(np.uint8)
        picture[top : top + tall, left : left + wide] = filling
        return picture


TRANSFORMS: dict[str, type[Transform]] = {
    "random-resized-crop": RandomResizedCrop,
    "random-crop": RandomCrop,
    "shift": Shift,
    "flip": Flip,
    "rand-augment": RandAugment,
    "random-erasing": RandomErasing,
}


def augment(
    picture: Picture, transforms: tuple[Transform, ...], draws: Draws, preprocessing: Preprocessing
) -> NDArray[np.uint8]:
    """A training image, uint8 channels height width. `draws` holds the numbers of all transforms, in order."""
    if not (transforms and transforms[0].resizes):
        picture = preprocessing(picture).transpose(1, 2, 0)
    used = 0
    for transform in transforms:
        picture = transform(picture, draws[used : used + transform.num_draws], preprocessing)
        used += transform.num_draws
    return np.ascontiguousarray(picture.transpose(2, 0, 1))
