"""What docs/parity.md shows: one function a family and format, which measures the largest difference from its oracle.

A row may be added beside the tests that it belongs to: `ROWS["name"] = function`. The functions are run by
`python benchmarks/parity.py`; the tests hold each of them to the bound of 1e-5.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import vitrail
from vitrail.checkpoints.loading import read
from vitrail.model.tokenizers import resample_kernels

FIXTURES = Path(__file__).parents[2] / "shared" / "parity"
BOUND = 1e-5  # of the largest value


class Row(NamedTuple):
    """Largest differences, relative to the largest value; None where the oracle does not show it.

    `resized` is of the logits on a grid other than that of the file.
    """

    family: str
    format: str
    oracle: str
    logits: float | None
    hidden: float | None
    resized: float | None = None


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
    other = of_larger_grid() if name == "a_token" else None
    return Row(family, kind, oracle, relative(logits, arrays["logits"]), relative(last, wanted), other)


def of_larger_grid() -> float:
    """The fixture that has the weights of a_token at six patches a side instead of four."""
    arrays = dict(np.load(FIXTURES / "h_posembed_strong.io.npz"))
    loaded = vitrail.load(FIXTURES / "a_token_strong.params.npz", image_size=(96, 96))
    with torch.no_grad():
        logits = loaded.module(torch.from_numpy(arrays["images_6x6"]).permute(0, 3, 1, 2).contiguous())
    return relative(logits, arrays["logits_6x6"])


def of_tensorflow_names() -> Row:
    """The fixture's weights under BiT's names; big_vision, whose output it has, pools without a border."""
    arrays = dict(np.load(FIXTURES / "f3_bv_bit_paper_v2_strong.io.npz"))
    checkpoint = read(FIXTURES / "f3_bv_bit_paper_v2_strong.params_tfnames.npz")
    trunk: Any = checkpoint.config.trunk  # type: ignore[attr-defined]
    trunk = replace(trunk, numerics=replace(trunk.numerics, border="nothing"))
    model = replace(checkpoint, config=replace(checkpoint.config, trunk=trunk)).build()  # type: ignore[type-var]
    with torch.no_grad():
        logits = model(torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2).contiguous())
    oracle = f"{BIG_VISION}; without the border of its max-pooling"
    return Row("BiT ResNet, TensorFlow's names", "bit-npz", oracle, relative(logits, arrays["logits"]), None)


def of_patches() -> Row:
    """FlexiViT's kernels, resized by pseudo-inverse to every size of the fixture; not logits but the kernels."""
    arrays = dict(np.load(FIXTURES / "n_flexi_patchemb.io.npz"))
    kernel = torch.from_numpy(arrays.pop("kernel"))
    sizes = {key: tuple(map(int, key.removeprefix("kernel_").split("x"))) for key in arrays}
    worst = max(relative(resample_kernels(kernel, size), arrays[key]) for key, size in sizes.items())  # type: ignore
    return Row("FlexiViT, kernels of other patches", "big-vision-npz", BIG_VISION, worst, None)


def of_real_network() -> Row:
    """The pre-trained ViT-S/14 on a photograph, as its README describes the arrays."""
    folder = FIXTURES.parent / "weights" / "dinov2-vits14"
    oracle = dict(np.load(folder / "oracle.npz"))
    found = []
    for size, ending in (((224, 224), "224"), ((224, 168), "224x168")):
        module = vitrail.load(folder, image_size=size).module
        with torch.no_grad():
            states = module.features(torch.from_numpy(oracle[f"chelsea_pixels_{ending}"]))[-1].values
        found.append(relative(states, oracle[f"chelsea_hidden_{ending}"]))
    return Row(
        "DINOv2 ViT-S/14, real weights: hidden states", "hf-dino", "transformers 5.23, stored", None, found[0], found[1]
    )


for fixture in OF_FIXTURES:
    ROWS[fixture] = lambda fixture=fixture: of_fixture(fixture)
ROWS |= {"bit": of_tensorflow_names, "flexivit kernels": of_patches, "the real network": of_real_network}
