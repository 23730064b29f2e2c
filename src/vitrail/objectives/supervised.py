"""Images with known classes to a loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.configuration import require
from vitrail.data.batches import Batch
from vitrail.model.backbone import Backbone
from vitrail.preprocessing import Preprocessing


@dataclass(frozen=True)
class Step:
    """A loss to minimise, summed over the samples so that micro-batches add up, and metrics as tensors.

    Attributes:
        margins: of each sample, the logit of its class less the largest other one; None where that has no meaning.
    """

    loss: Float[Tensor, ""]
    metrics: dict[str, Tensor]
    margins: Float[Tensor, " batch"] | None = None


@dataclass(frozen=True)
class Supervised:
    """Softmax cross-entropy where one class is true, sigmoid where several may be.

    Attributes:
        label_smoothing: this share of the target is spread over all classes (softmax only).
    """

    loss: Literal["softmax", "sigmoid"] = "softmax"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.label_smoothing < 1, "objective.label_smoothing", self.label_smoothing, "0 to less than 1")

    def build(self, backbone: Backbone, preprocessing: Preprocessing) -> SupervisedObjective:
        return SupervisedObjective(self, backbone, preprocessing)


class SupervisedObjective(nn.Module):
    """softmax: -sum_c target_c log softmax(logits)_c.  sigmoid: sum_c of the binary cross-entropy of class c."""

    def __init__(self, config: Supervised, backbone: Backbone, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.config, self.backbone, self.preprocessing = config, backbone, preprocessing

    def forward(self, batch: Batch) -> Step:
        logits = self.backbone(self.preprocessing.normalise(batch.views[0])).float()
        targets, smoothing = batch.labels, self.config.label_smoothing
        if self.config.loss == "softmax":
            targets = targets * (1 - smoothing) + smoothing / targets.shape[1]
            losses = -(targets * F.log_softmax(logits, dim=1)).sum(dim=1)
        else:
            losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1)
        hits = (logits.argmax(dim=1) == batch.labels.argmax(dim=1)).float()
        margins = _margins(logits.detach(), batch.labels) if self.config.loss == "softmax" else None
        return Step((losses * batch.weights).sum(), {"top1": (hits * batch.weights).sum().detach()}, margins)

    def after_step(self) -> None:
        """Nothing moves along with the weights."""


def _margins(logits: Float[Tensor, "batch classes"], labels: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
    classes = labels.argmax(dim=1, keepdim=True)
    return (logits.gather(1, classes) - logits.scatter(1, classes, -math.inf).amax(dim=1, keepdim=True)).squeeze(1)
