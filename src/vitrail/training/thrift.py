"""What makes a step cheaper: activations computed again instead of kept, patches left out, the model compiled."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitrail.configuration import require
from vitrail.errors import UsageError
from vitrail.model.tokenizers import Tokens
from vitrail.training.products import same_again


@dataclass(frozen=True)
class Growth:
    """Small images first (progressive resizing; Tan & Le 2021, arXiv 2104.00298, without its stronger augmentation).

    The image of a step has a share of the side that grows in `stages` from `first` to all of it, and of whole patches;
    positions are resampled. The last part of the run, from `until` on, sees images as they are judged.
    """

    first: float = 0.5
    until: float = 0.6
    stages: int = 3

    def __post_init__(self) -> None:
        require(0 < self.first <= 1, "thrift.growth.first", self.first, "more than 0, at most 1")
        require(0 < self.until <= 1, "thrift.growth.until", self.until, "more than 0, at most 1, a share of the run")
        require(0 < self.stages <= 100, "thrift.growth.stages", self.stages, "1 to 100")

    def share(self, step: int, total: int) -> float:
        """Of the side, at a step of a run of `total`; a function of these alone."""
        stage = min(self.stages, int(step / (self.until * total) * self.stages))
        return self.first + (1 - self.first) * stage / self.stages

    def __call__(
        self, images: Shaped[Tensor, "batch channels height width"], step: int, total: int, stride: tuple[int, int]
    ) -> Shaped[Tensor, "batch channels height width"]:
        """The images of a step, uint8 or float32; float32 where they shrink."""
        share = self.share(step, total)
        if share == 1:
            return images
        rows, cols = (
            min(side, max(1, round(side * share / unit)) * unit)
            for side, unit in zip(images.shape[2:], stride, strict=True)
        )
        return F.interpolate(images.float(), (rows, cols), mode="bilinear", antialias=True)


@dataclass(frozen=True)
class Thrift:
    """All act in training alone, on the model that learns; neither is a part of what is saved.

    Attributes:
        recompute: of every encoder block only the input is kept, and its inside is computed again for the gradient
            (Chen et al. 2016, arXiv 1604.06174): less memory, about a third more time, the same bits.
        patch_dropout: this share of the patches, others of every image, is left out after the patches are embedded and
            before their positions are added (Liu et al. 2022, arXiv 2208.07220): less of both, and a regulariser.
        growth: small images first.
        compile: torch.compile for the steps alone, with every size of images and batch compiled by itself, so that a run
            that goes on has the same code and the same bits: about a minute before the first step (docs/performance.md
            says where it pays). Results differ from those without it as rounding does. `--plan` leaves it out.
    """

    recompute: bool = False
    patch_dropout: float = 0.0
    growth: Growth | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.patch_dropout < 1, "thrift.patch_dropout", self.patch_dropout, "0 to less than 1")
        if self.compile and self.recompute:
            raise UsageError("VT003", "thrift.compile and thrift.recompute together", "one of them")

    def prepare(self, model: nn.Module) -> None:
        """Changes how `model` computes, in place.

        Raises:
            UsageError: VT003, the model has no encoder blocks, or there is nothing to compile with.
        """
        if self.compile:
            _compile(model)
        if not self.recompute and not self.patch_dropout:
            return
        blocks = getattr(model, "blocks", None)
        if not isinstance(blocks, nn.ModuleList):
            raise UsageError("VT003", f"a {type(model).__name__} has no encoder blocks to save at", "a Vision Transformer",
                             "leave out --set thrift")  # fmt: skip
        if self.patch_dropout:
            model.get_submodule("tokenizer").register_forward_hook(partial(_left_out, self.patch_dropout))
        for block in blocks if self.recompute else ():
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=same_again)


def _compile(model: nn.Module) -> None:
    on_cpu = next(model.parameters()).device.type == "cpu"
    if on_cpu and not any(map(shutil.which, ("c++", "g++", "clang++", os.environ.get("CXX", "c++")))):
        raise UsageError("VT003", "thrift.compile, and there is no C++ compiler for it", "g++ or clang++ on the path",
                         "install one, or leave out --set thrift.compile")  # fmt: skip
    plain = model.forward
    compiled = torch.compile(plain, dynamic=False)

    def forward(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        # Evaluation has other sizes, and each would be compiled.
        return compiled(images) if model.training else plain(images)

    model.forward = forward


def _left_out(share: float, tokenizer: nn.Module, _: Any, tokens: Tokens) -> Tokens:
    if not tokenizer.training:
        return tokens
    batch, count, dim = tokens.values.shape
    kept = max(1, round(count * (1 - share)))
    order = torch.rand(batch, count, device=tokens.values.device).argsort(dim=1)[:, :kept]
    places = order.sort(dim=1).values
    values = tokens.values.gather(1, places[:, :, None].expand(-1, -1, dim))
    return replace(tokens, values=values, kept=places)
