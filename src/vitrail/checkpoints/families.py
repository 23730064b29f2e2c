"""Families whose arrays have the same names: what their arrays cannot tell, one row each.

A new family of such names needs one row here; its home is where the numbers were read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from vitrail.images import Interpolation as Resampling
from vitrail.model.backbone import BackboneConfig
from vitrail.model.block import Gelu
from vitrail.model.geometry import Interpolation
from vitrail.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

HALF = ((0.5,) * 3, (0.5,) * 3)
IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))  # of the pictures OpenAI trained on
OF_256 = 0.875  # the middle 224 of 256


@dataclass(frozen=True)
class Facts:
    """What the arrays of a family cannot tell.

    Attributes:
        home: the program that trained or published the weights.
        normal: mean and standard deviation.
        crop: share of the shorter side that is seen, at up to 224 px and above.
        heads: by width, where they are not 64 channels wide.
        class_position: whether the class token has a row in the table, where the number of rows leaves it open.
    """

    home: str
    normal: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    crop: tuple[float, float] = (OF_256, OF_256)
    resampling: Resampling = "bicubic"
    interpolation: Interpolation = "bicubic-antialiased"
    gelu: Gelu = "erf"
    epsilon: float = 1e-6
    heads: Mapping[int, int] = field(default_factory=dict)
    class_position: bool = True

    @property
    def told(self) -> str:
        """For people."""
        return f"GELU {self.gelu}, epsilon {self.epsilon:g}, positions {self.interpolation}, as in {self.home}"

    def preprocessing(self, config: BackboneConfig) -> Preprocessing:
        """At the model's size."""
        share = crop_share(config.image_size, self.crop[min(config.image_size) > 224])
        mean, std = self.normal
        return Preprocessing(
            fit="crop", crop_share=share, interpolation=self.resampling, mean=mean, std=std, rounding="nearest"
        )


def crop_share(size: tuple[int, int], share: float) -> float:
    """The share as timm and torchvision cut it: out of a picture resized to whole pixels, `size` by the share."""
    side = min(size)
    return min(1.0, side / max(1, math.floor(side / share)))


FAMILIES: dict[str, Facts] = {
    "augreg": Facts("timm's models of Google's weights", HALF, (0.9, 1.0)),
    "flexivit": Facts("timm's FlexiViT", HALF, (0.95, 0.95), interpolation="bilinear", class_position=False),
    "siglip": Facts("SigLIP under timm's names", HALF, (0.9, 0.9), gelu="tanh"),
    "clip": Facts("OpenAI's CLIP", CLIP, (1.0, 1.0), gelu="quick", epsilon=1e-5),
    "open-clip": Facts("OpenCLIP", CLIP, (1.0, 1.0), epsilon=1e-5),
    "deit": Facts("facebookresearch/deit", interpolation="bicubic"),
    "deit3": Facts("facebookresearch/deit, III", crop=(1.0, 1.0), interpolation="bicubic", class_position=False),
    "dino": Facts("facebookresearch/dino", interpolation="bicubic-offset"),
    "dinov2": Facts("DINOv2 under timm's names", crop=(1.0, 1.0)),
    "mae": Facts("facebookresearch/mae", interpolation="bicubic"),
    # Its table of sines and cosines is used at one size; its small model has heads of 32 channels.
    "moco-v3": Facts("facebookresearch/moco-v3", resampling="bilinear", heads={384: 12}),
}
