"""The learning rate over a run, as a share of its base value (official utils.create_learning_rate_schedule)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from vitrail.configuration import require


class Schedule(ABC):
    """Axis: step and total number of steps to a factor on the base learning rate."""

    @abstractmethod
    def factor(self, step: int, total: int) -> float:
        """The factor for update number `step`, counted from 0."""


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

    def factor(self, step: int, total: int) -> float:
        rise, progress = _warmed(step, total, self.warmup)
        return rise * (self.end + (1 - self.end) * (1 - progress))


SCHEDULES: dict[str, type[Schedule]] = {"cosine": Cosine, "linear": Linear}
