"""Images with known classes to a loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitrail.configuration import require
from vitrail.data.batches import Batch
from vitrail.model.backbone import Backbone
from vitrail.objectives.objective import Objective, ObjectiveModule, Step
from vitrail.preprocessing import Preprocessing


@dataclass(frozen=True)
class Supervised(Objective):
    """Softmax cross-entropy where one class is true, sigmoid where several may be.

    Attributes:
        label_smoothing: this share of the target is spread over all classes (softmax only).
        class_weights: how much each class counts, in the order of the classes; () for 1 each. On the command line
            `--set objective.class_weights=balanced` says those of `balanced_weights`.
    """

    loss: Literal["softmax", "sigmoid"] = "softmax"
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        require(0 <= self.label_smoothing < 1, "objective.label_smoothing", self.label_smoothing, "0 to less than 1")
        good = all(0 <= w < math.inf for w in self.class_weights) and (
            any(self.class_weights) or not self.class_weights
        )
        require(good, "objective.class_weights", self.class_weights, "zero or positive numbers, not all of them zero")

    def build(
        self, backbone: Backbone, preprocessing: Preprocessing, classes: Sequence[str] = ()
    ) -> SupervisedObjective:
        if self.class_weights:
            count = backbone.config.head.classes
            require(len(self.class_weights) == count, "objective.class_weights", self.class_weights, f"{count} numbers")
        return SupervisedObjective(self, backbone, preprocessing)

    def losses(
        self, logits: Float[Tensor, "batch classes"], labels: Float[Tensor, "batch classes"]
    ) -> Float[Tensor, " batch"]:
        """softmax: -sum_c w_c target_c log softmax(logits)_c.  sigmoid: sum_c w_c of the binary cross-entropy of c."""
        if self.loss == "softmax":
            targets = labels * (1 - self.label_smoothing) + self.label_smoothing / labels.shape[1]
            terms = -targets * F.log_softmax(logits, dim=1)
        else:
            terms = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        if self.class_weights:
            terms = terms * torch.tensor(self.class_weights, dtype=terms.dtype, device=terms.device)
        return terms.sum(dim=1)


class SupervisedObjective(ObjectiveModule):
    """The losses of a batch, those of unreadable pictures left out."""

    def __init__(self, config: Supervised, backbone: Backbone, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.config, self.backbone, self.preprocessing = config, backbone, preprocessing

    def forward(self, batch: Batch) -> Step:
        logits = self.backbone(self.preprocessing.normalise(batch.views[0])).float()
        losses = self.config.losses(logits, batch.labels)
        return judged(losses, logits, batch, one_class=self.config.loss == "softmax")

    def after_step(self) -> None:
        """Nothing moves along with the weights."""


def judged(
    losses: Float[Tensor, " batch"], logits: Float[Tensor, "batch classes"], batch: Batch, one_class: bool
) -> Step:
    """The losses summed, top-1, and margins where each sample has one class.

    As in evaluation an answer is right that is one of several labels; of a mixed image, the one with the larger share.
    """
    shares = batch.labels.gather(1, logits.argmax(dim=1, keepdim=True)).squeeze(1)
    hits = ((shares > 0) & (shares == batch.labels.amax(dim=1))).float()
    margins = _margins(logits.detach(), batch.labels) if one_class else None
    return Step((losses * batch.weights).sum(), {"top1": (hits * batch.weights).sum().detach()}, margins)


def balanced_weights(counts: Sequence[int]) -> tuple[float, ...]:
    """count of all / (classes * count of the class): every class counts alike, and 1 on average over the images.

    A class without images, as some data sets list, weighs 0 and is not counted.
    """
    total, present = sum(counts), sum(count > 0 for count in counts)
    return tuple(total / (present * count) if count else 0.0 for count in counts)


def _margins(logits: Float[Tensor, "batch classes"], labels: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
    classes = labels.argmax(dim=1, keepdim=True)
    return (logits.gather(1, classes) - logits.scatter(1, classes, -math.inf).amax(dim=1, keepdim=True)).squeeze(1)
