"""Mean attention distance: by loops over every pair of patches, and where it is known in closed form."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import inside
import oracle
from inside import ATTENDING, FLAT, HYBRID, MIXER, PLAIN, RESNET, even, several, stirred
from vitrail.errors import DataError, UsageError, VitrailError
from vitrail.inspection.attention import attention
from vitrail.inspection.distance import _Sums, attention_distance
from vitrail.inspection.rollout import rollout
from vitrail.model.block import Block
from vitrail.model.mixers import AttentionMap, QuadraticAttention
from vitrail.model.pools import ClassToken, GlobalAverage
from vitrail.model.tokenizers import LinearPatches, Tokens


def by_pairs(maps, prefix, grid, pitch):
    """(paper's form, renormalised, share) of one image, layer and head after another: a loop over queries and keys."""
    found = np.zeros((3, *maps.shape[:2]))
    places = [(row, col) for row in range(grid[0]) for col in range(grid[1])]
    for layer, head in np.ndindex(*maps.shape[:2]):
        for query, (row, col) in enumerate(places):
            moved = given = 0.0
            for key, (r, c) in enumerate(places):
                weight = maps[layer, head, prefix + query, prefix + key]
                moved += weight * np.sqrt((pitch[0] * (row - r)) ** 2 + (pitch[1] * (col - c)) ** 2)
                given += weight
            found[:, layer, head] += np.array([moved, moved / given, given]) / len(places)
    return found


@pytest.mark.parametrize("name", PLAIN)
def test_distances_equal_the_equations(name):
    config = PLAIN[name]
    model, batches = stirred(config, scale=0.25), several(config, 2, 1)
    p, prefix = oracle.parameters(model), config.pool.class_tokens + config.pool.registers
    maps = [oracle.encode(image, p, config)[1] for batch in batches for image in batch.double().numpy()]
    expected = np.mean([by_pairs(each, prefix, config.grid, (4, 8)) for each in maps], axis=0)
    found = attention_distance(model, batches)
    for part, values in zip((found.paper, found.renormalised, found.patch_share), expected, strict=True):
        np.testing.assert_allclose(part, values, rtol=2e-5, atol=1e-5)
    assert found.images == 3
    assert (found.renormalised >= found.paper - 1e-4).all()
    assert prefix == 0 or (found.renormalised > found.paper + 1e-3).all()


@pytest.mark.parametrize("name", sorted(set(ATTENDING) - set(PLAIN)))
def test_distances_of_every_model_that_attends(name):
    """The maps are those that it records; how far patches are apart is the pitch of its tokens, 8 x 4 in the hybrid."""
    config = ATTENDING[name]
    model, batches = stirred(config, scale=0.25), several(config, 2)
    with torch.no_grad(), model.capture("attention") as tape:
        model(batches[0])
    maps = np.stack([entry.weights.double().numpy() for entry in tape], axis=1)
    pitch, prefix = ((8, 4) if config is HYBRID else (4, 8)), tape[0].tokens.prefix
    expected = np.mean([by_pairs(each, prefix, config.grid, pitch) for each in maps], axis=0)
    found = attention_distance(model, batches)
    for part, values in zip((found.paper, found.renormalised, found.patch_share), expected, strict=True):
        np.testing.assert_allclose(part, values, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(("registers", "pool"), [(0, GlobalAverage), (0, ClassToken), (4, ClassToken)])
def test_even_attention_has_the_known_distance(registers, pool):
    """On a line of n patches p pixels apart, all n^2 pairs are on average p (n^2 - 1) / 3n apart."""
    config = replace(FLAT, tokenizer=LinearPatches((8, 6)), image_size=(8, 42), pool=pool(registers=registers))
    found = attention_distance(even(stirred(config)), several(config, 2))
    known, prefix = 6 * (7**2 - 1) / (3 * 7), registers + config.pool.class_tokens
    np.testing.assert_allclose(found.renormalised, known, rtol=1e-6)
    np.testing.assert_allclose(found.paper, known * 7 / (7 + prefix), rtol=1e-6)
    np.testing.assert_allclose(found.patch_share, 7 / (7 + prefix), rtol=1e-6)
    assert found.even == pytest.approx(known, rel=1e-6)


def test_attention_to_oneself_has_no_distance():
    """Gaussians around the patch itself, far narrower than a patch."""
    config = replace(ATTENDING["quadratic"], block=Block(QuadraticAttention()))
    model = stirred(config)
    with torch.no_grad():
        for block in model.blocks:
            block.mixer.scores.spreads.fill_(100.0)
            block.mixer.scores.centres.zero_()
    found = attention_distance(model, several(config, 2))
    assert not found.paper.any() and not found.renormalised.any() and (found.patch_share == 1).all()
    gaze = rollout(model, several(config, 1)[0], (1, 2))
    assert gaze.maps[0, 1, 2] == 1  # the product of identities is one


def test_dropped_patches_keep_their_places():
    """Two images that kept other patches: the distances are those of the places that are left."""
    kept = torch.tensor([[0, 4], [2, 12]])  # of 3 x 5: (0,0) and (0,4); (0,2) and (2,2)
    entry = AttentionMap(0, torch.full((2, 1, 2, 2), 0.5), None, None, Tokens(torch.zeros(2, 2, 8), (3, 5), kept=kept))
    sums = _Sums(1, 1, (10, 7))
    sums.append(entry)
    np.testing.assert_allclose(sums.totals[0, 0, 0], 0.5 * 4 * 7 + 0.5 * 2 * 10)


def test_heads_in_another_order_have_the_same_distances():
    config, order = FLAT, [2, 0, 3, 1]
    batches = several(config, 3)
    before = attention_distance(stirred(config), batches)
    after = attention_distance(inside.reordered(stirred(config), order), batches)
    np.testing.assert_allclose(after.paper, before.paper[:, order], rtol=1e-5)
    assert not np.allclose(after.paper, before.paper, rtol=1e-3)


@pytest.mark.parametrize("name", sorted(ATTENDING))
def test_every_model_that_attends_can_be_looked_into(name):
    """Rollout sums to one, and so does what a layer, one of its heads and one of its patches looks at."""
    config = ATTENDING[name]
    model, images = stirred(config, scale=0.25), several(config, 2)[0]
    gazes = [rollout(model, images), attention(model, images, 1, [2]), attention(model, images, 0, None, (2, 3))]
    for gaze in gazes:
        np.testing.assert_allclose(gaze.weights.sum(dim=1), 1, atol=1e-5)
        assert gaze.maps.shape == (2, *config.grid)


def test_the_probe_of_attention_pooling_can_be_asked_head_by_head():
    config = PLAIN["attention pool"]
    model, images = stirred(config, scale=0.25), several(config, 2)[0]
    p = oracle.parameters(model)
    for number, image in enumerate(images.double().numpy()):
        expected = oracle.probe_attention(oracle.encode(image, p, config)[0], p, config)[:, 2:]
        for heads in (None, [1], [3, 0]):
            gaze = attention(model, images, "pool", heads)
            chosen = expected if heads is None else expected[heads]
            np.testing.assert_allclose(gaze.weights[number], chosen.mean(axis=0), atol=1e-5)
            assert gaze.maps.shape == (2, 3, 5) and not gaze.prefix_share.any()


def test_what_cannot_be_asked_of_a_pool():
    images = several(FLAT, 1)[0]
    for model, query in ((stirred(FLAT), None), (stirred(PLAIN["attention pool"]), (0, 0))):
        with pytest.raises(UsageError) as caught:
            attention(model, images, "pool", None, query)
        assert caught.value.code == "VT042" and caught.value.fix
    for layers in (["pools"], ["pool", "head"]):
        with pytest.raises(UsageError, match="numbers of layers, or pool"):
            stirred(FLAT).capture(layers=layers)
    with pytest.raises(UsageError, match="by TokenPool"):
        stirred(FLAT).capture(layers=["pool"])


@pytest.mark.parametrize("config", [MIXER, RESNET], ids=["Mixer", "ResNet"])
def test_models_without_attention_are_refused_with_the_reason(config):
    with pytest.raises(UsageError, match=r"convolutions mix|TokenPerceptron") as caught:
        attention_distance(stirred(config), several(config, 1))
    assert caught.value.code == "VT041" and caught.value.fix


def test_bad_input_is_told():
    model = stirred(FLAT)
    for nothing in ([], torch.zeros(0, 3, 12, 40)):
        with pytest.raises(DataError, match="no image") as caught:
            attention_distance(model, nothing)
        assert caught.value.code == "VT131"
    with torch.no_grad():
        model.blocks[0].mixer.query_key_value.weight.fill_(float("nan"))
    with pytest.raises(VitrailError, match="not finite") as caught:
        attention_distance(model, several(FLAT, 1))
    assert caught.value.code == "VT132"
