"""From a run to a run folder: open the data, check the folder, train, judge the best weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from vitrail import configuration
from vitrail.checkpoints.adapt import adapt
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.loading import read
from vitrail.checkpoints.native import write_files
from vitrail.data.batches import Pictures, StepBatches, readable
from vitrail.data.check import Examiner
from vitrail.data.sources import Source, open_source
from vitrail.data.tables import csv_text
from vitrail.deployment.classifier import Classifier
from vitrail.errors import UsageError, VitrailError, nearest
from vitrail.evaluation.accuracy import Accuracy
from vitrail.files import read_json
from vitrail.model.backbone import Backbone, build
from vitrail.model.families import FAMILIES
from vitrail.model.low_rank import merged
from vitrail.model.sizes import cost
from vitrail.recipes.catalogue import RECIPES, TRANSFERS
from vitrail.recipes.judge import Result, describe, judge, read_result
from vitrail.recipes.room import shortage_explained
from vitrail.recipes.run import Run
from vitrail.training.folder import holds_run, locked, refuse_foreign, remove_run, write_beginning
from vitrail.training.loop import Parts, Trainer
from vitrail.training.memory import Usage
from vitrail.training.progress import Progress
from vitrail.training.trackers import Tracker
from vitrail.training.tracking import Tracking

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Machine:
    """What may differ from one computer to the next. Only `threads` can change the last bits of a result on a CPU."""

    device: str = "auto"
    workers: int = 0
    threads: int = field(default_factory=lambda: torch.get_num_threads())
    trackers: tuple[type[Tracker], ...] = ()

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise UsageError("VT002", f"--device {self.device}", "auto, cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UsageError(
                "VT002", "--device cuda, but PyTorch finds no CUDA device", "auto or cpu", "vitrail doctor"
            )
        if self.workers < 0:
            raise UsageError("VT002", f"--workers {self.workers}", "0 or more processes")

    @property
    def torch_device(self) -> str:
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Asked:
    """What a command says of a run. Everything that is None is chosen by the recipe."""

    recipe: str | None = None
    model: str | None = None
    weights: str | None = None
    image_size: tuple[int, int] | None = None
    settings: Mapping[str, str] = field(default_factory=dict)


def plan_run(data: str, asked: Asked = Asked()) -> tuple[Source, Run]:
    """The source and the complete run that a command means; nothing is written."""
    source = open_source(data)
    recipes = RECIPES if asked.weights is None else TRANSFERS
    name = asked.recipe or next(iter(recipes))
    if name in TRANSFERS and asked.weights is None:
        raise UsageError(
            "VT005", f"the recipe {name} starts from weights", "--weights RUN, or a file of any known format"
        )
    if name not in recipes and name in RECIPES:
        raise UsageError(
            "VT005", f"the recipe {name} starts from random weights", f"with --weights: {', '.join(TRANSFERS)}"
        )
    if name not in recipes:
        raise UsageError("VT005", f"there is no recipe {name!r}", nearest(name, (*RECIPES, *TRANSFERS)))
    start = asked.model if asked.weights is None else asked.weights
    run = recipes[name](source, start, asked.image_size)
    run = run.changed(dict(asked.settings))
    if run.model.head.classes != len(source.classes):
        raise UsageError(
            "VT003", f"model.head.classes is {run.model.head.classes}, {data} has {len(source.classes)} classes",
            "leave it out: the data decide",
        )  # fmt: skip
    if run.data.split_seed != 0:
        source = open_source(data, run.data.split_seed)
    return source, run


def train(
    data: str,
    out: str | os.PathLike[str] | None = None,
    asked: Asked = Asked(),
    machine: Machine = Machine(),
    overwrite: bool = False,
    quiet: bool = False,
) -> Result:
    """Trains, or goes on, or says that it is done.

    Args:
        data: a folder, a CSV file or a built-in name.
        out: the run folder; by default runs/DATA-MODEL-DATE.
        overwrite: starts over where the folder holds another run.

    Raises:
        UsageError: VT021, the folder holds a run of another command; the message shows the difference.
        VitrailError: everything that can go wrong with data, disk and numbers.
    """
    usage = Usage.begin()
    source, run = plan_run(data, asked)
    folder = Path(out) if out is not None else default_folder(source, run)
    refuse_foreign(folder)
    if not overwrite and threads_of(folder, source, run) is not None and (done := read_result(folder)) is not None:
        return replace(done, already=True)  # nothing is written, not even a lock
    with locked(folder), shortage_explained(run, usage) as stage:
        threads = None if overwrite else threads_of(folder, source, run)
        torch.set_num_threads(threads or machine.threads)
        stage.begin("while the pictures were read")
        examiner = Examiner(source) if threads is None else None  # data.json is written once, when the run begins
        pictures = checked_pictures(source, run, examiner)
        trainer = trainer_of(run, source, pictures, machine, folder, quiet, usage)
        if overwrite:  # not before data and model have proved to be usable
            remove_run(folder)
        if examiner is not None:
            data_facts = _data_facts(source, pictures, examiner)
            write_beginning(folder, _config(run, asked, machine), data_facts, _split(source))
        _tell_skipped(pictures, trainer.progress, folder)
        stage.begin("in training")
        with Tracking(machine.trackers, folder, trainer.progress.note) as trainer.tracking:
            try:
                trainer.fit()
                stage.begin("while the result was judged")
                with trainer.progress.until_judged():
                    problems = read_json(folder / "data.json").get("examination", {}).get("problems", ())
                    result = judge(folder, source, pictures, trainer.margins.mean(), problems)
            except VitrailError:  # stopped or failed: what there is so far is told all the same
                with suppress(VitrailError):
                    describe(folder)
                raise
            trainer.tracking.summary = result.numbers
        describe(folder)
        trainer.progress.described()
        return result


def default_folder(source: Source, run: Run) -> Path:
    """runs/DATA-MODEL-DATE; an unfinished or finished run of the same configuration is found again on later days."""
    family = next(name for name, kind in FAMILIES.items() if isinstance(run.model, kind))
    shape = f"{family}{run.model.dim}x{run.model.num_layers}"
    stem = f"{Path(source.name).stem.replace(':', '-') or 'data'}-{shape}"
    for folder in sorted(Path("runs").glob(f"{stem}-????-??-??"), reverse=True):
        if holds_run(folder) and not _changes(folder, source, run):
            return folder
    return Path("runs") / f"{stem}-{date.today().isoformat()}"


def checked_pictures(source: Source, run: Run, examiner: Examiner | None = None) -> dict[str, Pictures]:
    """The splits with their unreadable pictures left out; refuses where there are too many.

    Args:
        examiner: is shown every picture as it is decoded, and may look at it again.
    """
    own = {name: split for name, split in source.splits.items() if name != "test" or split is not source.splits["val"]}
    checked = {
        name: Pictures(split, run.preprocessing).check(reading_threads(), examiner.watching(name) if examiner else None)
        for name, split in own.items()
    }
    good = readable(checked, run.data.max_bad_share)
    if examiner is not None:
        examiner.look = lambda split, index: checked[split][index]
    return {name: good[name if name in own else "val"] for name in source.splits}


def reading_threads() -> int:
    """How many pictures are decoded at the same time."""
    return min(4, os.cpu_count() or 1)


def initial_model(run: Run, source: Source) -> Backbone:
    """Random weights of the seed, or the checkpoint adapted to the task."""
    if run.weights is None:
        return build(run.model, run.training.seed)
    adapted = adapt(read(run.weights), source.classes, run.model.image_size)
    return replace(adapted, config=run.model).build()


def trainer_of(
    run: Run,
    source: Source,
    pictures: Mapping[str, Pictures],
    machine: Machine,
    folder: Path,
    quiet: bool,
    usage: Usage,
) -> Trainer:
    """Everything that trains; nothing is written before its `fit`."""
    device = machine.torch_device
    model = initial_model(run, source).to(device)
    run.tuning.prepare(model, run.training.seed)
    objective = run.objective.build(model, run.preprocessing, source.classes)
    run.thrift.prepare(model)
    judged = objective.backbone  # the model that learns, or its average
    predictor = Classifier(checkpoint_of(run, source, judged), device)
    predictor.__dict__["module"] = judged  # the very module, not a copy
    evaluator = Accuracy("val", pictures["val"])
    total = run.training.steps(len(pictures["train"].dataset))
    parts = Parts(
        objective=objective,
        optimizers=run.optimizer.build(model),
        schedule=run.schedule,
        batches=StepBatches(
            pictures["train"], run.augmentation.transforms, run.training.seed, run.training.batch_size, run.sampling
        ),
        evaluate=lambda: dict(evaluator.run(predictor)),
        write_model=lambda place: write_files(checkpoint_of(run, source, judged), place),
        mixing=run.augmentation.mixing,
        device=device,
        workers=machine.workers,
        max_bad_share=run.data.max_bad_share,
    )
    progress = Progress(folder, total, run.training.batch_size, len(pictures["train"].dataset), quiet, usage)
    return Trainer(parts, run.training, folder, progress)


def _tell_skipped(pictures: Mapping[str, Pictures], progress: Progress, folder: Path) -> None:
    lines = list(dict.fromkeys(line for split in pictures.values() for line in split.passed_over))
    if lines:
        progress.note(
            f"{len(lines)} pictures cannot be read and are skipped; {folder / 'data.json'} lists them, such as"
        )
    for line in lines[:3]:
        progress.note(f"  {line}")


def checkpoint_of(run: Run, source: Source, model: Backbone) -> Checkpoint:
    provenance = {"recipe": run.recipe, "data": source.name, "data fingerprint": source.fingerprint}
    return Checkpoint(run.model, merged(model), run.preprocessing, source.classes, source.multi_label, provenance)


def _config(run: Run, asked: Asked, machine: Machine) -> dict[str, Any]:
    """Every value, and where it comes from: the command line, or the recipe, whose reasons stand under "why"."""
    typed = [*map(run.spelled, asked.settings), "data.source"]
    typed += ["model.image_size", "preprocessing.image_size"] if asked.image_size else []
    typed += ["model"] if asked.model else ["weights"] if asked.weights else []
    names = [name for name in configuration.keys(run.to_json()) if name != "why"]
    by_hand = {name for name in names for key in typed if f"{name}.".startswith(f"{key}.")}
    counted = cost(run.model)
    return {
        "run": run.to_json(),
        "origin": {name: "command line" if name in by_hand else f"recipe {run.recipe}" for name in names},
        "why": list(run.why),
        "model": run.model.words,
        "attends": run.model.attends,
        "cost": {"parameters": counted.parameters, "flops_per_image": counted.flops, "tokens": counted.tokens},
        "machine": {"device": machine.torch_device, "workers": machine.workers, "threads": machine.threads},
    }


def _data_facts(source: Source, pictures: Mapping[str, Pictures], examiner: Examiner) -> dict[str, Any]:
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


def _split(source: Source) -> str:
    rows = []
    for name, dataset in source.splits.items():
        if name == "test" and dataset is source.splits["val"]:
            continue
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
