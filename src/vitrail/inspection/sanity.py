"""Whether a map hangs on what the model learned, on the class, and not on noise: weights shuffled, classes, small changes."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.model.backbone import Backbone
from vitrail.model.resnet import ResNet
from vitrail.model.vit import ViT

NOISE = 0.02  # standard deviation, of the range of pixels
_STEPS = 4  # into which the layers are divided


def rank_correlation(
    first: Float[np.ndarray, "batch rows cols"], second: Float[np.ndarray, "batch rows cols"]
) -> Float[np.ndarray, " batch"]:
    """Spearman's, of the maps of each image; equal numbers share the mean of their ranks.

    An even map ranks nothing and agrees with none (0), but with another even one (1).
    """
    a, b = (_centred_ranks(rearrange(maps, "b r k -> b (r k)")) for maps in (first, second))
    lengths = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    alike = (a * b).sum(axis=1) / np.where(lengths > 0, lengths, 1)
    both_even = ~(a.any(axis=1) | b.any(axis=1))
    return np.where(both_even, 1.0, alike)


def _centred_ranks(flat: Float[np.ndarray, "batch places"]) -> Float[np.ndarray, "batch places"]:
    ranks = np.empty(flat.shape)
    for row, values in zip(ranks, flat, strict=True):
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        row[:] = (np.cumsum(counts) - (counts - 1) / 2)[place]
    ranks -= ranks.mean(axis=1, keepdims=True)
    return ranks


def shuffled_down(model: Backbone, seed: int = 0) -> Iterator[tuple[str, Backbone]]:
    """The model with more and more of its weights shuffled, from the head down (cascading randomisation, Adebayo et al.,
    arXiv 1810.03292, section 3.1), with the name of what was shuffled last.

    The numbers of a tensor change places at random, so that their scale stays: a head drawn anew would be zero in this
    house. It is one copy that goes on changing; the model itself stays as it is.
    """
    wrong = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for name, parts in _from_the_head(wrong):
        with torch.no_grad():
            for part in parts:
                for parameter in part.parameters():
                    order = torch.randperm(parameter.numel(), generator=generator)
                    parameter.copy_(parameter.flatten()[order.to(parameter.device)].view_as(parameter))
        yield name, wrong


def shuffled(model: Backbone, seed: int) -> Backbone:
    """A copy with all weights shuffled."""
    *_, (_, wrong) = shuffled_down(model, seed)
    return wrong


def _from_the_head(model: Backbone) -> Iterator[tuple[str, list[nn.Module]]]:
    """All weights once, in the order in which they are shuffled: the head, a quarter of the layers at a time, the stem."""
    if isinstance(model, ViT):
        yield "head", [model.head, model.pool]
        layers, stem = list(model.blocks), [model.tokenizer, model.position]
    else:
        assert isinstance(model, ResNet)
        yield "head", [model.head]
        layers = [unit for stage in model.trunk.stages for unit in stage]  # type: ignore[attr-defined]
        layers, stem = [*layers, model.trunk.last], [model.trunk.root]
    for group in np.array_split(np.arange(len(layers))[::-1], min(_STEPS, len(layers))):
        first, last = int(group[0]), int(group[-1])
        yield f"layers {last}-{first}" if first != last else f"layer {first}", [layers[place] for place in group]
    yield "stem", stem


def disturbed(
    images: Float[Tensor, "batch channels height width"], ends: Float[Tensor, "1 channels 2 1"], seed: int = 0
) -> dict[str, Float[Tensor, "batch channels height width"]]:
    """The images with noise, and moved a pixel down and to the right.

    Args:
        images: normalised.
        ends: what black and white are in each channel; the noise is 2 % of the range between.
    """
    low, high = ends[:, :, :1], ends[:, :, 1:]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(images.shape, generator=generator).to(images)
    return {
        "noise": torch.minimum(torch.maximum(images + NOISE * (high - low) * noise, low), high),
        "shift": F.pad(images, (1, 0, 1, 0), mode="replicate")[:, :, :-1, :-1],
    }
