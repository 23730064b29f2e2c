"""Head ablation: what becomes of the answers when one head says nothing.

Command    vitrail reproduce head-ablation --model RUN --out DIR
Cost       heads x layers / 2 forward passes a picture: 72 for a ViT-B.
Published  "Are Sixteen Heads Really Better than One?" (arXiv 1905.10650), of translation: most heads can go one by one.
Expect     The same of Vision Transformers; the fewer the heads, the more each matters.
Settings   images=500 seed=0.
Caveats    One head at a time: two that do the same work hide each other. Of many heads some differ from nothing by chance:
           the intervals are of each by itself, and about one in twenty misses.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vitrail.canvas import blank, png
from vitrail.experiments.experiment import Asked, Experiment, Looking, Outcome
from vitrail.inspection.heads import HeadAblation, HeadEffect, head_ablation

SHOWN = 10  # heads in the text


@dataclass(frozen=True)
class Settings(Looking):
    """How many pictures, and which."""

    images: int = 500


def run(asked: Asked) -> Outcome:
    subject = asked.subjects[0]
    found = head_ablation(subject.classifier.module, asked.labelled(subject))
    facts = {**asked.facts(), "loss": found.loss, "top1": found.top1, "heads": [_record(e) for e in found.effects]}
    return Outcome(facts, _lines(found), {"head-ablation.png": png(_drawn(found, subject.name))})


def _record(effect: HeadEffect) -> dict[str, Any]:
    """JSON has no infinities: an interval that tells nothing is null."""
    low, _ = effect.loss_interval
    return {**asdict(effect), "loss_interval": list(effect.loss_interval) if np.isfinite(low) else None}


def _lines(found: HeadAblation) -> list[str]:
    ranked = sorted(found.effects, key=lambda effect: -effect.loss)
    clear = sum(effect.loss_interval[0] > 0 for effect in ranked)
    lines = [
        f"whole model: loss {found.loss:.4f}, top-1 {100 * found.top1:.1f} % of {found.images} images",
        f"{clear} of {len(ranked)} heads are missed: without them the loss is higher (95 % CI)",
        "",
        f"{'layer':>6}{'head':>6}{'loss':>10}{'95 % CI':>20}{'top-1':>10}{'95 % CI':>18}",
    ]
    for effect in ranked[:SHOWN]:
        loss = f"{effect.loss_interval[0]:+.4f} to {effect.loss_interval[1]:+.4f}"
        top1 = f"{100 * effect.top1_interval[0]:+.1f} to {100 * effect.top1_interval[1]:+.1f}"
        lines.append(
            f"{effect.layer:>6}{effect.head:>6}{effect.loss:>+10.4f}{loss:>20}{100 * effect.top1:>+8.1f} %{top1:>18}"
        )
    return [*lines, f"and {len(ranked) - SHOWN} more"] if len(ranked) > SHOWN else lines


def _drawn(found: HeadAblation, name: str) -> Any:
    """Layers from left to right, heads from top to bottom; what cannot be told from nothing has no number."""
    layers = list(dict.fromkeys(effect.layer for effect in found.effects))
    heads = 1 + max(effect.head for effect in found.effects)
    values = np.array([effect.loss for effect in found.effects]).reshape(len(layers), heads).T
    figure = blank(max(4.2, 0.62 * len(layers) + 2.2), max(2.2, 0.36 * heads + 1.4))
    axes = figure.subplots()
    scale = abs(values).max() or 1.0
    drawn = axes.imshow(values, cmap="RdBu_r", vmin=-scale, vmax=scale, aspect="auto", interpolation="nearest")
    for effect in found.effects:
        if effect.loss_interval[0] > 0 or effect.loss_interval[1] < 0:
            ink = "white" if abs(effect.loss) > 0.6 * scale else "black"
            place = layers.index(effect.layer), effect.head
            axes.text(*place, f"{effect.loss:+.2g}", ha="center", va="center", fontsize=7, color=ink)
    axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    axes.set_yticks(range(heads))
    axes.set(xlabel="Layer", ylabel="Head left out", title=f"{name}: loss {found.loss:.3f} with all heads")
    figure.colorbar(drawn, ax=axes, label="Increase of the loss")
    return figure


EXPERIMENT = Experiment(run, looks="labelled", settings=Settings())
