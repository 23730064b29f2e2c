"""CKA: how alike the layers of one model, or of two, see the same images.

Command    vitrail reproduce cka --model FIRST [--model SECOND] --data FOLDER --out DIR
Cost       one forward pass a picture and model; products of all pairs of pictures of a batch, each layer.
Published  "Do Vision Transformers See Like Convolutional Neural Networks?" (arXiv 2108.08810): the layers of a ViT are much alike
           from the lowest to the highest, those of a ResNet fall into stages; the lower half of the ResNet is like the
           lowest quarter of the ViT.
Expect     The same direction in small models, paler.
Settings   images=256 seed=0 batch=64 unbiased=true read=tokens (or patches, their mean; prefix, the class token).
Caveats    Linear CKA is ruled by the few directions of largest variance; long tokens (see token-norms) can make layers
           look alike. Few images make any two look alike in the biased form; the unbiased one is the default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vitrail.canvas import blank, png
from vitrail.errors import UsageError
from vitrail.experiments.experiment import Asked, Experiment, Looking, Outcome
from vitrail.inspection.cka import FEWEST, Alignment, Read, cka


@dataclass(frozen=True)
class Settings(Looking):
    """How many pictures, which, how many at a time, and how they are compared."""

    images: int = 256
    batch: int = 64
    unbiased: bool = True
    read: Read = "tokens"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not FEWEST <= self.batch <= 4096:
            raise UsageError("VT003", f"batch={self.batch}", f"{FEWEST} to 4096 images")


def run(asked: Asked) -> Outcome:
    settings, (first, *more) = asked.settings, asked.subjects
    second = more[0] if more else first
    found = cka(
        first.classifier.module, asked.images(first, settings.batch),
        second.classifier.module if more else None, asked.images(second, settings.batch) if more else None,
        settings.unbiased, settings.read,
    )  # fmt: skip
    facts = {
        **asked.facts(), "compared": found.images, "unbiased": settings.unbiased, "read": settings.read,
        "rows": list(found.rows), "cols": list(found.cols), "cka": found.values.tolist(),
    }  # fmt: skip
    return Outcome(facts, _lines(found), {"cka.png": png(_drawn(found, first.name, second.name))})


def _lines(found: Alignment) -> list[str]:
    lines = [f"linear CKA of {found.images} images"]
    for row, name in enumerate(found.rows):
        best = int(found.values[row].argmax())
        lines.append(
            f"{name:<12}most like {found.cols[best]:<12}{found.values[row, best]:>6.2f}"
            f"   first {found.values[row, 0]:>6.2f}   last {found.values[row, -1]:>6.2f}"
        )
    return lines


def _drawn(found: Alignment, first: str, second: str) -> Any:
    figure = blank(5.0, 4.3)
    axes = figure.subplots()
    drawn = axes.imshow(found.values, cmap="magma", vmin=0, vmax=1, origin="lower", interpolation="nearest")
    for names, name, axis in ((found.rows, first, axes.yaxis), (found.cols, second, axes.xaxis)):
        step = max(1, -(-len(names) // 13))
        axis.set_ticks(
            range(0, len(names), step), [text.split()[-1] if text != "embedding" else "E" for text in names[::step]]
        )
        kind = "layer, E the embedding" if names[0] == "embedding" else "stage"
        axis.set_label_text(f"{name} ({kind})")
    figure.colorbar(drawn, ax=axes, label="Linear CKA")
    return figure


EXPERIMENT = Experiment(run, models=2, settings=Settings())
