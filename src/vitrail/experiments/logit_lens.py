"""Logit lens: what the head would answer if the model ended after each layer.

Command    vitrail reproduce logit-lens --model RUN --out DIR
Cost       one forward pass a picture, and the head once a layer.
Published  nostalgebraist 2020 for text; of Vision Transformers "Analyzing Vision Transformers for Image Classification in Class
           Embedding Space" (arXiv 2310.18969): the answer forms in the last third.
Expect     Chance in the lowest layers, the model's own accuracy in the last.
Settings   images=1000 seed=0.
Caveats    The final norm, the pool and the head were trained on the last layer alone: a low score says that this head cannot
           read a layer, not that the layer knows nothing. A probe of its own can read more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitrail.canvas import blank, png
from vitrail.experiments.experiment import Asked, Experiment, Looking, Outcome
from vitrail.inspection.lens import Lens, logit_lens
from vitrail.inspection.panels import whole_numbers
from vitrail.statistics import share, wilson_interval

BLUE, ORANGE, GREY = "#1f56c3", "#b3541e", "#8a8a8a"


@dataclass(frozen=True)
class Settings(Looking):
    """How many pictures, and which."""

    images: int = 1000


def run(asked: Asked) -> Outcome:
    subject = asked.subjects[0]
    lens = logit_lens(subject.classifier.module, asked.labelled(subject))
    intervals = [wilson_interval(int(right), lens.images) for right in lens.right]
    classes = len(subject.classifier.classes)
    facts = {
        **asked.facts(), "classes": classes, "depths": list(lens.depths), "top1": (lens.right / lens.images).tolist(),
        "top1_interval": [list(pair) for pair in intervals], "agreement": lens.agreement.tolist(),
        "probability": lens.probability.tolist(), "entropy": lens.entropy.tolist(),
    }  # fmt: skip
    lines = [f"{'':<12}{'top-1':>31}{'as in the end':>15}{'probability':>13}{'entropy':>9}"]
    for depth, name in enumerate(lens.depths):
        right = share(lens.right[depth] / lens.images, intervals[depth])
        values = f"{100 * lens.agreement[depth]:>13.1f} %{lens.probability[depth]:>13.3f}{lens.entropy[depth]:>9.3f}"
        lines.append(f"{name:<12}{right:>31}{values}")
    return Outcome(facts, lines, {"logit-lens.png": png(_drawn(lens, np.array(intervals), classes, subject.name))})


def _drawn(lens: Lens, intervals: np.ndarray, classes: int, name: str) -> Any:
    figure = blank(9.6, 3.4)
    left, right = figure.subplots(1, 2)
    depth = np.arange(len(lens.depths)) - 1
    left.fill_between(depth, *(100 * intervals.T), color=BLUE, alpha=0.2, linewidth=0)
    left.plot(depth, 100 * lens.right / lens.images, "o-", color=BLUE, markersize=4, label="right")
    left.plot(depth, 100 * lens.agreement, "o-", color=ORANGE, markersize=4, label="as the whole model")
    left.axhline(100 / classes, color=GREY, linestyle=":", label="by chance")
    left.set(ylabel="Images [%]", ylim=(0, 102), title=name)
    right.plot(depth, lens.entropy, "o-", color=BLUE, markersize=4)
    right.axhline(math.log(classes), color=GREY, linestyle=":", label=f"knows nothing: ln {classes}")
    right.set(ylabel="Entropy of the answer [nats]", title="How sure it is")
    right.set_ylim(bottom=0)
    for axis in (left, right):
        axis.set_xlabel("Network depth (layer; -1 the embedding)")
        whole_numbers(axis)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    return figure


EXPERIMENT = Experiment(run, looks="labelled", settings=Settings())
