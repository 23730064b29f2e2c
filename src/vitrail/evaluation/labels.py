"""Labels that look wrong: what the model, for good reason, does not believe.

Two measures, both of margins (the logit of the given label less the largest other one):
- of training images the margin averaged over the whole training ("area under the margin", Pleiss 2020, arXiv 2001.10528):
  a wrong label resists for long, even where the network learns it by heart in the end;
- of held-out images the margin of the final model against what is usual for the class that it prefers.
Measured with planted errors in docs/measurements.md.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.evaluation.accuracy import Outcome
from vitrail.files import explained, write_json, write_text

FAR = 3.5  # robust standard deviations below the class's median
SURE = 0.75  # quantile of the margins with which images of the preferred class are recognised
_MAD = 1.4826  # median absolute deviation to standard deviation, of a normal distribution
MIN_IMAGES = 8  # of a class; fewer say nothing about what is usual


@dataclass(frozen=True)
class Suspect:
    """An image whose label looks wrong.

    Attributes:
        suggested: the class that the model prefers.
        doubt: how strong the evidence is, in units of the threshold: 1 is just enough.
    """

    id: str
    split: str
    label: str
    suggested: str
    doubt: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "doubt": round(self.doubt, 3)}


def margins(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The logit of the label less the largest other one, and which class that other is; images each."""
    rows = np.arange(len(labels))
    others = logits.astype(np.float64)
    own = others[rows, labels].copy()
    others[rows, labels] = -np.inf
    rivals = others.argmax(axis=1)
    return own - others[rows, rivals], rivals


def held_out(found: Outcome, split: str) -> list[Suspect]:
    """Images of a split that was not trained on: another class is preferred as firmly as most of its own images are."""
    if found.multi_label or not len(found.ids):
        return []
    labels = found.targets.argmax(axis=1)
    margin, rivals = margins(found.logits, labels)
    usual = np.full(len(found.classes), np.inf)
    for index in range(len(found.classes)):
        recognised = margin[(labels == index) & (margin > 0)]
        if len(recognised) >= MIN_IMAGES:
            usual[index] = np.quantile(recognised, SURE)
    doubt = -margin / usual[rivals]
    return [
        Suspect(found.ids[i], split, found.classes[labels[i]], found.classes[rivals[i]], float(doubt[i]))
        for i in np.flatnonzero(doubt >= 1)
    ]


def resisting(average: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """How far each training image's average margin lies below what is usual for its class, in units of the threshold.

    Args:
        average: margin averaged over the training, per image; NaN where the image was never seen.
        labels: class of each image.

    Returns:
        Zero for images above the threshold, those with a positive margin, and classes of too few images.
    """
    doubt = np.zeros(len(average))
    for index in np.unique(labels):
        mine = np.flatnonzero((labels == index) & np.isfinite(average))
        if len(mine) < MIN_IMAGES:
            continue
        centre = np.median(average[mine])
        spread = _MAD * np.median(np.abs(average[mine] - centre))
        doubt[mine] = (centre - average[mine]) / (FAR * max(spread, 1e-9))
    doubt[~(average < 0) | (doubt < 1)] = 0
    return doubt


def trained_on(found: Outcome, doubt: NDArray[np.float64]) -> list[Suspect]:
    """The resisting training images of which the final model too believes another class.

    Args:
        found: outcome of the final model on the images in question.
        doubt: of the same images, from `resisting`.
    """
    labels = found.targets.argmax(axis=1)
    margin, rivals = margins(found.logits, labels)
    return [
        Suspect(found.ids[i], "train", found.classes[labels[i]], found.classes[rivals[i]], float(doubt[i]))
        for i in np.flatnonzero(margin < 0)
    ]


def write_suspects(suspects: Sequence[Suspect], folder: Path) -> None:
    """suspects.csv for people (file,split,label,suggested,doubt) and suspects.json for the report."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "split", "label", "suggested", "doubt"))
    writer.writerows((s.id, s.split, s.label, s.suggested, f"{s.doubt:.3f}") for s in suspects)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "suspects.csv", text.getvalue())
    write_json(folder / "suspects.json", [suspect.to_json() for suspect in suspects])
