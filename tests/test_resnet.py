"""BiT ResNets, hybrids and the Mixer against float64 oracles, and against what they promise."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import oracle
import oracle_resnet
from test_model import TINY, images_for, stirred
from vitrail.errors import DataError, UsageError
from vitrail.inspection.rollout import rollout
from vitrail.model.backbone import Backbone, BackboneConfig, build
from vitrail.model.block import Block
from vitrail.model.heads import LinearHead, ProjectedHead, TanhHead
from vitrail.model.mixers import TokenMLP
from vitrail.model.pools import AttentionPool, ClassToken, GlobalAverage
from vitrail.model.positions import NoPosition
from vitrail.model.resnet import ResNetConfig
from vitrail.model.tokenizers import ConvolutionalStem, LinearPatches, Tokens
from vitrail.model.trunks import BIT, HYBRID, PostActivation, PreActivation, StandardisedConvolution, edges

POST, PRE = PostActivation((2, 1), 32), PreActivation((2, 1), 32)
RESNETS = {
    "post-activation": ResNetConfig(POST, LinearHead(7), (32, 32)),
    "pre-activation": ResNetConfig(PRE, LinearHead(7), (32, 32)),
    "projected head": ResNetConfig(POST, ProjectedHead(7, 20), (32, 32)),
    "tanh head": ResNetConfig(replace(PRE, stages=(1,)), TanhHead(7, 20), (32, 32)),
    "grey, odd sides": ResNetConfig(POST, LinearHead(7), (27, 33), 1),
    "odd sides, pre": ResNetConfig(PRE, LinearHead(7), (27, 33)),
    "no stages": ResNetConfig(PostActivation((), 32), LinearHead(7), (30, 21)),
}


def head_of(x, p):
    if "head.represent.0.weight" in p:
        x = x @ p["head.represent.0.weight"] + p["head.represent.0.bias"]
    return x @ p["head.linear.weight"] + p["head.linear.bias"]


@pytest.mark.parametrize("name", RESNETS)
def test_logits_and_maps_equal_the_definition(name):
    config = RESNETS[name]
    model, images = stirred(config, scale=0.1), images_for(config)
    family = oracle_resnet.POST if isinstance(config.trunk, PostActivation) else oracle_resnet.PRE
    p = oracle.parameters(model)
    with torch.no_grad():
        logits, levels, represented = model(images), model.features(images), model.represent(images)
    for index, image in enumerate(images.double().numpy()):
        maps = oracle_resnet.maps_of(image, p, config.trunk.stages, family)
        maps = maps[1:] or maps
        assert [level.grid for level in levels] == [found.shape[1:] for found in maps]
        for level, found in zip(levels, maps, strict=True):
            expected = found.reshape(len(found), -1).T
            np.testing.assert_allclose(level.values[index], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        pooled = maps[-1].mean((1, 2))
        if isinstance(config.head, TanhHead):
            expected = oracle.head(pooled, p)
        else:
            expected = head_of(pooled, p)
        np.testing.assert_allclose(logits[index], expected, rtol=3e-5, atol=3e-5)
    with torch.no_grad():
        torch.testing.assert_close(model.head.linear(represented), logits)


def test_the_numbers_of_a_family_are_used():
    """Another divisor, epsilon, padding or border gives another answer: none of them is a decoration."""
    config = ResNetConfig(PRE, LinearHead(7), (32, 32))
    images = images_for(config)
    changes = ({"divisor": "deviation", "kernel_epsilon": 0.1}, {"kernel_epsilon": 0.1}, {"norm_epsilon": 0.1},
               {"padding": "same"}, {"border": "nothing"})  # fmt: skip
    model = stirred(config, scale=0.1)
    found = [model(images)]
    for change in changes:
        other = replace(config, trunk=replace(PRE, numerics=replace(BIT, **change))).build()
        other.load_state_dict(model.state_dict())
        found.append(other.eval()(images))
    for index, one in enumerate(found):
        for other in found[:index]:
            assert (one - other).abs().max() > 1e-4


def test_initial_weights_are_the_official_ones():
    """Kernels of variance 1 / fan-in; the last norm of a post-activation unit is zero, so that units begin as nothing."""
    model = build(ResNetConfig(POST, LinearHead(7), (32, 32)), 0)
    unit = model.trunk.stages[0][1]
    assert not unit.expand_norm.weight.any() and unit.reduce_norm.weight.eq(1).all()
    assert unit.convolve.weight.std().item() == pytest.approx((32 * 9) ** -0.5, rel=0.05)
    values = torch.rand(1, 128, 5, 4)
    assert torch.equal(unit(values), values)
    assert build(ResNetConfig(PRE), 0).trunk.stages[0][1].expand_norm.weight.eq(1).all()


@pytest.mark.parametrize("side", range(1, 12))
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_same_padding_is_xlas(side, shape):
    """As many windows as ceil(side / stride), none starts outside the padded rows, and the odd one goes to the end."""
    kernel, stride = shape
    before, after = edges(side, shape, "same")
    assert (side + before + after - kernel) // stride + 1 == -(-side // stride)
    assert before <= after <= before + 1
    assert not before or (side + before + after - 1 - kernel) // stride + 1 < -(-side // stride)
    if shape == (3, 2) and side % 2 == 0:
        assert (before, after) == (0, 1)
    if shape == (7, 2) and side % 2 == 0 and side > 2:
        assert (before, after) == (2, 3)


@pytest.mark.parametrize("numerics", [HYBRID, BIT], ids=["hybrid", "bit"])
def test_kernels_are_standardised_in_float32(numerics):
    """Also where the weights are kept in bfloat16, of which a mean would have two digits."""
    layer = StandardisedConvolution(numerics, 64, 64, (3, 1))
    with torch.no_grad():
        layer.weight.add_(5.0)
    exact = layer.standardised()
    torch.testing.assert_close(exact.mean((1, 2, 3)), torch.zeros(64), rtol=0, atol=1e-3)
    torch.testing.assert_close(exact.std((1, 2, 3), correction=0), torch.ones(64), rtol=0, atol=1e-2)
    half = StandardisedConvolution(numerics, 64, 64, (3, 1)).to(torch.bfloat16)
    kept = layer.weight.detach().bfloat16()
    half.load_state_dict({"weight": kept})
    layer.load_state_dict({"weight": kept.float()})
    assert half.standardised().dtype == torch.float32
    assert torch.equal(half.standardised(), layer.standardised())
    assert half(torch.randn(1, 64, 4, 4).bfloat16()).dtype == torch.bfloat16


STEMS = {
    "every place": (ConvolutionalStem((8, 8), 3, POST), (32, 32)),
    "squares of places": (ConvolutionalStem((16, 16), 3, POST), (32, 48)),
    "the root alone": (ConvolutionalStem((8, 16), 3, PostActivation((), 32)), (24, 32)),
    "pre-activation, grey": (ConvolutionalStem((8, 8), 1, PRE), (16, 24)),
}


@pytest.mark.parametrize("pool", [ClassToken(), GlobalAverage(registers=1)], ids=str)
@pytest.mark.parametrize("name", STEMS)
def test_a_hybrid_equals_the_equations(name, pool, monkeypatch):
    """The oracle of the ViT, given the places of the trunk's map for pixels."""
    stem, image_size = STEMS[name]
    config = replace(TINY, tokenizer=stem, image_size=image_size, pool=pool)
    model, images = stirred(config, scale=0.2), images_for(config)
    family = oracle_resnet.POST if isinstance(stem.trunk, PostActivation) else oracle_resnet.PRE
    p = oracle.parameters(model)
    p["tokenizer.project.weight"] = p["tokenizer.patches.project.weight"]
    p["tokenizer.project.bias"] = p["tokenizer.patches.project.bias"]
    cut = stem.on_the_map
    with torch.no_grad():
        logits = model(images)
        with model.capture("attention") as tape:
            torch.testing.assert_close(model(images), logits, rtol=0, atol=1e-5)
    for index, image in enumerate(images.double().numpy()):
        last = oracle_resnet.maps_of(image, p, stem.trunk.stages, family, "tokenizer.trunk.")[-1]
        x, maps = oracle.encode(last, p, replace(config, tokenizer=cut))
        expected = oracle.head(oracle.pool(x, p, config, pool.registers, "tanh"), p)
        np.testing.assert_allclose(logits[index], expected, rtol=3e-5, atol=5e-5)
        for entry in tape:
            np.testing.assert_allclose(entry.weights[index], maps[entry.layer], rtol=0, atol=2e-5)
            assert entry.tokens.grid == config.grid == (image_size[0] // stem.patch[0], image_size[1] // stem.patch[1])


def test_rollout_follows_a_hybrid_and_any_grid_works():
    config = replace(TINY, tokenizer=STEMS["every place"][0])
    model = stirred(config, scale=0.1)
    gaze = rollout(model, images_for(config))
    assert gaze.maps.shape == (2, 4, 4) and np.allclose(gaze.maps.sum((1, 2)), 1, atol=1e-5)
    with torch.no_grad():
        larger = torch.randn(1, 3, 48, 24)
        torch.testing.assert_close(model(larger), model.at((48, 24))(larger), rtol=1e-5, atol=1e-5)


MIXER = replace(TINY, position=NoPosition(), block=Block(mixer=TokenMLP(11)), pool=GlobalAverage(), image_size=(16, 24))


@pytest.mark.parametrize("pool", [GlobalAverage(), ClassToken(), AttentionPool(), GlobalAverage(registers=2)], ids=str)
def test_a_mixer_equals_the_equations(pool):
    config = replace(MIXER, pool=pool)
    model, images = stirred(config), images_for(config)
    p = oracle.parameters(model)
    with torch.no_grad():
        logits = model(images)
    for index, image in enumerate(images.double().numpy()):
        x = oracle.patches_of(image, (8, 8)) @ p["tokenizer.project.weight"] + p["tokenizer.project.bias"]
        x = np.concatenate([p.get("pool.class_token", x[:0]), p.get("pool.registers", x[:0]), x])
        for layer in range(config.size.depth):
            name = f"blocks.{layer}."
            normed = oracle.layer_norm(x, p[f"{name}mixer_norm.weight"], p[f"{name}mixer_norm.bias"])
            x = x + oracle_resnet.token_mixing(normed, p, f"{name}mixer.")
            normed = oracle.layer_norm(x, p[f"{name}mlp_norm.weight"], p[f"{name}mlp_norm.bias"])
            hidden = oracle.gelu(normed @ p[f"{name}mlp.expand.weight"] + p[f"{name}mlp.expand.bias"])
            x = x + hidden @ p[f"{name}mlp.contract.weight"] + p[f"{name}mlp.contract.bias"]
        expected = oracle.head(oracle.pool(x, p, config, pool.registers, "tanh"), p)
        np.testing.assert_allclose(logits[index], expected, rtol=2e-5, atol=2e-5)


def test_a_mixer_on_another_grid_reads_and_writes_by_interpolation():
    """On a grid twice as fine, what is constant mixes to the same constant: its sums weigh a quarter."""
    model = stirred(MIXER, scale=0.1)
    mixing = model.blocks[0].mixer
    with torch.no_grad():
        mixing.contract.weight[:] = mixing.contract.weight[:1]  # every place is told the same
        mixing.contract.bias[:] = 0.3
        mixing.expand.weight[:] = mixing.expand.weight[:, :1]  # and asked the same
        coarse = mixing(Tokens(torch.ones(1, 6, 32) * 0.7, (2, 3)))
        fine = mixing(Tokens(torch.ones(1, 24, 32) * 0.7, (4, 6)))
        torch.testing.assert_close(fine, coarse[:, :1].expand(1, 24, 32))
        tokens = torch.randn(1, 24, 32)
        expected = mixing(Tokens(tokens, (4, 6)))
        mixing.at((4, 6))
        torch.testing.assert_close(mixing(Tokens(tokens, (4, 6))), expected)
    assert mixing.expand.weight.shape == (11, 24) and mixing.contract.bias.shape == (24,)
    with pytest.raises(UsageError, match="drop or merge no tokens"):
        mixing(replace(Tokens(torch.ones(1, 3, 32), (4, 6)), kept=torch.tensor([[1, 2, 3]])))


def test_capture_refuses_where_there_is_no_attention():
    for config, words in ((RESNETS["pre-activation"], "a ResNet has no attention"), (MIXER, "TokenPerceptron")):
        with pytest.raises(UsageError, match=words) as caught:
            build(config, 0).capture("attention")
        assert caught.value.code == "VT041" and caught.value.expected and caught.value.fix
    with pytest.raises(UsageError, match="no 3"):
        build(MIXER, 0).capture("attention", layers=[3])


@pytest.mark.parametrize(
    "config", [*RESNETS.values(), MIXER, replace(TINY, tokenizer=STEMS["every place"][0])], ids=str
)
def test_every_backbone_keeps_the_contract(config):
    model, images = stirred(config, scale=0.1), images_for(config)
    assert isinstance(config, BackboneConfig) and isinstance(model, Backbone) and model.config == config
    with torch.no_grad():
        logits, levels = model(images), model.features(images)
        assert logits.shape == (2, 7) and model.represent(images).shape[0] == 2
        assert isinstance(levels, tuple) and all(isinstance(level, Tokens) for level in levels)
        for level in levels:
            assert level.values.shape[1] == level.prefix + level.grid[0] * level.grid[1]
        assert model.at(config.image_size).config == config
        assert torch.equal(model.at(config.image_size)(images), logits)
    assert model.num_parameters() == sum(value.numel() for value in model.state_dict().values())
    with pytest.raises(DataError, match="2 channels"):
        model(torch.zeros(1, 2, *config.image_size))


def test_a_resnet_reads_images_of_any_size():
    model = stirred(RESNETS["post-activation"], scale=0.1)
    with torch.no_grad():
        for size in ((32, 32), (64, 40), (17, 9), (8, 5)):
            assert model(torch.randn(1, 3, *size)).shape == (1, 7)
    assert model.at((64, 40)).config.image_size == (64, 40)


@pytest.mark.parametrize("name", ["post-activation", "pre-activation", "hybrid", "mixer"])
def test_a_few_steps_lower_the_loss(name):
    """Forward, backward and update, from the initial weights."""
    hybrid = replace(TINY, tokenizer=STEMS["every place"][0], pool=GlobalAverage())
    config = {"hybrid": hybrid, "mixer": MIXER}.get(name) or RESNETS[name]
    model, images = build(config, 0).train(), images_for(config, count=4)
    labels, losses = torch.tensor([0, 1, 2, 3]), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(6):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(np.log(7), abs=1e-6)  # a zeroed head says nothing yet
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: PostActivation((0, 1)), lambda: PreActivation((1,) * 9), lambda: PreActivation(width=48),
        lambda: PostActivation(width=0), lambda: ConvolutionalStem((8, 8), 3, PostActivation((1, 1, 1))),
        lambda: ConvolutionalStem((0, 4)), lambda: ResNetConfig(channels=0), lambda: TokenMLP(0),
    ],
)  # fmt: skip
def test_impossible_parts_are_refused(make):
    with pytest.raises((UsageError, DataError)) as caught:
        make()
    assert caught.value.code in ("VT003", "VT030") and caught.value.expected


def test_a_hybrid_names_the_nearest_sizes():
    with pytest.raises(DataError, match="32x32") as caught:
        stirred(replace(TINY, tokenizer=STEMS["every place"][0]))(torch.zeros(1, 3, 30, 32))
    assert caught.value.code == "VT032"


def test_patches_of_the_map_are_of_its_channels():
    stem = STEMS["squares of places"][0]
    assert stem.on_the_map == LinearPatches((2, 2), 256) and stem.trunk.stride == 8
