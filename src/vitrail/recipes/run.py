"""A complete run as one frozen value; a variant is `dataclasses.replace` of another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vitrail import configuration
from vitrail.data.transforms import TRANSFORMS, Mixup, Transform
from vitrail.errors import UsageError
from vitrail.model.backbone import BackboneConfig
from vitrail.model.families import AXES as MODEL_AXES
from vitrail.model.families import typed
from vitrail.objectives.supervised import Supervised
from vitrail.preprocessing import Preprocessing
from vitrail.training.loop import Training
from vitrail.training.optimizer import OPTIMIZERS, Muon, Optimizer
from vitrail.training.schedule import SCHEDULES, Cosine, Schedule

AXES: configuration.Axes = {**MODEL_AXES, Transform: TRANSFORMS, Optimizer: OPTIMIZERS, Schedule: SCHEDULES}


@dataclass(frozen=True)
class Data:
    """Which images.

    Attributes:
        source: a folder, a CSV file or a built-in name.
        split_seed: decides which images are held out where the source has no split of its own.
        max_bad_share: this share of unreadable pictures is skipped and listed; more stop the run.
    """

    source: str
    split_seed: int = 0
    max_bad_share: float = 0.05

    def __post_init__(self) -> None:
        configuration.require(0 <= self.max_bad_share <= 1, "data.max_bad_share", self.max_bad_share, "0 to 1")


@dataclass(frozen=True)
class Augmentation:
    """What happens to training images, in order, and how whole batches are mixed."""

    transforms: tuple[Transform, ...] = ()
    mixup: Mixup | None = None

    def __post_init__(self) -> None:
        if any(transform.resizes for transform in self.transforms[1:]):
            raise UsageError(
                "VT003", "a transform that resizes must come first", "random-resized-crop before the others"
            )


@dataclass(frozen=True)
class Run:
    """Everything that decides what comes out, apart from the machine.

    Attributes:
        recipe: the name of the function that made it.
        weights: the checkpoint that training starts from; None for random weights.
        why: reasons of the automatic choices, for people.
    """

    recipe: str
    data: Data
    model: BackboneConfig
    preprocessing: Preprocessing
    augmentation: Augmentation = Augmentation()
    objective: Supervised = Supervised()
    optimizer: Optimizer = Muon()
    schedule: Schedule = Cosine()
    training: Training = Training()
    weights: str | None = None
    why: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if self.model.image_size != self.preprocessing.image_size:
            raise UsageError(
                "VT003", f"the model reads {self.model.image_size}, the preprocessing makes {self.preprocessing.image_size}",
                "the same size", "--image-size sets both",
            )  # fmt: skip
        if self.model.channels != self.preprocessing.channels:
            raise UsageError(
                "VT003", f"the model reads {self.model.channels} channels, "
                f"the preprocessing makes {self.preprocessing.channels}", "the same number",
                "--set preprocessing.channels, mean and std, as well as --set model.tokenizer.channels "
                "(of a ResNet, model.channels)",
            )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        return configuration.encode(self, AXES)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Run:
        """From the JSON of this version or an older one: what has come since has its default.

        Raises:
            UsageError: VT003, a key that is not known any more, a wrong type or an impossible value.
        """
        model = data.get("model")
        return configuration.decode(cls, {**data, **({"model": typed(model)} if isinstance(model, dict) else {})}, AXES)

    def changed(self, assignments: dict[str, str]) -> Run:
        """With `--set` keys replaced."""
        return configuration.changed(self, assignments, AXES)
