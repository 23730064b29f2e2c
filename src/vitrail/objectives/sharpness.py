"""Sharpness-aware minimisation: the gradient is taken where the loss is worst nearby."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.func import functional_call

from vitrail.configuration import require
from vitrail.data.batches import Batch
from vitrail.model.backbone import Backbone
from vitrail.objectives.objective import Objective, ObjectiveModule, Step
from vitrail.objectives.supervised import Supervised
from vitrail.preprocessing import Preprocessing


@dataclass(frozen=True)
class SharpnessAware(Objective):
    """SAM around another objective (Foret et al., arXiv 2010.01412); with ViTs arXiv 2106.01548, whose rho is 0.2.

    gradient at weights + rho * g / |g|, where g is the gradient at the weights. Each micro-batch moves away by its own
    gradient, as each accelerator does in the official code ("m-sharpness"), so that `training.micro_batch` is a part of
    what is computed. A step costs two of the plain ones; loss and metrics are those of the unmoved weights.
    """

    objective: Objective = field(default_factory=Supervised)
    rho: float = 0.05

    def __post_init__(self) -> None:
        require(0 <= self.rho < math.inf, "objective.rho", self.rho, "zero or a positive number")

    def build(
        self, backbone: Backbone, preprocessing: Preprocessing, classes: Sequence[str] = ()
    ) -> SharpnessObjective:
        return SharpnessObjective(self, self.objective.build(backbone, preprocessing, classes))


class SharpnessObjective(ObjectiveModule):
    def __init__(self, config: SharpnessAware, objective: ObjectiveModule) -> None:
        super().__init__()
        self.config, self.objective = config, objective
        self.__dict__["backbone"] = objective.backbone  # not for a second time in the state

    def forward(self, batch: Batch) -> Step:
        here = self.objective(batch)
        named = {name: p for name, p in self.objective.named_parameters() if p.requires_grad}
        with torch.autocast(here.loss.device.type, enabled=False):
            gradients = torch.autograd.grad(here.loss, list(named.values()), materialize_grads=True)
        norm = torch.nn.utils.get_total_norm(gradients)
        reach = self.config.rho / (norm + 1e-12)
        moved = {name: p + reach * g for (name, p), g in zip(named.items(), gradients, strict=True)}
        there: Step = functional_call(self.objective, moved, (batch,))
        return Step(there.loss + (here.loss - there.loss).detach(), here.metrics, here.margins)

    def after_step(self) -> None:
        self.objective.after_step()
