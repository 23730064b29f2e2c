"""What this computer decides when a run begins: parts of the batch that fit into memory, epochs that fit into the time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitrail.data.sources import Source
from vitrail.errors import UsageError
from vitrail.memory import Usage
from vitrail.model.sizes import cost
from vitrail.objectives.sharpness import SharpnessAware
from vitrail.recipes.asked import Asked
from vitrail.recipes.assembly import Machine
from vitrail.recipes.rehearsal import Reading, Rehearsal
from vitrail.recipes.room import Room, counted, in_memory, smaller_ways
from vitrail.recipes.run import Run
from vitrail.statistics import duration

OF_MEMORY = 0.7  # share of what is free that the training may take, by count
OF_TIME = 0.85  # share of the limit that is planned: runs took up to 1.15 of what was foretold (docs/measurements.md)


def fitted(source: Source, run: Run, asked: Asked, machine: Machine, folder: Path, usage: Usage) -> Run:
    """The run as it begins here. When it goes on, what was decided then holds (`beginning.settled`).

    Raises:
        UsageError: VT008, the time limit is too short for one epoch; the message says what would fit.
    """
    room = Room.here(machine.torch_device, folder)
    run = portioned(run, asked, room)
    if run.time_limit is None:
        return run
    opening = Reading(usage.seconds)
    tried = Rehearsal(source, run, machine, folder, usage, opening, room.memory)
    return limited(tried, usage.seconds - opening.seconds)


def portioned(run: Run, asked: Asked, room: Room) -> Run:
    """With a part of the batch whose activations fit, by count; as it is where it was typed, or nothing would fit.

    On an accelerator the part is the largest that fits, since small ones leave it idle. On a processor it only shrinks.
    """
    free = room.device if room.device is not None else room.memory
    if "training.micro_batch" in asked.settings or free is None:
        return run
    own = isinstance(run.objective, SharpnessAware)  # where the size of a part is a part of what is computed
    size = run.training.batch_size if room.device is not None and not own else in_memory(run)
    while size >= 1:
        part = size if size < run.training.batch_size else None
        found = replace(run, training=replace(run.training, micro_batch=part))
        if counted(found) <= OF_MEMORY * free:
            return run if in_memory(found) == in_memory(run) else found
        size //= 2
    return run


def limited(tried: Rehearsal, spent: float = 0.0) -> Run:
    """The run with as many epochs as end in its time limit, and no more than it had; its schedule shrinks with it.

    Args:
        tried: the measured run.
        spent: seconds that measuring took.

    Raises:
        UsageError: VT008.
    """
    run, steps = tried.run, tried.steps
    assert run.time_limit is not None
    trials = 1 + (len(run.grid.rates) * run.grid.share if run.grid else 0)
    fixed = spent + tried.seconds - trials * steps * tried.step_seconds
    left = OF_TIME * run.time_limit - fixed
    fit = int(left / (trials * tried.step_seconds))
    if fit >= steps:
        return _because(run, f"{run.training.epochs:g} epochs end within {duration(run.time_limit)}, by measurement")
    count, batch = len(tried.source.split("train")), run.training.batch_size
    fewest = min(steps, math.ceil(count / batch))
    if fit < fewest:
        raise _too_short(tried, fixed, trials * fewest * tried.step_seconds)
    epochs = math.floor((fit - 0.5) * batch / count * 100) / 100 or (fit - 0.5) * batch / count
    training = replace(run.training, epochs=epochs)
    shorter = replace(run, training=training, schedule=run.schedule.scaled(training.steps(count) / steps))
    planned = fixed + trials * training.steps(count) * tried.step_seconds
    return _because(
        shorter, f"{epochs:g} of {run.training.epochs:g} epochs, so that all ends within {duration(run.time_limit)}: "
        f"by measurement after {duration(planned)}",
    )  # fmt: skip


def _because(run: Run, reason: str) -> Run:
    return replace(run, why=(*run.why, reason))


def _too_short(tried: Rehearsal, fixed: float, epoch: float) -> UsageError:
    run: Any = tried.run
    need = (fixed + epoch) / OF_TIME
    fitting = [
        flag for flag, variant in _milder(run)
        if (fixed + epoch * cost(variant.model).flops / cost(run.model).flops) / OF_TIME <= run.time_limit
    ]  # fmt: skip
    others = (
        f"; or {' or '.join(fitting[:2])}"
        if fitting
        else "; fewer pictures, or --model and --image-size, make it shorter"
    )
    return UsageError(
        "VT008", f"{duration(run.time_limit)} is too short: one epoch takes about {duration(epoch)}"
        + (f" with its {len(run.grid.rates)} trials" if run.grid else "") + f", all else {duration(fixed)}",
        "time for one epoch at least, and a seventh in reserve", f"--time-limit {math.ceil(need / 60)}m{others}",
    )  # fmt: skip


def _milder(run: Run) -> Iterator[tuple[str, Run]]:
    if run.grid:
        yield "one --lr", replace(run, grid=None)
    yield from smaller_ways(run)
