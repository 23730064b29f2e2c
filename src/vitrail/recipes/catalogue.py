"""All recipes by name: from random weights, and from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable

from vitrail.recipes.baselines import augreg, better_baseline, bit, bit_hyperrule, vit_g
from vitrail.recipes.classification import demo, fashion_mnist, fine_tune, from_scratch, from_scratch_small
from vitrail.recipes.paper import paper_fine_tuning, paper_imagenet, paper_imagenet21k, paper_jft
from vitrail.recipes.run import Run

RECIPES: dict[str, Callable[..., Run]] = {
    "from-scratch": from_scratch, "from-scratch-small": from_scratch_small, "demo": demo, "fashion-mnist": fashion_mnist,
    "paper-imagenet": paper_imagenet, "paper-imagenet21k": paper_imagenet21k, "paper-jft": paper_jft, "bit": bit,
    "augreg": augreg, "better-baseline": better_baseline, "vit-g": vit_g,
}  # fmt: skip
"""Called with (source, model, image_size)."""
TRANSFERS: dict[str, Callable[..., Run]] = {
    "fine-tune": fine_tune, "paper-fine-tuning": paper_fine_tuning, "bit-hyperrule": bit_hyperrule
}  # fmt: skip
"""Called with (source, weights, image_size)."""
