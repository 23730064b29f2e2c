"""From a run to everything that trains: pictures that can be read, the model, the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from vitrail import configuration
from vitrail.checkpoints.adapt import adapt
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.loading import read
from vitrail.checkpoints.native import write_files
from vitrail.cores import reading_threads, threads
from vitrail.data.batches import Pictures, StepBatches, readable
from vitrail.data.check import Examiner
from vitrail.data.sources import Source
from vitrail.deployment.classifier import Classifier
from vitrail.errors import UsageError
from vitrail.evaluation.accuracy import Accuracy
from vitrail.evaluation.answers import Answers, OnAnswers
from vitrail.evaluation.frozen import Evaluations, Frozen
from vitrail.evaluation.own_pictures import Elsewhere, OwnPictures
from vitrail.memory import Usage
from vitrail.model.backbone import Backbone, build
from vitrail.model.low_rank import merged
from vitrail.recipes.run import Run
from vitrail.training.loop import Parts, Trainer
from vitrail.training.progress import Progress
from vitrail.training.trackers import Tracker

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Machine:
    """What may differ from one computer to the next. Only `threads` can change the last bits of a result on a CPU."""

    device: str = "auto"
    workers: int | None = None  # none: as many as the making of batches turns out to need
    threads: int = field(default_factory=lambda: threads(torch.get_num_threads()))
    trackers: tuple[type[Tracker], ...] = ()

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise UsageError("VT002", f"--device {self.device}", "auto, cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UsageError(
                "VT002", "--device cuda, but PyTorch finds no CUDA device", "auto or cpu", "vitrail doctor"
            )
        if self.workers is not None and self.workers < 0:
            raise UsageError("VT002", f"--workers {self.workers}", "0 or more processes")

    @property
    def torch_device(self) -> str:
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"


def checked_pictures(source: Source, run: Run, examiner: Examiner | None = None) -> dict[str, Pictures]:
    """The splits with their unreadable pictures left out; refuses where there are too many.

    Args:
        examiner: is shown every picture as it is decoded, and may look at it again.
    """
    own = source.own_splits
    checked = {
        name: Pictures(split, run.preprocessing).check(reading_threads(), examiner.watching(name) if examiner else None)
        for name, split in own.items()
    }
    good = readable(checked, run.data.max_bad_share)
    if examiner is not None:
        examiner.look = lambda split, index: checked[split][index]
    return {name: good[name if name in own else "val"] for name in source.splits}


def initial_model(run: Run, source: Source) -> Backbone:
    """Random weights of the seed, or the checkpoint adapted to the task."""
    if run.weights is None:
        return build(run.model, run.training.seed)
    checkpoint = read(run.weights)
    whole = checkpoint.config.head.adapted(len(source.classes), True) == run.model.head
    adapted = adapt(checkpoint, source.classes, run.model.image_size, whole, keep_classes=run.keep_classes)
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
    evaluators = _evaluators(run, source, pictures)
    total = run.training.steps(len(pictures["train"].dataset))
    parts = Parts(
        objective=objective,
        optimizers=run.optimizer.build(model),
        schedule=run.schedule,
        batches=StepBatches(
            pictures["train"], run.augmentation.transforms, run.training.seed, run.training.batch_size, run.sampling
        ),
        evaluate=lambda: {name: value for each in evaluators for name, value in each.run(predictor)},
        write_model=lambda place: write_files(checkpoint_of(run, source, judged), place),
        mixing=run.augmentation.mixing,
        growth=run.thrift.growth,
        device=device,
        workers=machine.workers,
        max_bad_share=run.data.max_bad_share,
        identity=identity_of(run, source),
    )
    progress = Progress(folder, total, run.training.batch_size, len(pictures["train"].dataset), quiet, usage)
    return Trainer(parts, run.training, folder, progress)


def _evaluators(
    run: Run, source: Source, pictures: Mapping[str, Pictures]
) -> list[Accuracy | Evaluations | Answers | Elsewhere]:
    """Accuracy first, which decides what the best model is; none where val has joined train."""
    if "val" not in pictures:
        return []
    found: list[Accuracy | Evaluations | Answers | Elsewhere] = [Accuracy("val", pictures["val"])]
    watched = run.watched
    if frozen := {name: protocol for name, protocol in watched.items() if isinstance(protocol, Frozen)}:
        found.append(Evaluations.of(frozen, pictures["train"], pictures["val"], source.classes))
    if answers := {name: protocol for name, protocol in watched.items() if isinstance(protocol, OnAnswers)}:
        found.append(Answers.of(answers, pictures["val"], source.classes, source.multi_label))
    if elsewhere := {name: protocol for name, protocol in watched.items() if isinstance(protocol, OwnPictures)}:
        found.append(Elsewhere.of(elsewhere, run.preprocessing, source.classes, run.data.max_bad_share))
    return found


def identity_of(run: Run, source: Source) -> dict[str, Any]:
    """What decides a run, by key, and the images; not what may change while it goes on, and no reasons."""
    values = configuration.flat(run.to_json()) | {"the images": source.fingerprint[:12]}
    return {key: value for key, value in values.items() if key not in ("why", "training.micro_batch", "evaluators")}


def checkpoint_of(run: Run, source: Source, model: Backbone) -> Checkpoint:
    provenance = {"recipe": run.recipe, "data": source.name, "data fingerprint": source.fingerprint}
    return Checkpoint(run.model, merged(model), run.preprocessing, source.classes, source.multi_label, provenance)
