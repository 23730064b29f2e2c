"""The contract of an explanation method: an image and a class to one number for each part of the image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitrail.errors import DataError, UsageError, VitrailError
from vitrail.inspection.attention import attending
from vitrail.model.backbone import Backbone
from vitrail.model.resnet import ResNet
from vitrail.model.tokenizers import Tokens
from vitrail.model.vit import ViT

Need = Literal["attention", "gradients", "class", "tokens", "stem"]
"""Attention in every layer, or in the one asked for; a gradient; classes; tokens that can go; a trunk before them."""

_VALUES = 2**26  # float32 values that a method keeps at a time: 256 MiB
_ROUNDING = 1e-5
_FEWEST = 16  # places of a feature map that can still be told apart as one


@dataclass(frozen=True, eq=False)
class Maps:
    """What a method says of a batch.

    Attributes:
        values: one number for each part of an image; larger ones speak more for the class. Signed where the method is.
        gap: how far the numbers of an image are from adding up to what they should, as a share of it; None where the
            method promises no sum.
    """

    values: Float[np.ndarray, "batch rows cols"]
    gap: Float[np.ndarray, " batch"] | None = None


class Method(ABC):
    """Axis: an explanation method, a frozen dataclass.

    Attributes:
        name: as it is typed.
        needs: what of a model it cannot do without.
        class_specific: whether another class has another map.
        signed: whether negative numbers speak against the class.
        definition: equation and paper.
        tells: what the map shows, in a sentence without its full stop.
        caveats: what it cannot tell.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[Need, ...]]
    class_specific: ClassVar[bool] = True
    signed: ClassVar[bool] = False
    definition: ClassVar[str]
    tells: ClassVar[str]
    caveats: ClassVar[tuple[str, ...]]

    def admit(self, model: Backbone) -> None:
        """Refuses a model that this method cannot explain; another method is never put in its place.

        Raises:
            UsageError: VT041 no attention, VT045 no classes, VT142 something else is missing; which, is said.
        """
        if "attention" in self.needs:
            attending(model).capture("attention")
        if "class" in self.needs and not model.config.head.classes:
            raise UsageError(
                "VT045", f"{self.name} explains a class, and these weights have none: they end in features",
                "a classifier", "vitrail train YOUR_IMAGES --weights THESE_WEIGHTS; rollout and attention need no class",
            )  # fmt: skip
        if "tokens" in self.needs and not drops(model):
            raise UsageError(
                "VT142", f"{self.name}: this model ({model.config.words}) cannot run on fewer tokens",
                "a Vision Transformer, whose attention takes any number of them",
                "pixel-occlusion paints over pixels instead, which shows the model a picture that is none",
            )  # fmt: skip
        if "stem" in self.needs and not hasattr(getattr(model, "tokenizer", None), "trunk"):
            raise UsageError(
                "VT142", f"{self.name}: there is no feature map before the tokens of a model of this kind "
                f"({model.config.words})", "a hybrid", "grad-cam reads the last layer of any model",
            )  # fmt: skip

    def maps(
        self,
        model: Backbone,
        images: Float[Tensor, "batch channels height width"],
        classes: Int[Tensor, " batch"],
    ) -> Maps:
        """Explains a batch, a few images at a time, so that memory stays flat.

        Args:
            model: in evaluation mode.
            images: normalised.
            classes: which class of each image; those that are not class-specific look past it.

        Raises:
            UsageError: as `admit`.
            VitrailError: VT044, the map is not a number.
        """
        self.admit(model)
        size = at_a_time(model, images)
        parts = [self._maps(model, *part) for part in zip(images.split(size), classes.split(size), strict=True)]
        gaps = [part.gap for part in parts if part.gap is not None]
        found = Maps(np.concatenate([part.values for part in parts]), np.concatenate(gaps) if gaps else None)
        if not np.isfinite(found.values).all():
            raise VitrailError(
                "VT044", f"the map of {self.name} is not a number", "finite weights and gradients",
                "the model's weights are damaged: save it again",
            )  # fmt: skip
        return Maps(settled(found.values), found.gap)

    @abstractmethod
    def _maps(self, model: Backbone, images: Tensor, classes: Tensor) -> Maps:
        """Of images that fit into memory together."""


def settled(values: Float[np.ndarray, "batch rows cols"]) -> Float[np.ndarray, "batch rows cols"]:
    """Maps whose differences are no more than float32 rounds off become even: nothing is to be ranked in them."""
    low, high = values.min(axis=(1, 2), keepdims=True), values.max(axis=(1, 2), keepdims=True)
    even = high - low <= _ROUNDING * np.maximum(np.abs(low), np.abs(high))
    return np.where(even, values.mean(axis=(1, 2), keepdims=True), values)


def at_a_time(model: Backbone, images: Float[Tensor, "batch channels height width"]) -> int:
    """How many images a method may hold together with their gradients."""
    rows, cols = cells(model, images)
    attention = 2 * model.config.num_layers * (rows * cols + 8) ** 2 * getattr(model.config, "size", _One).heads
    return max(1, min(64, _VALUES // (model.config.work.kept + attention)))


class _One:
    heads = 1


def drops(model: Backbone) -> bool:
    """Whether it runs on fewer tokens than the image has."""
    return isinstance(model, ViT) and model.config.attends


def cells(model: Backbone, images: Float[Tensor, "batch channels height width"]) -> tuple[int, int]:
    """(rows, cols) of the map: the tokens of a ViT; of a ResNet the places of the feature map that Grad-CAM reads.

    Raises:
        DataError: VT032, the images are not divided by the patches; VT144, they are no batch of images.
    """
    if images.ndim != 4:
        raise DataError(
            "VT144", f"images of shape {tuple(images.shape)}", "batch, channels, height, width, all of one size",
            "model.preprocessing brings pictures of any size to the model's",
        )  # fmt: skip
    if isinstance(model, ViT):
        return model.config.tokenizer.grid((images.shape[2], images.shape[3]))
    with torch.inference_mode():
        return last_map(model.features(images[:1])).grid


def last_map(levels: tuple[Tokens, ...]) -> Tokens:
    """The coarsest level that has 16 places or more; the finest where none has."""
    large = [level for level in levels if level.grid[0] * level.grid[1] >= _FEWEST]
    return large[-1] if large else levels[0]


def level_of(model: ResNet, images: Float[Tensor, "batch channels height width"]) -> int:
    """The place of that level among the trunk's maps."""
    with torch.inference_mode():
        levels = model.features(images[:1])
    return next(place for place, level in enumerate(levels) if level is last_map(levels))


def scores(
    model: Backbone, images: Float[Tensor, "batch channels height width"], classes: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """The logit of each image's class."""
    return model(images).gather(1, classes[:, None])[:, 0]
