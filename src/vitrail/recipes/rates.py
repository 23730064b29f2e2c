"""The learning-rate range test (Smith 2015, arXiv 1506.01186): the loop's own steps while the rate grows. Nothing is written."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitrail.configuration import flat
from vitrail.cores import reading_threads
from vitrail.data.batches import Pictures, readable
from vitrail.errors import VitrailError
from vitrail.memory import Usage
from vitrail.recipes.asked import Asked, plan_run
from vitrail.recipes.assembly import Machine, trainer_of
from vitrail.recipes.run import Run
from vitrail.training.loop import Trainer
from vitrail.training.optimizer import LayerDecay
from vitrail.training.schedule import Constant

BELOW, ABOVE = 1e-3, 1e2  # the recipe's own rate times these
FEWEST, MOST = 30, 100  # steps
SECONDS, PATIENCE = 45.0, 180.0  # that all steps should take; after which no other step begins
SMOOTHING = 0.8
FALL = 0.03  # of the first loss: less is no movement
RISE = 1.5  # times the lowest loss: more is no noise
RESERVE = 3.0  # so far below the rate of the lowest loss: it will be held for thousands of steps (docs/log.md)


@dataclass(frozen=True)
class Point:
    """A step: its rate, the loss before its update, and the running mean of the losses so far."""

    rate: float
    loss: float
    mean: float


@dataclass(frozen=True)
class Curve:
    """Losses over growing rates.

    Attributes:
        moves_from: the smallest rate from which the loss has fallen; None where it never does.
        diverges_from: the rate at which the loss rises beyond doubt, or is no number; None where it never does.
        suggestion: a third of the rate at which the loss is lowest; None where the loss never falls.
    """

    points: tuple[Point, ...]
    moves_from: float | None
    diverges_from: float | None
    suggestion: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def rate_curve(data: str, asked: Asked, machine: Machine) -> tuple[Run, Curve]:
    """The run that the arguments mean (those of `execute.train`), and the curve of some of its training images."""
    source, run = plan_run(data, asked)
    torch.set_num_threads(machine.threads)
    train = source.split("train")
    wanted = min(len(train), MOST * run.training.batch_size)
    chosen = train.subset(np.unique(np.linspace(0, len(train) - 1, wanted).astype(np.int64)))
    checked = Pictures(chosen, run.preprocessing).check(reading_threads())
    pictures = readable({"train": checked}, run.data.max_bad_share)
    with tempfile.TemporaryDirectory() as nowhere:  # the loop's step writes nothing; its folder has a name all the same
        pictures = {**pictures, "val": pictures["train"]}  # nothing is evaluated
        trainer = trainer_of(run, source, pictures, machine, Path(nowhere), True, Usage())
        model = _learning(trainer)
        own = rate_of(run)

        def groups(rate: float) -> list[dict[str, Any]]:
            built = grown(run, rate / own).optimizer.build(model)
            return [group for optimizer in built for group in optimizer.param_groups]

        return run, sweep(trainer, own * BELOW, own * ABOVE, groups)


def rate_of(run: Run) -> float:
    """What `--lr` sets, for the head and the last block."""
    optimizer: Any = run.optimizer
    while isinstance(optimizer, LayerDecay):
        optimizer = optimizer.optimizer
    return float(optimizer.lr)


def grown(run: Run, factor: float) -> Run:
    """With all rates times `factor`: of Muon also the one by which AdamW moves the rest, which would learn in its stead."""
    rates = {"optimizer.lr": rate_of(run), **other_rate(run)}
    return run.changed({key: repr(rate * factor) for key, rate in rates.items()})


def other_rate(run: Run) -> dict[str, float]:
    """Muon's rate for what AdamW moves, by its key; nothing of other optimizers."""
    key = run.spelled("optimizer.adam_lr")
    return {name: rate for name, rate in flat(run.to_json()).items() if name == key}


def _learning(trainer: Trainer) -> Any:
    """The model that learns, inside whatever wraps the objective."""
    objective: Any = trainer.parts.objective
    while hasattr(objective, "objective"):
        objective = objective.objective
    return objective.backbone


def sweep(trainer: Trainer, low: float, high: float, groups: Callable[[float], Sequence[dict[str, Any]]]) -> Curve:
    """Steps of a trainer whose rate grows from `low` to `high`, by the same factor each time, until the loss diverges.

    Args:
        groups: a rate to the parameter groups of optimizers that have it; all but their parameters is taken over.
    """
    trainer.parts.schedule = Constant(0.0)
    begun = time.perf_counter()
    points: list[Point] = []
    mean = weight = 0.0
    lowest, diverges, count = math.inf, None, FEWEST
    mine = [group for optimizer in trainer.parts.optimizers for group in optimizer.param_groups]
    while len(points) < count and time.perf_counter() - begun < PATIENCE:
        # The first two are alike: one loads, one is timed.
        rate = low * (high / low) ** (max(0, len(points) - 1) / (count - 2))
        for group, wanted in zip(mine, groups(rate), strict=True):
            group.update({name: value for name, value in wanted.items() if name != "params"})
        start = time.perf_counter()
        try:
            loss = trainer.advance(trainer.parts.batches[trainer.step])["train/loss"]
        except VitrailError as error:
            if error.code != "VT080":
                raise
            diverges = rate
            break
        if len(points) == 1:
            count = min(MOST, max(FEWEST, int(SECONDS / max(1e-9, time.perf_counter() - start))))
        mean, weight = SMOOTHING * mean + (1 - SMOOTHING) * loss, SMOOTHING * weight + 1 - SMOOTHING
        points.append(Point(rate, loss, mean / weight))
        lowest = min(lowest, points[-1].mean)
        if points[-1].mean > RISE * lowest and loss > RISE * lowest:
            diverges = rate
            break
    return judged(points, diverges)


def judged(points: Sequence[Point], diverges: float | None) -> Curve:
    """What a sweep says."""
    if not points:
        return Curve((), None, diverges, None)
    first = points[0].mean
    fallen = [point.rate for point in points if point.mean < (1 - FALL) * first]
    best = min(points, key=lambda point: point.mean)
    suggestion = float(f"{best.rate / RESERVE:.2g}") if fallen else None
    return Curve(tuple(points), fallen[0] if fallen else None, diverges, suggestion)
