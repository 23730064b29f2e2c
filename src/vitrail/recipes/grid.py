"""The learning rate is chosen on held-out images: each is tried in a run of its own, the best one is what the run takes."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.data.batches import Pictures
from vitrail.data.sources import Source
from vitrail.errors import VitrailError
from vitrail.files import explained, read_json, write_json
from vitrail.memory import Usage
from vitrail.recipes.assembly import Machine, trainer_of
from vitrail.recipes.run import Grid, Run
from vitrail.report.story import outcome_words
from vitrail.training.progress import Progress

FILE = "grid.json"


@dataclass(frozen=True)
class Choosing:
    """What all trials have in common.

    Args:
        whole: the run that follows, with `run.grid`; `pictures` and `source` are its own.
    """

    whole: Run
    source: Source
    pictures: Mapping[str, Pictures]
    machine: Machine
    folder: Path
    usage: Usage
    quiet: bool

    @property
    def grid(self) -> Grid:
        assert self.whole.grid is not None
        return self.whole.grid

    def rate(self, progress: Progress) -> float:
        """Tries every rate that was not tried yet, each in RUN/grid/lr-RATE, and writes RUN/grid.json after each.

        Raises:
            Interrupted: stopped; the same command goes on within the trial.
            VitrailError: VT083, not one rate gave numbers.
        """
        pictures = apart(self.pictures, self.source)
        rows = tried(self.folder, self.grid)
        for number, rate in enumerate(self.grid.rates, 1):
            place = self.folder / "grid" / f"lr-{rate!r}"
            if rate not in {row["lr"] for row in rows}:
                count = len(self.grid.rates)
                progress.note(f"learning rate {rate:g}, {number} of {count}: tried in {place}")
                rows.append({"lr": rate, **self._outcome(rate, pictures, place)})
                write_json(self.folder / FILE, self._table(rows, len(pictures["val"].dataset)))
                progress.note(f"learning rate {rate:g}: {outcome_words(rows[-1])}")
            shutil.rmtree(place / "checkpoints", ignore_errors=True)  # what it came to is written down
        chosen = best(rows)
        if chosen is None:
            raise VitrailError(
                "VT083", f"no learning rate of {', '.join(f'{rate:g}' for rate in self.grid.rates)} gave numbers to the end",
                "one that does", "smaller rates: --lr; vitrail train DATA --find-lr shows where the loss diverges; "
                "then --overwrite",
            )  # fmt: skip
        return chosen

    def _table(self, rows: list[dict[str, Any]], count: int) -> dict[str, Any]:
        done = len(rows) == len(self.grid.rates)
        return {"n": count, "share": self.grid.share, "rows": rows, "chosen": best(rows) if done else None}

    def _outcome(self, rate: float, pictures: Mapping[str, Pictures], place: Path) -> dict[str, Any]:
        """What the last weights of a trial say of val, or at which step its numbers ended."""
        trial = trial_of(self.whole, rate, len(self.pictures["train"].dataset), len(pictures["train"].dataset))
        trainer = trainer_of(trial, self.source, pictures, self.machine, place, self.quiet, self.usage)
        with explained(place):
            place.mkdir(parents=True, exist_ok=True)
        write_json(place / "config.json", {"run": trial.to_json(), "model": trial.model.words})
        try:
            trainer.fit()
        except VitrailError as error:
            if error.code != "VT080":
                raise
            return {"diverged": trainer.step}
        return dict(trainer.facts)


def trial_of(whole: Run, rate: float, count: int, fewer: int) -> Run:
    """A run with one rate, of as many steps as the whole has, or of a share of them.

    Args:
        count: training images of the whole run; `fewer` of the trial.
    """
    assert whole.grid is not None
    share, batch = whole.grid.share, whole.training.batch_size
    steps = max(1, round(whole.training.steps(count) * share))
    training = replace(whole.training, epochs=(steps - 0.5) * batch / fewer)  # rounding must not make one step more
    schedule = whole.schedule.scaled(share) if share < 1 else whole.schedule
    data = replace(whole.data, everything=False)
    return replace(whole.rated(rate), grid=None, time_limit=None, data=data, training=training, schedule=schedule)


def apart(pictures: Mapping[str, Pictures], source: Source) -> dict[str, Pictures]:
    """Train without the images that were val, and these as val; where val has not joined train, both as they are."""
    if "val" in pictures:
        return dict(pictures)
    train = pictures["train"]
    chosen_on = np.array([name in source.chosen_on for name in train.dataset.ids])
    return {
        "train": train.subset(np.flatnonzero(~chosen_on)),
        "val": train.subset(np.flatnonzero(chosen_on)),
        "test": pictures["test"],
    }


def best(rows: list[dict[str, Any]]) -> float | None:
    """The rate of the highest top-1; of equal ones the one with the lowest loss. None where all diverged."""
    judged = [row for row in rows if "val/top1" in row]
    found = max(judged, key=lambda row: (row["val/top1"], -row.get("val/loss", math.inf)), default=None)
    return None if found is None else float(found["lr"])


def tried(folder: Path, grid: Grid) -> list[dict[str, Any]]:
    """The rows of grid.json that are of this grid; none where it is not there, or damaged."""
    try:
        rows = read_json(folder / FILE)["rows"]
        return [dict(row) for row in rows if row["lr"] in grid.rates]
    except (VitrailError, OSError, KeyError, TypeError, ValueError):
        return []
