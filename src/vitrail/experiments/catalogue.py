"""All experiments by name. A new one is a file like those beside it, and a line here."""

from __future__ import annotations

from vitrail.experiments import (
    attention_heads,
    cka,
    figure_06,
    figure_07,
    figure_10,
    figure_11,
    head_ablation,
    logit_lens,
    token_norms,
)
from vitrail.experiments.experiment import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    "figure-6": figure_06.EXPERIMENT,
    "figure-7": figure_07.EXPERIMENT,
    "figure-10": figure_10.EXPERIMENT,
    "figure-11": figure_11.EXPERIMENT,
    "attention-heads": attention_heads.EXPERIMENT,
    "token-norms": token_norms.EXPERIMENT,
    "logit-lens": logit_lens.EXPERIMENT,
    "head-ablation": head_ablation.EXPERIMENT,
    "cka": cka.EXPERIMENT,
}
