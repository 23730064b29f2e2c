"""What docs/parity.md shows: one function a family and format, which measures the largest difference from its oracle.

A row may be added beside the tests that it belongs to: `ROWS["name"] = function`. The functions are run by
`python benchmarks/parity.py`; the tests hold each of them to the bound of 1e-5.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import vitrail

FIXTURES = Path(__file__).parents[2] / "shared" / "parity"
BOUND = 1e-5  # of the largest value


class Row(NamedTuple):
    """Largest differences, relative to the largest value; `hidden` None where the oracle shows no hidden states."""

    family: str
    format: str
    oracle: str
    logits: float
    hidden: float | None


ROWS: dict[str, Callable[[], Row]] = {}
OFFICIAL, BIG_VISION = "vision_transformer, run with jax", "big_vision, run with jax"
# fixture: family, format, oracle, the array that is the last hidden state
OF_FIXTURES = {
    "a_token": ("ViT, class token", "official-npz", OFFICIAL, "encoded"),
    "b_token_rep": ("ViT, tanh layer of pre-training", "official-npz", OFFICIAL, "encoded"),
    "c_gap": ("ViT, mean of the patches", "official-npz", OFFICIAL, "encoded"),
    "e_nonsquare": ("ViT, 64x96 px", "official-npz", OFFICIAL, "encoded"),
    "d1_hybrid": ("hybrid, stages 2-1", "official-npz", OFFICIAL, "encoded"),
    "d2_hybrid": ("hybrid, root alone", "official-npz", OFFICIAL, "encoded"),
    "f1_vitjax_resnet_only": ("ResNet of the hybrids", "official-npz", OFFICIAL, "block2"),
    "g_mixer": ("MLP-Mixer", "official-npz", OFFICIAL, "pre_head_layer_norm"),
    "f2_bv_bit_v1": ("BiT ResNet, post-activation", "big-vision-npz", BIG_VISION, "stage2"),
    "f3_bv_bit_paper_v2": ("BiT ResNet, pre-activation", "big-vision-npz", BIG_VISION, "pre_logits_2d"),
    "i1_bv_sincos_gap_rep": ("ViT, sine-cosine, mean", "big-vision-npz", BIG_VISION, "encoded"),
    "i2_bv_learn_map": ("ViT, MAP head", "big-vision-npz", BIG_VISION, "encoded"),
    "i3_bv_learn_tok": ("ViT, class token", "big-vision-npz", BIG_VISION, "encoded"),
    "i4_bv_learn_gap": ("ViT, mean", "big-vision-npz", BIG_VISION, "encoded"),
}


def relative(found: torch.Tensor | np.ndarray, wanted: torch.Tensor | np.ndarray) -> float:
    """Largest difference by the largest wanted value."""
    first, second = (np.asarray(values, dtype=np.float64) for values in (found, wanted))
    assert first.shape == second.shape, (first.shape, second.shape)
    return float(np.abs(first - second).max() / np.abs(second).max())


def of_fixture(name: str) -> Row:
    """The `_strong` arrays, in which a wrong GELU or epsilon shows."""
    family, kind, oracle, key = OF_FIXTURES[name]
    arrays = dict(np.load(FIXTURES / f"{name}_strong.io.npz"))
    height, width = arrays["images"].shape[1:3]
    loaded = vitrail.load(FIXTURES / f"{name}_strong.params.npz", image_size=(height, width))
    assert loaded.checkpoint.provenance["format"] == kind
    images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        logits, last = loaded.module(images), loaded.module.features(images)[-1].values
    wanted = arrays[key].reshape(*last.shape)
    return Row(family, kind, oracle, relative(logits, arrays["logits"]), relative(last, wanted))


for fixture in OF_FIXTURES:
    ROWS[fixture] = lambda fixture=fixture: of_fixture(fixture)
