"""Packed for inference: the plain module's answers, in float64, whatever the model is made of."""

import copy
import math

import pytest
import torch
from torch import nn

from vitrail.deployment import packed as packing
from vitrail.deployment import quick_attention
from vitrail.deployment.packed import Dense, Quick, packed
from vitrail.deployment.quick_attention import attended
from vitrail.model.block import FEED_FORWARDS, MLP, Block, SwiGLU
from vitrail.model.heads import HEADS, Features, LinearHead, ProjectedHead, TanhHead, TwoHeads
from vitrail.model.mixers import MIXERS, Attention, QuadraticAttention, TokenMLP
from vitrail.model.pairs import Relative1D, RelativeBias, Rotary2D
from vitrail.model.pools import POOLS, AttentionPool, ClassToken, DistilledToken, GlobalAverage, TokenAndAverage
from vitrail.model.positions import POSITIONS, Both, Learned2D, NoPosition, Normed, SineCosine
from vitrail.model.resnet import ResNetConfig
from vitrail.model.tokenizers import TOKENIZERS, ConvolutionalStem, LinearPatches
from vitrail.model.trunks import PostActivation, PreActivation
from vitrail.model.vit import Size, ViTConfig

MIXER = {"block": Block(TokenMLP(24), layer_scale=0.2), "position": NoPosition()}
PARTS = {
    "class token": {},
    "registers, sines": {"pool": ClassToken(registers=3), "position": SineCosine("shared")},
    "average": {"pool": GlobalAverage(), "position": Learned2D("every-layer")},
    "average behind a class token": {"pool": GlobalAverage(class_tokens=1, norm_first=False), "head": TanhHead(5, 16)},
    "probe": {"pool": AttentionPool(registers=2, gelu="quick"), "head": ProjectedHead(5, 16)},
    "token and average, erf": {"pool": TokenAndAverage(), "block": Block(mlp=MLP("erf"))},
    "distilled": {"pool": DistilledToken(), "head": TwoHeads(5)},
    "SwiGLU, LayerScale": {"block": Block(mlp=SwiGLU(), layer_scale=0.3)},
    "quick GELU, normed": {"block": Block(mlp=MLP("quick"), layer_scale=0.5), "position": Normed()},
    "no biases, rotary": {"block": Block(Attention(bias=False)), "position": Rotary2D()},
    "keys without bias, relative": {"block": Block(Attention(key_bias=False)), "position": RelativeBias()},
    "relative keys": {"position": Relative1D()},
    "both": {"position": Both(), "head": Features(16)},
    "mixer": {**MIXER, "pool": GlobalAverage()},
    "mixer with a class token": {"block": Block(TokenMLP(24, "erf"))},
    "quadratic": {"block": Block(QuadraticAttention(), layer_scale=0.5)},
    "hybrid": {"tokenizer": ConvolutionalStem((16, 16), 3, PostActivation((1, 1, 1), 32))},
}  # fmt: skip
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _operators():
    if not packing.can_pack(nn.Linear(1, 1)):
        pytest.skip("this PyTorch has no oneDNN, and takes the plain way always")


def config_of(name):
    if name == "resnet":
        return ResNetConfig(PreActivation((1, 1), 32), LinearHead(5), (32, 32))
    parts = {"tokenizer": LinearPatches((8, 8)), "head": LinearHead(5), **PARTS[name]}
    return ViTConfig(Size(32, 2, 4, 48), image_size=(32, 32), **parts)


def model_of(name):
    """Every array is moved, so that zeros and ones hide nothing."""
    torch.manual_seed(0)
    model = config_of(name).build().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def distance(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


def answers(model, images):
    return [model(images), model.represent(images), *(level.values for level in model.features(images))]


def test_every_part_that_there_is_is_tried():
    tried = [config_of(name) for name in PARTS]
    for axis, of in (
        (POSITIONS, lambda c: c.position), (POOLS, lambda c: c.pool), (HEADS, lambda c: c.head),
        (MIXERS, lambda c: c.block.mixer),
        (FEED_FORWARDS, lambda c: c.block.mlp), (TOKENIZERS, lambda c: c.tokenizer),
    ):  # fmt: skip
        assert set(axis.values()) <= {type(of(config)) for config in tried}


@pytest.mark.parametrize("name", [*PARTS, "resnet"])
def test_float32_answers_are_those_of_the_plain_module_in_float64(name):
    model = model_of(name)
    quick, exact = packed(model), copy.deepcopy(model).double()
    for found, expected in zip(answers(quick, IMAGES), answers(exact, IMAGES.double()), strict=True):
        assert found.dtype == torch.float32 and found.shape == expected.shape
        assert distance(found, expected) < 1e-5


@pytest.mark.parametrize("name", [*PARTS, "resnet"])
def test_bfloat16_answers_differ_by_its_rounding(name):
    model = model_of(name)
    quick, exact = packed(model, "bfloat16"), copy.deepcopy(model).double()(IMAGES.double())
    found = quick(IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = distance(model(IMAGES), exact)
    assert found.dtype == torch.float32
    assert 1e-4 < distance(found, exact) < max(0.02, 2 * rounded)


@pytest.mark.parametrize("name", ["class token", "relative keys", "mixer", "hybrid"])
def test_another_grid_and_fewer_patches(name):
    model = model_of(name)
    quick, exact = packed(model), copy.deepcopy(model).double()
    wide = torch.cat([IMAGES, IMAGES.flip(0)], dim=3)
    assert distance(quick(wide), exact(wide.double())) < 1e-5
    if model.config.attends:
        kept = torch.tensor([[0, 3], [1, 2], [2, 0]])
        found, expected = (
            each.pool(each.encode(each.embed(pixels).only(kept)))
            for each, pixels in ((quick, IMAGES), (exact, IMAGES.double()))
        )
        assert distance(found, expected) < 1e-5


def test_nothing_of_the_encoder_is_left_to_the_plain_layers():
    quick = packed(model_of("class token"))
    assert not [part for part in quick.blocks.modules() if isinstance(part, nn.Linear)]
    assert isinstance(quick.tokenizer, Quick)
    # Each block four layers, the last one's queries a layer of their own, the patches one.
    assert sum(isinstance(part, Dense) for part in quick.modules()) == 4 + 5 + 1
    assert not packed(model_of("relative keys")).blocks[-1].mixer.alone  # its scores need to know every query's place


def test_the_last_block_computes_the_class_token_alone(monkeypatch):
    rows = []
    plain = Dense.forward
    monkeypatch.setattr(
        Dense, "forward", lambda self, values: rows.append(tuple(values.shape[:-1])) or plain(self, values)
    )
    packed(model_of("class token"))(IMAGES)
    assert rows == [(3, 16), (3, 17), (3, 17), (3, 17), (3, 1), (3, 1)]  # patches; fused, expand; told, asked, expand


def test_the_copy_is_of_the_weights_as_they_were():
    model = model_of("registers, sines")
    quick = packed(model)
    before, plain = quick(IMAGES), model(IMAGES)
    for parameter in model.parameters():
        parameter.mul_(2)
    assert torch.equal(quick(IMAGES), before)
    assert distance(model(IMAGES), plain.double()) > 0.1
    assert not any(parameter.requires_grad for parameter in quick.parameters())


def test_where_there_is_no_operator_the_copy_is_plain(monkeypatch):
    monkeypatch.setattr(packing, "can_pack", lambda module: False)
    model = model_of("class token")
    for precision in ("float32", "bfloat16"):
        quick = packed(model, precision)
        assert torch.equal(quick(IMAGES), model(IMAGES)) and quick is not model


QUERIES, KEYS, VALUES = torch.randn(3, 2, 3, 50, 16, generator=torch.Generator().manual_seed(2)).bfloat16()


def exactly(queries, keys, values):
    queries, keys, values = (part.double() for part in (queries, keys, values))
    mixed = (queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[-1])).softmax(-1) @ values
    return mixed.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("factor", [1.0, 8.0, 60.0, -60.0])
def test_attention_in_bfloat16_of_small_and_of_huge_scores(factor):
    """Scores of several hundred overflow as powers, and all of them vanish where they are as far below zero."""
    keys = KEYS * factor if factor > 0 else (KEYS.abs() + 1) * factor
    queries = QUERIES if factor > 0 else QUERIES.abs() + 1
    found, expected = attended(queries, keys, VALUES), exactly(queries, keys, VALUES)
    rounded = torch.nn.functional.scaled_dot_product_attention(queries, keys, VALUES).transpose(1, 2).flatten(2)
    assert torch.isfinite(found).all()
    assert distance(found, expected) < max(0.01, 1.2 * distance(rounded, expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scores", [1, 3 * 50 * 50, 2**19])
def test_attention_some_images_at_a_time(dtype, scores, monkeypatch):
    monkeypatch.setattr(quick_attention, "SCORES", scores)
    parts = [part.to(dtype) for part in (QUERIES, KEYS, VALUES)]
    assert distance(attended(*parts), exactly(*parts)) < (1e-6 if dtype == torch.float32 else 0.01)
