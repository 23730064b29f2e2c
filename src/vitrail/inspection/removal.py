"""Parts of an image taken away, and what the model then says: tokens dropped from the sequence, or pixels painted over."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from vitrail.inspection.gradients import _cell_of
from vitrail.inspection.method import cells, drops
from vitrail.model.backbone import Backbone
from vitrail.model.vit import ViT

_VALUES = 2**24  # float32 values in memory at a time


class Removal(ABC):
    """How a part of an image is taken away.

    Attributes:
        words: how, for people.
        empty: whether an image of which nothing is kept can still be asked.
    """

    words: ClassVar[str]

    @abstractmethod
    def logits(
        self,
        model: Backbone,
        images: Float[Tensor, "batch channels height width"],
        kept: Int[Tensor, "batch variants places"],
    ) -> Float[Tensor, "batch variants classes"]:
        """What the model says of variants of the images of which only some parts are kept.

        Args:
            model: in evaluation mode.
            images: normalised.
            kept: places on the grid, row by row; at least one.
        """


@dataclass(frozen=True)
class TokenDropping(Removal):
    """The patches' tokens leave the sequence; those that stay keep their positions. Nothing is put in their place."""

    words: ClassVar[str] = "tokens dropped"

    def logits(self, model: Backbone, images: Tensor, kept: Tensor) -> Tensor:
        assert isinstance(model, ViT)
        answers = []
        with torch.inference_mode():
            whole = model.tokenizer(images)  # once, whatever the number of variants
            places = rearrange(kept.sort(dim=-1).values, "b v n -> (b v) n")
            owners = torch.arange(len(images), device=images.device).repeat_interleave(kept.shape[1])
            size = max(1, _VALUES // model.config.live)
            for part, owner in zip(places.split(size), owners.split(size), strict=True):
                tokens = replace(whole, values=whole.values[owner[:, None], part], kept=part)
                tokens = model.position.add(model.pool.prepend(tokens))
                answers.append(model.head(model.pool(model.encode(tokens))))
        return rearrange(torch.cat(answers), "(b v) c -> b v c", b=len(images))


@dataclass(frozen=True)
class Painting(Removal):
    """The pixels get the mean colour of the model's normalisation; the model sees pictures that are none."""

    words: ClassVar[str] = "pixels painted in the mean colour"

    def logits(self, model: Backbone, images: Tensor, kept: Tensor) -> Tensor:
        grid = cells(model, images)
        answers = []
        with torch.inference_mode():
            shown = images.new_zeros(*kept.shape[:2], grid[0] * grid[1]).scatter(2, kept, 1.0)
            shown = rearrange(shown, "b v (r k) -> b v r k", r=grid[0])
            rows, cols = (_cell_of(side, count, images) for side, count in zip(images.shape[2:], grid, strict=True))
            owners = torch.arange(len(images), device=images.device).repeat_interleave(kept.shape[1])
            size = max(1, _VALUES // model.config.live)
            flat = rearrange(shown, "b v r k -> (b v) r k")
            for part, owner in zip(flat.split(size), owners.split(size), strict=True):
                answers.append(model(images[owner] * part[:, rows][:, :, cols][:, None]))
        return rearrange(torch.cat(answers), "(b v) c -> b v c", b=len(images))


def removal_for(model: Backbone) -> Removal:
    """Tokens are dropped where the model runs on fewer of them; else pixels are painted over."""
    return TokenDropping() if drops(model) else Painting()


def all_but_one(batch: int, count: int, device: torch.device) -> Int[Tensor, "batch variants places"]:
    """For each part of an image, the places of all others."""
    places = torch.arange(count, device=device)
    others = places[None].expand(count, -1)[~torch.eye(count, dtype=torch.bool, device=device)]
    return repeat(others, "(v n) -> b v n", b=batch, v=count)
