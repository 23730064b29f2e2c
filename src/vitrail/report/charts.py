"""Charts as HTML that grows with its place: lines in SVG, labels in text, the numbers in a table behind each.

Every value that comes from outside is put in by a template that escapes it; this file only computes places on the page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_POINTS = 300


@dataclass(frozen=True)
class Tick:
    """A label on an axis; `at` in per cent of the axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """A named course; `points` is an SVG path in a square of 100 by 100, the origin at the top left; `last` its last value."""

    name: str
    path: str
    style: str
    last: str


@dataclass(frozen=True)
class LineChart:
    """What the template draws.

    Attributes:
        columns, rows: the table behind the chart.
    """

    title: str
    horizontal: str
    vertical: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Series:
    """Values of one line over x."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


def line_chart(
    title: str, horizontal: str, vertical: str, series: Sequence[Series], percent: bool = False, from_zero: bool = False
) -> LineChart | None:
    """Lines over a common axis; None where there is nothing to draw."""
    drawn = [thinned(line) for line in series if len(line.x)]
    if not drawn:
        return None
    xs, ys = [x for line in drawn for x in line.x], [y for line in drawn for y in line.y]
    x_ticks, (left, _) = ticks(min(0.0, *xs), max(xs))
    right = max(xs) if max(xs) > left else 1.0
    x_ticks = [x for x in x_ticks if x <= right]
    y_ticks, (low, high) = ticks(min(0.0, *ys) if from_zero else min(ys), max(ys))
    lines = tuple(
        Line(line.name, _path(line, left, right, low, high), f"line-{number % 4}{' dashed' if line.dashed else ''}",
             number_text(0.0 if abs(line.y[-1]) < 1e-4 * max(map(abs, ys)) else line.y[-1], percent))
        for number, line in enumerate(drawn)
    )  # fmt: skip
    rows = tuple(
        (line.name, number_text(x), number_text(y, percent))
        for line in drawn
        for x, y in zip(line.x, line.y, strict=True)
    )
    return LineChart(
        title, horizontal, vertical, lines,
        tuple(Tick(_place(x, left, right), number_text(x)) for x in x_ticks),
        tuple(Tick(100 - _place(y, low, high), number_text(y, percent)) for y in y_ticks),
        ("line", horizontal, vertical), rows,
    )  # fmt: skip


def thinned(line: Series, limit: int = MAX_POINTS) -> Series:
    """At most `limit` points, means of neighbours, so that a long course stays a small page."""
    x, y = np.asarray(line.x, dtype=np.float64), np.asarray(line.y, dtype=np.float64)
    good = np.isfinite(x) & np.isfinite(y)
    x, y = x[good], y[good]
    if len(x) > limit:
        parts = np.array_split(np.arange(len(x)), limit)
        x, y = (np.array([values[part].mean() for part in parts]) for values in (x, y))
    return Series(line.name, x.tolist(), y.tolist(), line.dashed)


def ticks(low: float, high: float, count: int = 5) -> tuple[list[float], tuple[float, float]]:
    """Round numbers that cover low..high, and the ends of the axis."""
    if high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-300):  # as good as one value
        low, high = low - (abs(low) * 0.1 or 1), high + (abs(high) * 0.1 or 1)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    found = [float(f"{number * step:.12g}") for number in range(first, last + 1)]
    return found, (found[0], found[-1])


def number_text(value: float, percent: bool = False) -> str:
    """A number as short as it may be."""
    if percent:
        return f"{100 * value:.4g} %"
    if value == round(value) and abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def shades(counts: NDArray[np.int64]) -> list[list[float]]:
    """How dark each cell of a confusion table is, 0 to 1: its share of the row, the square root, so that rare ones show."""
    totals = counts.sum(axis=1, keepdims=True)
    return np.sqrt(counts / np.maximum(totals, 1)).round(3).tolist()


def _place(value: float, low: float, high: float) -> float:
    return round(100 * (value - low) / (high - low), 3)


def _path(line: Series, left: float, right: float, low: float, high: float) -> str:
    points = [f"{_place(x, left, right):g} {100 - _place(y, low, high):g}" for x, y in zip(line.x, line.y, strict=True)]
    return "M" + "L".join(points) if len(points) > 1 else f"M{points[0]}h0.01"
