"""Rotary positions, relative bias and the other ways of the families, against their definitions in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import oracle
from test_model import TINY, images_for, stirred
from vitrail.errors import UsageError
from vitrail.model.block import MLP, SwiGLU
from vitrail.model.heads import TwoHeads
from vitrail.model.mixers import Attention
from vitrail.model.pools import ClassToken, DistilledToken, GlobalAverage, TokenAndAverage
from vitrail.model.positions import Learned1D, NoPosition, Normed, RelativeBias, Rotary2D
from vitrail.model.vit import build


def encoded(config, image_size=(32, 32)):
    """(model, parameters in float64, the tokens that leave the last block)."""
    model = stirred(config)
    image = torch.randn(1, 3, *image_size, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        tokens = model.encode(model.embed(image))
    return model, oracle.parameters(model), tokens, image


def turned(vector, row, col, grid, base):
    """A head's vector as head_dim / 2 complex numbers, each multiplied by a number of length 1."""
    half = len(vector) // 2
    speeds = 2 * np.pi * base ** (-np.arange(half // 2) / (half // 2))
    down, across = 2 * (row + 0.5) / grid[0] - 1, 2 * (col + 0.5) / grid[1] - 1
    turn = np.exp(1j * np.concatenate([down * speeds, across * speeds]))
    product = (vector[:half] + 1j * vector[half:]) * turn
    return np.concatenate([product.real, product.imag])


@pytest.mark.parametrize(("image_size", "grid"), [((32, 32), (4, 4)), ((48, 16), (6, 2))])
def test_rotation_is_a_complex_product(image_size, grid):
    config = replace(TINY, position=Rotary2D(base=50.0), pool=ClassToken(registers=2))
    model = build(config, 0)
    with torch.no_grad():
        tokens = model.embed(torch.zeros(2, 3, *image_size))
        queries, keys = torch.randn(2, 2, 4, grid[0] * grid[1] + 3, 8).unbind(0)
        found = model.position.rotate(queries, keys, tokens, 0)
    for before, after in zip((queries, keys), found, strict=True):
        torch.testing.assert_close(after[:, :, :3], before[:, :, :3], rtol=0, atol=0)
        for place in range(grid[0] * grid[1]):
            expected = turned(before[1, 2, 3 + place].double().numpy(), *divmod(place, grid[1]), grid, 50.0)
            np.testing.assert_allclose(after[1, 2, 3 + place], expected, atol=2e-6)


def test_kept_patches_turn_as_they_did():
    model = build(replace(TINY, position=Rotary2D()), 0)
    tokens = model.embed(torch.zeros(2, 3, 32, 32))
    queries = torch.randn(2, 4, 17, 8)
    whole, _ = model.position.rotate(queries, queries, tokens, 0)
    kept = torch.tensor([[3, 1], [0, 15]])
    rows = torch.cat([torch.zeros(2, 1, dtype=torch.long), kept + 1], 1)
    chosen = torch.stack([queries[i][:, rows[i]] for i in range(2)])
    part, _ = model.position.rotate(chosen, chosen, replace(tokens, values=tokens.values[:, :3], kept=kept), 0)
    torch.testing.assert_close(part, torch.stack([whole[i][:, rows[i]] for i in range(2)]))


@pytest.mark.parametrize("inject", ["stem", "every-layer", "shared"])
def test_relative_bias_is_looked_up_by_offset(inject):
    config = replace(TINY, position=RelativeBias(inject), image_size=(32, 24))
    _, p, tokens, image = encoded(config, (32, 24))
    x = oracle.patches_of(image[0].double().numpy(), (8, 8)) @ p["tokenizer.project.weight"]
    x = np.concatenate([p["pool.class_token"], x + p["tokenizer.project.bias"]])
    for layer in range(3):
        table = p[f"position.tables.{layer if inject == 'every-layer' else 0}"]

        def bias(queries, head, table=table):
            found = np.zeros((13, 13))
            for asks in range(13):
                for seen in range(13):
                    if 0 in (asks, seen):
                        row = 7 * 5 + (2 if asks == seen else 0 if asks == 0 else 1)
                    else:
                        (down, across), (other_down, other_across) = divmod(asks - 1, 3), divmod(seen - 1, 3)
                        row = (down - other_down + 3) * 5 + across - other_across + 2
                    found[asks, seen] = table[row, head]
            return found

        x, _ = oracle.block(x, p, f"blocks.{layer}.", 4, bias=bias if inject != "stem" or layer == 0 else None)
    np.testing.assert_allclose(tokens.values[0], x, rtol=2e-5, atol=2e-5)


def test_relative_bias_has_no_place_for_other_prefixes():
    for pool in (GlobalAverage(), ClassToken(registers=1)):
        with pytest.raises(UsageError, match="one class token"):
            build(replace(TINY, position=RelativeBias(), pool=pool), 0)


def test_norm_after_the_positions():
    model, p, _, image = encoded(replace(TINY, position=Normed(Learned1D(), 1e-3)))
    x = oracle.patches_of(image[0].double().numpy(), (8, 8)) @ p["tokenizer.project.weight"]
    x = np.concatenate([p["pool.class_token"], x + p["tokenizer.project.bias"]]) + p["position.inner.tables.0.rows"]
    expected = oracle.layer_norm(x, p["position.norm.weight"], p["position.norm.bias"], 1e-3)
    np.testing.assert_allclose(model.embed(image).values[0].detach(), expected, rtol=2e-5, atol=2e-5)


def test_gated_and_quick():
    values = torch.randn(5, 32)
    for mlp in (SwiGLU(), MLP("quick")):
        module = stirred(replace(TINY, position=NoPosition(), block=replace(TINY.block, mlp=mlp))).blocks[0].mlp
        p = oracle.parameters(module)
        hidden = values.double().numpy() @ p["expand.weight"] + p["expand.bias"]
        if mlp == SwiGLU():
            gate, content = np.split(hidden, 2, axis=1)
            hidden = gate / (1 + np.exp(-gate)) * content
        else:
            hidden = hidden / (1 + np.exp(-1.702 * hidden))
        np.testing.assert_allclose(
            module(values).detach(), hidden @ p["contract.weight"] + p["contract.bias"], rtol=2e-5, atol=2e-5
        )


def test_keys_without_bias():
    block = replace(TINY.block, mixer=Attention(key_bias=False))
    model, full = stirred(replace(TINY, block=block)), stirred(TINY)
    state = model.state_dict()
    for layer in range(3):
        name = f"blocks.{layer}.mixer."
        queries, values = state.pop(name + "query_value_bias").chunk(2)
        state[name + "query_key_value.bias"] = torch.cat([queries, torch.zeros(32), values])
    full.load_state_dict(state)
    images = images_for(TINY)
    with torch.no_grad():
        torch.testing.assert_close(model(images), full(images))
    assert not any("query_key_value.bias" in name for name, _ in model.named_parameters())


def test_pools_of_two_parts():
    for pool, prefix in ((DistilledToken(registers=1), 3), (TokenAndAverage(registers=1), 2)):
        head = TwoHeads(7) if pool == DistilledToken(1) else TINY.head
        model, p, tokens, image = encoded(replace(TINY, pool=pool, head=head))
        assert tokens.prefix == prefix
        normed = oracle.layer_norm(tokens.values[0].double().numpy(), p["pool.norm.weight"], p["pool.norm.bias"])
        second = normed[1] if prefix == 3 else normed[prefix:].mean(axis=0)
        with torch.no_grad():
            np.testing.assert_allclose(model.represent(image)[0], np.concatenate([normed[0], second]), atol=2e-5)
            if prefix == 3:
                layers = [normed[0] @ p["head.linear.weight"] + p["head.linear.bias"]]
                layers += [second @ p["head.distilled.weight"] + p["head.distilled.bias"]]
                for part, expected in zip(model.head.parts(model.represent(image)), layers, strict=True):
                    np.testing.assert_allclose(part[0], expected, atol=5e-5)
                np.testing.assert_allclose(model(image)[0], sum(layers) / 2, atol=5e-5)
        torch.testing.assert_close(model.pool.weights(tokens).sum(dim=1), torch.ones(1))
    with pytest.raises(UsageError, match="two heads"):
        TwoHeads(7).build(5)


def test_the_mean_of_patches_alone_normed_before_or_after():
    for first in (True, False):
        model, p, tokens, image = encoded(replace(TINY, pool=GlobalAverage(1, class_tokens=1, norm_first=first)))
        x = tokens.values[0, 2:].double().numpy()
        norm = p["pool.norm.weight"], p["pool.norm.bias"]
        expected = oracle.layer_norm(x, *norm).mean(axis=0) if first else oracle.layer_norm(x.mean(axis=0), *norm)
        with torch.no_grad():
            np.testing.assert_allclose(model.represent(image)[0], expected, rtol=2e-5, atol=2e-5)
            features = model.features(image)[0].values
        assert isinstance(model.pool.norm, nn.LayerNorm) and torch.equal(features, tokens.values) != first
