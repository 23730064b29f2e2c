"""The charts of a run as pictures, for slides and the model card: plots/curves.png, confusion.png, reliability.png."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vitrail.canvas import blank, png
from vitrail.evaluation.confusion import matrix
from vitrail.files import explained, write_bytes
from vitrail.report.charts import Series, shades, thinned
from vitrail.report.story import Story, read_story
from vitrail.report.trust import FEW_ANSWERS, calibrated

CELLS = 40  # a larger confusion table is no picture any more; the page shows its most confused part
BLUE, ORANGE = "#1f56c3", "#b3541e"


def write_plots(folder: Path) -> list[Path]:
    """Writes the pictures that the folder's files allow, and returns where they are."""
    written = []
    for name, content in drawn(read_story(folder)):
        with explained(folder / "plots"):
            (folder / "plots").mkdir(exist_ok=True)
        written.append(folder / "plots" / f"{name}.png")
        write_bytes(written[-1], content)
    return written


def drawn(story: Story) -> Iterator[tuple[str, bytes]]:
    """Name and PNG file of every picture that the story allows."""
    makers: dict[str, Callable[[Story], Any]] = {
        "curves": _curves,
        "confusion": _confusion,
        "reliability": _reliability,
    }
    for name, make in makers.items():
        figure = make(story)
        if figure is not None:
            yield name, png(figure)


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    figure = blank(width, height)
    return figure, figure.subplots(1, columns)


def _curves(story: Story) -> Any:
    if not story.records:
        return None
    figure, axes = _figure(9, 3.4, 2)
    for axis, key in zip(axes, ("top1", "loss"), strict=True):
        for records, name, colour, style in (
            (story.steps, f"train/{key}", ORANGE, "--"), (story.evaluations, f"val/{key}", BLUE, "-"),
        ):  # fmt: skip
            chosen = [record for record in records if name in record]
            line = thinned(Series(name, [r["epoch"] for r in chosen], [r[name] for r in chosen]), 60)
            axis.plot(line.x, line.y, style, color=colour, label=name)
        axis.set(xlabel="epoch", ylabel={"top1": "top-1", "loss": "loss"}[key])
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    return figure


def _confusion(story: Story) -> Any:
    if story.predictions is None or story.multi_label or not 0 < len(story.classes) <= CELLS:
        return None
    names = [_plain(name) for name in story.classes]
    counts = matrix(story.predictions, story.classes)
    side = 2.5 + 0.38 * len(names)
    figure, axis = _figure(side, side)
    axis.imshow(shades(counts), cmap="Blues", vmin=0, vmax=1.6)
    axis.set_xticks(range(len(names)), names, rotation=90)
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="the model says", ylabel="true class")
    for row, values in enumerate(counts.tolist()):
        for column, value in enumerate(values):
            if value:
                axis.text(column, row, str(value), ha="center", va="center", fontsize=8)
    return figure


def _reliability(story: Story) -> Any:
    found = calibrated(story)
    if found is None:
        return None
    figure, axis = _figure(4.2, 4.2)
    bins = [part for part in found.bins if part.count >= FEW_ANSWERS] or list(found.bins)
    said, right = [b.confidence for b in bins], [b.accuracy for b in bins]
    spread = [[r - b.interval[0] for r, b in zip(right, bins, strict=True)],
              [b.interval[1] - r for r, b in zip(right, bins, strict=True)]]  # fmt: skip
    axis.plot([0, 1], [0, 1], "--", color="grey", label="if every probability were true")
    axis.errorbar(said, right, spread, fmt="o-", color=BLUE, capsize=3, label="right answers, 95 % CI")
    axis.set(xlabel="stated probability", ylabel="share right", xlim=(0, 1), ylim=(0, 1))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return figure


def _plain(name: str) -> str:
    """A class name as it is: a dollar sign would start a formula."""
    return name.replace("$", r"\$")[:40]
