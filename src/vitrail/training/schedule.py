"""The learning rate over a run, as a share of its base value (official utils.create_learning_rate_schedule)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any

from vitrail.configuration import require


class Schedule(ABC):
    """Axis: step and total number of steps to a factor on the base learning rate."""

    @abstractmethod
    def factor(self, step: int, total: int) -> float:
        """The factor for update number `step`, counted from 0."""

    def scaled(self, share: float) -> Schedule:
        """For a run of `share` of the steps: what is a number of steps shrinks too, what is a share stays one."""
        changed: dict[str, Any] = {}
        for place in fields(self):  # type: ignore[arg-type]  # every schedule is a dataclass
            value = getattr(self, place.name)
            if place.name in ("warmup", "timescale", "cooldown") and value >= 1:
                changed[place.name] = max(1.0, float(round(value * share)))
            if place.name == "milestones":
                changed[place.name] = tuple(max(1.0, float(round(m * share))) if m >= 1 else m for m in value)
        return replace(self, **changed)  # type: ignore[type-var]


def _check_warmup(warmup: float) -> None:
    require(0 <= warmup < math.inf, "schedule.warmup", warmup, "a share of the run below 1, or a number of steps")


def _warmed(step: int, total: int, warmup: float) -> tuple[float, float]:
    """(factor of the warm-up, progress of the decay after it). Below 1, `warmup` is a share of the run."""
    steps = warmup * total if warmup < 1 else warmup
    progress = min(1.0, max(0.0, (step - steps) / max(1.0, total - steps)))
    return (min(1.0, step / steps) if steps else 1.0), progress


@dataclass(frozen=True)
class Cosine(Schedule):
    """Linear warm-up from 0, then half a cosine to 0."""

    warmup: float = 0.05

    def __post_init__(self) -> None:
        _check_warmup(self.warmup)

    def factor(self, step: int, total: int) -> float:
        rise, progress = _warmed(step, total, self.warmup)
        return rise * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Linear(Schedule):
    """Linear warm-up from 0, then linear to `end`, as a share of the base rate."""

    warmup: float = 0.05
    end: float = 0.0

    def __post_init__(self) -> None:
        _check_warmup(self.warmup)
        require(0 <= self.end < math.inf, "schedule.end", self.end, "zero or a positive number, a share of the rate")

    def factor(self, step: int, total: int) -> float:
        rise, progress = _warmed(step, total, self.warmup)
        return rise * (self.end + (1 - self.end) * (1 - progress))


@dataclass(frozen=True)
class ReciprocalSquareRoot(Schedule):
    """Linear warm-up from 0, then 1 / sqrt(1 + steps since / timescale), and at the end linear to 0 (arXiv 2106.04560).

    big_vision's "rsqrt", whose warm-up and timescale are 10,000 steps each; ViT-G was cooled down over 50,000.

    Until the cooldown nothing depends on the length of the run, so that one long run can be cooled down at many places.

    Attributes:
        timescale, cooldown: like `warmup`, a share of the run below 1, else a number of steps.
    """

    warmup: float = 0.05
    timescale: float = 0.05
    cooldown: float = 0.2

    def __post_init__(self) -> None:
        _check_warmup(self.warmup)
        require(0 < self.timescale < math.inf, "schedule.timescale", self.timescale, "a share of the run, or steps")
        require(0 <= self.cooldown < math.inf, "schedule.cooldown", self.cooldown, "a share of the run, or steps")

    def factor(self, step: int, total: int) -> float:
        warmup, timescale, cooldown = (
            value * total if value < 1 else value for value in (self.warmup, self.timescale, self.cooldown)
        )
        rise = min(1.0, step / warmup) if warmup else 1.0
        fall = min(1.0, (total - step) / cooldown) if cooldown else 1.0
        return rise * fall / math.sqrt(1 + max(0.0, step - warmup) / timescale)


@dataclass(frozen=True)
class Stairs(Schedule):
    """Linear warm-up from 0, then constant between `milestones`, at each of which `drop` is multiplied (BiT).

    Attributes:
        milestones: shares of the run below 1, or numbers of steps. A step at a milestone is still before it.
    """

    warmup: float = 0.05
    milestones: tuple[float, ...] = (0.3, 0.6, 0.9)
    drop: float = 0.1

    def __post_init__(self) -> None:
        _check_warmup(self.warmup)
        require(
            all(0 < m < math.inf for m in self.milestones), "schedule.milestones", self.milestones, "positive numbers"
        )
        require(0 <= self.drop <= 1, "schedule.drop", self.drop, "0 to 1")

    def factor(self, step: int, total: int) -> float:
        rise, _ = _warmed(step, total, self.warmup)
        passed = sum(step > (place * total if place < 1 else place) for place in self.milestones)
        return rise * self.drop**passed


@dataclass(frozen=True)
class Constant(Schedule):
    """Linear warm-up from 0, then the base rate to the end."""

    warmup: float = 0.05

    def __post_init__(self) -> None:
        _check_warmup(self.warmup)

    def factor(self, step: int, total: int) -> float:
        return _warmed(step, total, self.warmup)[0]


SCHEDULES: dict[str, type[Schedule]] = {
    "cosine": Cosine, "linear": Linear, "reciprocal-square-root": ReciprocalSquareRoot, "stairs": Stairs,
    "constant": Constant,
}  # fmt: skip
