"""Several runs as a table: a recipe a row, with mean, deviation and interval over its seeds, and recipes against the first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.configuration import flat
from vitrail.errors import DataError, UsageError
from vitrail.evaluation.predictions import Predictions
from vitrail.report.comparison import predictions_of, refuse_no_name
from vitrail.report.story import Story, read_story
from vitrail.statistics import Spread, welch_interval

Facts = dict[str, Any]
SEED = "training.seed"
MOST = 1000
_OF_NO_MATTER = {SEED, "why", "evaluators", "time_limit", "training.micro_batch"}
_MISSING = "not said"


def seed_table(folders: Sequence[Path], split: str = "test") -> Facts:
    """Every run in the row of its recipe: what has the same configuration and images, whatever the seed.

    Shares in [0, 1]. Intervals over seeds are Student's t; of the difference of two recipes Welch's. They say how far
    another seed may lie, not what other pictures would show.

    Raises:
        UsageError: VT002, the split is no name, too many runs, or one of them twice; VT026, a folder is no run folder.
        DataError: VT027, a run has no predictions of the split; VT028, they are not of the same pictures.
    """
    refuse_no_name(split)
    if len(folders) > MOST:
        raise UsageError("VT002", f"{len(folders):,} runs", f"at most {MOST:,}")
    stories = [read_story(folder) for folder in folders]
    first: Predictions | None = None
    rows: dict[str, list[Facts]] = {}
    said: dict[str, Facts] = {}
    for story in stories:
        found = predictions_of(story, split)
        first = found if first is None else first
        _same_pictures(stories[0], first, story, found)
        values = _recipe(story)
        key = repr(sorted(values.items()))
        said.setdefault(key, values)
        seed = flat(story.run).get(SEED)
        if any(seed == other["seed"] for other in rows.get(key, [])):
            raise UsageError(
                "VT002", f"{story.folder} has the recipe and the seed ({seed}) of another run that was named",
                "each run once: the same number twice would pass for two seeds that agree", "leave one out",
            )  # fmt: skip
        top1 = float(found.hit.mean())
        rows.setdefault(key, []).append({"folder": str(story.folder), "seed": seed, "state": story.state, "top1": top1})
    recipes = [
        {"runs": runs, **Spread.of([run["top1"] for run in runs]).as_share().to_json(), "differs": _told(key, said)}
        for key, runs in rows.items()
    ]
    assert first is not None
    return {"split": split, "images": len(first), "recipes": recipes, "against_first": _against_first(recipes)}


def _same_pictures(one: Story, first: Predictions, other: Story, found: Predictions) -> None:
    if (
        not len(found)
        or len(found) != len(first)
        or dict(zip(first.files, first.labels, strict=True)) != dict(zip(found.files, found.labels, strict=True))
    ):
        raise DataError(
            "VT028", f"{one.folder} and {other.folder} were not measured on the same pictures "
            f"({len(first):,} and {len(found):,})", "the same pictures with the same labels in every run",
            f"vitrail eval {other.folder} --data THE_DATA_OF_THE_FIRST, or compare the two alone",
        )  # fmt: skip


def _recipe(story: Story) -> Facts:
    """What decides a run but its seed, by key."""
    values = {"model": story.model, **flat(story.run)} | {"the images": str(story.data.get("fingerprint", ""))[:12]}
    return {key: value for key, value in values.items() if key not in _OF_NO_MATTER}


def _told(key: str, said: dict[str, Facts]) -> Facts:
    """What sets a recipe apart from some other one.

    Keys that others have not follow from a key that all have, such as the type of the optimizer; where none of these
    differs, the runs are of versions that wrote down more or less.
    """
    every = list(dict.fromkeys(name for values in said.values() for name in values))
    apart = [name for name in every if len({repr(values.get(name, _MISSING)) for values in said.values()}) > 1]
    shared = [name for name in apart if all(name in values for values in said.values())]
    return {name: said[key].get(name, _MISSING) for name in shared or apart}


def _against_first(recipes: Sequence[Facts]) -> list[Facts | None]:
    """Each other recipe less the first; None where nothing can be said: one seed alone, or no spread at all."""
    base = [run["top1"] for run in recipes[0]["runs"]]
    found: list[Facts | None] = []
    for recipe in recipes[1:]:
        values = [run["top1"] for run in recipe["runs"]]
        interval = welch_interval(values, base)
        if interval is None:
            found.append(None)
            continue
        low, high = interval
        word = "better" if low > 0 else "worse" if high < 0 else "no difference shown"
        found.append({"difference": float(np.mean(values) - np.mean(base)), "interval": [low, high], "word": word})
    return found
