"""The moving average of the weights, which is evaluated and exported in their place."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from vitrail.configuration import require
from vitrail.data.batches import Batch
from vitrail.model.backbone import Backbone
from vitrail.objectives.objective import Objective, ObjectiveModule, Step
from vitrail.objectives.supervised import Supervised
from vitrail.preprocessing import Preprocessing


@dataclass(frozen=True)
class Averaged(Objective):
    """Another objective, and the exponential (Polyak) average of its weights (paper table 2: 0.9999).

    average = decay * average + (1 - decay) * weights, after every update.

    Attributes:
        warmup: update number t, from 0, uses min(decay, (1 + t) / (10 + t)), so that the average does not hang on the
            initial weights in a run of a few thousand steps.
    """

    objective: Objective = field(default_factory=Supervised)
    decay: float = 0.9999
    warmup: bool = True

    def __post_init__(self) -> None:
        require(0 <= self.decay < 1, "objective.decay", self.decay, "0 to less than 1")

    def build(self, backbone: Backbone, preprocessing: Preprocessing, classes: Sequence[str] = ()) -> AveragedObjective:
        return AveragedObjective(self, self.objective.build(backbone, preprocessing, classes))


class AveragedObjective(ObjectiveModule):
    """`backbone` is the average; the one that learns is `objective.backbone`."""

    updates: torch.Tensor

    def __init__(self, config: Averaged, objective: ObjectiveModule) -> None:
        super().__init__()
        self.config, self.objective = config, objective
        self.backbone = copy.deepcopy(objective.backbone).requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch) -> Step:
        return self.objective(batch)

    @torch.no_grad()
    def after_step(self) -> None:
        self.objective.after_step()
        done, decay = int(self.updates), self.config.decay
        if self.config.warmup:
            decay = min(decay, (1 + done) / (10 + done))
        self.updates += 1
        weights = self.objective.backbone.state_dict()
        for name, average in self.backbone.state_dict().items():
            average.lerp_(weights[name], 1 - decay) if average.is_floating_point() else average.copy_(weights[name])
