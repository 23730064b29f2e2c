"""A complete run as one frozen value; a variant is `dataclasses.replace` of another."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from vitrail import configuration
from vitrail.data.mixing import CutMix, EitherMixing, Mixing, Mixup
from vitrail.data.order import SAMPLINGS, Sampling, Shuffled
from vitrail.data.transforms import TRANSFORMS, Flip, RandAugment, RandomResizedCrop, Transform
from vitrail.errors import UsageError
from vitrail.evaluation.answers import ON_ANSWERS, OnAnswers
from vitrail.evaluation.fewshot import FewShot
from vitrail.evaluation.frozen import Frozen, Watching
from vitrail.evaluation.neighbours import Neighbours
from vitrail.evaluation.own_pictures import ON_OWN_PICTURES, OwnPictures
from vitrail.evaluation.probes import LinearProbe, LogisticProbe
from vitrail.model.backbone import BackboneConfig
from vitrail.model.families import AXES as MODEL_AXES
from vitrail.model.families import typed
from vitrail.objectives.averaging import Averaged
from vitrail.objectives.distillation import Distillation
from vitrail.objectives.objective import Objective
from vitrail.objectives.sharpness import SharpnessAware
from vitrail.objectives.supervised import Supervised
from vitrail.preprocessing import Preprocessing
from vitrail.training.loop import Training
from vitrail.training.optimizer import OPTIMIZERS, Muon, Optimizer
from vitrail.training.schedule import SCHEDULES, Cosine, Schedule
from vitrail.training.thrift import Thrift
from vitrail.training.tuning import TUNINGS, Everything, Tuning

OBJECTIVES: dict[str, type[Objective]] = {
    "supervised": Supervised, "distillation": Distillation, "averaged": Averaged, "sharpness-aware": SharpnessAware
}  # fmt: skip
FROZEN: dict[str, type[Frozen]] = {
    "few-shot": FewShot, "neighbours": Neighbours, "linear-probe": LinearProbe, "logistic-probe": LogisticProbe
}  # fmt: skip
EVALUATORS: dict[str, type[Watching]] = {**FROZEN, **ON_ANSWERS, **ON_OWN_PICTURES}
AXES: configuration.Axes = {
    **MODEL_AXES, Transform: TRANSFORMS, Sampling: SAMPLINGS, Objective: OBJECTIVES, Optimizer: OPTIMIZERS,
    Schedule: SCHEDULES, Tuning: TUNINGS, Watching: EVALUATORS,
}  # fmt: skip


@dataclass(frozen=True)
class Data:
    """Which images.

    Attributes:
        source: a folder, a CSV file or a built-in name.
        split_seed: decides which images are held out where the source has no split of its own.
        max_bad_share: this share of unreadable pictures is skipped and listed; more stop the run.
        everything: val joins train. No image chooses the best weights then, and the last ones are taken.
    """

    source: str
    split_seed: int = 0
    max_bad_share: float = 0.05
    everything: bool = False

    def __post_init__(self) -> None:
        configuration.require(0 <= self.max_bad_share <= 1, "data.max_bad_share", self.max_bad_share, "0 to 1")


@dataclass(frozen=True)
class Grid:
    """Learning rates that are tried on train and judged on val, before the run itself (paper B.1.1).

    Attributes:
        share: of the run's steps that each is tried for; the paper tries each for all of them.
    """

    rates: tuple[float, ...]
    share: float = 1.0

    def __post_init__(self) -> None:
        good = all(0 < rate < math.inf for rate in self.rates) and len(set(self.rates)) == len(self.rates)
        configuration.require(
            good and 1 < len(self.rates) <= 16, "grid.rates", self.rates, "2 to 16 different positive numbers"
        )
        configuration.require(0 < self.share <= 1, "grid.share", self.share, "more than 0, at most 1")


@dataclass(frozen=True)
class Augmentation:
    """What happens to training images, in order, and how whole batches are mixed: at each step in one of two ways."""

    transforms: tuple[Transform, ...] = ()
    mixup: Mixup | None = None
    cutmix: CutMix | None = None

    def __post_init__(self) -> None:
        if any(transform.resizes for transform in self.transforms[1:]):
            raise UsageError(
                "VT003", "a transform that resizes must come first", "random-resized-crop before the others"
            )

    @property
    def mixing(self) -> Mixing | None:
        if self.mixup and self.cutmix:
            return EitherMixing(self.mixup, self.cutmix)
        return self.mixup or self.cutmix


def _augreg(layers: int, magnitude: float, mixup: float) -> Augmentation:
    random = (RandAugment(layers, magnitude),) if layers else ()
    return Augmentation((RandomResizedCrop(min_area=0.05), Flip(), *random), Mixup(mixup) if mixup else None)


AUGREG: dict[str, Augmentation] = {
    "none": _augreg(0, 0, 0), "light1": _augreg(2, 0, 0), "light2": _augreg(2, 10, 0.2), "medium1": _augreg(2, 15, 0.2),
    "medium2": _augreg(2, 15, 0.5), "strong1": _augreg(2, 20, 0.5), "strong2": _augreg(2, 20, 0.8),
}  # fmt: skip
"""The levels of "How to train your ViT?" (arXiv 2106.10270): `--set augmentation=medium2`."""


class Reason(str):
    """Why something was chosen, for people; and `of` which keys of the run: where one of them is set by hand, it is void."""

    of: tuple[str, ...]

    def __new__(cls, text: str, *of: str) -> Reason:
        made = super().__new__(cls, text)
        made.of = of
        return made

    def holds(self, typed: Iterable[str]) -> bool:
        """Whether none of the typed keys is one of these, a part of it or a whole that it is a part of."""
        pairs = [(f"{key}.", f"{mine}.") for key in typed for mine in self.of]
        return not any(key.startswith(mine) or mine.startswith(key) for key, mine in pairs)


@dataclass(frozen=True)
class Run:
    """Everything that decides what comes out, apart from the machine.

    Attributes:
        recipe: the name of the function that made it.
        sampling: which images an epoch holds.
        tuning: what of the model learns.
        thrift: what makes a step cheaper.
        evaluators: what else is measured at every evaluation, on val or on pictures of its own; changes nothing else.
        weights: the checkpoint that training starts from; None for random weights.
        keep_classes: what the weights say of classes that they know by name is kept; False for a head of zeros.
        grid: learning rates to choose from; None for the optimizer's own.
        time_limit: seconds that the whole may take; the number of epochs was chosen for it when the run began.
        why: reasons of the automatic choices, `Reason`s where a setting can make them void.
    """

    recipe: str
    data: Data
    model: BackboneConfig
    preprocessing: Preprocessing
    augmentation: Augmentation = Augmentation()
    objective: Objective = Supervised()
    optimizer: Optimizer = Muon()
    schedule: Schedule = Cosine()
    training: Training = Training()
    sampling: Sampling = Shuffled()
    tuning: Tuning = Everything()
    thrift: Thrift = Thrift()
    evaluators: tuple[Watching, ...] = ()
    weights: str | None = None
    keep_classes: bool = False
    grid: Grid | None = None
    time_limit: float | None = None
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

        kinds = (Frozen, OnAnswers, OwnPictures)
        if strange := [each for each in self.evaluators if not isinstance(each, kinds)]:
            raise UsageError("VT003", f"evaluators: {type(strange[0]).__name__} is none that is ever asked",
                             f"a subclass of {', '.join(kind.__name__ for kind in kinds)}")  # fmt: skip
        if twins := [each for place, each in enumerate(self.evaluators) if each in self.evaluators[:place]]:
            name = configuration.encode(twins[0], AXES)["type"]
            raise UsageError("VT003", f"evaluators: {name} is there twice with the same settings", "each once",
                             f'[{{"type":"{name}", ...}}, ...] with other settings, or leave one out')  # fmt: skip
        if self.thrift.recompute and any(isinstance(part, SharpnessAware) for part in _nested(self.objective)):
            # The weights are back in their place when the gradient is computed.
            raise UsageError("VT003", "objective sharpness-aware and thrift.recompute together", "one of them")

    @property
    def watched(self) -> dict[str, Watching]:
        """Evaluators by the name that stands before their numbers: the type; of a second of it, few-shot-2, and so on."""
        found: dict[str, Watching] = {}
        types = [configuration.encode(evaluator, AXES)["type"] for evaluator in self.evaluators]
        for place, (kind, evaluator) in enumerate(zip(types, self.evaluators, strict=True)):
            before = types[:place].count(kind)
            found[f"{kind}-{before + 1}" if before else kind] = evaluator
        return found

    def to_json(self) -> dict[str, Any]:
        return configuration.encode(self, AXES)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Run:
        """From the JSON of this version or an older one: what has come since has its default.

        Raises:
            UsageError: VT003, a key that is not known any more, a wrong type or an impossible value.
        """
        model, objective = data.get("model"), data.get("objective")
        named = {"model": typed(model)} if isinstance(model, dict) else {}
        if isinstance(objective, dict):  # there was one of a kind once, without a type
            named["objective"] = {"type": "supervised", **objective}
        return configuration.decode(cls, {**data, **named}, AXES)

    def changed(self, assignments: dict[str, str]) -> Run:
        """With `--set` keys replaced, `augmentation` also by a level of AugReg, `evaluators` by names with commas."""
        names = assignments.get("evaluators", "[]").split(",")
        if all(name in EVALUATORS for name in names):
            rest = {name: text for name, text in assignments.items() if name != "evaluators"}
            found = tuple(configuration.decode(Watching, {"type": name}, AXES, f"evaluators, {name}") for name in names)
            return replace(self, evaluators=found).changed(rest)
        if (level := assignments.get("augmentation")) in AUGREG:
            rest = {name: text for name, text in assignments.items() if name != "augmentation"}
            return replace(self, augmentation=self.levelled(str(level))).changed(rest)
        if assignments.get("optimizer") in OPTIMIZERS and len(assignments) > 1:  # it decides what the other keys mean
            rest = {name: text for name, text in assignments.items() if name != "optimizer"}
            return self.changed({"optimizer": assignments["optimizer"]}).changed(rest)
        present = {
            "objective": configuration.encode(self.objective, AXES),
            "optimizer": configuration.encode(self.optimizer, AXES),
        }
        kinds = [assignments.get(name, "") for name in ("objective.objective", "objective")]
        if kinds[1] in OBJECTIVES:
            if present["objective"]["type"] == kinds[1]:  # it is replaced, not wrapped
                present["objective"] = present["objective"].get("objective", present["objective"])
            for kind in (kind for kind in kinds if kind in OBJECTIVES):
                present["objective"] = _around(kind, present["objective"])
            rest = {name: text for name, text in assignments.items() if text not in kinds}
            assignments = {**rest, "objective": json.dumps(present["objective"])}
        spelled = {_inside(name, present): text for name, text in assignments.items()}
        return configuration.changed(self, spelled, AXES)

    def levelled(self, name: str) -> Augmentation:
        """A level of AugReg, with a mirror only where this run has one, or nothing that says whether it may."""
        level = AUGREG[name]
        kept = [part for part in level.transforms if not isinstance(part, Flip)]
        flips = [part for part in self.augmentation.transforms if isinstance(part, Flip)]
        return replace(level, transforms=(*kept[:1], *flips, *kept[1:])) if self.augmentation.transforms else level

    def rated(self, rate: float) -> Run:
        """With another learning rate."""
        return self.changed({"optimizer.lr": repr(rate)})

    def spelled(self, name: str) -> str:
        """The full key of what a user names: `optimizer.lr` is the rate of the innermost optimizer, whatever wraps it."""
        parts = {"objective": self.objective, "optimizer": self.optimizer}
        return _inside(name, {axis: configuration.encode(part, AXES) for axis, part in parts.items()})


WRAPPED = ("objective", "labels", "optimizer")  # what is inside of one that wraps another one


def _inside(name: str, present: Mapping[str, Any]) -> str:
    """The full key of what a user names: a part that the outermost lacks is a part of what it wraps."""
    axis, _, part = name.partition(".")
    key, place = axis, present.get(axis)
    while part and isinstance(place, dict) and (kind := {**OBJECTIVES, **OPTIMIZERS}.get(place.get("type", ""))):
        names = {each.name for each in fields(kind)}  # type: ignore[arg-type]  # dataclasses, all of them
        if part.split(".")[0] in names:
            return f"{key}.{part}"
        inner = next((each for each in WRAPPED if each in names), "")
        key, place = f"{key}.{inner}", place.get(inner)
    return name


def _around(kind: str, present: Any) -> dict[str, Any]:
    """An objective by its name, as JSON: one that wraps another one wraps the present one, loss and smoothing included."""
    names = {place.name for place in fields(OBJECTIVES[kind])}  # type: ignore[arg-type]  # dataclasses, all of them
    if "objective" in names:
        return {"type": kind, "objective": present}
    if "labels" not in names:
        return {"type": kind}
    while inner := next((present[name] for name in WRAPPED if name in present), None):
        present = inner
    return {"type": kind, "labels": present}


def _nested(objective: Objective) -> list[Objective]:
    """An objective, the one that it wraps, and so on."""
    inner = getattr(objective, "objective", None)
    return [objective, *(_nested(inner) if isinstance(inner, Objective) else ())]
