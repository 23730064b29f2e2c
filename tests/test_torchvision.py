"""torchvision's VisionTransformer, by its own names in float64 NumPy: torchvision cannot be installed beside a CPU build."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from oracle import gelu, layer_norm, multi_head_attention
from parity_table import ROWS, Row, relative
from vitrail.checkpoints.loading import read

DIM, HEADS, HIDDEN, CLASSES, PATCH, SIDE = 128, 2, 40, 5, 8, 4


def arrays_of(wide=None, older=False, dim=DIM, depth=2, patch=PATCH, side=SIDE):
    """Names and shapes of a state dict, by the source of torchvision.models.vision_transformer; random values."""
    rng = np.random.default_rng(0)
    expand, contract = ("mlp.linear_1", "mlp.linear_2") if older else ("mlp.0", "mlp.3")
    shapes = {"class_token": (1, 1, dim), "conv_proj.weight": (dim, 3, patch, patch), "conv_proj.bias": (dim,)}
    shapes["encoder.pos_embedding"] = (1, side**2 + 1, dim)
    for layer in range(depth):
        block = f"encoder.layers.encoder_layer_{layer}."
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{block}{name}.weight": (dim,), f"{block}{name}.bias": (dim,)}
        attention = f"{block}self_attention."
        shapes |= {f"{attention}in_proj_weight": (3 * dim, dim), f"{attention}in_proj_bias": (3 * dim,)}
        shapes |= {f"{attention}out_proj.weight": (dim, dim), f"{attention}out_proj.bias": (dim,)}
        shapes |= {f"{block}{expand}.weight": (HIDDEN, dim), f"{block}{expand}.bias": (HIDDEN,)}
        shapes |= {f"{block}{contract}.weight": (dim, HIDDEN), f"{block}{contract}.bias": (dim,)}
    shapes |= {"encoder.ln.weight": (dim,), "encoder.ln.bias": (dim,)}
    if wide:
        shapes |= {"heads.pre_logits.weight": (wide, dim), "heads.pre_logits.bias": (wide,)}
    shapes |= {"heads.head.weight": (CLASSES, wide or dim), "heads.head.bias": (CLASSES,)}
    return {name: rng.standard_normal(shape, dtype=np.float32) * np.float32(0.3) for name, shape in shapes.items()}


def logits_of(arrays, image, positions=None):
    """The forward pass of torchvision's source in float64; `image` is channels height width, normalised."""
    a = {name: array.astype(np.float64) for name, array in arrays.items()}
    kernel = a["conv_proj.weight"]
    height, width = kernel.shape[2:]
    corners = [(y, x) for y in range(0, image.shape[1], height) for x in range(0, image.shape[2], width)]
    cut = np.stack([image[:, y : y + height, x : x + width] for y, x in corners])
    x = np.concatenate([a["class_token"][0], np.einsum("ncpq,dcpq->nd", cut, kernel) + a["conv_proj.bias"]])
    x = x + (a["encoder.pos_embedding"][0] if positions is None else positions)
    for layer in range(sum(name.endswith("in_proj_weight") for name in a)):
        block = f"encoder.layers.encoder_layer_{layer}."
        attention = f"{block}self_attention."
        expand, contract = ("0", "3") if f"{block}mlp.0.weight" in a else ("linear_1", "linear_2")
        parts = zip(
            np.split(a[f"{attention}in_proj_weight"].T, 3, 1), np.split(a[f"{attention}in_proj_bias"], 3), strict=True
        )
        w = dict(zip(("query", "key", "value"), parts, strict=True))
        w["out"] = a[f"{attention}out_proj.weight"].T, a[f"{attention}out_proj.bias"]
        normed = layer_norm(x, a[f"{block}ln_1.weight"], a[f"{block}ln_1.bias"])
        x = x + multi_head_attention(normed, w, x.shape[1] // 64)[0]
        normed = layer_norm(x, a[f"{block}ln_2.weight"], a[f"{block}ln_2.bias"])
        hidden = gelu(normed @ a[f"{block}mlp.{expand}.weight"].T + a[f"{block}mlp.{expand}.bias"], "erf")
        x = x + hidden @ a[f"{block}mlp.{contract}.weight"].T + a[f"{block}mlp.{contract}.bias"]
    x = layer_norm(x, a["encoder.ln.weight"], a["encoder.ln.bias"])[0]
    if "heads.pre_logits.weight" in a:
        x = np.tanh(x @ a["heads.pre_logits.weight"].T + a["heads.pre_logits.bias"])
    return x @ a["heads.head.weight"].T + a["heads.head.bias"]


def cubic(old, new):
    """Bicubic weights along one side, corners at the corners, edges repeated (torch's a = -0.75): new old."""
    found = np.zeros((new, old))
    for row, place in enumerate(np.linspace(0, old - 1, new)):
        for near in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            d = abs(place - near)
            weight = 1.25 * d**3 - 2.25 * d**2 + 1 if d <= 1 else -0.75 * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0
            found[row, min(max(near, 0), old - 1)] += weight
    return found


def written(tmp_path, arrays):
    path = tmp_path / "vit.safetensors"
    save_file({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
    return path


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("wide", [None, 24])
def test_logits_equal_the_source(tmp_path, wide, older):
    arrays = arrays_of(wide, older)
    for name in ("class_token", "conv_proj.weight", "conv_proj.bias", "encoder.pos_embedding"):
        arrays[name] *= np.float32(0.003)  # so quiet that a wrong epsilon is seen
    checkpoint = read(written(tmp_path, arrays))
    assert checkpoint.config.size.heads == HEADS and checkpoint.config.image_size == (32, 32)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = checkpoint.build()(images)
    close(found, np.stack([logits_of(arrays, image) for image in images.double().numpy()]))


def at_another_size(tmp_path, arrays):
    """Ours and the source's logits at 6 by 3 patches."""
    checkpoint = read(written(tmp_path, arrays), (48, 24))
    table = arrays["encoder.pos_embedding"][0].astype(np.float64)
    grid = np.einsum("ra,kb,abd->rkd", cubic(SIDE, 6), cubic(SIDE, 3), table[1:].reshape(SIDE, SIDE, -1))
    positions = np.concatenate([table[:1], grid.reshape(18, -1)])
    image = torch.randn(1, 3, 48, 24)
    with torch.no_grad():
        found = checkpoint.build()(image)[0]
    return found, logits_of(arrays, image[0].double().numpy(), positions)


def test_another_size_is_interpolated_as_torchvision_does(tmp_path):
    close(*at_another_size(tmp_path, arrays_of()))


def row(wide):
    def measured():
        arrays = arrays_of(wide)
        image = torch.randn(1, 3, 32, 32)
        with tempfile.TemporaryDirectory() as place, torch.no_grad():
            found = read(written(Path(place), arrays)).build()(image)[0]
            other = at_another_size(Path(place), arrays)
        wanted = logits_of(arrays, image[0].double().numpy())
        family = "ViT, pre-logits" if wide else "ViT"
        return Row(
            family, "torchvision", "its source in float64 NumPy", relative(found, wanted), None, relative(*other)
        )

    return measured


ROWS.update({f"torchvision {wide}": row(wide) for wide in (None, 24)})


def test_a_photograph_is_seen_as_torchvision_shows_it(tmp_path, vitrail_command):
    """Shorter side to 256/224 of the size, the middle, ImageNet's normalisation: here done with Pillow."""
    arrays = arrays_of(patch=56)
    path = written(tmp_path, arrays)
    picture = Image.effect_mandelbrot((320, 256), (-2, -1, 1, 1), 90).convert("RGB")
    picture.save(tmp_path / "picture.png")
    cut = np.asarray(picture.crop((48, 16, 272, 240)), dtype=np.float64)
    image = ((cut / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)
    expected = logits_of(arrays, image)
    answer = json.loads(vitrail_command("predict", path, tmp_path / "picture.png", "--json").out)
    powers = np.exp(expected - expected.max())
    assert answer["label"] == f"class {expected.argmax()}"
    assert answer["probability"] == pytest.approx(powers.max() / powers.sum(), abs=1e-4)
    large = read(written(tmp_path, arrays_of(patch=96))).preprocessing  # 384 px: fine-tuned from SWAG
    assert (large.crop_share, large.interpolation, large.fit) == (1.0, "bicubic", "crop")
