"""The protocol vtab: every task of VTAB-1k that lies in a folder, each tuned on 800 + 200 images and learnt from 1,000."""

from __future__ import annotations

import sys
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from vitrail.commands.request import Protocol, Request
from vitrail.configuration import require
from vitrail.data.sources import Source, open_source
from vitrail.data.vtab import Task, tasks_in
from vitrail.errors import DataError, UsageError
from vitrail.evaluation.features import FeatureCache
from vitrail.evaluation.probes import LinearProbe, LogisticProbe, Probe
from vitrail.evaluation.vtab import summary
from vitrail.recipes.asked import Asked
from vitrail.recipes.execute import train
from vitrail.recipes.paper import epochs_of

EXAMPLES = 1000


@dataclass(frozen=True)
class Vtab:
    """What --set may change.

    Attributes:
        method: linear-probe and logistic-probe learn a classifier of frozen features, in minutes; fine-tuning is the paper's.
        rates: of fine-tuning; several are tried on the 800 and chosen by the 200. The paper has 0.01 for all tasks.
        steps, batch_size, size: of fine-tuning: 2,500 steps of 512 images of 384 px; size 0 keeps the model's own.
    """

    method: Literal["linear-probe", "logistic-probe", "fine-tuning"] = "linear-probe"
    rates: tuple[float, ...] = (0.01,)
    steps: int = 2500
    batch_size: int = 512
    size: int = 384

    def __post_init__(self) -> None:
        require(1 <= self.steps <= 1_000_000, "steps", self.steps, "1 to 1,000,000")
        require(1 <= self.batch_size <= 100_000, "batch_size", self.batch_size, "1 to 100,000")
        require(self.size == 0 or 1 <= self.size <= 4096, "size", self.size, "0, or pixels up to 4,096")
        require(0 < len(self.rates) <= 16, "rates", self.rates, "1 to 16 numbers")


class Method(ABC):
    """How a task is learnt; the choice is made on val200, then all thousand are learnt from."""

    @abstractmethod
    def measure(self, request: Request, task: Task) -> dict[str, Any]:
        """top1 of the test images, its interval, n, and what was chosen."""


@contextmanager
def kept_features(place: Path | None) -> Iterator[FeatureCache]:
    """A cache in OUT/eval/features, or one that goes with the task."""
    if place is not None:
        yield FeatureCache(place.parent / "features")
        return
    with TemporaryDirectory(prefix="vitrail-") as folder:
        yield FeatureCache(Path(folder))


@dataclass(frozen=True)
class OfFeatures(Method):
    """A linear classifier of frozen features."""

    probe: Probe

    def measure(self, request: Request, task: Task) -> dict[str, Any]:
        with kept_features(request.place) as cache:
            parts = (cache.of(request.classifier, request.pictures(split), request.source.classes, split)
                     for split in ("train", "val", "test"))  # fmt: skip
            found = self.probe.measure(*parts)
        return {key: found[key] for key in ("top1", "top1_interval", "n", "penalty")}


@dataclass(frozen=True)
class OfTraining(Method):
    """All weights, by the paper's recipe; the runs lie in OUT/eval/vtab/TASK, and the same command goes on."""

    settings: Vtab

    def measure(self, request: Request, task: Task) -> dict[str, Any]:
        if request.place is None:
            raise UsageError("VT002", "fine-tuning writes a run for every task", "--out FOLDER")
        settings = self.settings
        epochs, several = epochs_of(settings.steps, settings.batch_size, EXAMPLES), len(settings.rates) > 1
        one = {} if several else {"optimizer.lr": settings.rates[0]}
        asked = Asked(
            recipe="paper-fine-tuning", weights=str(request.model),
            image_size=(settings.size, settings.size) if settings.size else request.classifier.preprocessing.image_size,
            settings={"training.epochs": epochs, "training.batch_size": settings.batch_size, "data.everything": True, **one},
            rates=settings.rates if several else (),
        )  # fmt: skip
        found = train(str(task.folder), request.place / task.name, asked).summary
        return {"top1": found["top1"], "top1_interval": list(found["top1_interval"]), "n": found["n"]}


def run(request: Request) -> dict[str, Any]:
    """Every task in turn. All lists are read before the first is learnt."""
    if request.data is None:
        raise UsageError("VT002", "VTAB has images of its own", "--data FOLDER, with a folder for each task")
    root, settings = Path(request.data), request.settings
    if not root.is_dir():
        raise DataError("VT011", f"{root} is no folder", "a folder with a folder for each task of VTAB-1k")
    found, strange = tasks_in(root)
    if not found:
        raise DataError(
            "VT116", f"{root} has no task of VTAB-1k" + (f"; {', '.join(strange[:5])} are none by name" if strange else ""),
            "folders such as caltech101 with train800.txt, val200.txt and test.txt",
        )  # fmt: skip
    sources = {task.name: open_source(str(task.folder)) for task in found}
    method = _method(settings)
    rows = []
    for task in found:
        print(f"{task.name} ({task.group}) ...", file=sys.stderr)
        rows.append(_row(method, request, task, sources[task.name]))
    return {"data": request.data, "method": settings.method, "tasks": rows, "strange": strange,
            **summary({row["name"]: row["top1"] for row in rows})}  # fmt: skip


def _row(method: Method, request: Request, task: Task, source: Source) -> dict[str, Any]:
    lacking = int((source.split("train").joined(source.split("val")).targets.sum(axis=0) == 0).sum())
    counted = {"train": len(source.split("train")), "val": len(source.split("val")), "classes": len(source.classes)}
    facts = method.measure(replace(request, source=source, kept={}), task)
    return {
        "name": task.name,
        "group": task.group,
        "folder": task.folder.name,
        **counted,
        "unseen_classes": lacking,
        **facts,
    }


def _method(settings: Vtab) -> Method:
    methods: Mapping[str, Method] = {
        "linear-probe": OfFeatures(LinearProbe()), "logistic-probe": OfFeatures(LogisticProbe()),
        "fine-tuning": OfTraining(settings),
    }  # fmt: skip
    return methods[settings.method]


def _text(record: Mapping[str, Any]) -> list[str]:
    lines = [f"{record['data']}: {len(record['tasks'])} of 19 tasks of VTAB-1k, {record['method']}"]
    for group, facts in record["groups"].items():
        rows = [row for row in record["tasks"] if row["group"] == group]
        mean = "-" if facts["mean"] is None else f"{100 * facts['mean']:5.1f} %"
        lines.append(f"  {group:<19} {mean:>7}  {facts['found']} of {facts['of']}")
        for row in rows:
            low, high = row["top1_interval"]
            odd = [f"{row['train']} + {row['val']} images"] if (row["train"], row["val"]) != (800, 200) else []
            odd += [f"{row['unseen_classes']} of {row['classes']} classes unseen"] if row["unseen_classes"] else []
            said = f"; {', '.join(odd)}" if odd else ""
            lines.append(f"    {row['name']:<17} {100 * row['top1']:5.1f} %  ({100 * low:.1f}-{100 * high:.1f}){said}")
    if record["vtab"] is not None:
        lines.append(f"  {'VTAB':<19} {100 * record['vtab']:5.1f} %  mean of 19")
    else:
        lines.append(
            f"  {'mean':<19} {100 * record['mean']:5.1f} %  of {len(record['tasks'])}: not VTAB, which is all 19"
        )
        lines.append(f"  missing             {', '.join(record['missing'])}")
    if record["strange"]:
        lines.append(f"  passed over         {', '.join(record['strange'])}: no names of tasks")
    return [part for line in lines for part in _wrapped(line)]


def _wrapped(line: str) -> list[str]:
    """Lists of names in lines of 80 columns."""
    return textwrap.wrap(line, 80, subsequent_indent=" " * 22, drop_whitespace=True) if len(line) > 80 else [line]


PROTOCOLS: dict[str, Protocol] = {
    "vtab": Protocol("VTAB-1k: the tasks in --data FOLDER, 800 + 200 images each", run, _text, Vtab(), opens=False)
}
