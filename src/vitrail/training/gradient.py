"""The gradient of a step, in portions of the batch: smaller ones from the step on at which memory ran out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vitrail.data.batches import Batch
from vitrail.errors import VitrailError
from vitrail.files import read_json, write_json
from vitrail.objectives.objective import ObjectiveModule

FILE = "portions.json"
_SHORT = ("not enough memory", "can't allocate memory", "Cannot allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_shortage(error: BaseException) -> bool:
    """Whether memory ran out: PyTorch has a class of its own for the accelerator's only; else it says so in words."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in str(error) for words in _SHORT)


@dataclass
class Sums:
    """Of a whole batch: the mean loss, means of the metrics, and margins in the order of the batch."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    margins: list[Tensor] = field(default_factory=list)


def accumulated(objective: ObjectiveModule, batch: Batch, size: int, autocast: torch.autocast) -> Sums:
    """Adds the gradient of the batch's mean loss to that of the weights, `size` images at a time."""
    weight = batch.weights.sum().clamp(min=1)
    sums = Sums(torch.zeros((), device=batch.weights.device))
    for start in range(0, len(batch.ids), size):
        with autocast:
            result = objective(batch.part(start, start + size))
        (result.loss / weight).backward()
        sums.loss += result.loss.detach() / weight
        for name, value in result.metrics.items():
            sums.metrics[name] = sums.metrics.get(name, 0) + value / weight
        sums.margins += [] if result.margins is None else [result.margins]
    return sums


@dataclass
class Portions:
    """How many images of a step are computed at a time.

    Attributes:
        first: as the run was planned; None for the whole batch.
        halved: (step, images) of every time that memory ran out: it holds from this step on.
    """

    first: int | None
    halved: list[tuple[int, int]] = field(default_factory=list)

    def at(self, step: int, count: int) -> int:
        """For a batch of `count` images."""
        sizes = [size for since, size in self.halved if since <= step]
        return min(count, *sizes, self.first or count)

    def gradient(
        self, objective: ObjectiveModule, batch: Batch, step: int, seed: int, autocast: torch.autocast
    ) -> Sums:
        """The gradient of a step; where memory runs out, of the same step from its beginning, half as many at a time.

        Raises:
            MemoryError, RuntimeError: memory does not suffice for one image.
        """
        while True:
            torch.manual_seed(seed)
            size = self.at(step, len(batch.ids))
            try:
                return accumulated(objective, batch, size, autocast)
            except (MemoryError, RuntimeError) as error:
                if size == 1 or not is_shortage(error):
                    raise
            # Not before the error is gone: with its traceback it holds all that the step had in memory.
            objective.zero_grad(set_to_none=True)
            if batch.weights.is_cuda:
                torch.cuda.empty_cache()
            self.halved.append((step, size // 2))

    def write(self, folder: Path) -> None:
        """At once: a run that is killed and goes on divides the same steps in the same way."""
        write_json(folder / FILE, {"halved": [list(pair) for pair in self.halved]})

    def read(self, folder: Path) -> None:
        """What an earlier part of the run wrote.

        Raises:
            VitrailError: VT089, the file says something else.
        """
        if not (folder / FILE).exists():
            return
        found = read_json(folder / FILE)
        pairs = found.get("halved") if isinstance(found, dict) else None
        good = isinstance(pairs, list) and all(
            isinstance(pair, list) and len(pair) == 2 and all(type(value) is int for value in pair) and pair[1] > 0
            for pair in pairs
        )
        if not good or pairs is None:
            raise VitrailError(
                "VT089", f"{folder / FILE} is damaged: it does not say how the batches of this run were divided",
                "steps and numbers of images", "--overwrite starts over; without the file the run goes on, not bit for bit",
            )  # fmt: skip
        self.halved = [(step, size) for step, size in pairs]
