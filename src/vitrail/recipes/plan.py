"""What a run would be and cost, before anything costs time: counted, and tried on some pictures; nothing is written."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vitrail.data.batches import Pictures
from vitrail.data.sources import Source, most_common
from vitrail.evaluation.baselines import Baseline, majority
from vitrail.memory import Usage
from vitrail.model.sizes import cost
from vitrail.recipes.asked import Asked, plan_run
from vitrail.recipes.assembly import Machine
from vitrail.recipes.beginning import default_folder, settled, threads_of
from vitrail.recipes.fitting import limited, portioned
from vitrail.recipes.judge import read_result
from vitrail.recipes.rehearsal import Rehearsal, measured
from vitrail.recipes.room import Choice, Needs, Room, choices, shortage_explained
from vitrail.recipes.run import Run
from vitrail.training.folder import refuse_foreign


@dataclass(frozen=True)
class Plan:
    """A run before it begins.

    Attributes:
        state: of the folder: "new", "started" (the same command goes on) or "done".
        rehearsal: what was tried.
        examination: what the data check found in the time there was: seen, of, problems.
        room: what the computer has free; `needs` what the run takes; `choices` what would fit where it does not.
    """

    source: Source
    run: Run
    folder: Path
    state: str
    rehearsal: Rehearsal
    examination: dict[str, Any]
    room: Room
    needs: Needs
    choices: tuple[Choice, ...]

    @property
    def fits(self) -> bool:
        return self.needs.fit(self.room)

    @property
    def status(self) -> int:
        """The exit status that the run would end with."""
        if self.fits:
            return 0
        return 4 if not replace(self.needs, disk=0).fit(self.room) else 1

    def to_json(self) -> dict[str, Any]:
        source, run, tried, counted = self.source, self.run, self.rehearsal, cost(self.run.model)
        index, count = most_common(source.split("train"))
        baselines = (
            majority(*(Pictures(source.split(s), run.preprocessing) for s in ("train", "test"))),
            tried.neighbours,
        )
        return {
            "data": source.name,
            "classes": len(source.classes),
            "images": {name: len(split) for name, split in source.splits.items()},
            "origin": dict(source.origin),
            "examination": self.examination,
            "majority": {"class": source.classes[index], "share": count / len(source.split("train"))},
            "recipe": run.recipe,
            "why": list(run.why),
            "parameters": counted.parameters,
            "tokens": counted.tokens,
            "flops_per_image": counted.flops,
            "activation_bytes": counted.activation_bytes * (run.training.micro_batch or run.training.batch_size),
            "machine": {"device": tried.machine.torch_device, "threads": tried.machine.threads,
                        "workers": tried.machine.workers, "making_share": tried.making},
            "steps": tried.steps,
            "seconds_per_step": tried.step_seconds,
            "training_seconds": tried.steps * tried.step_seconds,
            "seconds": self.needs.seconds,
            "memory_bytes": self.needs.memory,
            "resident_bytes": tried.usage.resident + self.needs.memory,
            "device_bytes": self.needs.device,
            "disk_bytes": self.needs.disk,
            "available": asdict(self.room),
            "fits": self.fits,
            "alternatives": [
                {"flag": c.flag, "fits": c.fits, "seconds": c.needs.seconds, "memory_bytes": c.needs.memory,
                 "device_bytes": c.needs.device, "disk_bytes": c.needs.disk} for c in self.choices
            ],
            "parts": [asdict(part) for part in tried.parts],
            "tried": {
                "pictures": tried.pictures_read, "steps": tried.steps_tried, "images_per_step": tried.probe.training.batch_size,
                "layers": tried.probe.model.num_layers,
            },
            "model": run.model.words,
            "layers": run.model.num_layers,
            "baselines": [_baseline(baseline) for baseline in baselines],
            "out": str(self.folder),
            "state": self.state,
            "run": run.to_json(),
        }  # fmt: skip


def plan(
    data: str,
    out: Path | None = None,
    asked: Asked = Asked(),
    machine: Machine | None = None,
    overwrite: bool = False,
    room: Room | None = None,
) -> Plan:
    """Looks, counts and tries; the arguments are those of `execute.train`.

    Args:
        room: what may be taken; by default what this computer has free.

    Raises:
        VitrailError: all that `train` refuses before it begins.
    """
    machine = machine or Machine()
    usage = Usage.begin()
    with measured(usage) as opening:
        source, run = plan_run(data, asked)
    folder = out if out is not None else default_folder(source, run, asked)
    refuse_foreign(folder)
    run = run if overwrite else settled(folder, run, asked)
    started = not overwrite and threads_of(folder, source, run) is not None
    state = "new" if not started else "started" if read_result(folder) is None else "done"
    room = room or Room.here(machine.torch_device, folder)
    with shortage_explained(run, usage):
        if not started:
            run = portioned(run, asked, room)
        tried = Rehearsal(source, run, machine, folder, usage, opening, room.memory)
        if run.time_limit is not None and not started:
            run = limited(tried, usage.seconds - opening.seconds)
            tried.of(run)
    needs = Needs(tried.seconds, tried.memory_bytes, tried.activation_bytes, tried.disk_bytes, tried.device_bytes)
    return Plan(
        source, run, folder, state, tried, tried.examination.to_json(), room, needs,
        () if needs.fit(room) else tuple(choices(run, needs, room)),
    )  # fmt: skip


def _baseline(found: Baseline) -> dict[str, Any]:
    return {"name": found.name, "top1": found.top1, "interval": list(found.interval), "how": found.how}
