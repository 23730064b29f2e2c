"""With Pillow's images: resize, crop, to_tensor."""

from enum import Enum

import numpy as np
import torch
from PIL import Image


class InterpolationMode(Enum):
    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


def resize(image, size, interpolation):
    if isinstance(size, int):  # of the shorter side
        shorter, longer = sorted(image.size)
        long = int(size * longer / shorter)
        size = (long, size) if image.width <= image.height else (size, long)
    return image.resize(tuple(size)[::-1], Image.Resampling[interpolation.name])


def crop(image, top, left, height, width):
    return image.crop((left, top, left + width, top + height))


def to_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def get_image_size(image):
    return image.size


def get_dimensions(image):
    return len(image.getbands()), image.height, image.width
