"""Head ablation: what becomes of the answers when one head says nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitrail.errors import DataError, UsageError
from vitrail.inspection.attention import attending
from vitrail.inspection.lens import Labelled
from vitrail.inspection.states import checked
from vitrail.model.ablation import without_heads
from vitrail.model.backbone import Backbone
from vitrail.model.capture import Layer, attention_modules
from vitrail.model.tokenizers import Tokens
from vitrail.model.vit import ViT
from vitrail.statistics import mean_interval, paired_interval

Interval = tuple[float, float]


@dataclass(frozen=True)
class HeadEffect:
    """One head left out, on the same images as the whole model, with 95 % intervals of the differences.

    Attributes:
        layer: from 0, or "pool" for attention pooling.
        loss: mean increase of the cross-entropy; negative where the model does better without the head.
        top1: change of the share of right answers.
        lost, won: images that became wrong, and right.
    """

    layer: Layer
    head: int
    loss: float
    loss_interval: Interval
    top1: float
    top1_interval: Interval
    lost: int
    won: int


@dataclass(frozen=True)
class HeadAblation:
    """The whole model's loss and share of right answers, and what each head changes."""

    loss: float
    top1: float
    images: int
    effects: tuple[HeadEffect, ...]


def head_ablation(model: Backbone, labelled: Labelled) -> HeadAblation:
    """Leaves out each head of each layer in turn, one batch of images at a time.

    The head's output is set to zero before the layer's heads are read together (`model.ablation.without_heads`); layers
    below are not run again. The cost of a batch is heads x depth / 2 forward passes.

    Args:
        model: in evaluation mode.
        labelled: batches of (normalised images, labels).

    Raises:
        UsageError: VT041 the model has no attention, VT133 it has no classes.
        DataError: VT131, there is no image.
        VitrailError: VT132, the loss is not a number.

    Source: Michel, Levy, Neubig, "Are Sixteen Heads Really Better than One?", arXiv 1905.10650, section 3.2.
    """
    model = attending(model)
    if not model.config.head.classes:
        raise UsageError(
            "VT133", "these weights have no classes: there is no answer that a head could change", "a classifier",
            "vitrail train YOUR_IMAGES --weights THESE_WEIGHTS gives classes",
        )  # fmt: skip
    places = _places(model)
    sums, count = np.zeros((len(places), 4)), 0  # increase of the loss, its square, images lost, images won
    whole = np.zeros(2)
    with torch.inference_mode():
        for images, labels in labelled:
            before, kept = _answers(model, images, labels)
            whole += before.sum(axis=1)
            count += len(labels)
            for place, (layer, head) in enumerate(places):
                with without_heads(model, {layer: [head]}):
                    after = _scored(model, _from(model, kept, layer), labels)
                more, right = after[0] - before[0], after[1] - before[1]
                sums[place] += more.sum(), (more**2).sum(), (right < 0).sum(), (right > 0).sum()
    if not count:
        raise DataError("VT131", "there is no image to look at", "one image or more", "look at the folder or the split")
    checked("loss without a head", sums)
    effects = tuple(_effect(*place, row, count) for place, row in zip(places, sums, strict=True))
    return HeadAblation(float(whole[0]) / count, float(whole[1]) / count, count, effects)


def _places(model: ViT) -> list[tuple[Layer, int]]:
    """Every head of every layer that attends, and of attention pooling."""
    layers: list[Layer] = [layer for layer, block in enumerate(model.blocks) if hasattr(block.mixer, "gates")]
    if model.pool.reads == "probe":
        layers.append("pool")
    if not layers:
        attention_modules(model)  # says what there is instead
    return [(layer, head) for layer in layers for head in range(model.config.size.heads)]


def _answers(model: ViT, images: Tensor, labels: Tensor) -> tuple[Float[np.ndarray, "2 batch"], list[Tokens]]:
    """Loss and hit of every image, and the tokens that enter each layer, and the pool."""
    kept = [model.embed(images)]
    for block in model.blocks:
        kept.append(block(kept[-1], model.position))
    return _scored(model, kept[-1], labels), kept


def _from(model: ViT, kept: list[Tokens], layer: Layer) -> Tokens:
    """The encoded tokens, computed again from this layer on."""
    if layer == "pool":
        return kept[-1]
    tokens = kept[int(layer)]
    for block in list(model.blocks)[int(layer) :]:
        tokens = block(tokens, model.position)
    return tokens


def _scored(model: ViT, tokens: Tokens, labels: Tensor) -> Float[np.ndarray, "2 batch"]:
    logits = model.head(model.pool(tokens)).double()
    labels = labels.to(logits.device).long()
    loss = F.cross_entropy(logits, labels, reduction="none")
    return torch.stack([loss, (logits.argmax(dim=1) == labels).double()]).cpu().numpy()


def _effect(layer: Layer, head: int, row: np.ndarray, count: int) -> HeadEffect:
    more, squares, lost, won = row
    return HeadEffect(
        layer, head, float(more) / count, mean_interval(float(more), float(squares), count),
        float(won - lost) / count, paired_interval(int(lost), int(won), count), int(lost), int(won),
    )  # fmt: skip
