"""Whether a run fits into memory and disk, and what would where it does not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vitrail.errors import OutOfMemory
from vitrail.memory import Usage, available_bytes, give_back, resident_bytes
from vitrail.model.sizes import cost, smaller
from vitrail.recipes.run import Run
from vitrail.training.gradient import is_shortage

# Share of the float32 activations that bfloat16 keeps: half of the products, not of norms and losses.
HALVED = 0.65
BYTES = 16  # a parameter's weight, gradient and two buffers
STATES = 4  # on the disk at once: the newest two, the best, and the one that is being written


@dataclass(frozen=True)
class Room:
    """Bytes that may be taken; None where the system does not tell, or there is no accelerator."""

    memory: int | None = None
    device: int | None = None
    disk: int | None = None

    @classmethod
    def here(cls, device: str, folder: Path) -> Room:
        """What this computer has free now, for a run in `folder`."""
        place = folder.absolute()
        while not place.exists():
            place = place.parent
        free = torch.cuda.mem_get_info()[0] if device == "cuda" else None
        return cls(available_bytes(), free, shutil.disk_usage(place).free)


@dataclass(frozen=True)
class Needs:
    """What a run takes. `memory` is the growth of the resident size; `activations` the part that a batch's images take."""

    seconds: float
    memory: int
    activations: int
    disk: int
    device: int | None = None

    def fit(self, room: Room) -> bool:
        pairs = ((self.memory, room.memory), (self.device, room.device), (self.disk, room.disk))
        return all(need is None or most is None or need <= most for need, most in pairs)


@dataclass(frozen=True)
class Choice:
    """Another command and what it would take: counted from what was measured of the first."""

    flag: str
    needs: Needs
    fits: bool


def choices(run: Run, needs: Needs, room: Room) -> list[Choice]:
    """For each thing that can be made smaller the mildest change that fits, or the furthest one where none does."""
    found = []
    for variants in (_parts, _halved, _images, _models):
        last = None
        for flag, variant in variants(run):
            changed = _changed(run, needs, variant)
            last = Choice(flag, changed, changed.fit(room))
            if last.fits:
                break
        if last is not None:
            found.append(last)
    return found


def counted(run: Run) -> int:
    """Bytes that training takes, from the configuration alone."""
    found = cost(run.model)
    halved = HALVED if run.training.precision == "bfloat16" else 1
    return BYTES * found.parameters + round(found.activation_bytes * halved * in_memory(run))


def in_memory(run: Run) -> int:
    """Images whose activations are in memory at the same time."""
    return min(run.training.micro_batch or run.training.batch_size, run.training.batch_size)


@dataclass
class Stage:
    """What a run is doing, for the message if memory runs out."""

    what: str

    def begin(self, what: str) -> None:
        """The next stage, in the memory that the one before it freed."""
        self.what = what
        give_back()


@contextmanager
def shortage_explained(run: Run, usage: Usage) -> Iterator[Stage]:
    """Turns memory that ran out, of the computer or of the accelerator, into an error that names a flag that fits.

    Raises:
        OutOfMemory: VT082.
    """
    stage = Stage("at the beginning")
    try:
        yield stage
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        raise _explanation(run, usage, stage.what, error) from error


def _explanation(run: Run, usage: Usage, what: str, error: BaseException) -> OutOfMemory:
    free = available_bytes()
    if free is not None:
        free += max(0, resident_bytes() - usage.resident)  # what this run itself has taken
    part, needed = in_memory(run), counted(run)
    fitting = [choice.flag for choice in choices(run, Needs(0, needed, needed, 0), Room(free)) if choice.fits]
    flag = fitting[0] if fitting else "a smaller --model or --image-size"
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return OutOfMemory(
        "VT082", f"memory ran out {what}, with {part} images at a time: {reason}",
        f"about {needed / 2**30:.1f} GiB for the training alone, by count"
        + ("" if free is None else f"; {free / 2**30:.1f} GiB were free"),
        f"start over with less: --overwrite {flag}; --plan shows all that fits. "
        "Where other programs took the memory, the same command goes on",
    )  # fmt: skip


def _changed(run: Run, needs: Needs, variant: Run) -> Needs:
    old, new = cost(run.model), cost(variant.model)
    state = BYTES * (new.parameters - old.parameters)
    halved = HALVED if variant.training.precision != run.training.precision else 1
    share = new.activation_bytes * halved * in_memory(variant) / (old.activation_bytes * in_memory(run))
    grown = state + round(needs.activations * (share - 1))
    return Needs(
        needs.seconds * new.flops / old.flops,
        needs.memory + grown,
        round(needs.activations * share),
        round(needs.disk * new.parameters / old.parameters),
        None if needs.device is None else needs.device + grown,
    )


Variants = Iterator[tuple[str, Run]]


def smaller_ways(run: Run) -> Variants:
    """Smaller images and smaller models, the mildest change first."""
    yield from _images(run)
    yield from _models(run)


def _parts(run: Run) -> Variants:
    size = in_memory(run)
    while size > 1:
        size //= 2
        yield f"--set training.micro_batch={size}", replace(run, training=replace(run.training, micro_batch=size))


def _halved(run: Run) -> Variants:
    if run.training.precision == "float32":
        yield "--set training.precision=bfloat16", replace(run, training=replace(run.training, precision="bfloat16"))


def _images(run: Run) -> Variants:
    (down, across), (height, width) = run.model.stride, run.model.image_size
    rows, cols = height // down, width // across
    for share in (0.75, 0.5, 0.25):
        size = max(1, round(rows * share)) * down, max(1, round(cols * share)) * across
        if size[0] > height or size[1] > width:  # a ResNet may read images smaller than its stride
            return
        text = f"{size[0]}" if size[0] == size[1] else f"{size[0]}x{size[1]}"
        model = replace(run.model, image_size=size)  # type: ignore[type-var]  # every configuration is a dataclass
        preprocessing = replace(run.preprocessing, image_size=size)
        yield f"--image-size {text}", replace(run, model=model, preprocessing=preprocessing)


def _models(run: Run) -> Variants:
    """Smaller ones of the table; not where weights decide."""
    for name, model in smaller(run.model) if run.weights is None else ():
        yield f"--model {name}", replace(run, model=model)
