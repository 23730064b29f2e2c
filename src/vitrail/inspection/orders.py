"""Orders of an image's parts that know nothing of the model: random, centre first, edges first. What any method must beat."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from vitrail.inspection.gradients import cell_sums
from vitrail.inspection.method import Maps, Method, Need, cells
from vitrail.model.backbone import Backbone


@dataclass(frozen=True)
class Random(Method):
    """Any order; the same for the same image.

    Attributes:
        seed: another one gives another order.
    """

    seed: int = 0
    name: ClassVar[str] = "random"
    needs: ClassVar[tuple[Need, ...]] = ()
    class_specific: ClassVar[bool] = False
    definition: ClassVar[str] = "even random numbers of the image's bytes and a seed"
    tells: ClassVar[str] = "nothing"
    caveats: ClassVar[tuple[str, ...]] = ()

    def _maps(self, model: Backbone, images: Tensor, classes: Tensor) -> Maps:
        return Maps(luck(images, cells(model, images), self.seed))


@dataclass(frozen=True)
class Centre(Method):
    """What lies nearer to the middle comes first: photographers put things there."""

    name: ClassVar[str] = "centre"
    needs: ClassVar[tuple[Need, ...]] = ()
    class_specific: ClassVar[bool] = False
    definition: ClassVar[str] = "minus the distance to the middle, in sides of the image"
    tells: ClassVar[str] = "where things usually are"
    caveats: ClassVar[tuple[str, ...]] = ()

    def _maps(self, model: Backbone, images: Tensor, classes: Tensor) -> Maps:
        rows, cols = cells(model, images)
        down, across = ((np.arange(count) + 0.5) / count - 0.5 for count in (rows, cols))
        return Maps(np.broadcast_to(-np.hypot(down[:, None], across[None]), (len(images), rows, cols)).copy())


@dataclass(frozen=True)
class Edges(Method):
    """Where the picture changes most: Sobel's gradient of its mean channel, added up over a part."""

    name: ClassVar[str] = "edges"
    needs: ClassVar[tuple[Need, ...]] = ()
    class_specific: ClassVar[bool] = False
    definition: ClassVar[str] = "length of Sobel's gradient of the mean over channels, added up over a part"
    tells: ClassVar[str] = "where the picture changes"
    caveats: ClassVar[tuple[str, ...]] = ()

    def _maps(self, model: Backbone, images: Tensor, classes: Tensor) -> Maps:
        grey = F.pad(images.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
        sobel = grey.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
        steps = F.conv2d(grey, torch.stack([sobel, sobel.T])[:, None])
        return Maps(cell_sums(torch.hypot(*steps.double().unbind(1)), cells(model, images)).cpu().numpy())


BASELINES: dict[str, type[Method]] = {method.name: method for method in (Random, Centre, Edges)}


def luck(
    images: Float[Tensor, "batch channels height width"], grid: tuple[int, int], seed: int
) -> Float[np.ndarray, "batch rows cols"]:
    """Random numbers that depend on an image and the seed alone, not on the batch it comes in."""
    words = [zlib.crc32(image.contiguous().cpu().numpy().tobytes()) for image in images]
    return np.stack([np.random.default_rng([seed, word]).random(grid) for word in words])


def order_of(
    maps: Float[np.ndarray, "batch rows cols"], images: Float[Tensor, "batch channels height width"], seed: int = 0
) -> Int[np.ndarray, "batch places"]:
    """Places from the largest number to the smallest. Equal ones come in a random order, for row by row would be a guess:
    that what matters is on top.
    """
    ties = luck(images, maps.shape[1:], seed + 1_000_003)
    flat, chance = (rearrange(part, "b r k -> b (r k)") for part in (maps, ties))
    return np.lexsort((chance, -flat), axis=1)
