"""The end of a run: the best weights on the test split, beside their baselines, and what there is to see, written down."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.checkpoints.loading import read
from vitrail.data.batches import Pictures
from vitrail.data.sources import Source
from vitrail.deployment.classifier import Classifier
from vitrail.evaluation.accuracy import Outcome, outcome
from vitrail.evaluation.baselines import Baseline, majority, nearest_pixels
from vitrail.evaluation.confusion import class_scores
from vitrail.evaluation.labels import Suspect, held_out, resisting, trained_on, write_suspects
from vitrail.files import read_json, write_json
from vitrail.recipes.show import Shown, gallery
from vitrail.report.card import write_card
from vitrail.report.gallery import write_gallery
from vitrail.report.page import write_report
from vitrail.report.plots import write_plots

TRAIN_SAMPLE = 2000


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        summary: of the test split: n, top1, top1_interval, loss, and top5 where there are more than five classes.
        baselines: what stands beside it.
        already: the run was complete before this command.
    """

    folder: Path
    summary: Mapping[str, Any]
    baselines: tuple[Baseline, ...]
    already: bool = False

    @property
    def top1(self) -> float:
        return float(self.summary["top1"])

    @property
    def numbers(self) -> dict[str, float]:
        """The summary's plain numbers, named as in the log."""
        return {f"test/{name}": value for name, value in self.summary.items() if isinstance(value, (int, float))}


def judge(
    folder: Path,
    source: Source,
    pictures: Mapping[str, Pictures],
    margins: NDArray[np.float64],
    problems: Sequence[Mapping[str, Any]] = (),
) -> Result:
    """Evaluates the run's best checkpoint and writes eval/test, the suspected labels and the gallery.

    Args:
        margins: of the training images, averaged over the training.
        problems: what the data check found; the gallery shows them.
    """
    predictor = Classifier(read(folder))
    found = outcome(predictor, pictures["test"])
    baselines = (
        majority(pictures["train"], pictures["test"]),
        nearest_pixels(pictures["train"], pictures.get("val"), pictures["test"]),
    )
    predictions = found.predictions()
    predictions.write(folder / "eval" / "test" / "predictions.csv")
    suspects = _suspects(predictor, found, pictures, margins)
    write_suspects(suspects, folder / "eval")
    shown = Shown(predictor.module, predictor.device, pictures)
    write_gallery(folder, gallery(shown, predictions, suspects, problems))
    summary: dict[str, Any] = {
        key: None if isinstance(v, float) and math.isnan(v) else v for key, v in found.summary().items()
    }
    summary["split"] = source.origin.get("test", "given")
    summary["train"] = _on_training_images(predictor, pictures["train"])
    summary["classes"] = [
        {"name": s.name, "count": s.count, "predicted": s.predicted, "hits": s.hits}
        for s in class_scores(found.targets > 0, found.answers(), found.classes)
    ]
    path = folder / "eval" / "test" / "summary.json"  # last: its presence says that the run is complete
    write_json(path, {**summary, "baselines": [_beside(b, predictions.hit) for b in baselines]})
    return Result(folder, summary, baselines)


def describe(folder: Path) -> None:
    """report.html, README.md (the model card) and plots/, from the run folder alone."""
    write_report(folder)
    write_plots(folder)
    write_card(folder)


def read_result(folder: Path) -> Result | None:
    """The result of a complete run, or None."""
    path = folder / "eval" / "test" / "summary.json"
    if not path.is_file():
        return None
    summary = read_json(path)
    baselines = tuple(Baseline(b["name"], b["top1"], tuple(b["interval"]), b["how"]) for b in summary.pop("baselines"))
    return Result(folder, summary, baselines)


def _beside(baseline: Baseline, hit: NDArray[np.bool_]) -> dict[str, Any]:
    """A baseline, and on how many images only the model, or only the baseline, is right."""
    assert baseline.right is not None
    return {
        "name": baseline.name, "top1": baseline.top1, "interval": list(baseline.interval), "how": baseline.how,
        "only_model": int((hit & ~baseline.right).sum()), "only_baseline": int((~hit & baseline.right).sum()),
    }  # fmt: skip


def _on_training_images(predictor: Classifier, train: Pictures) -> dict[str, Any]:
    """Top-1 of training images as they are evaluated, of at most 2,000 spread over the split."""
    chosen = np.unique(np.linspace(0, len(train.dataset) - 1, min(TRAIN_SAMPLE, len(train.dataset))).astype(np.int64))
    summary = outcome(predictor, train.subset(chosen)).summary()
    return {"n": summary["n"], "top1": summary["top1"], "top1_interval": summary["top1_interval"]}


def _suspects(
    predictor: Classifier, found: Outcome, pictures: Mapping[str, Pictures], margins: NDArray[np.float64]
) -> list[Suspect]:
    """Labels that look wrong in any split, the most doubtful first."""
    if found.multi_label:
        return []
    suspects = held_out(found, "test")
    if "val" in pictures and pictures["val"] is not pictures["test"]:
        suspects += held_out(outcome(predictor, pictures["val"]), "val")
    train = pictures["train"]
    doubt = resisting(margins, train.dataset.targets.argmax(axis=1))
    if (chosen := np.flatnonzero(doubt)).size:
        suspects += trained_on(outcome(predictor, train.subset(chosen)), doubt[chosen])
    return sorted(suspects, key=lambda suspect: (-suspect.doubt, suspect.split, suspect.id))
