"""What the report of a run shows, section by section: the facts of a story in the form that the template writes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vitrail import configuration
from vitrail.evaluation.calibration import calibration
from vitrail.evaluation.confusion import ClassScore, matrix
from vitrail.report.charts import LineChart, Series, line_chart, shades, thinned
from vitrail.report.findings import advice_and_command, findings, next_steps, without_leaks
from vitrail.report.gallery import Tile
from vitrail.report.story import Story
from vitrail.statistics import share

MANY = 30  # classes shown at once
HEAT = 20  # classes of the confusion table
PAIRS = 3
SUSPECT_ROWS = 500

SECTIONS = {
    "findings": "Findings", "result": "Result", "confusion": "Confusion", "classes": "Classes", "mistakes": "Mistakes",
    "labels": "Labels", "data": "Data", "course": "Learning", "calibration": "Calibration", "cost": "Cost", "next": "Next steps",
    "made": "How it was made", "missing": "Missing",
}  # fmt: skip

Facts = dict[str, Any]


def facts_of(story: Story) -> Facts:
    """Everything that run.html asks for. A part that the folder's files do not allow is named under what is missing."""
    facts: Facts = {}
    missing = list(story.missing)
    makers: dict[str, Callable[[Story], Facts]] = {
        "the findings": _findings, "the result": _result, "the confusion": _confusion, "the classes": _classes,
        "the pictures": _pictures, "the data": _data, "the course": _course, "the calibration": _calibration, "the cost": _cost,
        "how it was made": _made,
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
    found = findings(story)
    return {"findings": found, "todo": [f for f in found if f.severity != "good"], "steps": next_steps(story)}


def _result(story: Story) -> Facts:
    summary = story.summary
    if not summary:
        return {}
    rows = [interval_row("this model", summary["top1"], summary["top1_interval"])]
    rows += [interval_row(b["name"], b["top1"], b["interval"], quiet=True) for b in summary["baselines"]]
    figures = [("top-1", share(summary["top1"], summary["top1_interval"]))]
    figures += [("top-5", share(summary["top5"]))] if "top5" in summary else []
    figures += [("all labels right", share(summary["exact"]))] if summary.get("exact") is not None else []
    figures += [("loss (cross-entropy)", f"{summary['loss']:.4f}")] if summary.get("loss") is not None else []
    if train := summary.get("train"):
        figures.append((f"top-1 on {train['n']:,} training images, not augmented", share(train["top1"])))
    if leaks := without_leaks(story):
        figures.append((f"top-1 without {leaks[1]} test images that are in train or val too", share(leaks[0])))
    return {"summary": summary, "best": story.best_baseline, "result_rows": rows, "figures": figures}


def _confusion(story: Story) -> Facts:
    predictions, found = story.predictions, story.pairs
    mistakes = 0 if predictions is None else int((~predictions.hit).sum())
    reason = "" if predictions is not None else "Not known yet: there is no result on test images."
    if story.multi_label:
        reason = "Images may have several labels here, so that one is not taken for another; see the classes."
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
    caption = "Share of each class's test images that are found, with 95 % intervals; the weakest first"
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
    }  # fmt: skip


def _data(story: Story) -> Facts:
    counts: Mapping[str, Mapping[str, int]] = story.data.get("counts", {})
    splits = list(counts)
    rows = [(name, *(counts[split].get(name, 0) for split in splits)) for name in story.classes]
    totals = ", ".join(f"{split} {sum(counts[split].values()):,}" for split in splits)
    origin = "; ".join(f"{split}: {text}" for split, text in story.data.get("origin", {}).items())
    examination = story.data.get("examination")
    nothing = "The data check found nothing wrong." if examination else "This run was made without a data check."
    sizes = [(word, " x ".join(map(str, pair))) for word, pair in _pairs(examination or {})]
    line = f"{story.data.get('source', '')}: {totals}. {origin}"
    return {
        "counts_rows": rows, "counts_columns": ("class", *splits), "data_line": line,
        "problems": [problem_facts(problem, story.gallery) for problem in story.problems], "no_problems": nothing, "sizes": sizes,
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
        "problems": problems, "steps": list(dict.fromkeys(p["fix"] for p in problems if p["fix"])) or ["Train on it."],
        "counts_columns": ("class", *splits),
        "counts_rows": [(name, *(counts[s].get(name, 0) for s in splits)) for name in classes],
        "facts_rows": sizes + listed,
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
    return {**problem, "advice": advice, "command": command, "rows": rows, "members": list(groups.values())}


def _course(story: Story) -> Facts:
    steps, evaluations = story.steps, story.evaluations

    def series(records: Sequence[Mapping[str, Any]], key: str, name: str, dashed: bool = False) -> Series:
        chosen = [record for record in records if key in record]
        line = Series(name, [record["epoch"] for record in chosen], [record[key] for record in chosen], dashed)
        return thinned(line, 40) if dashed else line  # single batches are noise

    charts = [
        line_chart("Top-1", "epoch", "top-1", [series(evaluations, "val/top1", "validation images"),
                   series(steps, "train/top1", "training batches, augmented, means", True)], percent=True),
        line_chart("Loss", "epoch", "loss", [series(evaluations, "val/loss", "validation images"),
                   series(steps, "train/loss", "training batches, augmented, means", True)]),
        line_chart("Learning rate", "epoch", "learning rate", [series(steps, "lr", "learning rate")]),
        line_chart("Speed", "epoch", "images per second",
                   [series(steps, "images_per_second", "images per second")], from_zero=True),
    ]  # fmt: skip
    return {"charts": [chart for chart in charts if chart is not None]}


def _calibration(story: Story) -> Facts:
    predictions = story.predictions
    found = None if predictions is None or story.multi_label else calibration(predictions.probability, predictions.hit)
    if found is None or predictions is None:
        return {}
    low, high = (100 * bound for bound in found.gap_interval)
    line = (
        f"On average the model says {share(float(predictions.probability.mean()))} "
        f"and is right in {share(float(predictions.hit.mean()))}: "
        f"it is {'too sure' if found.gap > 0 else 'not sure enough'} by {abs(100 * found.gap):.1f} points "
        f"(95 % CI of the difference {low:+.1f} to {high:+.1f}). Expected calibration error, ten bins: {found.error:.3f}."
    )
    said, right = [b.confidence for b in found.bins], [b.accuracy for b in found.bins]
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


def _cost(story: Story) -> Facts:
    rows: list[tuple[str, str]] = []
    cost, last = story.config.get("cost", {}), story.steps[-1] if story.steps else {}
    if "image_size" in story.run.get("model", {}):
        height, width = story.run["model"]["image_size"]
        rows.append(("model", f"{story.model}; {height}x{width} px"))
    if cost:
        rows += [("parameters", f"{cost['parameters']:,}"),
                 ("FLOPs per image, forward", f"{cost['flops_per_image'] / 1e6:,.1f} million"),
                 ("tokens per image", f"{cost['tokens']:,}")]  # fmt: skip
    if "seconds" in story.status:
        rows.append(("time, all sittings together", duration(story.status["seconds"])))
    if "images_per_second" in last:
        rows += [
            ("training speed", f"{last['images_per_second']:,.0f} images per second"),
            ("waiting for pictures", share(last["data_wait"])),
        ]
    if "memory" in last:
        rows.append(("largest resident size in training", f"{last['memory'] / 2**20:,.0f} MiB"))
    if environment := story.environment:
        machine = story.config.get("machine", {})
        rows.append(
            (
                "machine",
                f"{environment.get('accelerator') or environment.get('processor')}, {machine.get('threads')} threads",
            )
        )
    return {"cost_rows": rows}


def _made(story: Story) -> Facts:
    origin = story.config.get("origin", {})
    run = story.run
    values = [
        (key, value) for key in configuration.keys(run) if not isinstance(value := _at(run, key), dict) and key != "why"
    ]
    environment = [(name, text) for name, text in story.environment.items() if name != "packages"]
    environment += list(story.environment.get("packages", {}).items())
    name = Path(str(story.data.get("source", ""))).name or story.folder.name
    result = story.summary and f": {share(story.summary['top1'])}"
    states = {
        "done": "finished",
        "running": "still running",
        "interrupted": "interrupted",
        "failed": "failed",
        "stopped": "unfinished",
    }
    return {
        "title": f"{name}{result or ''}", "command": story.command.strip(), "reasons": story.config.get("why", []),
        "subtitle": f"Report of the run {story.folder.name}, {states.get(story.state, story.state)}",
        "config_rows": [(key, str(value), origin.get(key, "")) for key, value in values],
        "environment_rows": [(name, str(value)) for name, value in environment],
    }  # fmt: skip


def _at(data: Any, key: str) -> Any:
    for part in key.split("."):
        data = data[part]
    return data


def duration(seconds: float) -> str:
    """ "3 min 21 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
