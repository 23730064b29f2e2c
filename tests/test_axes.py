"""One contract for every value of every axis: a new value is one new class, and these tests find it."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

import oracle
from test_model import TINY, images_for, stirred
from vitrail import configuration
from vitrail.checkpoints.checkpoint import unfilled
from vitrail.errors import UsageError
from vitrail.model.backbone import BackboneConfig
from vitrail.model.block import FEED_FORWARDS, MLP
from vitrail.model.families import AXES as ALL_AXES
from vitrail.model.families import FAMILIES
from vitrail.model.heads import HEADS, Features, TwoHeads
from vitrail.model.mixers import MIXERS, Attention, QuadraticAttention
from vitrail.model.pools import POOLS, ClassToken, DistilledToken, GlobalAverage
from vitrail.model.positions import (
    POSITIONS,
    Both,
    Learned1D,
    Learned2D,
    NoPosition,
    Normed,
    Relative1D,
    RelativeBias,
    Rotary2D,
    SineCosine,
)
from vitrail.model.resnet import ResNetConfig
from vitrail.model.tokenizers import TOKENIZERS, ConvolutionalStem, LinearPatches
from vitrail.model.trunks import TRUNKS
from vitrail.model.vit import AXES, Size, ViTConfig, build


def shapes_of(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


INJECTIONS = ("stem", "every-layer", "shared")
POSITION_VALUES = [NoPosition()] + [
    kind(inject=inject) for kind in (Learned1D, Learned2D, Relative1D, SineCosine) for inject in INJECTIONS
]
POSITION_VALUES += [Rotary2D(), Normed(Learned1D()), Normed(Rotary2D(), 1e-6)]
BIASES = [RelativeBias(inject) for inject in INJECTIONS] + [Both()]  # they want one class token


def configs():
    for kind in TOKENIZERS.values():
        yield replace(TINY, tokenizer=kind((8, 8)))
    for kind in TRUNKS.values():
        trunk = kind((1, 2), 32)
        yield replace(TINY, tokenizer=ConvolutionalStem((8, 8), 3, trunk))
        yield from (ResNetConfig(trunk, head, (32, 32)) for head in heads())
    for position in POSITION_VALUES:
        for pool in (ClassToken(), GlobalAverage(), ClassToken(registers=2)):
            yield replace(TINY, position=position, pool=pool)
    yield from (replace(TINY, position=position) for position in BIASES)
    mixers = [kind() for kind in MIXERS.values()]
    for mixer in [*mixers, Attention(bias=False), Attention(input_bias=False), Attention(key_bias=False)]:
        yield replace(TINY, block=replace(TINY.block, mixer=mixer))
    for mlp in [kind() for kind in FEED_FORWARDS.values()] + [MLP("erf"), MLP("quick")]:
        yield replace(TINY, block=replace(TINY.block, mlp=mlp))
    for kind in POOLS.values():
        yield from (replace(TINY, pool=kind()), replace(TINY, pool=kind(registers=1)))
    for first in (True, False):
        yield replace(TINY, pool=GlobalAverage(1, class_tokens=1, norm_first=first))
    yield from (replace(TINY, head=head) for head in heads())
    yield replace(TINY, pool=DistilledToken(), head=TwoHeads(7))
    yield replace(TINY, pool=DistilledToken(alone=True), head=Features(7, tanh=True))
    yield replace(TINY, tokenizer=LinearPatches((8, 8), bias=False))


def heads():
    for kind in HEADS.values():
        yield Features(7) if kind is Features else kind(classes=7)


def test_every_family_and_position_is_tried():
    assert {type(value) for value in POSITION_VALUES + BIASES} == set(POSITIONS.values())
    assert {type(config) for config in configs()} == set(FAMILIES.values())


def described(config):
    """What is special about it, for people."""
    return "-".join(
        f"{getattr(config, name)}" for name in ("tokenizer", "position", "pool", "head", "trunk")
        if hasattr(config, name) and getattr(config, name) != getattr(TINY, name, None)
    ) or f"{config.block.mixer}-{config.block.mlp}"  # fmt: skip


@pytest.mark.parametrize("config", list(configs()), ids=described)
def test_contract(config):
    """Builds, survives JSON, gives logits on other grids, sends gradients everywhere, and bakes without a change."""
    encoded = configuration.encode(config, ALL_AXES)
    assert configuration.decode(BackboneConfig, encoded, ALL_AXES) == config
    assert len(fields(config)) <= 7
    model, images = stirred(config), images_for(config)
    assert shapes_of(unfilled(config)) == shapes_of(model)
    logits = model(images)
    assert logits.shape == (2, 7) and torch.isfinite(logits).all()
    logits.square().sum().backward()
    silent = {
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    }
    # Only the class token's row of the last layer is read, and pairs with a class token have no offset.
    unread = set()
    if isinstance(config, ViTConfig) and isinstance(config.pool, ClassToken):
        unread |= {"position.keys.2"} if config.position == Relative1D("every-layer") else set()
        if isinstance(config.block.mixer, QuadraticAttention):
            unread |= {f"blocks.2.mixer.scores.{name}" for name in ("spreads", "centres")}
    assert silent == unread
    larger = torch.randn(1, 3, 48, 24)
    with torch.no_grad():
        if isinstance(config, ViTConfig):  # the last layer may compute no more than is read, and says the same
            whole = model.head(model.pool(model.encode(model.embed(images))))
            torch.testing.assert_close(logits, whole, rtol=1e-5, atol=1e-5)
        resized = model(larger)
        baked = model.at((48, 24))
        torch.testing.assert_close(resized, baked(larger), rtol=1e-5, atol=1e-5)
        assert baked.config.image_size == (48, 24)
        assert shapes_of(baked) == shapes_of(unfilled(baked.config))
        if not config.attends:
            with pytest.raises(UsageError, match="no attention"):
                model.capture("attention")
            return
        with model.capture("attention") as tape:
            torch.testing.assert_close(model(images), logits.detach(), rtol=0, atol=1e-5)
    assert len(tape) == config.size.depth and baked.config.grid == (6, 3)
    for entry in tape:
        torch.testing.assert_close(entry.weights.sum(-1), torch.ones_like(entry.weights[..., 0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("position", POSITION_VALUES, ids=str)
def test_only_a_bag_of_patches_ignores_the_order(position):
    """Exchanging two patches changes the logits, unless there are no positions."""
    model = stirred(replace(TINY, position=position, pool=GlobalAverage()), scale=0.5)
    images = images_for(TINY)
    swapped = images.clone()
    swapped[..., 0:8, 0:8], swapped[..., 16:24, 8:16] = images[..., 16:24, 8:16], images[..., 0:8, 0:8]
    with torch.no_grad():
        difference = (model(images) - model(swapped)).abs().max().item()
    assert difference < 1e-5 if position == NoPosition() else difference > 1e-3


@pytest.mark.parametrize("kind", [Learned1D, Learned2D, Relative1D])
def test_injections_hold_the_tables_they_should(kind):
    """Every layer has its own table, or all share one; only the first way learns more."""
    counts = {}
    for inject in INJECTIONS:
        model = build(replace(TINY, position=kind(inject=inject)), 0)
        counts[inject] = sum(parameter.numel() for parameter in model.position.parameters())
    assert counts["stem"] == counts["shared"] > 0
    assert counts["every-layer"] == 3 * counts["stem"]


@pytest.mark.parametrize("inject", INJECTIONS)
def test_injected_tables_equal_the_equations(inject):
    """Learned 1-D positions added by hand, where the paper's D.4 says."""
    config = replace(TINY, position=Learned1D(inject))
    model, images = stirred(config), images_for(config, count=1)
    p = oracle.parameters(model)
    x = (
        oracle.patches_of(images[0].double().numpy(), (8, 8)) @ p["tokenizer.project.weight"]
        + p["tokenizer.project.bias"]
    )
    x = np.concatenate([p["pool.class_token"], x])
    if inject == "stem":
        x = x + p["position.tables.0.rows"]
    for layer in range(3):
        if inject != "stem":
            x = x + p[f"position.tables.{layer if inject == 'every-layer' else 0}.rows"]
        x, _ = oracle.block(x, p, f"blocks.{layer}.", 4)
    expected = oracle.head(oracle.pool(x, p, config, 0, "tanh"), p)
    with torch.no_grad():
        np.testing.assert_allclose(model(images)[0], expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("pool", [ClassToken(), GlobalAverage(), ClassToken(registers=2)], ids=str)
@pytest.mark.parametrize("inject", INJECTIONS)
def test_relative_bias_equals_the_definition(inject, pool):
    """q.r(p_q - p_k), scaled like q.k, added before the softmax; pairs with a class token have none."""
    config = replace(TINY, position=Relative1D(inject), pool=pool)
    model, images = stirred(config), images_for(config, count=1)
    p = oracle.parameters(model)
    front = np.concatenate([p.get("pool.class_token", np.zeros((0, 32))), p.get("pool.registers", np.zeros((0, 32)))])
    x = (
        oracle.patches_of(images[0].double().numpy(), (8, 8)) @ p["tokenizer.project.weight"]
        + p["tokenizer.project.bias"]
    )
    x, prefix = np.concatenate([front, x]), len(front)
    for layer in range(3):
        bias = oracle.relative_bias(p[f"position.keys.{layer if inject == 'every-layer' else 0}"], prefix)
        x, _ = oracle.block(x, p, f"blocks.{layer}.", 4, bias=bias if inject != "stem" or layer == 0 else None)
    expected = oracle.head(oracle.pool(x, p, config, pool.registers, "tanh"), p)
    with torch.no_grad():
        np.testing.assert_allclose(model(images)[0], expected, rtol=2e-5, atol=2e-5)


def test_relative_positions_of_kept_patches():
    model, images = stirred(replace(TINY, position=Relative1D("shared"))), images_for(TINY)
    with torch.no_grad():
        tokens = model.embed(images)
        queries = torch.randn(2, 4, 17, 8)
        whole = model.position.bias(queries, tokens, 0)
        kept = torch.tensor([[3, 1, 12], [0, 15, 7]])
        rows = torch.cat([torch.zeros(2, 1, dtype=torch.long), kept + 1], 1)
        chosen = torch.stack([queries[i][:, rows[i]] for i in range(2)])
        part = model.position.bias(chosen, replace(tokens, values=tokens.values[:, :4], kept=kept), 0)
        expected = torch.stack([whole[i][:, rows[i]][:, :, rows[i]] for i in range(2)])
    torch.testing.assert_close(part, expected)


def test_two_dimensional_rows_and_columns_share_their_halves():
    table = build(replace(TINY, position=Learned2D(), pool=GlobalAverage()), 0).position.tables[0]((4, 4)).detach()
    grid = table.reshape(4, 4, 32)
    assert torch.equal(grid[2, 0, :16], grid[2, 3, :16]) and not torch.equal(grid[2, 0, :16], grid[1, 0, :16])
    assert torch.equal(grid[0, 1, 16:], grid[3, 1, 16:]) and not torch.equal(grid[0, 1, 16:], grid[0, 2, 16:])


def test_axis_names_are_unique_and_unknown_ones_get_hints():
    for choices in AXES.values():
        assert len(set(choices.values())) == len(choices)
    data = TINY.to_json()
    data["position"] = {"type": "learnt-1d"}
    with pytest.raises(UsageError, match="learned-1d"):
        configuration.decode(ViTConfig, data, AXES)


def test_impossible_sizes_are_refused():
    with pytest.raises(UsageError, match="do not divide"):
        replace(TINY, size=Size(30, 1, 4, 10))
    with pytest.raises(UsageError, match="positive"):
        Size(30, 0, 1, 10)
    with pytest.raises(UsageError, match="sine-cosine"):
        build(replace(TINY, size=Size(6, 1, 1, 8), position=SineCosine()), 0)
