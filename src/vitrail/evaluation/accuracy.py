"""How often a model is right, with the interval that n allows, and every single prediction."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitrail.data.batches import Pictures, evaluation_batches
from vitrail.files import explained, write_text
from vitrail.predictor import Predictor
from vitrail.statistics import wilson_interval


@dataclass(frozen=True)
class Outcome:
    """Logits of a split with what is true of it.

    Attributes:
        targets: batch classes, 1 where the class is true.
    """

    ids: tuple[str, ...]
    logits: NDArray[np.float32]
    targets: NDArray[np.float32]
    classes: tuple[str, ...]
    multi_label: bool

    @property
    def order(self) -> NDArray[np.int64]:
        """Classes from the most to the least probable, per image; ties go to the first."""
        return np.argsort(-self.logits, axis=1, kind="stable")

    def hits(self, k: int) -> int:
        """Images with a true class among the first k."""
        first = self.order[:, : min(k, len(self.classes))]
        return int((np.take_along_axis(self.targets, first, axis=1).max(axis=1) > 0).sum())

    def losses(self) -> NDArray[np.float64]:
        """Cross-entropy per image; for several labels the sum over the classes."""
        values = self.logits.astype(np.float64)
        if self.multi_label:
            return (np.logaddexp(0, values) - values * self.targets).sum(axis=1)
        values = values - values.max(axis=1, keepdims=True)
        values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
        return -(values * self.targets).sum(axis=1)

    def summary(self) -> dict[str, float | int | list[float]]:
        """top1 with its 95 % Wilson interval, top5 where there are more than five classes, loss and n."""
        total = len(self.ids)
        found: dict[str, float | int | list[float]] = {"n": total, "top1": self.hits(1) / max(1, total)}
        found["top1_interval"] = list(wilson_interval(self.hits(1), total))
        if len(self.classes) > 5:
            found["top5"] = self.hits(5) / max(1, total)
        if self.multi_label:
            found["exact"] = float(((self.logits > 0) == (self.targets > 0)).all(axis=1).mean()) if total else math.nan
        found["loss"] = float(self.losses().mean()) if total else math.nan
        return found


@dataclass(frozen=True)
class Accuracy:
    """An evaluator: top1 first, which decides what the best model is."""

    name: str
    pictures: Pictures

    def run(self, predictor: Predictor) -> Iterator[tuple[str, float]]:
        summary = outcome(predictor, self.pictures).summary()
        for key in ("top1", "top5", "loss"):
            if key in summary:
                yield f"{self.name}/{key}", float(summary[key])  # type: ignore[arg-type]


def outcome(predictor: Predictor, pictures: Pictures) -> Outcome:
    """Runs a predictor over a split."""
    dataset = pictures.dataset
    logits = [predictor.logits(images) for images, _ in evaluation_batches(pictures)]
    empty = np.zeros((0, len(predictor.classes)), dtype=np.float32)
    return Outcome(
        dataset.ids, np.concatenate([empty, *logits]), dataset.targets, predictor.classes, predictor.multi_label
    )


def write_predictions(found: Outcome, path: Path) -> None:
    """predictions.csv: file,label,pred,prob,loss,rank; rank 1 means that the most probable class is true."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "label", "pred", "prob", "loss", "rank"))
    order, losses, probabilities = found.order, found.losses(), _probabilities(found)
    for row, name in enumerate(found.ids):
        true = np.flatnonzero(found.targets[row])
        places = np.flatnonzero(np.isin(order[row], true))
        label = ";".join(found.classes[index] for index in true)
        best = int(order[row, 0])
        rank = int(places[0]) + 1 if len(places) else ""
        writer.writerow(
            (name, label, found.classes[best], f"{probabilities[row, best]:.6f}", f"{losses[row]:.6f}", rank)
        )
    with explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())


def _probabilities(found: Outcome) -> NDArray[np.float64]:
    values = found.logits.astype(np.float64)
    if found.multi_label:
        return 1 / (1 + np.exp(-values))
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
