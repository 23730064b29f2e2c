"""Figure 6 (and 14): input pictures beside where the output token looks, by attention rollout.

Command    vitrail reproduce figure-6 --model MODEL --data FOLDER --out DIR
Cost       one forward pass a picture, with the attention of its layers.
Paper      ViT-L/16: the masks keep what the class names and darken the rest.
Expect     With models of well-trained attention, the thing in the picture; with small models from scratch often little.
Settings   images=8 seed=0 smooth=true (false: one brightness a patch, nothing blurred).
Caveats    Rollout is the same for every class and is no proof of importance; the blur and the stretching to black and
           white, which are the authors', make a sharp shape of any map. The JSON keeps the bare maps and how even they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vitrail.canvas import blank, png
from vitrail.experiments.experiment import Asked, Experiment, Looking, Outcome
from vitrail.images import Picture, resized
from vitrail.inspection.explanation import explain
from vitrail.inspection.masks import masked

PAIRS, SIDE = 4, 320  # pairs in a row; pixels of a picture's longer side


@dataclass(frozen=True)
class Settings(Looking):
    """How many pictures, which, and whether the maps are blurred as the paper's are."""

    images: int = 8
    smooth: bool = True


def run(asked: Asked) -> Outcome:
    subject, settings = asked.subjects[0], asked.settings
    shown: list[tuple[Picture, Picture]] = []
    maps: list[dict[str, Any]] = []
    for place in asked.places:
        picture = asked.pictures.read(place, subject.classifier.preprocessing.channels)
        found = explain(subject.classifier, picture)
        seen = _seen(picture, found.box)
        shown.append((seen, masked(seen, found.map, settings.smooth)))
        weights = found.map.astype(float).round(7).tolist()
        maps.append({"file": asked.pictures.names[place], "map": weights, "spread": found.spread,
                     "prefix_share": found.prefix_share})  # fmt: skip
    patches = found.map.size
    lines = [f"{entry['file']}: like {entry['spread']:.0f} of {patches} patches looked at alike" for entry in maps]
    return Outcome({**asked.facts(), "pictures": maps}, lines, {"figure-6.png": png(_drawn(shown))})


def _seen(picture: Picture, box: tuple[float, float, float, float]) -> Picture:
    """The part that the model read, at a size to look at."""
    wide, tall = box[2] - box[0], box[3] - box[1]
    scale = SIDE / max(wide, tall)
    return resized(picture, (max(1, round(tall * scale)), max(1, round(wide * scale))), "lanczos", box)


def _drawn(shown: list[tuple[Picture, Picture]]) -> Any:
    """Pairs of input and attention, a column of pairs under each heading, as the paper lays them out."""
    columns = min(PAIRS, len(shown))
    rows = -(-len(shown) // columns)
    tall = max(picture.shape[0] / picture.shape[1] for picture, _ in shown)
    figure = blank(2.7 * columns, 1.32 * rows * tall + 0.35, w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    axes = np.array(figure.subplots(rows, 2 * columns, squeeze=False))
    for axis in axes.flat:
        axis.set_axis_off()
    for index, pair in enumerate(shown):
        for side, picture in enumerate(pair):
            axis = axes[index // columns, 2 * (index % columns) + side]
            axis.imshow(picture if picture.shape[2] == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=255)
            if index < columns:
                axis.set_title("Attention" if side else "Input", fontsize=11)
    return figure


EXPERIMENT = Experiment(run, settings=Settings())
