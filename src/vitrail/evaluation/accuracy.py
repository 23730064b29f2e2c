"""How often a model is right, with the interval that n allows, and every single prediction."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitrail.data.batches import Pictures, evaluation_batches
from vitrail.evaluation.predictions import Predictions
from vitrail.predictor import Predictor
from vitrail.statistics import wilson_interval


@dataclass(frozen=True)
class Outcome:
    """Logits of a split with what is true of it.

    Attributes:
        targets: batch classes, 1 where the class is true.
        temperature: what logits are divided by before they become probabilities and losses.
    """

    ids: tuple[str, ...]
    logits: NDArray[np.float32]
    targets: NDArray[np.float32]
    classes: tuple[str, ...]
    multi_label: bool
    temperature: float = 1.0

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
        values = self.logits.astype(np.float64) / self.temperature
        if self.multi_label:
            return (np.logaddexp(0, values) - values * self.targets).sum(axis=1)
        values = values - values.max(axis=1, keepdims=True)
        values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
        return -(values * self.targets).sum(axis=1)

    def probabilities(self) -> NDArray[np.float64]:
        """Softmax over the classes, or a sigmoid each for several labels; images classes."""
        values = self.logits.astype(np.float64) / self.temperature
        if self.multi_label:
            return 1 / (1 + np.exp(-values))
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def answers(self) -> NDArray[np.bool_]:
        """What the model says is true: the most probable class, or every class at one half or more; images classes."""
        if self.multi_label:
            return self.logits >= 0
        return np.arange(len(self.classes)) == self.order[:, :1]

    def predictions(self) -> Predictions:
        """Image by image, as predictions.csv has it."""
        order, best = self.order, self.order[:, 0]
        true_in_order = np.take_along_axis(self.targets, order, axis=1) > 0
        rank = np.where(true_in_order.any(axis=1), true_in_order.argmax(axis=1) + 1, 0)
        labels = tuple(";".join(self.classes[c] for c in np.flatnonzero(row)) for row in self.targets)
        probability = self.probabilities()[np.arange(len(best)), best]
        said = tuple(self.classes[index] for index in best)
        return Predictions(self.ids, labels, said, probability, self.losses(), rank)

    def summary(self) -> dict[str, float | int | list[float]]:
        """top1 with its 95 % Wilson interval, top5 where there are more than five classes, loss, n; a temperature."""
        total = len(self.ids)
        found: dict[str, float | int | list[float]] = {"n": total, "top1": self.hits(1) / max(1, total)}
        found["top1_interval"] = list(wilson_interval(self.hits(1), total))
        if len(self.classes) > 5:
            found["top5"] = self.hits(5) / max(1, total)
        if self.multi_label:
            found["exact"] = float((self.answers() == (self.targets > 0)).all(axis=1).mean()) if total else math.nan
        found["loss"] = float(self.losses().mean()) if total else math.nan
        if self.temperature != 1:
            found["temperature"] = self.temperature
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
    temperature = getattr(predictor, "temperature", 1.0)  # an engine that knows of none has none
    return Outcome(
        dataset.ids, np.concatenate([empty, *logits]), dataset.targets, predictor.classes, predictor.multi_label, temperature
    )  # fmt: skip
