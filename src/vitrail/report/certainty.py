"""How sure a model may be, as pictures: reliability before and after, risk by coverage, sizes of conformal sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitrail.canvas import blank, png

BLUE, ORANGE, GREY = "#1f56c3", "#b3541e", "#777777"
FEW = 20  # answers below which a bin is drawn pale: its share is mostly chance


def calibration_figure(record: Mapping[str, Any]) -> bytes:
    """Two panels of a record of the protocol calibration: reliability, and errors by share of answers."""
    figure = blank(9, 4.2)
    left, right = figure.subplots(1, 2)
    _reliability(left, record)
    _coverage(right, record)
    return png(figure)


def _reliability(axis: Any, record: Mapping[str, Any]) -> None:
    axis.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
    for when, colour, marker in (("before", ORANGE, "s"), ("after", BLUE, "o")):
        bins = [part for part in record[when]["bins"] if part["count"] >= FEW] or record[when]["bins"]
        said, share = [part["confidence"] for part in bins], [part["accuracy"] for part in bins]
        low = [part["accuracy"] - part["interval"][0] for part in bins]
        high = [part["interval"][1] - part["accuracy"] for part in bins]
        error = f"{100 * record[when]['ece']:.1f} %"
        heat = 1.0 if when == "before" else record["temperature"]
        axis.errorbar(said, share, [low, high], fmt=f"{marker}-", color=colour, capsize=3, markersize=5, linewidth=1.5,
                      label=f"{when}: temperature {heat:.2f}, error {error}")  # fmt: skip
    axis.set(xlabel="stated probability", ylabel="share right", xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal",
             title="Of what is said with 80 %, are 80 % right?")  # fmt: skip
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, loc="lower right", fontsize=9)


def _coverage(axis: Any, record: Mapping[str, Any]) -> None:
    curve, found = record["coverage"], record["threshold"]
    coverage, risk = ([100 * point[place] for point in curve["points"]] for place in (0, 1))
    axis.plot(coverage, risk, color=BLUE, linewidth=2, label="the surest answers first")
    axis.axhline(100 * curve["even"], color=GREY, linestyle="--", linewidth=1, label="in any order")
    if found is not None and found["measured"]["risk"] is not None:
        measured = found["measured"]
        axis.plot(100 * measured["answered"], 100 * measured["risk"], "o", color=ORANGE, markersize=8,
                  label=f"above {found['confidence']:.2f}: at most {100 * found['wished']:g} % promised")  # fmt: skip
    axis.set(
        xlabel="images answered [%]", ylabel="errors among the answers [%]", xlim=(0, 100), title="What abstaining buys"
    )
    axis.set_ylim(0, 1.25 * max([*risk, 100 * curve["even"], 1e-3]))
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, loc="upper left", fontsize=9)


def conformal_figure(record: Mapping[str, Any]) -> bytes:
    """Share of images by the size of their set, by both scores of a record of the protocol conformal."""
    figure = blank(7, 3.8)
    axis = figure.subplots()
    scores = (("lac", "LAC", BLUE), ("aps", "APS", ORANGE))
    largest = max(max((size for size, n in enumerate(record[name]["sizes"]) if n), default=1) for name, _, _ in scores)
    wide = largest <= 20
    for place, (name, word, colour) in enumerate(scores):
        sizes = record[name]["sizes"][: largest + 1]
        share = [100 * count / record["n"] for count in sizes]
        label = (f"{word}: {100 * record[name]['coverage']:.1f} % hold the true class, "
                 f"{record[name]['mean_size']:.2f} classes on average")  # fmt: skip
        if wide:
            axis.bar([size + 0.4 * place - 0.2 for size in range(len(share))], share, 0.38, color=colour, label=label)
        else:
            axis.step(range(len(share)), share, where="mid", color=colour, label=label)
    if wide:
        axis.set_xticks(range(largest + 1))
    axis.set(xlabel="classes in the set", ylabel="images [%]",
             title=f"Sets promised to hold the true class of {100 * (1 - record['alpha']):g} % of the images")  # fmt: skip
    axis.grid(axis="y", alpha=0.25)
    axis.set_axisbelow(True)
    top = 1.35 * max(axis.get_ylim()[1] / 1.05, 1e-3)  # room for the words
    axis.set_yticks([tick for tick in axis.get_yticks() if tick <= 100])
    axis.set_ylim(0, top)
    axis.legend(frameon=False, loc="upper right", fontsize=9)
    return png(figure)
