"""How far the headline of a run can be believed: what pulls it up, what pulls it down, whether probabilities mean anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vitrail.evaluation.calibration import Calibration, calibration
from vitrail.report.story import Story
from vitrail.statistics import share, wilson_interval

MISCALIBRATED = 0.03
FEW_ANSWERS = 10  # a point of the calibration curve from fewer says nothing


@dataclass(frozen=True)
class Clean:
    """The result on the test pictures that are in no other split; `leaked` others are."""

    top1: float
    interval: tuple[float, float]
    n: int
    leaked: int


@dataclass(frozen=True)
class Doubt:
    """Test pictures whose label looks wrong; `missed` of them count as mistakes, which is worth `points` of top-1."""

    count: int
    missed: int
    points: float


def without_leaks(story: Story) -> Clean | None:
    """Top-1 without the test pictures that an earlier split has too; None where nothing leaks, or nothing is left."""
    if story.predictions is None:
        return None
    clean = np.array([name not in leaked_test(story) for name in story.predictions.files])
    if clean.all() or not clean.any():
        return None
    hits, total = int(story.predictions.hit[clean].sum()), int(clean.sum())
    return Clean(hits / total, wilson_interval(hits, total), total, int((~clean).sum()))


def leaked_test(story: Story) -> set[str]:
    """Names of the test pictures that train or val has too, as far as the data check saw."""
    return {name for problem in story.problems for name in problem.get("leaked", {}).get("test", ())}


def doubtful_test(story: Story) -> Doubt | None:
    """What suspected labels do to the result on the test pictures that were not seen before; None where there are none."""
    doubted = {suspect["id"] for suspect in story.suspects if suspect["split"] == "test"}
    if story.predictions is None or not doubted:
        return None
    known = leaked_test(story) if without_leaks(story) else set[str]()
    names, hits = story.predictions.files, story.predictions.hit
    unseen = [(name in doubted, bool(hit)) for name, hit in zip(names, hits, strict=True) if name not in known]
    count, missed = sum(doubt for doubt, _ in unseen), sum(doubt and not hit for doubt, hit in unseen)
    return Doubt(count, missed, 100 * missed / len(unseen)) if count else None


def reservations(story: Story) -> Iterator[tuple[str, str]]:
    """("act", "look" or "good", sentence): what to know before the headline is believed."""
    if story.predictions is None or not story.summary:
        return
    top1, clean, doubt = story.summary["top1"], without_leaks(story), doubtful_test(story)
    seen = leaked_test(story) & set(story.predictions.files)
    if clean is not None:
        verdict = " is too good:" if clean.top1 < top1 else ","
        seen_words = f"{clean.leaked:,} of them {'was' if clean.leaked == 1 else 'were'} in train or val too"
        yield "act", f"{share(top1)} on all {len(story.predictions):,}{verdict} {seen_words}"
    elif seen:
        yield "act", "not to be believed: every test picture was in train or val too"
    elif story.data.get("examination"):
        examined = story.data["examination"]
        rest = (
            ""
            if examined["seen"] >= examined["of"]
            else f", among the {examined['seen']:,} pictures that were looked at"
        )
        yield "good", f"No test picture was found in training{rest}"
    if doubt is not None and doubt.missed:
        one = doubt.count == 1
        yield (
            "look",
            (
                f"{doubt.count:,} test {'label looks' if one else 'labels look'} wrong: if {'it is' if one else 'they are'}, "
                f"the true figure is up to {doubt.points:.1f} points higher"
            ),
        )


def interval_words(interval: tuple[float, float]) -> str:
    return f"95 % interval {100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def origin_words(text: str) -> str:
    """How a split came about; "given" says nothing to a reader."""
    return "as the data divide them" if text == "given" else text


def calibrated(story: Story) -> Calibration | None:
    """Calibration of the answers; None where there are too few, or several labels."""
    if story.predictions is None or story.multi_label:
        return None
    return calibration(story.predictions.probability, story.predictions.hit)


def calibration_verdict(found: Calibration) -> tuple[bool, str]:
    """Whether the probabilities are off by more than 3 points beyond chance, and one word for all places that say it."""
    low, high = found.gap_interval
    if low <= 0 <= high:
        return False, "right on average"
    word = "too sure" if found.gap > 0 else "too cautious"
    off = min(abs(low), abs(high)) > MISCALIBRATED
    return off, f"{'' if off else 'slightly '}{word}"
