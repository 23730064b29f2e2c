"""Attention heads: where every head of every layer looks in one picture; none is chosen, none left out.

Command    vitrail reproduce attention-heads --model MODEL --data PICTURE --out DIR
Cost       one forward pass.
Published  DINO's visualize_attention.py, of the last layer; its authors picked heads by hand (issues 92 and 120).
Expect     Heads of one layer that look at different things; neighbours in the lowest layers.
Settings   seed=0 (which picture, where there are several).
Caveats    Each map has its own scale, its largest weight white. What a head looks at is not what it reads there. The query is
           the class token, or the mean of the patches where there is none; attention pooling is a row of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vitrail.canvas import blank, png
from vitrail.errors import UsageError
from vitrail.experiments.experiment import Asked, Experiment, Looking, Outcome
from vitrail.inspection.attention import Gaze, attending, default_query
from vitrail.inspection.states import checked


@dataclass(frozen=True)
class Settings(Looking):
    """Which picture."""

    images: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images != 1:
            raise UsageError(
                "VT003", f"images={self.images}", "1: the sheet is of one picture", "--set seed=1 draws another"
            )


def run(asked: Asked) -> Outcome:
    subject, place = asked.subjects[0], asked.places[0]
    model = attending(subject.classifier.module)
    images = next(asked.images(subject))
    query = default_query(model.pool.reads, in_layer=True)
    names = [str(layer) for layer in range(len(model.blocks))]
    with torch.inference_mode():
        tokens = model.embed(images)
        rows = [0] if query == "class" else list(range(tokens.prefix, tokens.values.shape[1]))
        with model.capture("attention", queries=rows) as tape:
            tokens = model.encode(tokens)
        if model.pool.reads == "probe":
            with model.capture("attention", layers=["pool"]) as pooled:
                model.pool(tokens)
            tape, names = [*tape, *pooled], [*names, "pool"]
    maps = np.stack([Gaze(entry.weights[0].float().mean(dim=1), entry.tokens).maps for entry in tape])
    checked("attention", maps)
    spread = np.exp(-(maps * np.log(np.maximum(maps, 1e-30))).sum(axis=(2, 3)))
    facts = {
        **asked.facts(), "file": asked.pictures.names[place], "query": query, "layers": names,
        "maps": maps.astype(float).round(7).tolist(),
        "spread": spread.tolist(),
    }  # fmt: skip
    lines = [
        f"layer {name}: heads look like {_range(values)} of {maps[0, 0].size} patches"
        for name, values in zip(names, spread, strict=True)
    ]
    pixels = asked.pictures.read(place, subject.classifier.preprocessing.channels)
    shown = subject.classifier.preprocessing(pixels).transpose(1, 2, 0)
    return Outcome(facts, lines, {"attention-heads.png": png(_drawn(maps, names, shown))})


def _range(values: np.ndarray) -> str:
    return f"{values.min():.0f} to {values.max():.0f}"


def _drawn(maps: np.ndarray, names: list[str], picture: np.ndarray) -> Any:
    """A row a layer, a column a head, and the picture as the model reads it beside the first."""
    layers, heads = maps.shape[:2]
    height = 0.8 * layers * picture.shape[0] / picture.shape[1] + 0.5
    figure = blank(0.8 * heads + 1.2, height, w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    axes = np.array(figure.subplots(layers, heads + 1, squeeze=False))
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    for layer, name in enumerate(names):
        axes[layer, 0].axis("off")
        axes[layer, 1].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        for head in range(heads):
            axes[layer, head + 1].imshow(maps[layer, head], cmap="gray", vmin=0, interpolation="nearest")
            if not layer:
                axes[layer, head + 1].set_title(f"head {head}", fontsize=8)
    axes[0, 0].imshow(picture if picture.shape[2] == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=255)
    axes[0, 0].set_title("input", fontsize=8)
    return figure


EXPERIMENT = Experiment(run, settings=Settings())
