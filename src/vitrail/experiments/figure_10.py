"""Figure 10: similarity of the position embeddings of models that were trained in other ways.

Command    vitrail reproduce figure-10 --model FIRST --model SECOND --model THIRD --out DIR
Cost       under a second a model; no pictures are looked at.
Paper      ViT-L/16 after 7 epochs at a rate of 2e-4 and weight decay 0.01, 7 epochs at 4e-4 and 0.1, and 14 epochs at 4e-4
           and 0.1: rows and columns show in all of them, the clearer the longer and the more strongly trained.
Expect     The same between your own runs: what shows depends on the hyper-parameters, so compare like with like.
Caveats    Grids larger than 14 places a side have a tile for every second, third ... place; the JSON has all of them.
           Models without added position embeddings are refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vitrail.canvas import blank, png
from vitrail.experiments.experiment import Asked, Experiment, Outcome
from vitrail.experiments.figure_07 import positions_facts
from vitrail.inspection.panels import positions_panel
from vitrail.inspection.positions import PositionSimilarity, position_similarity


def run(asked: Asked) -> Outcome:
    found = [position_similarity(subject.classifier.module) for subject in asked.subjects]
    facts = [
        {"model": subject.name, "training": subject.training, **positions_facts(similarity)}
        for subject, similarity in zip(asked.subjects, found, strict=True)
    ]
    titles = [f"{subject.name}\n{subject.training}".strip() for subject in asked.subjects]
    lines = [f"{'cosine of position embeddings':<34}{'side by side':>14}{'one below':>14}{'corners':>14}"]
    for subject, similarity in zip(asked.subjects, found, strict=True):
        values = "".join(f"{value:>14.2f}" for value in _seen(similarity))
        lines.append(f"{subject.name[-33:]:<34}{values}")
    return Outcome({**asked.facts(), "positions": facts}, lines, {"figure-10.png": png(_drawn(found, titles))})


def _drawn(found: list[PositionSimilarity], titles: list[str]) -> Any:
    figure = blank(4.3 * len(found) + 0.8, 4.6)
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    for axis, similarity, title in zip(axes, found, titles, strict=True):
        drawn = positions_panel(axis, similarity, title)
    figure.colorbar(drawn, ax=axes, label="Cosine similarity", ticks=[-1, 0, 1], shrink=0.8)
    return figure


def _seen(similarity: PositionSimilarity) -> tuple[float, float, float]:
    """What the eye sees, in numbers: the mean cosine of neighbours, in a row and in a column, and that of opposite corners."""
    tiles = similarity.tiles
    rows, cols = tiles.shape[:2]
    beside = [tiles[r, c, r, c + 1] for r in range(rows) for c in range(cols - 1)]
    below = [tiles[r, c, r + 1, c] for r in range(rows - 1) for c in range(cols)]
    return float(np.mean(beside or [1])), float(np.mean(below or [1])), float(tiles[0, 0, -1, -1])


EXPERIMENT = Experiment(run, models=6, looks="no", settings=None)
