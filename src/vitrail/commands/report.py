"""What `report` does: rebuilds the pages of a run from its folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from vitrail.report.card import write_card
from vitrail.report.findings import findings
from vitrail.report.page import write_report
from vitrail.report.plots import write_plots
from vitrail.report.story import read_story
from vitrail.report.typed import anywhere


def run_report(folder: Path, as_json: bool) -> int:
    """Writes report.html, README.md and plots/ again, and prints the findings."""
    story = read_story(folder)
    found = [replace(finding, command=anywhere(story, finding.command)) for finding in findings(story)]
    page, card, plots = write_report(folder), write_card(folder), write_plots(folder)
    if as_json:
        record = {"report": str(page), "card": str(card), "plots": [str(path) for path in plots],
                  "findings": [finding.__dict__ for finding in found], "missing": list(story.missing)}  # fmt: skip
        print(json.dumps(record, ensure_ascii=False))
        return 0
    for finding in found:
        print(f"{finding.severity:5}  {finding.title}")
        if finding.command:
            print(f"       {finding.command}")
    for line in story.missing:
        print(f"miss   {line}")
    print(f"where  {page}")
    return 0
