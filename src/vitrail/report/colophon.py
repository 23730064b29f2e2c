"""The end of a report, as of a book: what the run cost and how it was made."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from vitrail import configuration
from vitrail.report.story import Story
from vitrail.report.trust import without_leaks
from vitrail.report.typed import anywhere, began_in, command_of, train_command
from vitrail.statistics import duration, share

Facts = dict[str, Any]


def cost_facts(story: Story) -> Facts:
    """Size, time, speed, memory, machine; what the folder tells of them."""
    rows: list[tuple[str, str]] = []
    cost, last = story.config.get("cost", {}), story.steps[-1] if story.steps else {}
    if "image_size" in story.run.get("model", {}):
        height, width = story.run["model"]["image_size"]
        rows.append(("model", f"{story.model}; {height}x{width} px"))
    if cost:
        rows += [("parameters", f"{cost['parameters']:,}"),
                 ("operations for a picture (FLOPs)", f"{cost['flops_per_image'] / 1e6:,.1f} million"),
                 ("tokens of a picture", f"{cost['tokens']:,}")]  # fmt: skip
    if "seconds" in story.status:
        rows.append(("time, interruptions left out", duration(story.status["seconds"])))
    if "images_per_second" in last:
        rows += [
            ("training speed", f"{last['images_per_second']:,.0f} pictures per second"),
            ("waiting for pictures", share(last["data_wait"])),
        ]
    if "memory" in last:
        rows.append(("most memory while training", f"{last['memory'] / 2**20:,.0f} MiB"))
    if environment := story.environment:
        threads = story.config.get("machine", {}).get("threads")
        count = f", {threads} thread{'s' * (threads != 1)}" if threads else ""
        rows.append(("machine", f"{environment.get('accelerator') or environment.get('processor')}{count}"))
    return {"cost_rows": rows}


def made_facts(story: Story) -> Facts:
    """The command, every value with where it comes from, the environment; and the title of the page."""
    origin = story.config.get("origin", {})
    run = story.run
    values = [
        (key, value) for key in configuration.keys(run) if not isinstance(value := _at(run, key), dict) and key != "why"
    ]
    environment = [(name, text) for name, text in story.environment.items() if name != "packages"]
    environment += list(story.environment.get("packages", {}).items())
    states = {
        "done": "finished",
        "running": "still running",
        "interrupted": "interrupted",
        "failed": "failed",
        "stopped": "unfinished",
    }
    here, place = os.path.abspath(story.folder), began_in(story)
    typed = command_of(story)
    return {
        "title": f"{Path(here).name}{result_words(story)}",
        "subtitle": f"Report of the run in {here}, trained on {story.data.get('source', 'unknown data')}; "
        f"{states.get(story.state, story.state)}",
        "command": "\n".join([*([f"cd {shlex.quote(str(place))}"] if place else []), typed]) if typed else "",
        "about": "" if typed or not story.data else anywhere(story, train_command(story)),
        "reasons": story.config.get("why", []),
        "config_rows": [(key, str(value), origin.get(key, "")) for key, value in values],
        "environment_rows": [(name, str(value)) for name, value in environment],
    }  # fmt: skip


def result_words(story: Story) -> str:
    """ ": 84.7 % right", and what a leak makes of it."""
    if not story.summary:
        return ""
    text = f": {share(story.summary['top1'])} of the test pictures right"
    if clean := without_leaks(story):
        text = f": {share(clean.top1)} right ({share(story.summary['top1'])} with leaked test pictures)"
    return text


def _at(data: Any, key: str) -> Any:
    for part in key.split("."):
        data = data[part]
    return data
