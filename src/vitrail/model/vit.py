"""The Vision Transformer of "An Image is Worth 16x16 Words", in the paper's order."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail import configuration
from vitrail.errors import UsageError
from vitrail.model.block import Block, build_blocks
from vitrail.model.capture import Capture
from vitrail.model.heads import HEADS, Head, LinearHead
from vitrail.model.mixers import MIXERS, Mixer
from vitrail.model.pools import POOLS, ClassToken, Pool
from vitrail.model.positions import POSITIONS, Learned1D, Position
from vitrail.model.tokenizers import TOKENIZERS, Context, LinearPatches, Tokenizer, Tokens

AXES: configuration.Axes = {Tokenizer: TOKENIZERS, Position: POSITIONS, Mixer: MIXERS, Pool: POOLS, Head: HEADS}


@dataclass(frozen=True)
class Size:
    """Width, depth, attention heads and the MLP's hidden width (paper table 1)."""

    dim: int
    depth: int
    heads: int
    hidden: int

    def __post_init__(self) -> None:
        if min(self.dim, self.depth, self.heads, self.hidden) < 1 or self.dim % self.heads:
            raise UsageError("VT003", f"{self}: {self.heads} heads do not divide {self.dim}", "dim a multiple of heads")


@dataclass(frozen=True)
class ViTConfig:
    """A complete model; `image_size` is (height, width) and decides how many positions are learned."""

    size: Size = Size(768, 12, 12, 3072)
    tokenizer: Tokenizer = LinearPatches()
    position: Position = Learned1D()
    block: Block = Block()
    pool: Pool = ClassToken()
    head: Head = LinearHead()
    image_size: tuple[int, int] = (224, 224)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, cols) of the patch grid at `image_size`."""
        return self.tokenizer.grid(self.image_size)

    @property
    def context(self) -> Context:
        """What the parts of the model may know of it."""
        size = self.size
        return Context(size.dim, size.heads, size.hidden, size.depth, self.grid, self.pool.class_tokens)

    def to_json(self) -> dict[str, Any]:
        return configuration.encode(self, AXES)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ViTConfig:
        return configuration.decode(cls, dict(data), AXES)


class ViT(nn.Module):
    """Images, normalised float32, to logits."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        context = config.context
        self.config = config
        self.tokenizer = config.tokenizer.build(context)
        self.position = config.position.build(context)
        self.dropout = nn.Dropout(config.block.dropout)
        self.blocks = build_blocks(config.block, context)
        self.pool = config.pool.build(context, config.block.norm)
        self.head = config.head.build(config.size.dim)

    def embed(self, images: Float[Tensor, "batch channels height width"]) -> Tokens:
        tokens = self.position.add(self.pool.prepend(self.tokenizer(images)))  # eq. 1
        return tokens.to(self.dropout(tokens.values))

    def encode(self, tokens: Tokens) -> Tokens:
        for block in self.blocks:  # eq. 2 and 3
            tokens = block(tokens, self.position)
        return tokens

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.head(self.pool(self.encode(self.embed(images))))  # the pool owns the final norm, eq. 4

    def features(self, images: Float[Tensor, "batch channels height width"]) -> tuple[Tokens, ...]:
        """The encoded tokens after the final norm, as a one-level feature pyramid."""
        tokens = self.encode(self.embed(images))
        return (tokens.to(self.pool.norm(tokens.values)),)

    def represent(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """The vector that the last linear layer reads (pre-logits), for few-shot evaluation and search."""
        return self.head.represent(self.pool(self.encode(self.embed(images))))

    def capture(self, what: str = "attention", **request: Any) -> Capture:
        """Records attention while active; see `Capture`."""
        return Capture(self, what, **request)

    def at(self, image_size: tuple[int, int]) -> ViT:
        """A copy whose position tables are baked for another (height, width), for export or fine-tuning."""
        config = replace(self.config, image_size=image_size)
        model = copy.deepcopy(self)
        model.config = config
        model.position.at(config.grid)
        return model

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def build(config: ViTConfig, seed: int) -> ViT:
    """A freshly initialised model; the same seed gives the same weights, and the caller's random state is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ViT(config)
