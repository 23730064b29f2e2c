"""Attention and rollout against float64 NumPy written from the equations, on every pool and geometry."""

import weakref
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

import oracle
from test_model import TINY, images_for, stirred
from vitrail.errors import UsageError
from vitrail.inspection.attention import Gaze, attention
from vitrail.inspection.rollout import Fold, rollout, rollout_maps
from vitrail.model import mixers
from vitrail.model.block import Block
from vitrail.model.mixers import AttentionMap, Mixer
from vitrail.model.pools import AttentionPool, ClassToken, GlobalAverage
from vitrail.model.positions import Relative1D
from vitrail.model.tokenizers import LinearPatches, Tokens
from vitrail.model.work import Work

FLAT = replace(TINY, tokenizer=LinearPatches((4, 8)), image_size=(12, 40))  # 3 rows, 5 columns
MODELS = {
    "class token": TINY,
    "not square": FLAT,
    "registers": replace(FLAT, pool=ClassToken(registers=3)),
    "average": replace(FLAT, pool=GlobalAverage()),
    "average with registers": replace(FLAT, pool=GlobalAverage(registers=2)),
    "attention pool": replace(FLAT, pool=AttentionPool()),
    "attention pool with registers": replace(FLAT, pool=AttentionPool(registers=2)),
    "relative": replace(FLAT, position=Relative1D("every-layer"), pool=ClassToken(registers=1)),
    "relative average": replace(FLAT, position=Relative1D("every-layer"), pool=GlobalAverage()),
}
PATCH = (1, 3)


@pytest.fixture(scope="module", params=MODELS)
def known(request):
    """Model, images, and what the equations give for every image: maps (layers heads tokens tokens), the pool's weights."""
    config = MODELS[request.param]
    model, images = stirred(config, scale=0.25), images_for(config)
    p, answers = oracle.parameters(model), []
    prefix = config.pool.class_tokens + config.pool.registers
    for image in images.double().numpy():
        x, maps = oracle.encode(image, p, config)
        reads = np.zeros(len(x))
        if "pool.probe" in p:
            reads = oracle.probe_attention(x, p, config).mean(axis=0)
        elif config.pool.class_tokens:
            reads[0] = 1
        else:
            reads[prefix:] = 1 / (len(x) - prefix)
        answers.append((maps, reads))
    return model, images, prefix, answers


def followed(maps, row):
    """Abnar & Zuidema: from the last layer to the first, one row at a time (the module multiplies the other way round)."""
    for layer in reversed(range(len(maps))):
        mixed = 0.5 * maps[layer].mean(axis=0) + 0.5 * np.eye(maps.shape[-1])
        row = row @ (mixed / mixed.sum(axis=1, keepdims=True))
    return row


def on_grid(row, prefix, grid):
    return (row[prefix:] / row[prefix:].sum()).reshape(grid)


def one(place, count):
    return np.eye(count)[place]


def queries_of(model, prefix, count, reads):
    """Every query that this model answers, and how it weighs the tokens after the last layer."""
    mean = np.r_[np.zeros(prefix), np.full(count - prefix, 1 / (count - prefix))]
    found = {None: reads, "mean": mean, PATCH: one(prefix + PATCH[0] * model.config.grid[1] + PATCH[1], count)}
    if model.pool.reads == "class":
        found["class"] = one(0, count)
    if model.pool.reads == "probe":
        found["probe"] = reads
    return found


def test_rollout_equals_the_equations(known):
    model, images, prefix, answers = known
    for number, (maps, reads) in enumerate(answers):
        for query, start in queries_of(model, prefix, maps.shape[-1], reads).items():
            gaze, expected = rollout(model, images, query), followed(maps, start)
            np.testing.assert_allclose(gaze.weights[number], expected, rtol=0, atol=1e-5)
            np.testing.assert_allclose(gaze.weights[number].sum(), 1, rtol=0, atol=1e-5)
            assert gaze.tokens.prefix == prefix
            assert gaze.prefix_share[number] == pytest.approx(expected[:prefix].sum(), abs=1e-5)
            shown = gaze.maps[number]
            assert shown.dtype == np.float32 and shown.shape == model.config.grid
            np.testing.assert_allclose(shown, on_grid(expected, prefix, model.config.grid), rtol=0, atol=1e-5)


def test_attention_of_a_layer_equals_the_equations(known):
    model, images, prefix, answers = known
    for number, (maps, reads) in enumerate(answers):
        rows = queries_of(model, prefix, maps.shape[-1], reads)
        rows[None] = rows.get("class", rows["mean"])
        rows.pop("probe", None)
        for query, start in rows.items():
            for layer, heads in ((0, None), (-1, [2]), (1, [3, 0])):
                gaze = attention(model, images, layer, heads, query)
                chosen = maps[layer] if heads is None else maps[layer][heads]
                expected = start @ chosen.mean(axis=0)
                np.testing.assert_allclose(gaze.weights[number], expected, rtol=0, atol=1e-5)
                shown = on_grid(expected, prefix, model.config.grid)  # divided by a part of 1: the error grows
                np.testing.assert_allclose(gaze.maps[number], shown, rtol=0, atol=2e-5)


def test_pools_weigh_the_tokens_as_they_read_them(known):
    """For the mean and the class token the weights reproduce the pooled vector; the probe's equal the equations."""
    model, images, _, answers = known
    with torch.no_grad():
        tokens = model.encode(model.embed(images))
        weights = model.pool.weights(tokens)
        np.testing.assert_allclose(weights, np.stack([reads for _, reads in answers]), rtol=0, atol=1e-6)
        if model.pool.reads != "probe":
            pooled = torch.einsum("bt,btd->bd", weights, model.pool.norm(tokens.values))
            torch.testing.assert_close(pooled, model.pool(tokens), rtol=1e-5, atol=1e-5)


def test_merged_tokens_count_as_often_as_they_stand_for():
    model = stirred(MODELS["average with registers"])
    with torch.no_grad():
        tokens = model.encode(model.embed(images_for(FLAT)))
        tokens = replace(tokens, sizes=torch.rand(2, 17) + 0.5)
        weights = model.pool.weights(tokens)
        shares = tokens.sizes[:, 2:] / tokens.sizes[:, 2:].sum(1, keepdim=True)
        torch.testing.assert_close(weights[:, 2:], shares)
        assert not weights[:, :2].any()
        pooled = torch.einsum("bt,btd->bd", weights, model.pool.norm(tokens.values))
        torch.testing.assert_close(pooled, model.pool(tokens))


def test_rollout_of_other_sizes_and_many_images(monkeypatch):
    """Maps of a batch are those of its images one by one, in any number at a time, on any grid."""
    model = stirred(MODELS["registers"])
    images = torch.randn(5, 3, 20, 16)
    maps = rollout_maps(model, images)
    assert maps.shape == (5, 5, 2) and maps.dtype == np.float32
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), 1, atol=1e-6)
    np.testing.assert_allclose(maps, np.concatenate([rollout(model, image[None]).maps for image in images]), atol=1e-6)
    batches = []
    monkeypatch.setattr("vitrail.inspection.rollout._MAP_VALUES", 2 * 4 * 10**2)
    model.tokenizer.register_forward_hook(lambda module, given, found: batches.append(len(given[0])))
    np.testing.assert_allclose(rollout_maps(model, images), maps, atol=1e-6)
    assert batches == [2, 2, 1]


def test_dropped_patches_have_nothing_and_the_others_keep_their_places():
    values = torch.tensor([[0.5, 0.1, 0.4], [0.2, 0.6, 0.2]])
    kept = torch.tensor([[5, 0], [1, 2]])
    gaze = Gaze(values, Tokens(torch.zeros(2, 3, 1), (2, 3), prefix=1, kept=kept))
    expected = [[[0.8, 0, 0], [0, 0, 0.2]], [[0, 0.75, 0.25], [0, 0, 0]]]
    np.testing.assert_allclose(gaze.maps, expected, atol=1e-7)
    np.testing.assert_allclose(gaze.prefix_share, [0.5, 0.2], atol=1e-7)


def test_weight_on_the_prefix_alone_leaves_an_empty_map():
    gaze = Gaze(torch.tensor([[1.0, 0, 0]]), Tokens(torch.zeros(1, 3, 1), (1, 2), prefix=1))
    assert gaze.prefix_share == 1 and not gaze.maps.any()


@pytest.fixture
def computed(monkeypatch):
    """Shape of every attention matrix that is computed, and how many others were still alive then."""
    shapes, alive, matrices = [], [], []
    whole = mixers._weights

    def spied(*arguments):
        alive.append(sum(matrix() is not None for matrix in matrices))
        weights = whole(*arguments)
        shapes.append(tuple(weights.shape))
        matrices.append(weakref.ref(weights))
        return weights

    monkeypatch.setattr(mixers, "_weights", spied)
    return shapes, alive


def test_only_what_was_asked_is_computed(computed):
    """One row of one head of one layer is one row; layers above do not run, layers below record nothing."""
    shapes, _ = computed
    model, images = stirred(MODELS["registers"]), images_for(FLAT)
    ran = []
    for layer, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    for arguments, shape, layers in (
        ((0, [1]), (2, 1, 1, 19), [0]),
        ((1, None, (2, 4)), (2, 4, 1, 19), [0, 1]),
        ((-2, [0, 3], "mean"), (2, 2, 15, 19), [0, 1]),
        ((-1,), (2, 4, 1, 19), [0, 1, 2]),
    ):
        ran.clear(), shapes.clear()
        attention(model, images, *arguments)
        assert shapes == [shape] and ran == layers


def test_rollout_keeps_one_layer_at_a_time(computed):
    shapes, alive = computed
    rollout(stirred(TINY), images_for(TINY))
    assert shapes == [(2, 4, 17, 17)] * 3 and alive == [0, 0, 0]


def test_looking_changes_no_answer_and_leaves_nothing_behind():
    model, images = stirred(TINY), images_for(TINY)
    with torch.no_grad():
        before = model(images)
        for request in ({}, {"layers": [1]}, {"heads": [2], "queries": [0]}):
            with model.capture("attention", **request):
                assert torch.equal(model(images), before)
        rollout(model, images), attention(model, images)
    assert not any(getattr(module, "request", None) for module in model.modules())


def test_all_weights_have_gradients_where_gradients_are_kept():
    """Then they mix the values themselves: a change of one weight changes the logits as its gradient says."""
    model, images = stirred(TINY), images_for(TINY)
    with model.capture("attention", layers=[1]) as tape:
        logits = model(images)
    gradient = torch.autograd.grad(logits[:, 3].sum(), tape[0].weights)[0]
    assert gradient.shape == (2, 4, 17, 17) and gradient.abs().max() > 1e-3
    with torch.no_grad():
        torch.testing.assert_close(model(images), logits.detach(), rtol=1e-5, atol=1e-5)


@dataclass(frozen=True)
class Averaging(Mixer):
    """A mixer without attention."""

    def build(self, context):
        return Average()

    def work(self, context):
        return Work()


class Average(nn.Module):
    def forward(self, tokens, position=None, leading=None):
        return tokens.values.mean(dim=1, keepdim=True).expand_as(tokens.values)[:, :leading]


def test_a_model_without_attention_is_refused_with_the_reason():
    model, images = stirred(replace(TINY, block=Block(mixer=Averaging()))), images_for(TINY)
    for look in (rollout, rollout_maps, attention):
        with pytest.raises(UsageError, match="they mix their tokens by Average") as caught:
            look(model, images)
        assert caught.value.code == "VT041" and caught.value.expected and caught.value.fix


def test_rollout_refuses_models_with_attention_in_some_layers_only():
    model, images = stirred(TINY), images_for(TINY)
    model.blocks[1].mixer = Average()
    with pytest.raises(UsageError, match="only 2 of 3 layers") as caught:
        rollout(model, images)
    assert caught.value.code == "VT041" and "single layer" in caught.value.fix
    assert attention(model, images, 2).maps.shape == (2, 4, 4)
    with pytest.raises(UsageError, match="Average"):
        attention(model, images, 1)


def test_attention_within_windows_is_refused():
    """Its places on the grid cannot be told from the maps."""
    entry = AttentionMap(0, torch.full((2, 1, 3, 5), 0.2), None, None, Tokens(torch.zeros(2, 5, 4), (1, 5)))
    with pytest.raises(UsageError, match="from all tokens to all tokens"):
        Fold().append(entry)
    fold = Fold()
    fold.append(replace(entry, weights=torch.full((2, 1, 5, 5), 0.2)))
    with pytest.raises(UsageError, match="from all tokens to all tokens"):
        fold.append(replace(entry, weights=torch.full((2, 1, 4, 4), 0.25)))


class Windows(nn.Module):
    """The two halves of the sequence attend to themselves."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, tokens, position=None, leading=None):
        halves = tokens.values.reshape(2 * len(tokens.values), -1, tokens.values.shape[-1])
        return self.inner(Tokens(halves, (1, halves.shape[1]))).reshape(tokens.values.shape)[:, :leading]


@pytest.mark.parametrize("look", [rollout, attention])
def test_windows_in_a_model_are_refused(look):
    model = stirred(replace(TINY, pool=GlobalAverage()))
    for block in model.blocks:
        block.mixer = Windows(block.mixer)
    with pytest.raises(UsageError) as caught:
        look(model, images_for(TINY))
    assert caught.value.code in ("VT040", "VT041")
    assert not any(getattr(module, "request", None) for module in model.modules())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("look", [rollout, lambda model, images, query: attention(model, images, 0, None, query)])
def test_queries_that_are_not_there(name, look):
    model, images = stirred(MODELS[name]), images_for(MODELS[name])
    rows, cols = model.config.grid
    wrong = [(-1, 0), (0, -1), (rows, 0), (0, cols), (10**6, 10**6)]
    wrong += ["class"] if model.pool.reads != "class" else []
    wrong += ["probe"] if model.pool.reads != "probe" or look is not rollout else []
    for query in wrong:
        with pytest.raises(UsageError) as caught:
            look(model, images, query)
        assert caught.value.code == "VT042" and caught.value.what and caught.value.expected and caught.value.fix


def test_dropped_patches_cannot_be_asked(monkeypatch):
    model, images = stirred(TINY), images_for(TINY)
    embed, kept = model.embed, torch.arange(16).expand(2, -1)
    monkeypatch.setattr(model, "embed", lambda images: replace(embed(images), kept=kept))
    for look in (rollout, lambda model, images, query: attention(model, images, 0, None, query)):
        with pytest.raises(UsageError, match="drops patches"):
            look(model, images, (0, 0))
