"""BiT ResNets (arXiv 1912.11370): the paper's baseline, and as trunks the stem of its hybrids."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from vitrail.errors import UsageError
from vitrail.model.backbone import Backbone, BackboneConfig
from vitrail.model.capture import Capture
from vitrail.model.heads import Head, LinearHead
from vitrail.model.tokenizers import Tokens, check_channels
from vitrail.model.trunks import PreActivation, Trunk
from vitrail.model.work import Work


@dataclass(frozen=True)
class ResNetConfig(BackboneConfig["ResNet"]):
    """A complete ResNet. It reads images of any size; `image_size` is (height, width) of its training."""

    trunk: Trunk = PreActivation()
    head: Head = LinearHead()
    image_size: tuple[int, int] = (224, 224)
    channels: int = 3

    def __post_init__(self) -> None:
        if self.channels < 1 or min(self.image_size) < 1:
            raise UsageError("VT003", f"images of {self.image_size} with {self.channels} channels", "positive numbers")

    @property
    def dim(self) -> int:
        return self.trunk.dim

    @property
    def num_layers(self) -> int:
        return sum(self.trunk.stages)

    @property
    def num_tokens(self) -> int:
        rows, cols = (-(-side // self.trunk.stride) for side in self.image_size)
        return rows * cols

    @property
    def stride(self) -> tuple[int, int]:
        return self.trunk.stride, self.trunk.stride

    @property
    def attends(self) -> bool:
        return False

    @property
    def words(self) -> str:
        stages = "-".join(map(str, self.trunk.stages)) or "no"
        return f"ResNet of {stages} units, {self.dim} channels"

    @property
    def work(self) -> Work:
        return self.trunk.work(self.channels, self.image_size) + self.head.work(self.dim)

    @property
    def live(self) -> int:
        return self.trunk.live(self.channels, self.image_size)

    def build(self) -> ResNet:
        return ResNet(self)

    def shortened(self) -> ResNetConfig:
        stages = tuple(max(1, count // 2) for count in self.trunk.stages)
        return replace(self, trunk=replace(self.trunk, stages=stages))  # type: ignore[type-var]

    def facts(self) -> dict[str, Any]:
        trunk = self.trunk
        widths = [4 * trunk.width * 2**index for index in range(len(trunk.stages))]
        return {"embedding_size": trunk.width, "depths": list(trunk.stages), "hidden_sizes": widths}


class ResNet(Backbone):
    """Images, normalised float32, to logits."""

    config: ResNetConfig

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = config.trunk.build(config.channels)
        self.head = config.head.build(config.dim)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.head(self._pooled(images))

    def parts(self, images: Float[Tensor, "batch channels height width"]) -> tuple[Float[Tensor, "batch classes"], ...]:
        """What each layer of the head says."""
        return self.head.parts(self._pooled(images))

    def represent(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        return self.head.represent(self._pooled(images))

    def features(self, images: Float[Tensor, "batch channels height width"]) -> tuple[Tokens, ...]:
        """One level per stage, fine to coarse; the places of a map are its tokens."""
        check_channels(images, self.config.channels)
        maps = self.trunk(images)
        return tuple(Tokens(rearrange(level, "b c r k -> b (r k) c"), tuple(level.shape[2:])) for level in maps)

    def capture(self, what: str = "attention", **request: Any) -> Capture:
        """Refused: there is nothing to record."""
        raise UsageError(
            "VT041", "a ResNet has no attention: its convolutions mix what lies side by side", "a model with attention",
            "a ViT, or a hybrid, whose encoder attends to the places of a ResNet's map; a ResNet is explained by "
            "vitrail explain --method grad-cam or pixel-occlusion, and model.features(images) gives its maps",
        )  # fmt: skip

    def at(self, image_size: tuple[int, int]) -> ResNet:
        """A copy for images of another (height, width); convolutions need no change."""
        model = copy.deepcopy(self)
        model.config = replace(self.config, image_size=image_size)
        return model

    def _pooled(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim"]:
        check_channels(images, self.config.channels)
        return reduce(self.trunk(images)[-1], "b c r k -> b c", "mean")
