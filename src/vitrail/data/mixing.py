"""Whole batches mixed: images with partners, and labels alike. Partners come from the whole batch of a step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.configuration import require


class Mixing(ABC):
    """What happens to the batch of a step before it is divided; drawn from the step's seed alone."""

    @abstractmethod
    def __call__(
        self, images: Float[Tensor, "batch channels height width"], targets: Float[Tensor, "batch classes"], seed: int
    ) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "batch classes"]]:
        """Mixed images and targets; each image's partner is the one before it, the first one's is the last."""


@dataclass(frozen=True)
class Mixup(Mixing):
    """Every image is blended with its partner, and so are their labels (Zhang et al. 2018, as big_vision does it).

    One Beta(alpha, alpha) draw per step, of which the larger share is the image's own.
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        require(0 < self.alpha < math.inf, "augmentation.mixup.alpha", self.alpha, "a positive number")

    def __call__(self, images: Tensor, targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        share = float(_generator(seed).beta(self.alpha, self.alpha))
        share = max(share, 1 - share)
        return torch.lerp(images.roll(1, 0), images, share), torch.lerp(targets.roll(1, 0), targets, share)


@dataclass(frozen=True)
class CutMix(Mixing):
    """A rectangle of every image is its partner's; labels are shared as the area is (Yun et al. 2019, arXiv 1905.04899).

    One Beta(alpha, alpha) draw and one place per step. The rectangle has the image's aspect, its centre is anywhere, and
    what lies outside the image is not counted.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.alpha < math.inf, "augmentation.cutmix.alpha", self.alpha, "a positive number")

    def __call__(self, images: Tensor, targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        random = _generator(seed)
        side = math.sqrt(1 - float(random.beta(self.alpha, self.alpha)))
        sides = images.shape[2:]
        spans = []
        for length, place in zip(sides, random.random(2), strict=True):
            half, centre = int(length * side) // 2, int(length * place)
            spans.append((max(0, centre - half), min(length, centre + half)))
        (top, bottom), (left, right) = spans
        images, partners = images.clone(), images.roll(1, 0)
        images[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / math.prod(sides)
        return images, torch.lerp(targets.roll(1, 0), targets, share)


@dataclass(frozen=True)
class EitherMixing(Mixing):
    """One of two at every step, by the toss of a coin (DeiT)."""

    first: Mixing
    second: Mixing

    def __call__(self, images: Tensor, targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        chosen = self.first if _generator(seed).random() < 0.5 else self.second
        return chosen(images, targets, seed + 1)


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))
