"""The logit lens: what the head would say if the model ended after each layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitrail.errors import UsageError
from vitrail.inspection.states import batches, checked, depth_names, states
from vitrail.model.backbone import Backbone
from vitrail.model.vit import ViT

Labelled = Iterable[tuple[Float[Tensor, "batch channels height width"], Int[Tensor, " batch"]]]
"""Normalised images, and the index of the class that is true of each."""


@dataclass(frozen=True, eq=False)
class Lens:
    """Averages over images, one a depth: the embedded tokens and every layer.

    Attributes:
        right: how many images the head would get right after each.
        agreement: the share of the images for which it names the class that the whole model names.
        probability: of that class, by a softmax.
        entropy: of the softmax in nats; ln(classes) where it knows nothing.
    """

    depths: tuple[str, ...]
    right: Int[np.ndarray, " depths"]
    agreement: Float[np.ndarray, " depths"]
    probability: Float[np.ndarray, " depths"]
    entropy: Float[np.ndarray, " depths"]
    images: int


def lens_logits(
    model: Backbone, images: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "depths batch classes"]:
    """The logits of every depth: the model's own final norm, pool (attention pooling included) and head, on the tokens there.

    The last ones are the model's own. No layer but the last was trained to be read so: the lens tells what the head
    can already read, not what the layer knows (nostalgebraist 2020; of ViTs: arXiv 2310.18969).

    Raises:
        UsageError: VT133, the model has no classes, or no layers of one width.
    """
    model = _legible(model)
    with torch.inference_mode():
        return torch.stack([model.head(model.pool(tokens)).float() for tokens in states(model, images)])


def logit_lens(model: Backbone, labelled: Labelled) -> Lens:
    """What the lens says of a set of images, one batch at a time.

    Args:
        model: in evaluation mode.
        labelled: batches of (normalised images, labels).

    Raises:
        UsageError: VT133, the model has no classes, or no layers of one width.
        DataError: VT131, there is no image.
        VitrailError: VT132, the logits are not numbers.
    """
    totals, count = torch.zeros(0), 0
    labels: list[Tensor] = []

    def seen() -> Iterable[Tensor]:
        for images, truth in labelled:
            labels.append(truth)
            yield images

    for images in batches(seen()):
        truth = labels.pop()
        logits = lens_logits(model, images).double()
        chances = logits.softmax(dim=-1)
        final = logits[-1].argmax(dim=-1)
        said = logits.argmax(dim=-1)
        surprise = -(chances * chances.clamp(min=1e-300).log()).sum(dim=-1)
        of_final = chances.gather(2, final.expand(len(chances), -1)[..., None])[..., 0]
        found = [said == truth.to(said), said == final, of_final, surprise]
        sums = torch.stack([part.double().sum(dim=1) for part in found]).cpu()
        totals = sums if not count else totals + sums
        count += len(images)
    right, *means = checked("logit lens", totals.numpy())
    agreement, probability, entropy = (mean / count for mean in means)
    return Lens(depth_names(model, len(right)), right.astype(np.int64), agreement, probability, entropy, count)


def _legible(model: Backbone) -> ViT:
    if not isinstance(model, ViT):
        raise UsageError(
            "VT133", "the stages of a ResNet have different widths, and its head reads the last one's alone",
            "a ViT, a hybrid or a Mixer, whose layers all have the width that the head reads",
        )  # fmt: skip
    if not model.config.head.classes:
        raise UsageError(
            "VT133", "these weights have no classes: there are no logits to read in any layer", "a classifier",
            "vitrail train YOUR_IMAGES --weights THESE_WEIGHTS gives classes",
        )  # fmt: skip
    return model
