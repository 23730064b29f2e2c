"""A run in small and in memory: its own functions on some of its pictures, timed and weighed. Nothing is written."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitrail.data.batches import Pictures, StepBatches, evaluation_size
from vitrail.data.sources import Source
from vitrail.evaluation.accuracy import outcome
from vitrail.evaluation.baselines import Baseline, nearest_pixels, pixels
from vitrail.model.sizes import cost
from vitrail.recipes.execute import Machine, checked_pictures, classifier_of, trainer_of
from vitrail.recipes.judge import TRAIN_SAMPLE, rehearsed_pages
from vitrail.recipes.run import Run
from vitrail.training.loop import SAVE_SECONDS, Trainer
from vitrail.training.memory import Usage, peak_bytes, reset_peak, resident_bytes

READING_SECONDS = 1.5
STEP_SECONDS = 1.2  # a step that takes longer is tried with fewer layers, and then fewer images
STEPS_SECONDS = 1.0
NEIGHBOUR_PRODUCTS = 3e10
WRITING = 200e6  # bytes a second, hash and flush included


@dataclass
class Reading:
    """What a part took: seconds, and growth of the resident size at its peak and at its end, since the beginning."""

    seconds: float = 0.0
    peak: int = 0
    after: int = 0


@dataclass(frozen=True)
class Part:
    """A part of the run to come: its seconds in all, and the growth of the resident size at its peak."""

    name: str
    seconds: float
    memory_bytes: int


@dataclass
class Rehearsal:
    """What was tried.

    Attributes:
        probe: the run that was tried: the run itself, or one with fewer layers or images where its steps are long.
        pictures: how many pictures were read.
        neighbours: the baseline on a sample.
        step_seconds: of the whole run's steps.
        device_bytes: the accelerator's memory of the whole run; None without one.
    """

    probe: Run
    pictures: int
    neighbours: Baseline | None = None
    step_seconds: float = 0.0
    steps_tried: int = 0
    device_bytes: int | None = None
    parts: list[Part] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)

    @property
    def memory_bytes(self) -> int:
        return max(part.memory_bytes for part in self.parts)


@contextmanager
def measured(usage: Usage) -> Iterator[Reading]:
    reset_peak()
    reading, start = Reading(), time.perf_counter()
    yield reading
    reading.seconds = time.perf_counter() - start
    reading.peak, reading.after = peak_bytes() - usage.resident, resident_bytes() - usage.resident
