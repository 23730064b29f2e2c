"""Token norms: how long the tokens are in every layer, and which patches stand out.

Command    vitrail reproduce token-norms --model MODEL --data FOLDER --out DIR
Cost       one forward pass a picture.
Published  "Vision Transformers Need Registers" (arXiv 2309.16588): large models trained long, without registers, have a few
           patches some ten times as long as the others in their upper layers, on background, that serve as places to keep
           things; with registers those lie there.
Expect     None in small models.
Settings   images=128 seed=0 factor=3 (a patch stands out from so many times the median patch of its image).
Caveats    The rule is ours: it needs no threshold of a model's own. A length says nothing of what a token holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vitrail.canvas import blank, png
from vitrail.errors import UsageError
from vitrail.experiments.experiment import Asked, Experiment, Looking, Outcome
from vitrail.inspection.norms import FACTOR, TokenNorms, token_norms
from vitrail.inspection.panels import whole_numbers

BLUE, ORANGE, GREY = "#1f56c3", "#b3541e", "#8a8a8a"


@dataclass(frozen=True)
class Settings(Looking):
    """How many pictures, which, and how far a patch must stand out."""

    factor: float = FACTOR

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.factor > 1:
            raise UsageError("VT003", f"factor={self.factor}", "above 1, the median itself")


def run(asked: Asked) -> Outcome:
    subject = asked.subjects[0]
    norms = token_norms(subject.classifier.module, asked.images(subject), asked.settings.factor)
    facts = {
        **asked.facts(), "factor": norms.factor, "depths": list(norms.depths), "prefix": norms.prefix.tolist(),
        "quantiles": {"levels": [0.05, 0.5, 0.95, 1.0], "patches": norms.patches.tolist()},
        "outliers": norms.outliers.tolist(), "places": norms.places.tolist(),
    }  # fmt: skip
    return Outcome(facts, _lines(norms), {"token-norms.png": png(_drawn(norms, subject.name))})


def _lines(norms: TokenNorms) -> list[str]:
    prefix = norms.prefix.shape[1]
    front = "  class token, registers" if prefix else ""
    lines = [
        f"lengths, means over {norms.images} images; a patch stands out from {norms.factor:g} times its image's median",
        f"{'':<12}{'5 %':>9}{'median':>9}{'95 %':>9}{'longest':>9}{'stand out':>11}{front}",
    ]
    for depth, name in enumerate(norms.depths):
        values = "".join(f"{value:>9.2f}" for value in norms.patches[depth])
        front = " ".join(f"{value:.2f}" for value in norms.prefix[depth, :5]) + (" …" if prefix > 5 else "")
        lines.append(f"{name:<12}{values}{100 * norms.outliers[depth]:>9.2f} %  {front}".rstrip())
    return lines


def _drawn(norms: TokenNorms, name: str) -> Any:
    figure = blank(9.6, 3.5)
    left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])
    depth = np.arange(len(norms.depths)) - (norms.depths[0] == "embedding")
    low, middle, high, longest = norms.patches.T
    left.fill_between(depth, low, high, color=BLUE, alpha=0.2, linewidth=0, label="5 to 95 % of the patches")
    left.plot(depth, middle, color=BLUE, label="median patch")
    left.plot(depth, longest, ":", color=BLUE, label="longest patch")
    for index in range(norms.prefix.shape[1]):
        told = "class token" if index == 0 else "other prefix tokens" if index == 1 else None
        left.plot(depth, norms.prefix[:, index], color=ORANGE if index == 0 else GREY, label=told)
    left.set(yscale="log", xlabel="Network depth (layer; -1 the embedding)", ylabel="Length of a token", title=name)
    whole_numbers(left)
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("{x:g}" if longest.max() < 10 * low.min() else "")
    left.grid(alpha=0.3)
    left.legend(fontsize="small")
    places = norms.places / norms.images
    if not places.any():
        right.set_axis_off()
        right.text(0.5, 0.5, "No patch stands out\nafter the last layer.", ha="center", va="center")
        return figure
    drawn = right.imshow(places, cmap="viridis", vmin=0, interpolation="nearest")
    right.set(
        title=f"Stand out after the last layer:\n{100 * norms.outliers[-1]:.2f} % of the patches", xticks=[], yticks=[]
    )
    figure.colorbar(drawn, ax=right, label="Share of the images", shrink=0.85)
    return figure


EXPERIMENT = Experiment(run, settings=Settings())
