"""What ViT, ResNet and whatever comes after them have in common: siblings behind one contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.model.capture import Capture
from vitrail.model.heads import Head
from vitrail.model.tokenizers import Tokens
from vitrail.model.work import Work

Model = TypeVar("Model", bound="Backbone")


class BackboneConfig(ABC, Generic[Model]):
    """A complete model as a frozen dataclass.

    Attributes:
        head: how the pooled vector becomes logits.
        image_size: (height, width) of its images.
    """

    head: Head
    image_size: tuple[int, int]

    @property
    @abstractmethod
    def channels(self) -> int:
        """Of the images."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Length of the vector that the head reads."""

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """Encoder blocks and residual units, so that an absurd number is refused before they are built."""

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """Sequence length, or places of the last feature map."""

    @property
    @abstractmethod
    def stride(self) -> tuple[int, int]:
        """Pixels of the image per token, or per place of the last feature map: (down, across)."""

    @property
    @abstractmethod
    def attends(self) -> bool:
        """Whether every layer mixes its tokens by attention, so that there are maps of where it looks."""

    @property
    @abstractmethod
    def words(self) -> str:
        """What it is, for people: "Vision Transformer of 12 layers, 768 dimensions, 12 heads"."""

    @property
    @abstractmethod
    def work(self) -> Work:
        """What one image of `image_size` costs."""

    @property
    @abstractmethod
    def live(self) -> int:
        """About how many float32 values of one image are in memory at a time, without a gradient."""

    @abstractmethod
    def shortened(self) -> BackboneConfig[Model]:
        """The same with about half as many layers, for trying out what a layer costs; itself where none can go."""

    @abstractmethod
    def build(self) -> Model:
        """The module, freshly initialised."""

    @abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """Sizes in the words of Hugging Face's config.json, for people and other programs."""


class Backbone(nn.Module, ABC):
    """Images, normalised float32, to logits, and everything on the way."""

    config: BackboneConfig[Any]

    @abstractmethod
    def features(self, images: Float[Tensor, "batch channels height width"]) -> tuple[Tokens, ...]:
        """Tokens of every level, fine to coarse."""

    @abstractmethod
    def represent(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """The vector that the last linear layer reads (pre-logits), for few-shot evaluation and search."""

    @abstractmethod
    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits."""

    @abstractmethod
    def parts(self, images: Float[Tensor, "batch channels height width"]) -> tuple[Float[Tensor, "batch classes"], ...]:
        """What each layer of the head says; `forward` combines them."""

    @abstractmethod
    def at(self, image_size: tuple[int, int]) -> Backbone:
        """A copy for images of another (height, width)."""

    @abstractmethod
    def capture(self, what: str = "attention", **request: Any) -> Capture:
        """Records attention while active; refuses with the reason where the model has none."""

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def build(config: BackboneConfig[Model], seed: int) -> Model:
    """A freshly initialised model; the same seed gives the same weights, and the caller's random state is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return config.build()
