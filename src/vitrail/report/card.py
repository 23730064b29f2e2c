"""README.md of a run: a Hugging Face model card with the numbers of the report, from the run folder alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vitrail.files import write_text
from vitrail.report.findings import findings
from vitrail.report.story import Story, grid_rows, read_story
from vitrail.report.trust import origin_words, reservations, without_leaks
from vitrail.statistics import share

CLASSES = 50


def write_card(folder: Path) -> Path:
    """Writes README.md."""
    path = folder / "README.md"
    write_text(path, card(read_story(folder)))
    return path


def card(story: Story) -> str:
    """The model card; what comes from outside is escaped where Markdown would read it as a sign."""
    summary, model = story.summary, story.run.get("model", {})
    name = Path(str(story.data.get("source", story.folder.name))).name
    height, width = model.get("image_size", ("?", "?"))
    classes = ", ".join(plain(c) for c in story.classes[:CLASSES]) + (" ..." if len(story.classes) > CLASSES else "")
    return "\n".join([
        "---", *_header(story, name), "---",
        f"# {plain(name)}: {plain(story.model)}", "",
        *(_result(story) if summary else ["The run has not come to a result yet."]), "",
        f"Pictures of {height}x{width} px. {len(story.classes)} classes: {classes}", "",
        *_pictures(story), "The whole story, with pictures, is in [report.html](report.html).", "",
        "```python", "import vitrail", f"model = vitrail.load({json.dumps(story.folder.as_posix())})",
        'model.predict("picture.png")', "```", "",
    ])  # fmt: skip


def _header(story: Story, name: str) -> list[str]:
    """YAML, every text as a JSON string, which YAML reads."""
    lines = ["library_name: vitrail", "pipeline_tag: image-classification"]
    if story.summary:
        lines += [
            "model-index:", f"- name: {json.dumps(story.folder.name)}", "  results:",
            "  - task:", "      type: image-classification",
            "    dataset:", f"      name: {json.dumps(name)}", "      type: imagefolder", "      split: test",
            "    metrics:", "    - type: accuracy",
        ]  # fmt: skip
        clean = without_leaks(story)  # what others read without this page is the figure that can be believed
        lines.append(f"      value: {clean.top1 if clean else story.summary['top1']:.4f}")
        if clean:
            lines.append(f"      name: {json.dumps(f'accuracy without {clean.leaked} leaked test pictures')}")
    return lines


def _pictures(story: Story) -> list[str]:
    """Plots that are there; their names are ours."""
    names = {"curves": "Loss and top-1 over the epochs", "confusion": "Confusion table", "reliability": "Reliability"}
    found = [name for name in names if (story.folder / "plots" / f"{name}.png").is_file()]
    return [*(f"![{names[name]}](plots/{name}.png)" for name in found), ""] if found else []


def _result(story: Story) -> list[str]:
    summary: Any = story.summary
    rows = [("this model", share(summary["top1"], summary["top1_interval"]), "")]
    if clean := without_leaks(story):
        text = f"without the {clean.leaked} test pictures that are in train or val too"
        rows.append(("this model", share(clean.top1, clean.interval), text))
    rows += [
        (
            f"the same on {plain(each['engine'])} in {plain(each['precision'])}",
            share(each["top1"], each["top1_interval"]),
            "",
        )
        for each in story.engines
    ]
    rows += [(b["name"], share(b["top1"], b["interval"]), b["how"]) for b in summary["baselines"]]
    lines = [
        f"Top-1 on {summary['n']} test pictures ({origin_words(str(summary['split']))}):",
        "",
        *(f"**{plain(sentence)}.**\n" for tone, sentence in reservations(story) if tone != "good"),
        "| | top-1 | how |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {value} | {how} |" for name, value, how in rows]
    if tried := grid_rows(story):
        lines += [
            "",
            f"Learning rates that were tried, on {story.grid['n']:,} held-out pictures of the training images:",
            "",
        ]
        lines += ["| learning rate | came to | |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in tried)]
    if told := [finding for finding in findings(story) if finding.severity != "good"]:
        lines += ["", "What to know:", "", *(f"- {plain(f.title)}. {plain(f.evidence)}" for f in told)]
    return lines


def plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    signs: dict[str, Any] = {sign: f"\\{sign}" for sign in "\\`*_[]#|"} | {
        "<": "&lt;",
        ">": "&gt;",
        "&": "&amp;",
        "\n": " ",
        "\r": " ",
    }
    return text.translate(str.maketrans(signs))
