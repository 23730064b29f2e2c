"""What a real network looks at: attention, rollout and features of a ViT-S/14 on the photographs of scikit-image.

    python benchmarks/gallery.py --weights ../shared/weights/dinov2-vits14 --out docs/gallery

A sheet each; about a minute of computing on two cores for all four.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import skimage.data
import torch
from einops import rearrange
from PIL import Image, ImageDraw

import vitrail
from vitrail.images import Picture, resized, to_pillow
from vitrail.inspection.attention import Gaze
from vitrail.inspection.figure import write
from vitrail.inspection.overlay import overlay
from vitrail.inspection.rollout import rollout
from vitrail.model.vit import ViT
from vitrail.preprocessing import Preprocessing

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
ATTENTION_SIDE, FEATURE_SIDE = 518, 1036  # longest side in pixels: 37 and 74 patches of 14
BRIGHTEST = 99.5  # percentile of a map's weights that gets the last colour, and all above it
WIDTH, EDGE, GAP = 1000, 24, 12  # of a sheet, its margin, between panels
CAPTION, BETWEEN = 24, 14
PALE = 28, 240  # the range of the features' colours
INK, SOFT = "#1a1a1a", "#595959"


@dataclass(frozen=True)
class Panel:
    """What is written below it, and how it is drawn at a size: (height, width) -> picture."""

    caption: str
    draw: Callable[[tuple[int, int]], Picture]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/gallery"))
    given = parser.parse_args()
    loaded = vitrail.load(given.weights)
    given.out.mkdir(parents=True, exist_ok=True)
    for name in PHOTOGRAPHS:
        photograph = getattr(skimage.data, name)()
        target = given.out / f"{name}.jpg"  # half a PNG's bytes; a palette of 256 would lose the yellow
        drawn = sheet_of(loaded.module, loaded.preprocessing, photograph)
        drawn.save(target, quality=88, subsampling=0, optimize=True, progressive=True)
        print(f"{target}  {target.stat().st_size / 1024:.0f} KB")


def sheet_of(model: ViT, preprocessing: Preprocessing, photograph: Picture) -> Image.Image:
    """Picture, mean attention, rollout and features above; the heads of the last layer below."""
    images = prepared(model, preprocessing, photograph, ATTENTION_SIDE)
    heads = last_layer(model, images)
    rows, cols = heads[0].tokens.grid
    mean = Gaze(torch.stack([gaze.weights for gaze in heads]).mean(dim=0), heads[0].tokens)
    features = feature_colours(model, prepared(model, preprocessing, photograph, FEATURE_SIDE))
    above = [
        Panel("photograph", lambda size: resized(photograph, size, "lanczos")),
        Panel("class token, last layer", partial(painted, photograph, mean)),
        Panel("rollout through all layers", partial(painted, photograph, rollout(model, images))),
        Panel("features, three directions", lambda size: resized(features, size, "nearest")),
    ]
    below = [Panel(f"head {index}", partial(painted, photograph, gaze)) for index, gaze in enumerate(heads)]
    grid = " × ".join(map(str, features.shape[:2]))
    note = (
        f"Attention, {rows} × {cols} patches: none is dark, the largest yellow. "
        f"Second row: the heads of the last layer. Features: {grid} patches."
    )
    return sheet([above, below], photograph.shape[0] / photograph.shape[1], note)


def prepared(model: ViT, preprocessing: Preprocessing, photograph: Picture, longest: int) -> torch.Tensor:
    """The whole photograph, its sides rounded to whole patches."""
    patch = model.config.stride[0]
    scale = longest / max(photograph.shape[:2])
    height, width = (max(1, round(side * scale / patch)) * patch for side in photograph.shape[:2])
    pixels = resized(photograph, (height, width), "bicubic")
    return preprocessing.normalise(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])


def last_layer(model: ViT, images: torch.Tensor) -> list[Gaze]:
    """What the class token attends to in each head of the last layer."""
    with torch.inference_mode(), model.capture("attention", layers=[-1], queries=[0]) as maps:
        model(images)
    return [Gaze(weights[:, 0], maps[0].tokens) for weights in maps[0].weights.unbind(1)]


def painted(photograph: Picture, gaze: Gaze, size: tuple[int, int]) -> Picture:
    """The map over the photograph; a few patches that take far more than all others do not darken the rest."""
    weights = gaze.maps[0]
    shown = resized(photograph, size, "lanczos")  # first, so that the patches keep their edges
    return overlay(shown, weights, highest=float(np.percentile(weights, BRIGHTEST)))


def feature_colours(model: ViT, images: torch.Tensor) -> Picture:
    """The first three principal components of the normed patch features of one image, as red, green and blue."""
    with torch.inference_mode():
        tokens = model.features(images)[-1]
    features = tokens.patches[0].double().numpy()
    features = features - features.mean(axis=0)
    _, directions = np.linalg.eigh(features.T @ features)
    found = features @ directions[:, :-4:-1]
    found *= np.sign((found**3).sum(axis=0))  # a direction has no sign of its own: the longer tail is bright
    low, high = np.percentile(found, [1, 99], axis=0)
    colours = (PALE[0] + ((found - low) / (high - low)).clip(0, 1) * (PALE[1] - PALE[0])).round().astype(np.uint8)
    return rearrange(colours, "(r k) c -> r k c", r=tokens.grid[0])


def sheet(rows: list[list[Panel]], aspect: float, note: str) -> Image.Image:
    """Rows of one width, whatever the number of their panels; captions below. `aspect` is height by width."""
    wide = [(WIDTH - 2 * EDGE - GAP * (len(row) - 1)) / len(row) for row in rows]
    tall = [round(width * aspect) for width in wide]
    page = Image.new("RGB", (WIDTH, 2 * EDGE + sum(tall) + (CAPTION + BETWEEN) * len(rows) + 14), "white")
    draw, top = ImageDraw.Draw(page), EDGE
    for row, width, height in zip(rows, wide, tall, strict=True):
        for index, panel in enumerate(row):
            left = round(EDGE + index * (width + GAP))
            right = round(EDGE + index * (width + GAP) + width)
            page.paste(to_pillow(panel.draw((height, right - left))), (left, top))
            write(draw, (left, top + height + 6), panel.caption, right - left, 13, INK)
        top += height + CAPTION + BETWEEN
    write(draw, (EDGE, top), note, WIDTH - 2 * EDGE, 13, SOFT)
    return page


if __name__ == "__main__":
    main()
