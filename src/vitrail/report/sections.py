"""What the report of a run shows, section by section: the facts of a story in the form that the template writes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vitrail.evaluation.confusion import ClassScore, matrix
from vitrail.report.charts import LineChart, Series, line_chart, shades, thinned
from vitrail.report.colophon import cost_facts, made_facts
from vitrail.report.findings import BASELINES, advice_and_command, findings, suspects_line, use_steps
from vitrail.report.gallery import Tile
from vitrail.report.story import Story, grid_rows
from vitrail.report.trust import (
    FEW_ANSWERS,
    calibrated,
    calibration_verdict,
    interval_words,
    origin_words,
    reservations,
    without_leaks,
)
from vitrail.report.typed import anywhere
from vitrail.statistics import share

MANY = 30  # classes shown at once
HEAT = 20  # classes of the confusion table
PAIRS, TODO = 3, 3
SUSPECT_ROWS = 500
LISTED = 100  # groups that a problem of the data lists at most

SECTIONS = {
    "findings": "Findings", "result": "Result", "confusion": "Confusion", "classes": "Classes", "mistakes": "Mistakes",
    "labels": "Labels", "data": "Data", "course": "Learning", "calibration": "Calibration", "cost": "Cost",
    "use": "Use the model", "made": "How it was made", "missing": "Missing", "words": "Words",
}  # fmt: skip

Facts = dict[str, Any]


def facts_of(story: Story) -> Facts:
    """Everything that run.html asks for. A part that the folder's files do not allow is named under what is missing."""
    facts: Facts = {}
    missing = list(story.missing)
    makers: dict[str, Callable[[Story], Facts]] = {
        "the findings": _findings, "the result": _result, "the confusion": _confusion, "the classes": _classes,
        "the pictures": _pictures, "the data": _data, "the course": _course, "the calibration": _calibration,
        "the cost": cost_facts, "how it was made": made_facts,
    }  # fmt: skip
    for name, make in makers.items():
        try:
            facts |= make(story)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            missing.append(f"{name}: the files of the folder do not fit together ({type(error).__name__}: {error})")
    empty = {anchor for anchor, fact in _SHOWN_WITH.items() if not facts.get(fact)} - (
        {"missing"} if missing else set()
    )
    sections = [(anchor, name) for anchor, name in SECTIONS.items() if anchor not in empty]
    kinds = {f"data-{item['kind']}" for item in facts.get("problems", ())}
    return {
        "title": story.folder.name,
        **facts,
        "missing": missing,
        "sections": sections,
        "anchors": kinds | {a for a, _ in sections},
    }


# A section is there where this fact is.
_SHOWN_WITH = {
    "result": "summary", "confusion": "pairs", "classes": "class_rows", "mistakes": "worst", "labels": "suspects",
    "data": "counts_rows", "course": "charts", "calibration": "reliability", "cost": "cost_rows", "missing": "missing",
}  # fmt: skip


def interval_row(
    name: str, value: float | None, interval: Sequence[float], note: str = "", quiet: bool = False
) -> Facts:
    """A row of an interval chart from 0 to 1; places in per cent."""
    low, high = interval
    places = {"left": round(100 * low, 2), "width": round(100 * (high - low), 2), "at": round(100 * (value or 0.0), 2)}
    return {"name": name, "value": value, "low": low, "high": high, "note": note, "quiet": quiet, **places}


def _findings(story: Story) -> Facts:
    found = [replace(finding, command=anywhere(story, finding.command)) for finding in findings(story)]
    steps = [(what, anywhere(story, command)) for what, command in use_steps(story)]
    chosen = [finding for finding in found if finding.severity != "good" and finding.action][:TODO]
    commands = [finding.command for finding in chosen]
    todo = [(finding, finding.command in commands[:place]) for place, finding in enumerate(chosen)]
    return {"findings": found, "todo": todo, "steps": steps}


def _result(story: Story) -> Facts:
    summary = story.summary
    if not summary:
        return {}
    clean = without_leaks(story)
    rows = [interval_row("this model", summary["top1"], summary["top1_interval"])]
    figures = [("right (top-1)", share(summary["top1"], summary["top1_interval"]))]
    if clean:
        name = f"this model, without the {clean.leaked:,} test pictures that are in train or val too"
        rows.append(interval_row(name, clean.top1, clean.interval, f"n = {clean.n:,}"))
        figures.append((name.replace("this model", "right"), share(clean.top1, clean.interval)))
    rows += [
        interval_row(f"the same on {each['engine']} in {each['precision']}", each["top1"], each["top1_interval"])
        for each in story.engines
    ]
    rows += [
        interval_row(BASELINES.get(b["name"], b["name"]), b["top1"], b["interval"], quiet=True)
        for b in summary["baselines"]
    ]
    figures += [("among the five most probable (top-5)", share(summary["top5"]))] if "top5" in summary else []
    figures += [("all labels right", share(summary["exact"]))] if summary.get("exact") is not None else []
    figures += [("loss (cross-entropy)", f"{summary['loss']:.4f}")] if summary.get("loss") is not None else []
    if train := summary.get("train"):
        figures.append((f"right on {train['n']:,} training pictures, not augmented", share(train["top1"])))
    total, best = sum(story.data.get("counts", {}).get("test", {}).values()), story.best_baseline
    unread = f"{total - summary['n']:,} of the {total:,} test pictures cannot be read and are left out."
    return {
        "summary": summary, "best": best and {**best, "words": BASELINES.get(best["name"], best["name"])},
        "result_rows": rows, "figures": figures, "reservations": list(reservations(story)),
        "split_words": origin_words(str(summary["split"])),
        "unread": unread if not story.multi_label and total > summary["n"] else "",
        "baseline_rows": [(BASELINES.get(b["name"], b["name"]), b["how"]) for b in summary["baselines"]],
        "headline": clean.top1 if clean else summary["top1"], "headline_n": clean.n if clean else summary["n"],
        "interval": interval_words(clean.interval if clean else summary["top1_interval"]),
    }  # fmt: skip


def _confusion(story: Story) -> Facts:
    predictions, found = story.predictions, story.pairs
    mistakes = 0 if predictions is None else int((~predictions.hit).sum())
    reason = "" if predictions is not None else "Not known yet: there is no result on test pictures."
    if story.multi_label:
        reason = "Pictures may have several labels here, so that one is not taken for another; see the classes."
    facts: Facts = {"pairs": found, "mistakes": mistakes, "no_pairs": reason}
    if predictions is None or not found:
        return facts
    tiles = story.tiles("pair")
    facts["shown_pairs"] = [
        {**asdict(pair), "tiles": [tile for tile in tiles if {tile.label, tile.predicted} == {pair.first, pair.second}]}
        for pair in found[:PAIRS]
    ]
    facts["pair_rows"] = [(pair.first, pair.second, pair.forward, pair.backward) for pair in found]
    names = story.classes
    title = "All classes"
    if len(names) > HEAT:
        involved = list(dict.fromkeys(name for pair in found for name in (pair.first, pair.second)))[:HEAT]
        names = tuple(name for name in names if name in set(involved))
        title = f"The {len(names)} classes that are confused most"
    counts = matrix(predictions, names)
    facts["heat"] = {"title": title, "classes": names, "counts": counts.tolist(), "shades": shades(counts)}
    return facts


def _classes(story: Story) -> Facts:
    scores = sorted(story.scores, key=lambda score: (score.recall is None, score.recall or 0.0))
    rows = [interval_row(s.name, s.recall, s.recall_interval, f"n = {s.count:,}") for s in scores]
    caption = "How many of each class's test pictures are recognised, with 95 % intervals; the weakest first"
    return {"class_rows": rows, "score_rows": [_score_row(s) for s in scores], "class_caption": caption, "many": MANY}


def _score_row(score: ClassScore) -> tuple[str, ...]:
    def pair(value: float | None, interval: tuple[float, float]) -> tuple[str, str]:
        return ("none", "") if value is None else (share(value), f"{100 * interval[0]:.1f}-{100 * interval[1]:.1f}")

    numbers = (f"{score.count:,}", f"{score.predicted:,}", f"{score.hits:,}")
    return (
        score.name,
        *numbers,
        *pair(score.recall, score.recall_interval),
        *pair(score.precision, score.precision_interval),
    )


def _pictures(story: Story) -> Facts:
    worst, suspects = story.tiles("worst"), story.suspects
    rows = [(s["id"], s["split"], s["label"], s["suggested"], f"{s['doubt']:.2f}") for s in suspects[:SUSPECT_ROWS]]
    return {
        "worst": worst, "overlays": any(tile.overlay for tile in worst),
        "blind": not story.attends,
        "suspects": suspects, "suspect_tiles": story.tiles("suspect"), "suspect_rows": rows,
        "suspects_line": suspects_line(story) if suspects else "",
    }  # fmt: skip


def _data(story: Story) -> Facts:
    counts: Mapping[str, Mapping[str, int]] = story.data.get("counts", {})
    splits = list(counts)
    rows = [(name, *(counts[split].get(name, 0) for split in splits)) for name in story.classes]
    totals = ", ".join(f"{split} {sum(counts[split].values()):,}" for split in splits)
    told = {split: text for split, text in story.data.get("origin", {}).items() if text != "given"}
    origin = "; ".join(f"{split}: {text}" for split, text in told.items()) or "As the data divide themselves"
    examination = story.data.get("examination")
    nothing = "The data check found nothing wrong." if examination else "This run was made without a data check."
    sizes = [(word, " x ".join(map(str, pair))) for word, pair in _pairs(examination or {})]
    line = f"{story.data.get('source', '')}: {totals}. {origin}"
    return {
        "counts_rows": rows, "counts_columns": ("class", *splits), "data_line": line,
        "problems": [
            {**facts, "command": anywhere(story, facts["command"]) if facts["severity"] == "note" else ""}
            for facts in (problem_facts(problem, story.gallery) for problem in story.problems)
        ],
        "no_problems": nothing, "sizes": sizes,
    }  # fmt: skip


def data_facts(facts: Mapping[str, Any], thumbnails: Mapping[str, bytes]) -> Facts:
    """Everything that data.html asks for."""
    examination, counts = facts["examination"], facts["counts"]
    splits, classes = list(counts), list(dict.fromkeys(name for split in counts.values() for name in split))
    tiles = [
        Tile(problem["kind"], member["id"], member["split"], member["label"], group=str(number), picture=thumbnails[member["id"]],
             pixelated=True)
        for problem in examination["problems"]
        for number, group in enumerate(problem["groups"])
        for member in group
        if member["id"] in thumbnails
    ]  # fmt: skip
    problems = [problem_facts(problem, tiles) for problem in examination["problems"]]
    sizes = [(f"{word} picture", " x ".join(map(str, pair))) for word, pair in _pairs(examination)]
    kinds = {word: examination.get(word, {}).items() for word in ("modes", "formats")}
    listed = [(word, ", ".join(f"{name} {count:,}" for name, count in items)) for word, items in kinds.items() if items]
    seen, total = examination["seen"], examination["of"]
    return {
        "title": f"Data check of {Path(facts['source']).name or facts['source']}",
        "subtitle": "every picture was read" if seen == total else f"{seen:,} of {total:,} pictures were read",
        "images": total, "classes": len(classes), "totals": ", ".join(f"{s} {sum(counts[s].values()):,}" for s in splits),
        "problems": problems, "steps": [problem for problem in problems if problem["advice"]],
        "counts_columns": ("class", *splits),
        "counts_rows": [(name, *(counts[s].get(name, 0) for s in splits)) for name in classes],
        "facts_rows": sizes + listed,
    }  # fmt: skip


SHOWS = {  # what the tiles of a problem are, where that does not go without saying
    "missing-class": "Pictures of what is missing, from the other splits:",
    "few-images": "Training pictures of these classes:", "imbalance": "Training pictures of the small classes:",
    "leak": "Each picture beside its copies in another split:", "label-conflict": "Each picture beside its copies:",
    "exact-duplicates": "Each picture beside its copies:", "near-duplicates": "Each picture beside its copies:",
}  # fmt: skip


def _pairs(examination: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(word, pair) for word, pair in examination.get("sizes", {}).items() if word != "shorter_side"]


def problem_facts(problem: Mapping[str, Any], tiles: Sequence[Tile]) -> Facts:
    """A problem of the data check with its list and the tiles that show it."""
    groups: dict[str, list[Tile]] = {}
    for tile in tiles:
        if tile.kind == problem["kind"]:
            groups.setdefault(tile.group, []).append(tile)
    rows = [
        (number + 1, member["id"], member["split"], member["label"])
        for number, group in enumerate(problem["groups"])
        for member in group
    ]
    advice, command = advice_and_command(problem["fix"])
    listing = "List of them"
    if len(problem["groups"]) >= LISTED:  # the data check lists no more
        single = len(rows) == LISTED and "count" in problem
        listing = (
            f"List of the first {LISTED} of {problem['count']:,}" if single else f"List of the first {LISTED} groups"
        )
    members = list(groups.values())
    if members and all(len(group) == 1 for group in members):
        members = [[tile for group in members for tile in group]]  # side by side
    return {**problem, "advice": advice, "command": command, "rows": rows, "members": members, "listing": listing,
            "shows": SHOWS.get(problem["kind"], "")}  # fmt: skip


def _course(story: Story) -> Facts:
    steps, evaluations = story.steps, story.evaluations

    def series(records: Sequence[Mapping[str, Any]], key: str, name: str, dashed: bool = False) -> Series:
        chosen = [record for record in records if key in record]
        line = Series(name, [record["epoch"] for record in chosen], [record[key] for record in chosen], dashed)
        return thinned(line, 40) if dashed else line  # single batches are noise

    charts = [
        line_chart("Share right (top-1)", "epoch", "share right", [series(evaluations, "val/top1", "validation pictures"),
                   series(steps, "train/top1", "training batches, augmented, means", True)], percent=True),
        line_chart("Loss", "epoch", "loss", [series(evaluations, "val/loss", "validation pictures"),
                   series(steps, "train/loss", "training batches, augmented, means", True)]),
        line_chart("Learning rate", "epoch", "learning rate", [series(steps, "lr", "learning rate")]),
        line_chart("Speed", "epoch", "pictures per second",
                   [series(steps, "images_per_second", "pictures per second")], from_zero=True),
    ]  # fmt: skip
    told = f"Learning rates that were tried, on {story.grid['n']:,} held-out pictures" if story.grid else ""
    return {
        "charts": [chart for chart in charts if chart is not None],
        "grid_rows": grid_rows(story),
        "grid_told": told,
    }


def _calibration(story: Story) -> Facts:
    predictions, found = story.predictions, calibrated(story)
    if found is None or predictions is None:
        return {}
    low, high = (100 * bound for bound in found.gap_interval)
    drawn = [part for part in found.bins if part.count >= FEW_ANSWERS] or list(found.bins)
    line = (
        f"On average the model says {share(float(predictions.probability.mean()))} "
        f"and is right in {share(float(predictions.hit.mean()))}: "
        f"its probabilities are {calibration_verdict(found)[1]} "
        f"(95 % CI of the difference {low:+.1f} to {high:+.1f} points). Expected calibration error, ten bins: {found.error:.3f}."
    )
    if missing := len(found.bins) - len(drawn):
        line += f" {missing} of the {len(found.bins)} bins have fewer than {FEW_ANSWERS} answers and stand in the table alone."
    said, right = [b.confidence for b in drawn], [b.accuracy for b in drawn]
    lines = [Series("right answers", said, right), Series("if every probability were true", [0, 1], [0, 1], True)]
    chart = line_chart("Share of right answers by stated probability", "stated probability", "share right", lines)
    assert chart is not None
    rows = tuple(
        (f"{b.low:.1f}-{b.high:.1f} (n = {b.count:,})", f"{b.confidence:.3f}", share(b.accuracy, b.interval))
        for b in found.bins
    )
    facts = {**chart.__dict__, "columns": ("probability", "mean stated", "right"), "rows": rows}
    facts["lines"] = tuple(type(line)(line.name, line.path, line.style, "") for line in chart.lines)
    return {"reliability": LineChart(**facts), "reliability_line": line}
