"""Every single prediction of a split as a table: written as predictions.csv, read back without torch or the pictures."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import VitrailError
from vitrail.files import explained, write_text

COLUMNS = ("file", "label", "pred", "prob", "loss", "rank")
MAX_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Predictions:
    """What a model said of every image of a split.

    Attributes:
        files: the images' stable names.
        labels: what is true, several labels joined by ";".
        predicted, probability: the most probable class.
        loss: of the image.
        rank: place of the first true class, 1 where the most probable class is true; 0 where nothing is true.
    """

    files: tuple[str, ...]
    labels: tuple[str, ...]
    predicted: tuple[str, ...]
    probability: NDArray[np.float64]
    loss: NDArray[np.float64]
    rank: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def hit(self) -> NDArray[np.bool_]:
        return self.rank == 1

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> Predictions:
        chosen = [int(index) for index in indices]
        names = ([column[index] for index in chosen] for column in (self.files, self.labels, self.predicted))
        files, labels, predicted = (tuple(column) for column in names)
        return Predictions(files, labels, predicted, self.probability[chosen], self.loss[chosen], self.rank[chosen])

    def write(self, path: Path) -> None:
        """predictions.csv: file,label,pred,prob,loss,rank."""
        text = StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        numbers = zip(self.probability, self.loss, self.rank, strict=True)
        for names, (probability, loss, rank) in zip(
            zip(self.files, self.labels, self.predicted, strict=True), numbers, strict=True
        ):
            writer.writerow((*names, f"{probability:.6f}", f"{loss:.6f}", int(rank) or ""))
        with explained(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text.getvalue())


def read_predictions(path: Path) -> Predictions:
    """The inverse of `Predictions.write`.

    Raises:
        VitrailError: VT063, the file is not what `write` writes; the message names the line.
    """
    if path.stat().st_size > MAX_BYTES:
        raise VitrailError("VT063", f"{path} has {path.stat().st_size:,} bytes", f"at most {MAX_BYTES:,}")
    rows: list[Any] = []
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            reader = csv.reader(file)
            if tuple(next(reader, ())) != COLUMNS:
                raise ValueError(f"the first line is not {','.join(COLUMNS)}")
            for row in reader:
                name, label, said, *numbers = row
                rows.append((name, label, said, float(numbers[0]), float(numbers[1]), int(numbers[2] or 0)))
    except (ValueError, IndexError, csv.Error) as error:
        raise VitrailError(
            "VT063", f"{path}, line {len(rows) + 2}: {error}", "a file that Vitrail wrote", "vitrail eval RUN writes it anew"
        ) from error  # fmt: skip
    files, labels, predicted = (tuple(row[column] for row in rows) for column in range(3))
    probability, loss = (np.array([row[column] for row in rows], dtype=np.float64) for column in (3, 4))
    rank = np.array([row[5] for row in rows], dtype=np.int64)
    return Predictions(files, labels, predicted, probability, loss, rank)
