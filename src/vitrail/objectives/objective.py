"""What every objective is: a batch to a loss, and what it keeps beside the model that learns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

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


class Objective(ABC):
    """Axis: what is asked of a model. Some wrap another one: a moving average, a flatter place."""

    @abstractmethod
    def build(self, backbone: Backbone, preprocessing: Preprocessing, classes: Sequence[str] = ()) -> ObjectiveModule:
        """A module that owns `backbone`, which learns; on its device.

        Args:
            classes: names of the logits, for who asks another model.
        """


class ObjectiveModule(nn.Module, ABC):
    """Everything in its `state_dict` is saved and resumed; only what has a gradient learns.

    Attributes:
        backbone: what is evaluated and exported.
    """

    backbone: Backbone

    @abstractmethod
    def forward(self, batch: Batch) -> Step:
        """The loss of a batch or of a part of one."""

    @abstractmethod
    def after_step(self) -> None:
        """For moving averages and queues: the weights have just been moved."""
