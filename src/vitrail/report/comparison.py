"""Two run folders side by side: which is better and how sure that is, what differs between them, which images changed."""

from __future__ import annotations

import csv
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.configuration import differences, encode, keys
from vitrail.errors import DataError, UsageError, VitrailError
from vitrail.evaluation.predictions import Predictions, read_predictions
from vitrail.evaluation.significance import (
    LEVEL,
    Fourfold,
    Pairing,
    bootstrap,
    changed_sides,
    class_differences,
    paired,
    resamples_for,
)  # fmt: skip
from vitrail.report.story import Story, read_story
from vitrail.report.typed import anywhere, source_of
from vitrail.statistics import p_text, wilson_interval

Facts = dict[str, Any]
MAX_SPLIT_BYTES = 4 * 2**30


def comparison(a: Path, b: Path, split: str = "test") -> Facts:
    """Everything that can be said of two runs from their folders; differences are B less A, shares in [0, 1].

    Raises:
        UsageError: VT002, the split is no name; VT026, a folder is no run folder.
        DataError: VT027, a run has no predictions of the split; VT028, no image can be compared.
    """
    refuse_no_name(split)
    stories = {"a": read_story(a), "b": read_story(b)}
    predictions = {side: predictions_of(story, split) for side, story in stories.items()}
    # What a run has learned by heart says nothing of it; the folders of `eval --data` name other images.
    learned = {
        side: _trained_on(story.folder) if split in ("val", "test") else set() for side, story in stories.items()
    }
    pairing = paired(predictions["a"], predictions["b"], learned["a"] | learned["b"])
    if not len(pairing):
        raise _nothing(pairing, stories["a"], stories["b"], split)
    table = pairing.fourfold
    found: Facts = {
        side: _side(story, hits, len(pairing), split)
        for (side, story), hits in zip(
            stories.items(), (table.both + table.only_a, table.both + table.only_b), strict=True
        )
    }
    found |= {"split": split, "matched": _matched(pairing), **_metrics(pairing)}
    found["configuration"] = _configuration(stories["a"], stories["b"])
    found["data"] = _data(stories["a"], stories["b"])
    found["cost"] = _cost(stories["a"], stories["b"])
    several = stories["a"].multi_label or stories["b"].multi_label
    found["classes"] = [] if several else [
        {"name": row.name, "n": row.count, "a": row.a, "b": row.b, "difference": row.difference, "p": row.p,
         "adjusted_p": row.adjusted, "significant": row.significant} for row in class_differences(pairing)
    ]  # fmt: skip
    found["changed"] = dict(
        zip(("lost", "gained"), (_rows(pairing, rows) for rows in changed_sides(pairing)), strict=True)
    )
    found["curves"] = {side: _curve(story) for side, story in stories.items()}
    found["verdict"] = _verdict(found, table)
    found["notes"] = _notes(found, stories)
    return found


def refuse_no_name(split: str) -> None:
    if split in ("", "..") or Path(split).name != split:
        raise UsageError("VT002", f"--split {split}", "the name of a folder in RUN/eval, such as test or val")


def predictions_of(story: Story, split: str) -> Predictions:
    """Raises DataError VT027, the run has none of this split."""
    if split == "test" and story.predictions is not None:
        return story.predictions
    folder, path = story.folder, story.folder / "eval" / split / "predictions.csv"
    if not path.is_file():
        there = sorted(place.parent.name for place in folder.glob("eval/*/predictions.csv"))
        raise DataError(
            "VT027", f"{folder} has no predictions of the split {split!r}",
            f"one of {', '.join(there[:10])}" if there else f"{path.relative_to(folder)}, which a finished run has",
            f"vitrail eval {folder} --split {split}" if split in ("train", "val", "test") else "another --split",
        )  # fmt: skip
    return read_predictions(path)


def _trained_on(folder: Path) -> set[str]:
    """Names of the training images; none where the folder does not tell."""
    path = folder / "split.csv"
    if not path.is_file():
        return set()
    if path.stat().st_size > MAX_SPLIT_BYTES:
        raise VitrailError("VT063", f"{path} has {path.stat().st_size:,} bytes", f"at most {MAX_SPLIT_BYTES:,}")
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            return {row["path"] for row in csv.DictReader(file) if row["split"] == "train"}
    except (KeyError, csv.Error) as error:
        raise VitrailError("VT063", f"{path} is not readable: {error}", "a file that Vitrail wrote") from error


def _nothing(pairing: Pairing, one: Story, other: Story, split: str) -> DataError:
    a, b = one.folder, other.folder
    why = [
        text
        for count, text in (
            (pairing.only_a, f"{pairing.only_a:,} pictures only {a} has"),
            (pairing.only_b, f"{pairing.only_b:,} only {b} has"),
            (pairing.other_label, f"{pairing.other_label:,} have another label in the other run"),
            (pairing.left_out, f"{pairing.left_out:,} one of the runs was trained on"),
        )
        if count
    ]
    return DataError(
        "VT028", f"no picture of the split {split!r} can be compared: {'; '.join(why) or 'there is none'}",
        "two runs that were evaluated on the same pictures, none of which they were trained on", _way(one, other, split),
    )  # fmt: skip


def _way(a: Story, b: Story, split: str) -> str:
    """Commands that evaluate both runs on the data of the first and compare them there."""
    if split not in ("train", "val", "test"):
        return "another --split"
    source = source_of(a)
    typed = [shlex.join(["vitrail", "eval", str(story.folder), "--data", source, "--split", split]) for story in (a, b)]
    last = ["vitrail", "compare", str(a.folder), str(b.folder), "--split", f"{Path(source).stem}-{split}"]
    return " && ".join(anywhere(a, command) for command in (*typed, shlex.join(last)))


def _side(story: Story, hits: int, matched: int, split: str) -> Facts:
    baseline = story.best_baseline if split == "test" else None
    return {
        "folder": str(story.folder), "name": story.folder.name, "state": story.state,
        "top1": hits / matched, "top1_interval": list(wilson_interval(hits, matched)),
        "baseline": baseline and {key: baseline[key] for key in ("name", "top1")},
    }  # fmt: skip


def _matched(pairing: Pairing) -> Facts:
    return {
        "n": len(pairing), "only_a": pairing.only_a, "only_b": pairing.only_b, "other_label": pairing.other_label,
        "trained_on": pairing.left_out, "repeated": pairing.repeated,
    }  # fmt: skip


def _metrics(pairing: Pairing) -> Facts:
    a, b, table = pairing.a, pairing.b, pairing.fourfold
    hits = b.hit.astype(np.float64) - a.hit
    losses = b.loss - a.loss
    finite = bool(np.isfinite(losses).all())
    bounds = bootstrap(np.stack([hits, losses if finite else hits], axis=1))
    found: Facts = {"resamples": resamples_for(len(pairing)), "level": LEVEL, "loss": None, "top1": {
        "a": table.shares[0], "b": table.shares[1], "difference": table.difference,
        "interval": bounds[:, 0].tolist(), "p": table.p, "needed": table.needed, "both": table.both,
        "only_a": table.only_a, "only_b": table.only_b, "neither": table.neither,
        "same_answers": sum(one == other for one, other in zip(a.predicted, b.predicted, strict=True)),
    }}  # fmt: skip
    if finite:
        found["loss"] = {"a": float(a.loss.mean()), "b": float(b.loss.mean()), "difference": float(losses.mean()),
                         "interval": bounds[:, 1].tolist()}  # fmt: skip
    return found


def _rows(pairing: Pairing, rows: list[int]) -> list[Facts]:
    a, b = pairing.a, pairing.b
    sure_a, sure_b = (np.nan_to_num(one.probability, posinf=0.0, neginf=0.0) for one in (a, b))
    return [
        {"file": a.files[row], "label": a.labels[row], "a": a.predicted[row], "a_prob": float(sure_a[row]),
         "b": b.predicted[row], "b_prob": float(sure_b[row])} for row in rows
    ]  # fmt: skip


def _configuration(a: Story, b: Story) -> list[Facts]:
    first, second = ({key: value for key, value in story.run.items() if key != "why"} for story in (a, b))
    if keys(first.get("model")) != keys(second.get("model")):  # other families, or other versions
        first, second = map(_told_in_full, (first, second))
    return [{"key": key, "a": _plain(old), "b": _plain(new)} for key, old, new in differences(first, second)]


def _told_in_full(run: Facts) -> Facts:
    """With the defaults of what an older version did not write down of the model."""
    from vitrail.model.families import AXES, from_json  # imports torch, which most comparisons do without

    try:
        return {**run, "model": encode(from_json(run["model"]), AXES)}
    except (KeyError, TypeError, ValueError, VitrailError):  # of a version that knew other keys
        return run


def _plain(value: Any) -> Any:
    """A value that JSON can hold; Python also reads NaN and Infinity from a file that someone has edited."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return repr(value)
    return value


def _data(a: Story, b: Story) -> list[Facts]:
    """Source, fingerprint, number of images per split, and classes that only one of the runs has."""
    told = []
    for one, other in ((a, b), (b, a)):
        counts = one.data.get("counts", {})
        facts: Facts = {key: one.data.get(key) for key in ("source", "fingerprint")}
        facts |= {f"{split} pictures": sum(_numbers(part).values()) for split, part in counts.items()}
        told.append(facts | {"classes": [name for name in one.classes if name not in set(other.classes)]})
    return [{"key": key, "a": _plain(old), "b": _plain(new)} for key, old, new in differences(told[0], told[1])]


_COST = {  # key in the folder: name, unit
    "parameters": ("parameters", ""), "flops_per_image": ("FLOPs per picture", ""), "seconds": ("training time", "s"),
    "images_per_second": ("training speed", "pictures/s"), "peak_memory_bytes": ("peak memory", "bytes"),
}  # fmt: skip


def _cost(a: Story, b: Story) -> list[Facts]:
    """What both folders tell; `ratio` is B to A. Times can be compared on one machine only."""
    told = []
    for story in (a, b):
        speed = next((record for record in reversed(story.records) if "images_per_second" in record), {})
        told.append(_numbers(story.config.get("cost")) | _numbers(story.status) | _numbers(speed))
    return [
        {"name": name, "unit": unit, "a": told[0][key], "b": told[1][key],
         "ratio": told[1][key] / told[0][key] if told[0][key] > 0 else None}
        for key, (name, unit) in _COST.items() if key in told[0] and key in told[1]
    ]  # fmt: skip


def _numbers(value: Any) -> dict[str, float]:
    """The finite numbers of an object in a file; files may hold anything."""
    items = value.items() if isinstance(value, Mapping) else ()
    return {
        name: number for name, number in items if type(number) in (int, float) and abs(number) <= sys.float_info.max
    }


def _curve(story: Story) -> list[list[float]]:
    """(epoch, val/top1) of every evaluation."""
    rows = map(_numbers, story.evaluations)
    return [[row["epoch"], row["val/top1"]] for row in rows if {"epoch", "val/top1"} <= set(row)]


def _verdict(found: Mapping[str, Any], table: Fourfold) -> Facts:
    """Who is better, and a sentence for a person."""
    total, (low, high) = table.total, found["top1"]["interval"]
    ahead = "B" if table.difference > 0 else "A"
    if table.difference < 0:
        low, high = -high, -low
    points = f"{100 * abs(table.difference):.1f} points"
    sure = f"95 % CI {100 * low:.1f} to {100 * high:.1f}; McNemar p {p_text(table.p)}, n = {total:,}"
    if found["top1"]["same_answers"] == total:
        return {
            "word": "same predictions",
            "better": None,
            "sentence": f"the same predictions on all {total:,} pictures",
        }
    if table.p < LEVEL:
        return {"word": "better", "better": ahead, "sentence": f"{ahead} is better by {points} ({sure})"}
    lead = f"{ahead} is {points} ahead" if table.difference else "both are right equally often"
    if table.needed is None:
        rest = f"with n = {total:,} no difference can be shown"
    else:
        rest = f"with n = {total:,} a difference of about {100 * table.needed:.1f} points would have been needed"
    return {"word": "no difference shown", "better": None, "sentence": f"no difference shown: {lead} ({sure}); {rest}"}


def _notes(found: Mapping[str, Any], stories: Mapping[str, Story]) -> list[str]:
    """What a reader must know before believing the verdict."""
    notes, matched, better = [], found["matched"], found["verdict"]["better"]
    if matched["trained_on"]:
        notes.append(f"{matched['trained_on']:,} pictures are left out because one of the runs was trained on them.")
    if matched["other_label"]:
        notes.append(f"{matched['other_label']:,} pictures are left out because their labels differ.")
    changed = {row["key"] for row in found["data"]}
    if "source" in changed:
        notes.append(
            "The runs have different sources: pictures of the same name and label are taken for the same picture."
        )
    elif "fingerprint" in changed:
        notes.append("The pictures have changed between the runs: what has the same name may not be the same picture.")
    for side, story in stories.items():
        if story.state != "done":
            notes.append(f"{side.upper()} is not finished ({story.state}).")
    keys = {row["key"] for row in found["configuration"]}
    if better and keys == {"training.seed"}:
        notes.append(
            "They differ by their seed alone: this is the spread of one recipe, no gain of one over the other."
        )
    elif better and "training.seed" not in keys:
        notes.append("It holds for these two runs; whether it holds for their recipes, more seeds of each would say.")
    loss = found["loss"]
    if better and loss and (loss["interval"][0] > 0 if better == "B" else loss["interval"][1] < 0):
        notes.append(f"{better} is right more often, but its loss is higher: where it errs, it is too sure.")
    return notes
