"""Quadratic relative attention (arXiv 1911.03584) against float64 loops from its equations, and its theorem."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import oracle
from parity_table import ROWS, Row, relative
from test_model import TINY, images_for, stirred
from vitrail.errors import UsageError
from vitrail.inspection.rollout import rollout
from vitrail.model.block import Block
from vitrail.model.mixers import QuadraticAttention
from vitrail.model.pools import AttentionPool, ClassToken, GlobalAverage
from vitrail.model.positions import NoPosition
from vitrail.model.sizes import backbone
from vitrail.model.tokenizers import Context, LinearPatches, Tokens
from vitrail.model.vit import Size, build
from vitrail.training.optimizer import AdamW, Muon

QUADRATIC = replace(
    TINY, size=Size(32, 2, 3, 24), position=NoPosition(), block=Block(mixer=QuadraticAttention()), pool=GlobalAverage(),
    tokenizer=LinearPatches((8, 8)), image_size=(24, 32),
)  # fmt: skip


def precision(spread):
    """The isotropic form has a number a head, 2 alpha its square; the general one a matrix A, and A A'."""
    return spread**2 * np.eye(2) if np.ndim(spread) == 0 else spread @ spread.T


def attention(spreads, centres, grid, prefix):
    """softmax of -1/2 (delta' P delta - 2 delta' P centre), pair by pair; zero to and from what has no place."""
    places = [(row, col) for row in range(grid[0]) for col in range(grid[1])]
    scores = np.zeros((len(centres), prefix + len(places), prefix + len(places)))
    for head, (spread, centre) in enumerate(zip(spreads, centres, strict=True)):
        for q, (row, col) in enumerate(places):
            for k, (other_row, other_col) in enumerate(places):
                delta = np.array([other_row - row, other_col - col], dtype=np.float64)
                pulled = precision(spread) @ delta
                scores[head, prefix + q, prefix + k] = -0.5 * (delta @ pulled - 2 * centre @ pulled)
    return oracle.softmax(scores)


def mixed(x, p, prefix, weights):
    """Every head averages whole tokens; one dense layer reads all averages, another follows."""
    heads = np.concatenate([head @ x for head in weights], axis=-1)
    values = heads @ p[f"{prefix}values.weight"] + p[f"{prefix}values.bias"]
    return values @ p[f"{prefix}project.weight"] + p[f"{prefix}project.bias"]


def logits_of(model, config, image):
    """The equations, for one image: its logits and the attention of every layer."""
    p, raw = oracle.parameters(model), {name: value.double().numpy() for name, value in model.state_dict().items()}
    prefix, maps = config.pool.class_tokens + config.pool.registers, []
    x = oracle.patches_of(image, (8, 8)) @ p["tokenizer.project.weight"] + p["tokenizer.project.bias"]
    x = np.concatenate([p.get("pool.class_token", x[:0]), p.get("pool.registers", x[:0]), x])
    for layer in range(config.size.depth):
        name = f"blocks.{layer}."
        scores = [raw[f"{name}mixer.scores.{part}"] for part in ("spreads", "centres")]
        maps.append(attention(*scores, config.grid, prefix))
        normed = oracle.layer_norm(x, p[f"{name}mixer_norm.weight"], p[f"{name}mixer_norm.bias"])
        x = x + mixed(normed, p, f"{name}mixer.", maps[-1])
        normed = oracle.layer_norm(x, p[f"{name}mlp_norm.weight"], p[f"{name}mlp_norm.bias"])
        hidden = oracle.gelu(normed @ p[f"{name}mlp.expand.weight"] + p[f"{name}mlp.expand.bias"])
        x = x + hidden @ p[f"{name}mlp.contract.weight"] + p[f"{name}mlp.contract.bias"]
    return oracle.head(oracle.pool(x, p, config, config.pool.registers, "tanh"), p), maps


@pytest.mark.parametrize("isotropic", [True, False])
@pytest.mark.parametrize("pool", [GlobalAverage(), ClassToken(registers=1)], ids=str)
def test_a_network_equals_the_equations(isotropic, pool):
    """Three heads do not divide 32 dimensions, and need not: each has the whole width."""
    config = replace(QUADRATIC, pool=pool, block=Block(mixer=QuadraticAttention(isotropic)))
    model, images = stirred(config, scale=0.3), images_for(config)
    with torch.no_grad():
        logits = model(images)
        with model.capture("attention") as tape:
            torch.testing.assert_close(model(images), logits)
    for index, image in enumerate(images.double().numpy()):
        expected, maps = logits_of(model, config, image)
        for layer, weights in enumerate(maps):
            np.testing.assert_allclose(tape[layer].weights[index], weights, rtol=0, atol=2e-6)
        np.testing.assert_allclose(logits[index], expected, rtol=2e-5, atol=2e-5)


def row():
    model, images = stirred(QUADRATIC, scale=0.3), images_for(QUADRATIC)[:1]
    with torch.no_grad():
        found = model(images)[0]
    expected, _ = logits_of(model, QUADRATIC, images[0].double().numpy())
    return Row(
        "network of quadratic attention", "vitrail", "its equations in float64 NumPy", relative(found, expected), None
    )


ROWS["quadratic"] = row


@pytest.mark.parametrize("isotropic", [True, False])
def test_narrow_heads_on_a_3x3_grid_are_a_convolution(isotropic):
    """Theorem 1: head h looks at the patch at its centre alone; its part of the two matrices is the kernel there."""
    layer = QuadraticAttention(isotropic).build(Context(5, 9, 1, 1, (6, 7))).double()
    centres = [(row, col) for row in (-1, 0, 1) for col in (-1, 0, 1)]
    with torch.no_grad():
        layer.scores.centres.copy_(torch.tensor(centres))
        narrow = torch.tensor([[9.0, 3.0], [0.0, 9.0]]) if not isotropic else torch.tensor(9.0)
        layer.scores.spreads.copy_(narrow.expand_as(layer.scores.spreads))
        for linear in (layer.values, layer.project):
            linear.bias.normal_()
        x = torch.randn(2, 42, 5, dtype=torch.float64)
        found = layer(Tokens(x, (6, 7))).reshape(2, 6, 7, 5)
        kernel = layer.project.weight @ layer.values.weight  # outputs, (heads inputs)
        kernel = kernel.reshape(5, 3, 3, 5).permute(0, 3, 1, 2)
        bias = layer.project(layer.values.bias)
        expected = F.conv2d(x.reshape(2, 6, 7, 5).permute(0, 3, 1, 2), kernel, bias).permute(0, 2, 3, 1)
    torch.testing.assert_close(found[:, 1:-1, 1:-1], expected, rtol=0, atol=1e-9)


def test_patches_that_were_dropped_are_not_looked_at():
    """Each image has patches of its own: the same as asking for them alone, place by place."""
    layer = QuadraticAttention().build(Context(4, 2, 1, 1, (3, 3)))
    kept = torch.tensor([[0, 4, 5], [2, 3, 8]])
    x = torch.randn(2, 4, 4)
    front = Tokens(x, (3, 3), prefix=1, kept=kept)
    with torch.no_grad():
        found = layer.scores(front).softmax(-1)
    spreads, centres = (value.detach().double().numpy() for value in (layer.scores.spreads, layer.scores.centres))
    whole = attention(spreads, centres, (3, 3), 1)
    for image in range(2):
        rows = [0, *(kept[image] + 1).tolist()]
        part = whole[:, rows][:, :, rows]
        np.testing.assert_allclose(found[image], part / part.sum(-1, keepdims=True), rtol=0, atol=1e-6)
    assert torch.isfinite(layer(front)).all()


def test_heads_and_queries_can_be_asked_for_and_rollout_follows():
    model, images = stirred(QUADRATIC, scale=0.2), images_for(QUADRATIC)
    with torch.no_grad(), model.capture("attention") as whole:
        model(images)
    with torch.no_grad(), model.capture("attention", layers=[-1], heads=[2, 0], queries=[5]) as part:
        model(images)
    assert part[0].weights.shape == (2, 2, 1, 12)
    torch.testing.assert_close(part[0].weights, whole[1].weights[:, [2, 0]][:, :, [5]])
    assert np.allclose(rollout(model, images).maps.sum((1, 2)), 1, atol=1e-5)


def test_the_network_of_the_paper_by_its_name():
    config = backbone("Cordonnier", 10, (32, 32))
    assert (config.size, config.grid) == (Size(400, 6, 9, 512), (16, 16)) and config.attends
    with torch.device("meta"):
        model = config.build()
    assert model.blocks[0].mixer.values.weight.shape == (400, 9 * 400)
    start = torch.cat([build(QUADRATIC, seed).blocks[0].mixer.scores.centres for seed in range(100)])
    assert start.std().item() == pytest.approx(2, rel=0.1)  # gaussian_init_mu_std of their code


@pytest.mark.parametrize(
    "change", [{"block": Block()}, {"pool": AttentionPool()}], ids=["attention", "attention pooling"]
)
def test_heads_that_share_the_width_must_divide_it(change):
    with pytest.raises(UsageError, match="3 heads do not divide 32"):
        replace(QUADRATIC, **change)


@pytest.mark.parametrize("isotropic", [True, False])
def test_centres_and_widths_are_no_matrices_for_an_optimizer(isotropic):
    """Two of the places where 'two dimensions or more' would take them for one: decay, and Muon."""
    model = build(replace(QUADRATIC, block=Block(mixer=QuadraticAttention(isotropic))), 0)
    places = {id(p) for name, p in model.named_parameters() if ".scores." in name}
    assert len(places) == 2 * QUADRATIC.size.depth
    decayed = [group for group in AdamW().build(model)[0].param_groups if group["weight_decay"] > 0]
    muon, _ = Muon().build(model)
    for groups in (decayed, muon.param_groups):
        owned = {id(p) for group in groups for p in group["params"]}
        assert owned and not owned & places
