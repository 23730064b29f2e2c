"""Files in the layout of the official .npz, written by its rules, and what such a file means, in float64 NumPy."""

from math import sqrt

import numpy as np
import pytest

from oracle import gelu, layer_norm, softmax
from vitrail.checkpoints.containers import open_weights
from vitrail.checkpoints.listing import listing
from vitrail.checkpoints.loading import FORMATS, read
from vitrail.errors import VitrailError

TINY = {"dim": 8, "depth": 2, "heads": 2, "hidden": 12, "classes": 5, "patch": (4, 4), "patches": 16}
BLOCK, ATTENTION = "Transformer/encoderblock_{}/", "Transformer/encoderblock_{}/MultiHeadDotProductAttention_1/"
LINEN = {"MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0", "LayerNorm_2": "LayerNorm_1",
         "MlpBlock_3": "MlpBlock_0"}  # fmt: skip


def shapes_of(dim, depth, heads, hidden, classes, patch, patches, channels=3, token=True, wide=None):
    """Names and shapes of an official file, by the rules of its layout."""
    shapes = {"cls": (1, 1, dim)} if token else {}
    shapes |= {"embedding/kernel": (*patch, channels, dim), "embedding/bias": (dim,)}
    shapes["Transformer/posembed_input/pos_embedding"] = (1, patches + token, dim)
    for layer in range(depth):
        block, attention = BLOCK.format(layer), ATTENTION.format(layer)
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes |= {f"{block}{norm}/scale": (dim,), f"{block}{norm}/bias": (dim,)}
        for part in ("query", "key", "value"):
            shapes[f"{attention}{part}/kernel"] = (dim, heads, dim // heads)
            shapes[f"{attention}{part}/bias"] = (heads, dim // heads)
        shapes |= {f"{attention}out/kernel": (heads, dim // heads, dim), f"{attention}out/bias": (dim,)}
        shapes |= {f"{block}MlpBlock_3/Dense_0/kernel": (dim, hidden), f"{block}MlpBlock_3/Dense_0/bias": (hidden,)}
        shapes |= {f"{block}MlpBlock_3/Dense_1/kernel": (hidden, dim), f"{block}MlpBlock_3/Dense_1/bias": (dim,)}
    shapes |= {"Transformer/encoder_norm/scale": (dim,), "Transformer/encoder_norm/bias": (dim,)}
    if wide:
        shapes |= {"pre_logits/kernel": (dim, wide), "pre_logits/bias": (wide,)}
    return shapes | {"head/kernel": (wide or dim, classes), "head/bias": (classes,)}


def official(seed=0, **changes):
    rng = np.random.default_rng(seed)
    shapes = shapes_of(**{**TINY, **changes})
    return {name: rng.standard_normal(shape, dtype=np.float32) * np.float32(0.5) for name, shape in shapes.items()}


def written(path, arrays, compressed=False):
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def official_logits(arrays, image):
    """The paper's equations in float64 on the official arrays; `image` is height width channels, in [-1, 1]."""
    a = {name: array.astype(np.float64) for name, array in arrays.items()}
    kernel = a["embedding/kernel"]
    height, width = kernel.shape[:2]
    corners = [(y, x) for y in range(0, image.shape[0], height) for x in range(0, image.shape[1], width)]
    patches = np.stack([image[y : y + height, x : x + width] for y, x in corners])
    x = np.einsum("npqc,pqcd->nd", patches, kernel) + a["embedding/bias"]
    x = np.concatenate([a["cls"][0], x]) if "cls" in a else x
    x = x + a["Transformer/posembed_input/pos_embedding"][0]
    for layer in range(sum(name.endswith("out/kernel") for name in a)):
        block, attention = BLOCK.format(layer), ATTENTION.format(layer)
        normed = layer_norm(x, a[block + "LayerNorm_0/scale"], a[block + "LayerNorm_0/bias"])
        q, k, v = (np.einsum("td,dhe->hte", normed, a[f"{attention}{part}/kernel"]) + a[f"{attention}{part}/bias"][:, None]
                   for part in ("query", "key", "value"))  # fmt: skip
        mixed = softmax(q @ k.swapaxes(1, 2) / sqrt(q.shape[-1])) @ v
        x = x + np.einsum("hte,hed->td", mixed, a[attention + "out/kernel"]) + a[attention + "out/bias"]
        normed = layer_norm(x, a[block + "LayerNorm_2/scale"], a[block + "LayerNorm_2/bias"])
        dense = [(a[f"{block}MlpBlock_3/Dense_{i}/kernel"], a[f"{block}MlpBlock_3/Dense_{i}/bias"]) for i in (0, 1)]
        x = x + gelu(normed @ dense[0][0] + dense[0][1]) @ dense[1][0] + dense[1][1]
    x = layer_norm(x, a["Transformer/encoder_norm/scale"], a["Transformer/encoder_norm/bias"])
    pooled = x[0] if "cls" in a else x.mean(0)
    if "pre_logits/kernel" in a:
        pooled = np.tanh(pooled @ a["pre_logits/kernel"] + a["pre_logits/bias"])
    return pooled @ a["head/kernel"] + a["head/bias"]


def refused(code, path, **options):
    """The message with which a path is refused, all codes being as expected."""
    with pytest.raises(VitrailError) as caught:
        read(path, **options)
    assert caught.value.code == code, caught.value
    return str(caught.value)


def formats_of(path):
    """Every format that recognises what lies at a path."""
    found = listing(open_weights(path))
    return [module.NAME for module in FORMATS if module.recognises(found)]
