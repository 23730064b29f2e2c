"""What `train` and `demo` do and print: the plan, or the result beside its baselines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrail.commands.plan import duration, plan_text
from vitrail.recipes.asked import Asked
from vitrail.recipes.assembly import Machine
from vitrail.recipes.execute import train
from vitrail.recipes.judge import Result
from vitrail.recipes.plan import plan as make_plan
from vitrail.report.findings import findings, next_steps
from vitrail.report.story import outcome_words, read_story
from vitrail.statistics import share

TOLD = 6  # findings, and next steps, on the terminal; the report has all


def run_training(
    data: str, out: Path | None, asked: Asked, machine: Machine, plan: bool, overwrite: bool, as_json: bool, quiet: bool
) -> int:
    """Shows the plan, or trains and shows the result."""
    if plan:
        planned = make_plan(data, out, asked, machine, overwrite)
        found = planned.to_json()
        print(json.dumps(found, ensure_ascii=False) if as_json else plan_text(found))
        return planned.status
    start = time.monotonic()
    result = train(data, out, asked, machine, overwrite, quiet or as_json)
    if as_json:
        baselines = {b.name: b.top1 for b in result.baselines}
        print(
            json.dumps(
                {
                    "folder": str(result.folder),
                    **result.summary,
                    "baselines": baselines,
                    "already": result.already,
                    **({"grid": grid} if (grid := read_story(result.folder).grid) else {}),
                }
            )
        )
    else:
        if not quiet and not result.already:
            print(f"took {duration(time.monotonic() - start)}", file=sys.stderr)
        print(result_text(result))
    return 0


def result_text(result: Result) -> str:
    """The result beside its baselines, where it is, and what to type next."""
    rows = [("this model", share(result.top1, result.summary["top1_interval"]))]
    rows += [(baseline.name, share(baseline.top1, baseline.interval)) for baseline in result.baselines]
    head = "done already" if result.already else "done"
    count = result.summary["n"]
    lines = [f"{head}   top-1 on {count:,} test picture{'s' * (count != 1)}"]
    lines += [f"       {name:<20}{value}" for name, value in rows]
    story = read_story(result.folder)
    lines += grid_lines(story.grid)
    lines += [f"{finding.severity:<6} {finding.title}" for finding in findings(story) if finding.severity != "good"][
        :TOLD
    ]
    page = result.folder / "report.html"
    lines += [f"where  {page if page.is_file() else result.folder}"]
    lines += [
        f"{'next' if not number else '    '}   {command}"
        for number, (_, command) in enumerate(next_steps(story)[:TOLD])
    ]
    return "\n".join(lines)


def grid_lines(grid: Mapping[str, Any]) -> list[str]:
    """The learning rates that were tried, the chosen one marked."""
    rows = [
        f"{'tried' if not number else '':<6} lr {row['lr']:<17g}{outcome_words(row)}"
        + ("   chosen" if row["lr"] == grid["chosen"] else "")
        for number, row in enumerate(grid.get("rows", ()))
    ]
    return rows and [*rows, f"       on {grid['n']:,} held-out pictures, which the run itself was trained on too"]
