"""How a run folder begins: what was asked and of which data; and whether a folder holds this very run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

from vitrail import configuration
from vitrail.data.batches import Pictures
from vitrail.data.check import Examiner
from vitrail.data.sources import Source
from vitrail.data.tables import csv_text
from vitrail.errors import UsageError
from vitrail.files import read_json, write_json
from vitrail.model.families import FAMILIES
from vitrail.model.sizes import cost
from vitrail.recipes.asked import Asked
from vitrail.recipes.assembly import Machine
from vitrail.recipes.run import Run
from vitrail.training.folder import holds_run

HERE, BY_GRID = "chosen on this computer", "the best of the grid"  # origins of what was decided when a run began


def decided(run: Run, asked: Asked) -> dict[str, str]:
    """Keys that the first start of a run decides, and what decides them; what was typed is not among them."""
    names = ["training.micro_batch", "training.precision"]
    if run.time_limit is not None:
        schedule = [name for name in configuration.keys(run.to_json()) if name.startswith("schedule.")]
        names += ["training.epochs", *(name for name in schedule if name != "schedule.type")]
    found = {name: HERE for name in names if name not in asked.settings}
    return found | ({run.spelled("optimizer.lr"): BY_GRID} if run.grid else {})


def settled(folder: Path, run: Run, asked: Asked) -> Run:
    """The run with what was decided when it began in `folder`, so that it goes on as it began; elsewhere as it is."""
    if not holds_run(folder):
        return run
    config = read_json(folder / "config.json")
    values = configuration.flat(config["run"])
    taken = {
        key: json.dumps(values[key])
        for key, origin in config.get("origin", {}).items()
        if origin in (HERE, BY_GRID) and key in values and key not in asked.settings
    }
    for key, text in taken.items():
        with suppress(UsageError):  # a key that this run has not: the difference will be shown
            run = run.changed({key: text})
    return run


def write_rate(folder: Path, run: Run) -> None:
    """Puts the learning rate that the grid has chosen into config.json."""
    config = read_json(folder / "config.json")
    optimizer, grid = run.to_json()["optimizer"], run.grid
    if (config["run"]["optimizer"] == optimizer and any("tried" in line for line in config["why"])) or grid is None:
        return
    config["run"]["optimizer"] = optimizer
    rate = configuration.flat(run.to_json())[run.spelled("optimizer.lr")]
    config["why"].append(
        f"learning rate {rate:g}: the best of the {len(grid.rates)} that were tried on held-out images"
    )
    write_json(folder / "config.json", config)


def default_folder(source: Source, run: Run, asked: Asked | None = None) -> Path:
    """runs/DATA-MODEL-DATE; an unfinished or finished run of the same configuration is found again on later days."""
    family = next(name for name, kind in FAMILIES.items() if isinstance(run.model, kind))
    shape = f"{family}{run.model.dim}x{run.model.num_layers}"
    stem = f"{Path(source.name).stem.replace(':', '-') or 'data'}-{shape}"
    for folder in sorted(Path("runs").glob(f"{stem}-????-??-??"), reverse=True):
        if holds_run(folder) and not _changes(folder, source, settled(folder, run, asked or Asked())):
            return folder
    return Path("runs") / f"{stem}-{date.today().isoformat()}"


def config_facts(run: Run, asked: Asked, machine: Machine) -> dict[str, Any]:
    """Every value, and where it comes from: the command line, or the recipe, whose reasons stand under "why"."""
    typed = [*map(run.spelled, asked.settings), "data.source"]
    typed += ["model.image_size", "preprocessing.image_size"] if asked.image_size else []
    typed += ["grid", "data.everything"] if asked.rates else []
    typed += ["time_limit"] if asked.time_limit is not None else []
    typed += ["model"] if asked.model else ["weights"] if asked.weights else []
    names = [name for name in configuration.keys(run.to_json()) if name != "why"]
    by_hand = {name for name in names for key in typed if f"{name}.".startswith(f"{key}.")}
    counted = cost(run.model)
    return {
        "run": run.to_json(),
        "origin": {name: "command line" if name in by_hand else f"recipe {run.recipe}" for name in names}
        | decided(run, asked),
        "why": list(run.why),
        "model": run.model.words,
        "attends": run.model.attends,
        "cost": {"parameters": counted.parameters, "flops_per_image": counted.flops, "tokens": counted.tokens},
        "machine": {"device": machine.torch_device, "workers": machine.workers, "threads": machine.threads},
    }


def data_facts(source: Source, pictures: Mapping[str, Pictures], examiner: Examiner) -> dict[str, Any]:
    return {
        "source": source.name,
        "fingerprint": source.fingerprint,
        "classes": list(source.classes),
        "multi_label": source.multi_label,
        "counts": source.counts(),
        "origin": dict(source.origin),
        "bad_files": {name: split.passed_over for name, split in pictures.items() if split.passed_over},
        "examination": examiner.examination().to_json(),
    }


def split_table(source: Source) -> str:
    rows = []
    for name, dataset in source.own_splits.items():
        for identity, target in zip(dataset.ids, dataset.targets, strict=True):
            rows.append((identity, ";".join(source.classes[index] for index in target.nonzero()[0]), name))
    return csv_text(rows)


def _changes(folder: Path, source: Source, run: Run) -> list[tuple[str, Any, Any]]:
    """How this command differs from the one that made the folder, perhaps with an older version."""
    old, new = read_json(folder / "config.json")["run"], run.to_json()
    with suppress(UsageError):  # a key that is not known any more is a difference too, and shown as one
        old = Run.from_json(old).to_json()
    for value in (old, new):
        value.pop("why", None)
    found = configuration.differences(old, new)
    before = read_json(folder / "data.json")
    if before["fingerprint"] != source.fingerprint:
        now = {name: sum(counts.values()) for name, counts in source.counts().items()}
        then = {name: sum(counts.values()) for name, counts in before["counts"].items()}
        found.append(
            (
                "the images",
                then if then != now else before["fingerprint"][:12],
                now if then != now else source.fingerprint[:12],
            )
        )
    return found


def threads_of(folder: Path, source: Source, run: Run) -> int | None:
    """The number of threads of the run that is there; None where there is none."""
    if not holds_run(folder):
        return None
    if changes := _changes(folder, source, run):
        lines = "\n".join(f"  {key}: it was {old!r}, you asked {new!r}" for key, old, new in changes[:12])
        raise UsageError(
            "VT021", f"{folder} holds the run of another command\n{lines}", "the same command, which goes on or says it is done",
            "keep both: add --out runs/OTHER    start over: add --overwrite",
        )  # fmt: skip
    return int(read_json(folder / "config.json")["machine"]["threads"])
