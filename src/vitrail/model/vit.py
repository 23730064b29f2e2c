"""The Vision Transformer of "An Image is Worth 16x16 Words", in the paper's order."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from vitrail import configuration
from vitrail.errors import UsageError
from vitrail.model.backbone import Backbone, BackboneConfig
from vitrail.model.backbone import build as build
from vitrail.model.block import FEED_FORWARDS, Block, FeedForward, build_blocks
from vitrail.model.capture import Capture
from vitrail.model.geometry import OnGrid, Position
from vitrail.model.heads import HEADS, Head, LinearHead
from vitrail.model.mixers import MIXERS, Mixer
from vitrail.model.pools import POOLS, ClassToken, Pool
from vitrail.model.positions import POSITIONS, Learned1D
from vitrail.model.tokenizers import TOKENIZERS, Context, LinearPatches, Tokenizer, Tokens
from vitrail.model.trunks import TRUNKS, Trunk
from vitrail.model.work import Work

AXES: configuration.Axes = {
    Tokenizer: TOKENIZERS, Trunk: TRUNKS, Position: POSITIONS, Mixer: MIXERS,
    FeedForward: FEED_FORWARDS, Pool: POOLS, Head: HEADS
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """Width, depth, attention heads and the MLP's hidden width (paper table 1)."""

    dim: int
    depth: int
    heads: int
    hidden: int

    def __post_init__(self) -> None:
        if min(self.dim, self.depth, self.heads, self.hidden) < 1:
            raise UsageError("VT003", f"{self}", "positive numbers")


@dataclass(frozen=True)
class ViTConfig(BackboneConfig["ViT"]):
    """A complete model; `image_size` is (height, width) and decides how many positions are learned."""

    size: Size = Size(768, 12, 12, 3072)
    tokenizer: Tokenizer = LinearPatches()
    position: Position = Learned1D()
    block: Block = Block()
    pool: Pool = ClassToken()
    head: Head = LinearHead()
    image_size: tuple[int, int] = (224, 224)

    def __post_init__(self) -> None:
        dim, heads = self.size.dim, self.size.heads
        if dim % heads and (self.block.mixer.splits or self.pool.splits):
            raise UsageError("VT003", f"{self.size}: {heads} heads do not divide {dim}", "dim a multiple of heads")

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, cols) of the patch grid at `image_size`."""
        return self.tokenizer.grid(self.image_size)

    @property
    def context(self) -> Context:
        """What the parts of the model may know of it."""
        size, pool = self.size, self.pool
        return Context(size.dim, size.heads, size.hidden, size.depth, self.grid, pool.class_tokens, pool.registers)

    @property
    def channels(self) -> int:
        return self.tokenizer.channels

    @property
    def dim(self) -> int:
        return self.size.dim * self.pool.parts

    @property
    def num_layers(self) -> int:
        return self.tokenizer.num_layers + self.size.depth

    @property
    def num_tokens(self) -> int:
        return self.context.tokens

    @property
    def stride(self) -> tuple[int, int]:
        return self.tokenizer.patch

    @property
    def attends(self) -> bool:
        return self.block.mixer.attends

    @property
    def words(self) -> str:
        size, network = self.size, f"{self.tokenizer.before}{self.block.mixer.network}"
        heads = f", {size.heads} heads" if size.heads > 1 else ""
        return f"{network} of {size.depth} layers, {size.dim} dimensions{heads}"

    @property
    def work(self) -> Work:
        """Products of every token in every layer, as published, also where the last one computes a class token alone."""
        context = self.context
        ends = Work(kept=2 * context.tokens * context.dim)  # the embedded tokens and the final norm's input
        ends += Work(kept=-self.block.spared(context, self.pool.leading))
        ends += self.pool.work(context) + self.head.work(self.dim)
        return self.tokenizer.work(self.image_size, context.dim) + self.block.work(context) * context.depth + ends

    @property
    def live(self) -> int:
        return max(2 * self.block.work(self.context).kept, self.tokenizer.live(self.image_size))

    def build(self) -> ViT:
        return ViT(self)

    def shortened(self) -> ViTConfig:
        return replace(self, size=replace(self.size, depth=min(self.size.depth, max(2, self.size.depth // 2))))

    def facts(self) -> dict[str, Any]:
        size = self.size
        return {"hidden_size": size.dim, "num_hidden_layers": size.depth, "num_attention_heads": size.heads,
                "intermediate_size": size.hidden}  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        return configuration.encode(self, AXES)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ViTConfig:
        return configuration.decode(cls, dict(data), AXES)


class ViT(Backbone):
    """Images, normalised float32, to logits."""

    config: ViTConfig

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        context = config.context
        self.config = config
        self.tokenizer = config.tokenizer.build(context)
        self.position = config.position.build(context)
        self.dropout = nn.Dropout(config.block.dropout)
        self.blocks = build_blocks(config.block, context)
        self.pool = config.pool.build(context, config.block.norm)
        self.head = config.head.build(config.dim)

    def embed(self, images: Float[Tensor, "batch channels height width"]) -> Tokens:
        tokens = self.position.add(self.pool.prepend(self.tokenizer(images)))  # eq. 1
        return tokens.to(self.dropout(tokens.values))

    def encode(self, tokens: Tokens, leading: int | None = None) -> Tokens:
        """All tokens, or the `leading` ones alone where no others are read afterwards."""
        *blocks, last = self.blocks
        for block in blocks:  # eq. 2 and 3
            tokens = block(tokens, self.position)
        return last(tokens, self.position, leading)

    def pooled(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        return self.pool(self.encode(self.embed(images), self.pool.leading))  # the pool owns the final norm, eq. 4

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.head(self.pooled(images))

    def parts(self, images: Float[Tensor, "batch channels height width"]) -> tuple[Float[Tensor, "batch classes"], ...]:
        """What each layer of the head says: of DeiT's two, the class token's first."""
        return self.head.parts(self.pooled(images))

    def features(self, images: Float[Tensor, "batch channels height width"]) -> tuple[Tokens, ...]:
        """The encoded tokens after the final norm, as a one-level feature pyramid."""
        tokens = self.encode(self.embed(images))
        return (tokens.to(self.pool.normed(tokens)),)

    def represent(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """The vector that the last linear layer reads (pre-logits), for few-shot evaluation and search."""
        return self.head.represent(self.pooled(images))

    def capture(self, what: str = "attention", **request: Any) -> Capture:
        """Records attention while active; see `Capture`."""
        return Capture(self, what, **request)

    def at(self, image_size: tuple[int, int]) -> ViT:
        """A copy whose position tables are baked for another (height, width), for export or fine-tuning."""
        config = replace(self.config, image_size=image_size)
        model = copy.deepcopy(self)
        model.config = config
        for part in model.modules():
            if isinstance(part, OnGrid):
                part.at(config.grid)
        return model
