"""The robustness report as one figure page: twelve questions, the same colour for the same model everywhere."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

from PIL import Image

from vitrail.canvas import blank, png

COLOURS = ("#1f56c3", "#b3541e", "#2e7d4f", "#7a4fa3")
INK, SOFT = "#1a1a1a", "#6b6b6b"
STYLES = ("-", "--", ":")
LEGEND: dict[str, Any] = {
    "fontsize": 8,
    "labelcolor": SOFT,
    "facecolor": "white",
    "edgecolor": "none",
    "framealpha": 0.8,
}
Drawing = Callable[["Sheet", Any], None]


class Sheet:
    """A record, and how to get at it."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.record = record
        self.names = [model["name"] for model in record["models"]][: len(COLOURS)]
        self.curves = {(curve["group"], curve["name"]): curve for curve in record["curves"]}

    def line(self, group: str, name: str, model: str) -> tuple[list[float], list[float], list[list[float]]]:
        """x, value and interval of every point that is there."""
        points = self.curves.get((group, name), {"points": []})["points"]
        known = [(p["x"], p["answers"][model]) for p in points if p["answers"].get(model, {}).get("value") is not None]
        return [x for x, _ in known], [a["value"] for _, a in known], [a["interval"] for _, a in known]

    def ends(
        self, names: Sequence[str], places: Sequence[int], model: str
    ) -> tuple[list[float], list[float], list[list[float]]]:
        """The last point of several curves as one curve over `places`."""
        lines = [(float(place), self.line("attacks", name, model)) for name, place in zip(names, places, strict=True)]
        known = [(place, line[1][-1], line[2][-1]) for place, line in lines if line[0]]
        return [k[0] for k in known], [k[1] for k in known], [k[2] for k in known]

    def clean(self, model: str) -> tuple[float, list[float]]:
        _, values, intervals = self.line("clean", "unchanged", model)
        return values[0], intervals[0]


def page(record: Mapping[str, Any]) -> bytes:
    """A PNG of about 1,250 x 1,000 pixels; panels of parts that were not asked for say so."""
    sheet = Sheet(record)
    figure = blank(13, 10.4, rect=(0, 0.012, 1, 0.925), hspace=0.06, wspace=0.03)
    from matplotlib.lines import Line2D

    grid = figure.add_gridspec(3, 4)
    places = [grid[row, col] for row in range(2) for col in range(4)] + [grid[2, :2], grid[2, 2], grid[2, 3]]
    for place, (title, draw) in zip(places, PANELS, strict=True):
        axis = figure.add_subplot(place)
        axis.set_title(title, fontsize=10.5, loc="left", color=INK)
        axis.tick_params(labelsize=8, colors=SOFT)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        draw(sheet, axis)
        if not axis.has_data():
            axis.text(
                0.5,
                0.5,
                "not asked for, or no model here can be",
                ha="center",
                color=SOFT,
                fontsize=8.5,
                transform=axis.transAxes,
            )
            axis.set(xticks=[], yticks=[])
    data = f"{record['data']}, {record['split']}: {record['n']:,} images, attacks on {record['attacked']:,}"
    data += "; bands are 95 % intervals, dots the most common class"
    figure.text(0.012, 0.975, "What is left when pictures are changed", fontsize=15, color=INK, weight="bold")
    figure.text(0.012, 0.95, _plain(data), fontsize=10, color=SOFT)
    marks = [Line2D([], [], color=colour, lw=3) for colour in COLOURS]
    labels = [_plain(f"{m['name']} ({m['kind']}, {m['parameters']:,} parameters)") for m in record["models"]]
    figure.legend(
        marks[: len(labels)],
        labels[: len(marks)],
        loc="upper right",
        frameon=False,
        fontsize=10,
        bbox_to_anchor=(0.995, 0.995),
    )
    picture = Image.open(BytesIO(png(figure, dpi=96))).convert("RGB")
    content = BytesIO()  # a palette makes a third of the bytes, and no eye sees it
    picture.quantize(256, dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
    return content.getvalue()


def _lines(
    sheet: Sheet, axis: Any, curves: Sequence[tuple[str, str, str]], label: str, from_clean: bool = True
) -> None:
    """Accuracy over the points; a line style for each curve, a colour for each model.

    Args:
        curves: group, name, and words for the legend.
    """
    from matplotlib.lines import Line2D

    shown = []
    for (group, name, words), style in zip(curves, STYLES, strict=False):
        for colour, model in zip(COLOURS, sheet.names, strict=False):
            x, values, intervals = sheet.line(group, name, model)
            if not x:
                continue
            if from_clean:
                value, interval = sheet.clean(model)
                x, values, intervals = [0.0, *x], [value, *values], [interval, *intervals]
            _stroke(axis, x, values, intervals, style, colour)
            shown.append((words, style))
    known = list(dict.fromkeys(shown))
    if len(known) > 1:
        marks = [Line2D([], [], color=SOFT, ls=style, lw=1.4) for _, style in known]
        axis.legend(marks, [words for words, _ in known], **LEGEND)
    if known:
        _percent(sheet, axis, label)


def _stroke(
    axis: Any, x: list[float], values: list[float], intervals: list[list[float]], style: str, colour: str
) -> None:
    """A line with its band."""
    axis.plot(x, [100 * value for value in values], style, color=colour, lw=1.6, marker="o", ms=2.6)
    low, high = ([100 * interval[side] for interval in intervals] for side in (0, 1))
    axis.fill_between(x, low, high, color=colour, alpha=0.1, lw=0)


def _percent(sheet: Sheet, axis: Any, label: str) -> None:
    axis.set_ylim(0, 102)
    axis.set_xlabel(label, fontsize=8.5, color=SOFT)
    axis.set_ylabel("top-1, %", fontsize=8.5, color=SOFT)
    axis.grid(alpha=0.25, lw=0.6)
    axis.axhline(100 * sheet.record["chance"], color=SOFT, lw=0.8, ls=(0, (1, 3)))


def _random(sheet: Sheet, axis: Any) -> None:
    fills = {"black": "black", "mean": "mean colour", "noise": "noise"}
    curves = [("occlusion", f"random, {fill}", words) for fill, words in fills.items()]
    _lines(sheet, axis, curves, "share of patches hidden")


def _salient(sheet: Sheet, axis: Any) -> None:
    curves = [
        ("occlusion", "salient (the model's own), black", "what it looks at"),
        ("occlusion", "non-salient (the model's own), black", "what it does not"),
        ("occlusion", "salient (spectral residual), black", "salient without a model"),
    ]
    _lines(sheet, axis, curves, "share of patches hidden")


def _tokens(sheet: Sheet, axis: Any) -> None:
    curves = [
        ("tokens", "random", "random"),
        ("tokens", "salient (the model's own)", "what it looks at"),
        ("tokens", "non-salient (the model's own)", "what it does not"),
    ]
    _lines(sheet, axis, curves, "share of tokens dropped")


def _pieces(sheet: Sheet, axis: Any) -> None:
    _lines(sheet, axis, [("permutation", "shuffled pieces", "")], "pieces", from_clean=False)
    curve = sheet.curves.get(("permutation", "shuffled pieces"))
    if curve and axis.has_data():
        axis.set_xscale("log")
        axis.set_xticks([point["x"] for point in curve["points"]], [point["label"] for point in curve["points"]])
        axis.minorticks_off()
        axis.tick_params(axis="x", labelsize=7)


def _low_pass(sheet: Sheet, axis: Any) -> None:
    _lines(sheet, axis, [("filters", "low-pass", "")], "standard deviation, px of 224")


def _waves(sheet: Sheet, axis: Any) -> None:
    curves = [("texture", "style-randomised", "taken from another class"), ("filters", "phase only", "flattened")]
    _lines(sheet, axis, curves, "share of the amplitudes changed")


def _position(sheet: Sheet, axis: Any) -> None:
    _lines(sheet, axis, [("position", "pushed, black border", "")], "pushed by, pixels")


def _few_numbers(sheet: Sheet, axis: Any) -> None:
    """Shape bias, the picture in a corner, and how much of the features stays, as points with intervals."""
    rows = [
        ("shape bias", "cue conflict", 0, "answers by shape, not by texture"),
        ("position", "in a corner of black", 0, "top-1 at 4/7 of the side, in a corner"),
        ("features", "random, black", 1, "correlation of features, half hidden"),
    ]
    shown: list[str] = []
    for group, name, at, words in rows:
        here = False
        for index, (colour, model) in enumerate(zip(COLOURS, sheet.names, strict=False)):
            _, values, intervals = sheet.line(group, name, model)
            if len(values) <= at:
                continue
            y = 0.18 - len(shown) - 0.2 * index
            axis.plot([100 * values[at]], [y], "o", color=colour, ms=6)
            axis.plot([100 * bound for bound in intervals[at]], [y, y], color=colour, lw=1.4)
            here = True
        if here:
            shown.append(words)
    for place, words in enumerate(shown):
        axis.text(1, 0.42 - place, words, fontsize=8.5, color=INK, va="center")
    if shown:
        axis.set(xlim=(0, 102), ylim=(-len(shown) + 0.6, 0.6), yticks=[])
        axis.spines["left"].set_visible(False)
        axis.set_xlabel("%", fontsize=8.5, color=SOFT)
        axis.grid(alpha=0.25, lw=0.6, axis="x")


def _corruptions(sheet: Sheet, axis: Any) -> None:
    """A column per corruption: mean over the severities, and the range from the weakest to the strongest."""
    kinds = [curve["name"] for curve in sheet.record["curves"] if curve["group"] == "corruptions"]
    for index, (colour, model) in enumerate(zip(COLOURS, sheet.names, strict=False)):
        for place, kind in enumerate(kinds):
            _, values, _ = sheet.line("corruptions", kind, model)
            x = place + 0.22 * (index - (len(sheet.names) - 1) / 2)
            axis.plot(
                [x, x], [100 * min(values), 100 * max(values)], color=colour, alpha=0.35, lw=3, solid_capstyle="butt"
            )
            axis.plot([x], [100 * sum(values) / len(values)], "o", color=colour, ms=5)
    if kinds:
        _percent(sheet, axis, "dots: mean over five severities; bars: from severity 1 to 5")
        axis.set_xticks(
            range(len(kinds)), [textwrap.fill(kind, 10) for kind in kinds], rotation=45, ha="right", fontsize=8
        )


def _attacks(sheet: Sheet, axis: Any) -> None:
    """Over the radius: PGD with the most steps, FGSM, random signs."""
    from matplotlib.lines import Line2D

    radii = sorted(
        int(name.split()[-1]) for group, name in sheet.curves if group == "attacks" and name.startswith("PGD")
    )
    if not radii:
        return
    for colour, model in zip(COLOURS, sheet.names, strict=False):
        lines = {
            "--": sheet.line("attacks", "FGSM", model),
            "-": sheet.ends([f"PGD, radius {r}" for r in radii], radii, model),
        }
        x, values, intervals = sheet.line("attacks", "random signs", model)
        if x:
            _stroke(axis, x, values, intervals, ":", colour)
        for style, (more, shares, bounds) in lines.items():
            if more:  # from what is right of the attacked images as they are
                _stroke(axis, [0.0, *more], values[:1] + shares, intervals[:1] + bounds, style, colour)
    steps = int(sheet.curves["attacks", f"PGD, radius {radii[0]}"]["points"][-1]["x"])
    marks = [Line2D([], [], color=SOFT, ls=style, lw=1.4) for style in STYLES]
    axis.legend(marks, [f"PGD, {steps} steps", "FGSM", "random signs"], **LEGEND)
    _percent(sheet, axis, "radius, of 255")


def _patch(sheet: Sheet, axis: Any) -> None:
    curves = [("adversarial patch", name, name) for name in ("learned", "noise")]
    _lines(sheet, axis, curves, "share of the area under one patch")


PANELS: tuple[tuple[str, Drawing], ...] = (
    ("Random patches hidden", _random), ("Salient patches hidden", _salient), ("Tokens dropped", _tokens),
    ("Pieces shuffled", _pieces), ("Detail smoothed away", _low_pass), ("Amplitudes changed", _waves),
    ("Pushed aside", _position), ("In single numbers", _few_numbers), ("Common corruptions", _corruptions),
    ("Attacked within a radius", _attacks), ("One patch for all pictures", _patch),
)  # fmt: skip


def _plain(name: str) -> str:
    """A name as it is: a dollar sign would start a formula."""
    return name.replace("$", r"\$")
