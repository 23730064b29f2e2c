"""Figure 7: embedding filters, similarity of position embeddings, and how far each head looks.

Command    vitrail reproduce figure-7 --model MODEL --data FOLDER --out DIR
Cost       one forward pass a picture, with the attention of its layers.
Paper      ViT-L/32 (left, centre) and ViT-L/16 (right), 128 images of 224 px. The filters look like a basis of fine
           structure in a patch; a place is most like its neighbours and like its row and column; in the lowest layers
           some heads look near and some far, in the highest all look far.
Expect     Filters and rows and columns need much training: a model of minutes shows noise in the left panel.
Settings   images=128 seed=0 form=paper (or renormalised: attention to patches scaled to sum to 1).
Caveats    The paper's form leaves the class token out without scaling, so a head that looks at it seems near-sighted; the
           JSON has both. A hybrid's filters are those of its first convolution. A model without position embeddings has
           no tiles, and its panel says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from vitrail.canvas import blank, png
from vitrail.errors import UsageError
from vitrail.experiments.experiment import Asked, Experiment, Looking, Outcome
from vitrail.inspection.distance import AttentionDistance, attention_distance
from vitrail.inspection.filters import Filters, embedding_filters
from vitrail.inspection.panels import distance_panel, filters_panel, positions_panel
from vitrail.inspection.positions import PositionSimilarity, position_similarity

Form = Literal["paper", "renormalised"]


@dataclass(frozen=True)
class Settings(Looking):
    """How many pictures, which, and which form of the distance is drawn."""

    form: Form = "paper"


def run(asked: Asked) -> Outcome:
    subject = asked.subjects[0]
    model = subject.classifier.module
    distance = attention_distance(model, asked.images(subject))
    filters = embedding_filters(model)
    try:
        similarity: PositionSimilarity | str = position_similarity(model)
    except UsageError as error:  # a model with other positions still has the other two panels
        similarity = error.what
    facts = {
        **asked.facts(), "filters": filters_facts(filters), "positions": positions_facts(similarity),
        "distance": distance_facts(distance),
    }  # fmt: skip
    drawn = png(_drawn(filters, similarity, distance, asked.settings.form, subject.name))
    return Outcome(facts, [*filters_lines(filters), *distance_lines(distance)], {"figure-7.png": drawn})


def _drawn(
    filters: Filters, similarity: PositionSimilarity | str, distance: AttentionDistance, form: Form, name: str
) -> Any:
    figure = blank(13.5, 3.9, w_pad=0.12)
    left, centre, right = figure.subplots(1, 3, width_ratios=[1.25, 1.1, 1.15])
    filters_panel(left, filters)
    if isinstance(similarity, str):
        centre.set_axis_off()
        centre.text(0.5, 0.5, similarity, ha="center", va="center", wrap=True, fontsize=9)
    else:
        figure.colorbar(positions_panel(centre, similarity), ax=centre, label="Cosine similarity", ticks=[-1, 0, 1])
    distance_panel(right, getattr(distance, form), titled(name, form))
    return figure


def titled(name: str, form: Form) -> str:
    """The paper's form is drawn without a word, as the paper does; the other one is named."""
    return name if form == "paper" else f"{name} (renormalised)"


def filters_facts(filters: Filters) -> dict[str, Any]:
    return {
        "of": filters.of,
        "explained": filters.explained.tolist(),
        "components": filters.components.round(6).tolist(),
    }


def filters_lines(filters: Filters) -> list[str]:
    total = 100 * float(filters.explained.sum())
    return [f"filters    {len(filters.explained)} components hold {total:.0f} % of the variance of the {filters.of}"]


def positions_facts(similarity: PositionSimilarity | str) -> dict[str, Any]:
    if isinstance(similarity, str):
        return {"refused": similarity}
    return {"tiles": similarity.tiles.round(5).tolist(), "layer": similarity.layer, "resampled": similarity.resampled}


def distance_facts(distance: AttentionDistance) -> dict[str, Any]:
    return {
        "paper": distance.paper.tolist(), "renormalised": distance.renormalised.tolist(),
        "patch_share": distance.patch_share.tolist(), "even": distance.even, "unit": "pixels of the model's input",
    }  # fmt: skip


def distance_lines(distance: AttentionDistance) -> list[str]:
    """Lowest, mean and farthest head of each layer, in both forms."""
    lines = [
        f"distance   in pixels of the input; looking at all patches alike: {distance.even:.1f}",
        f"           {'as in the paper':>26}{'renormalised':>26}",
        f"layer      {'nearest   mean  farthest':>26}{'nearest   mean  farthest':>26}{'on patches':>12}",
    ]
    for layer, (paper, scaled) in enumerate(zip(distance.paper, distance.renormalised, strict=True)):
        parts = [f"{heads.min():.1f} {heads.mean():>6.1f} {heads.max():>9.1f}" for heads in (paper, scaled)]
        lines.append(f"{layer:>5}      {parts[0]:>26}{parts[1]:>26}{100 * distance.patch_share[layer].mean():>10.0f} %")
    return lines


EXPERIMENT = Experiment(run, settings=Settings())
