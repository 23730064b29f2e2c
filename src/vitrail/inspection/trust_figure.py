"""The trust table as a picture: a row a method, a panel a question, means with 95 % intervals and the line to pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitrail.canvas import blank, png
from vitrail.inspection.checking import Row, TrustTable
from vitrail.inspection.verdicts import HALF, SAME, Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _SOFT, _GRID = "#1a1a1a", "#595959", "#e4e4e4"
_COLOURS = {"supported": "#00695c", "weak": "#b26a00", "not supported": "#8e2a2a"}
_PASS = "#e3f1ee"

# Heading, figures, factor, line to pass, and on which side of it a method should be.
_PANELS: tuple[tuple[str, tuple[str, ...], float, float, str], ...] = (
    ("ahead of random, centre\nand edges [points]", ("ahead of random", "ahead of centre", "ahead of edges"), 100, 0, "above"),
    ("SaCo\n", ("saco",), 1, 0, "above"),
    ("all weights shuffled\n[rank correlation]", ("shuffled",), 1, HALF, "below"),
    ("another class\n[rank correlation]", ("classes",), 1, SAME, "below"),
    ("small changes\n[rank correlation]", ("stable",), 1, HALF, "above"),
)  # fmt: skip
_LIMITS = ((None, None), (-1, 1), (0, 1), (-1, 1), (0, 1))
_MARKS = {"ahead of random": ("o", "random"), "ahead of centre": ("s", "centre"), "ahead of edges": ("^", "edges")}


def trust_figure(table: TrustTable, title: str) -> bytes:
    """A PNG.

    Args:
        title: one line.
    """
    rows, refused = list(table.rows), list(table.refused)
    count = len(rows) + len(refused)
    figure = blank(12.5, 1.9 + 0.46 * count)
    axes = figure.subplots(1, len(_PANELS), sharey=True, width_ratios=[1.7, 1, 1, 1, 1])
    for axis, panel, limits in zip(axes, _PANELS, _LIMITS, strict=True):
        _panel(axis, rows, panel, limits, count)
    axes[0].set_yticks(range(count), [*(row.method for row in rows), *refused], fontsize=10.5, color=_INK)
    axes[0].legend(loc="upper left", bbox_to_anchor=(0, -0.09), ncols=3, frameon=False, fontsize=9, handletextpad=0.2,
                   columnspacing=1.2, borderaxespad=0.6, title=None)  # fmt: skip
    last = axes[-1].secondary_yaxis("right")
    last.set_yticks(range(count), [*(row.verdict for row in rows), *("cannot run" for _ in refused)], fontsize=10.5)
    last.tick_params(length=0)
    last.spines["right"].set_visible(False)
    for label, row in zip(last.get_yticklabels(), rows, strict=False):
        label.set_color(_COLOURS[row.verdict])
        label.set_fontweight("bold")
    for label in last.get_yticklabels()[len(rows) :]:
        label.set_color(_SOFT)
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.12, h_pad=0.1)
    figure.suptitle(title, x=0.012, ha="left", fontsize=12.5, fontweight="bold", color=_INK)
    figure.supxlabel(_caption(table), x=0.988, ha="right", fontsize=9, color=_SOFT)
    return png(figure)


def _caption(table: TrustTable) -> str:
    rows, cols = table.grid
    return (
        f"Mean and 95 % interval; the green side is where the interval must lie. {rows}x{cols} parts, {table.removal}; "
        f"maps made again on {table.compared} images. Grey: the method says nothing of classes."
    )


def _panel(axis: Axes, rows: list[Row], panel: tuple[Any, ...], limits: tuple[Any, Any], count: int) -> None:
    heading, names, factor, line, side = panel
    axis.set_title(heading, fontsize=9.5, color=_SOFT, loc="left")
    shift = 0.24 if len(names) > 1 else 0.0
    for place, name in enumerate(names):
        mark, label = _MARKS.get(name, ("o", ""))
        level = [index + shift * (place - (len(names) - 1) / 2) for index in range(len(rows))]
        for index, row in enumerate(rows):
            claims = name != "classes" or row.class_specific
            _interval(
                axis, row.figures.get(name), level[index], factor, mark, _COLOURS[row.verdict] if claims else _SOFT
            )
        if label:
            axis.plot([], [], mark, color=_SOFT, markersize=5, label=label)
    axis.axvline(line, color=_INK, linewidth=1, zorder=1)
    low, high = axis.get_xlim() if limits[0] is None else limits
    room = 0.04 * (high - low)
    low, high = min(low, line) - room, max(high, line) + room
    axis.axvspan(
        line if side == "above" else low, high if side == "above" else line, color=_PASS, zorder=0, linewidth=0
    )
    axis.set_xlim(low, high)
    axis.set_ylim(count - 0.5, -0.5)
    axis.set_yticks(range(count))
    axis.grid(axis="y", color=_GRID, linewidth=0.7)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=9, colors=_SOFT)
    axis.set_axisbelow(True)
    for edge in ("top", "right", "left"):
        axis.spines[edge].set_visible(False)
    axis.spines["bottom"].set_color(_SOFT)


def _interval(axis: Axes, figure: Measured | None, level: float, factor: float, mark: str, colour: str) -> None:
    if figure is None:
        return
    axis.plot([factor * figure.low, factor * figure.high], [level, level], color=colour, linewidth=1.8, zorder=2)
    axis.plot(factor * figure.mean, level, mark, color=colour, markersize=5, zorder=3)
