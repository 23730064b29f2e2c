"""Another model's answers as targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.loading import read
from vitrail.configuration import require
from vitrail.data.batches import Batch
from vitrail.errors import UsageError
from vitrail.model.backbone import Backbone
from vitrail.objectives.objective import Objective, ObjectiveModule, Step
from vitrail.objectives.supervised import Supervised, SupervisedObjective, judged
from vitrail.preprocessing import Preprocessing


@dataclass(frozen=True)
class Distillation(Objective):
    """(1 - weight) * the loss of the labels + weight * the loss of what a teacher says of the same, augmented image.

    hard: -log softmax(student)_c where c is the teacher's class (DeiT, arXiv 2012.12877, eq. 3).
    soft: T^2 * KL(softmax(teacher / T) | softmax(student / T)) (Hinton et al. 2015; weight 1, T 1: arXiv 2106.05237).
    Where the model has two heads (pool distilled-token, head two-linear), the first learns from the labels and the
    second from the teacher; otherwise one learns from both.

    Attributes:
        teacher: any weights: a run, a model folder, a file. Its classes are matched by name.
    """

    teacher: str
    kind: Literal["soft", "hard"] = "hard"
    temperature: float = 1.0
    weight: float = 0.5
    labels: Supervised = field(default_factory=Supervised)

    def __post_init__(self) -> None:
        require(0 < self.temperature < math.inf, "objective.temperature", self.temperature, "a positive number")
        require(0 <= self.weight <= 1, "objective.weight", self.weight, "0 to 1")
        require(
            self.labels.loss == "softmax", "objective.labels.loss", self.labels.loss, "softmax, for one class an image"
        )

    def build(
        self, backbone: Backbone, preprocessing: Preprocessing, classes: Sequence[str] = ()
    ) -> DistillationObjective:
        student = self.labels.build(backbone, preprocessing)
        checkpoint = read(self.teacher)
        if checkpoint.preprocessing.channels != preprocessing.channels:
            raise UsageError(
                "VT003", f"the teacher reads {checkpoint.preprocessing.channels} channels, the student {preprocessing.channels}",
                "the same number",
            )  # fmt: skip
        return DistillationObjective(self, student, checkpoint, _order(self.teacher, checkpoint, classes, backbone))

    def told(
        self, logits: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"]
    ) -> Float[Tensor, " batch"]:
        """What the teacher's part costs, for each sample."""
        if self.kind == "hard":
            return F.cross_entropy(logits, teacher.argmax(dim=1), reduction="none")
        target, answer = (F.log_softmax(values / self.temperature, dim=1) for values in (teacher, logits))
        return self.temperature**2 * F.kl_div(answer, target, reduction="none", log_target=True).sum(dim=1)


class DistillationObjective(ObjectiveModule):
    """The teacher is saved with the state, and learns nothing.

    Args:
        order: for each class of the student, the teacher's logit.
    """

    order: Tensor

    def __init__(
        self, config: Distillation, student: SupervisedObjective, checkpoint: Checkpoint, order: list[int]
    ) -> None:
        super().__init__()
        self.config, self.backbone = config, student.backbone
        self.own, self.theirs = student.preprocessing, checkpoint.preprocessing
        device = next(self.backbone.parameters()).device
        self.teacher = checkpoint.build().requires_grad_(False).to(device)
        self.register_buffer("order", torch.tensor(order, device=device), persistent=False)

    def forward(self, batch: Batch) -> Step:
        images = batch.views[0]
        parts = [part.float() for part in self.backbone.parts(self.own.normalise(images))]
        logits = torch.stack(parts).mean(dim=0)
        losses = (1 - self.config.weight) * self.config.labels.losses(parts[0], batch.labels)
        losses = losses + self.config.weight * self.config.told(parts[-1], self._asked(images))
        return judged(losses, logits, batch, one_class=True)

    def after_step(self) -> None:
        """The teacher stays as it is."""

    @torch.no_grad()
    def _asked(self, images: Tensor) -> Float[Tensor, "batch classes"]:
        self.teacher.eval()
        if images.shape[2:] != self.theirs.image_size:
            images = F.interpolate(images.float(), self.theirs.image_size, mode="bilinear", antialias=True)
        return self.teacher(self.theirs.normalise(images)).float()[:, self.order]


def _order(path: str, checkpoint: Checkpoint, classes: Sequence[str], backbone: Backbone) -> list[int]:
    """The teacher's logit of each class, by name where both have names.

    Raises:
        UsageError: VT003, the teacher does not know all classes.
    """
    count, theirs = backbone.config.head.classes, checkpoint.classes
    if classes and theirs:
        if missing := [name for name in classes if name not in theirs]:
            raise UsageError(
                "VT003", f"the teacher {path} does not know {len(missing)} of {count} classes, such as {', '.join(missing[:5])}",
                "a teacher of these classes: fine-tune it on these images first", f"vitrail train DATA --weights {path}",
            )  # fmt: skip
        return [theirs.index(name) for name in classes]
    if checkpoint.config.head.classes != count:
        raise UsageError("VT003", f"the teacher {path} has {checkpoint.config.head.classes} classes, the images {count}",
                         "a teacher of the same classes")  # fmt: skip
    return list(range(count))
