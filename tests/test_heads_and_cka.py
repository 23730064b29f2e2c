"""Head ablation and linear CKA against float64 NumPy; memory stays flat in the number of images."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import inside
import oracle
from inside import ATTENDING, FLAT, HYBRID, MIXER, PLAIN, RESNET, WITHOUT_CLASSES, classes_for, several, stirred
from vitrail.errors import DataError, UsageError
from vitrail.inspection.cka import centred, cka
from vitrail.inspection.distance import attention_distance
from vitrail.inspection.heads import head_ablation
from vitrail.inspection.lens import logit_lens
from vitrail.inspection.norms import token_norms
from vitrail.model.ablation import without_heads
from vitrail.statistics import mean_interval, paired_interval


def silenced(p, layer, head, heads):
    """The same parameters, whose projection reads nothing from one head."""
    name = "pool.attention." if layer == "pool" else f"blocks.{layer}.mixer."
    weights = p[name + "project.weight"].copy()
    width = len(weights) // heads
    weights[head * width : (head + 1) * width] = 0
    return p | {name + "project.weight": weights}


def answers(config, p, images):
    return np.array([inside.answer(config, p, oracle.encode(image, p, config)[0]) for image in images])


@pytest.mark.parametrize("name", PLAIN)
def test_ablation_equals_a_projection_that_reads_nothing(name):
    config = PLAIN[name]
    model, batches = stirred(config, scale=0.25), several(config, 3, 2)
    labels, p = classes_for(batches), oracle.parameters(model)
    images, truth = torch.cat(batches).double().numpy(), torch.cat(labels).numpy()

    def scored(parameters):
        logits = answers(config, parameters, images)
        loss = [inside.cross_entropy(row, label) for row, label in zip(logits, truth, strict=True)]
        return np.array(loss), logits.argmax(1) == truth

    loss, right = scored(p)
    found = head_ablation(model, zip(batches, labels, strict=True))
    assert found.loss == pytest.approx(loss.mean(), rel=1e-4) and found.top1 == right.mean() and found.images == 5
    layers = [0, 1, *(["pool"] if name == "attention pool" else [])]
    assert [(effect.layer, effect.head) for effect in found.effects] == [
        (layer, head) for layer in layers for head in range(4)
    ]
    for effect in found.effects:
        after, still = scored(silenced(p, effect.layer, effect.head, 4))
        more = after - loss
        assert effect.loss == pytest.approx(more.mean(), rel=1e-3, abs=1e-4)
        interval = stats.t.interval(0.95, 4, more.mean(), stats.sem(more))
        np.testing.assert_allclose(effect.loss_interval, interval, rtol=2e-3, atol=2e-3)
        assert (effect.lost, effect.won) == ((right & ~still).sum(), (still & ~right).sum())
        assert effect.top1 == pytest.approx(still.mean() - right.mean())
    assert max(abs(effect.loss) for effect in found.effects) > 0.1


@pytest.mark.parametrize("config", [HYBRID, *(ATTENDING[name] for name in ("distilled", "quadratic", "two axes"))])
def test_heads_of_other_models_can_be_left_out(config):
    """All heads together: the mixer says its projection's bias alone, whatever it sees."""
    model, images = stirred(config), several(config, 2)[0]
    with torch.no_grad(), without_heads(model, {-1: range(4)}):
        tokens = model.embed(images)
        said = model.blocks[1].mixer(tokens, model.position)
    bias = said[0, 0]
    assert torch.equal(said, bias.expand_as(said))
    found = head_ablation(model, [(images, torch.tensor([1, 2]))])
    assert len(found.effects) == 8 and all(effect.loss for effect in found.effects)


def test_leaving_heads_out_ends_with_the_context_and_changes_no_weight():
    model, images = stirred(FLAT), several(FLAT, 2)[0]
    weights = {name: array.clone() for name, array in model.state_dict().items()}
    with torch.no_grad():
        before = model(images)
        with without_heads(model, {0: [1], -2: [3]}):
            changed = model(images)
        assert torch.equal(model(images), before) and not torch.allclose(changed, before)
        with without_heads(model, {0: [1, 3]}):
            torch.testing.assert_close(model(images), changed)
            with pytest.raises(UsageError, match="already"), without_heads(model, {0: [2]}):
                pass
            torch.testing.assert_close(model(images), changed)
        with pytest.raises(UsageError, match="has 4"), without_heads(model, {1: [2]}):
            model.capture(heads=[4])
        assert torch.equal(model(images), before)
    assert all(torch.equal(weights[name], array) for name, array in model.state_dict().items())


def test_heads_that_are_not_there():
    model = stirred(FLAT)
    for heads, code in (({0: [4]}, "VT040"), ({2: [0]}, "VT040"), ({0: [-5]}, "VT040"), ({"pool": [0]}, "VT041")):
        with pytest.raises(UsageError) as caught, without_heads(model, heads):
            pass
        assert caught.value.code == code and caught.value.fix
    assert all(block.mixer.gates is None for block in model.blocks)


@pytest.mark.parametrize("name", ["class token", "attention pool"])
def test_heads_in_another_order_change_nothing_else(name):
    config, order, batches = PLAIN[name], [2, 0, 3, 1], several(PLAIN[name], 4)
    labelled = list(zip(batches, classes_for(batches), strict=True))
    model, other = stirred(config), inside.reordered(stirred(config), order)
    for look in (
        lambda m: logit_lens(m, labelled).entropy,
        lambda m: token_norms(m, batches).patches,
        lambda m: cka(m, batches).values,
    ):
        np.testing.assert_allclose(look(model), look(other), rtol=1e-4, atol=1e-6)
    before, after = (head_ablation(each, labelled) for each in (model, other))
    losses = [np.array([effect.loss for effect in found.effects]).reshape(-1, 4) for found in (before, after)]
    np.testing.assert_allclose(losses[1], losses[0][:, order], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("config", "code"), [(MIXER, "VT041"), (RESNET, "VT041"), (WITHOUT_CLASSES, "VT133")])
def test_models_without_heads_or_answers_are_refused(config, code):
    with pytest.raises(UsageError) as caught:
        head_ablation(stirred(config), [(several(config, 1)[0], torch.zeros(1))])
    assert caught.value.code == code


def test_an_empty_set_has_no_effects():
    for nothing in ([], several(FLAT, 0)):
        with pytest.raises(DataError, match="no image"):
            head_ablation(stirred(FLAT), [(images, torch.zeros(0)) for images in nothing])


def test_intervals_of_pairs():
    values = np.array([0.3, -0.1, 0.8, 0.2])
    expected = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    np.testing.assert_allclose(mean_interval(values.sum(), (values**2).sum(), 4), expected)
    assert mean_interval(2.0, 4.0, 1) == (-np.inf, np.inf)
    weights, changes = (
        np.array([12.5, 3.5, 36]),
        np.array([-1, 1, 0]),
    )  # 12 lost, 3 won, 35 the same, half an image each
    mean = (weights * changes).sum() / 52
    half = stats.norm.ppf(0.975) * np.sqrt((weights * (changes - mean) ** 2).sum() / 52 / 52)
    np.testing.assert_allclose(paired_interval(12, 3, 50), (mean - half, mean + half))
    low, high = paired_interval(0, 0, 10)
    assert low < -0.1 and high > 0.1


def features(model, images):
    """One matrix a depth: every image's tokens in a row."""
    with torch.no_grad():
        tokens = model.embed(images)
        found = [tokens.values]
        for block in model.blocks:
            tokens = block(tokens, model.position)
            found.append(tokens.values)
    return [values.double().numpy().reshape(len(images), -1) for values in found]


def hsic(x, y, unbiased):
    """Song et al. 2012, equation 5, or Gretton et al. 2005, term by term."""
    k, m, n = x @ x.T, y @ y.T, len(x)
    if not unbiased:
        h = np.eye(n) - 1 / n
        return np.trace(k @ h @ m @ h) / (n - 1) ** 2
    for array in (k, m):
        np.fill_diagonal(array, 0)
    ones = np.ones(n)
    middle = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return (np.trace(k @ m) + middle - 2 * (ones @ k @ m @ ones) / (n - 2)) / (n * (n - 3))


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("two", [False, True])
def test_cka_equals_the_definition_over_batches(unbiased, two):
    """Sums of HSIC over batches of 6 and 5 images; a batch of 3 is too small and left out."""
    first, batches = stirred(FLAT, scale=0.2), several(FLAT, 6, 5, 3)
    other = replace(PLAIN["average"], image_size=(20, 24))
    second, theirs = (stirred(other, 4, 0.2), several(other, 6, 5, 3)) if two else (first, batches)
    pairs = [(features(first, a), features(second, b)) for a, b in zip(batches[:2], theirs[:2], strict=True)]

    def summed(left, right):
        return sum(hsic(pair[left[0]][left[1]], pair[right[0]][right[1]], unbiased) for pair in pairs)

    expected = [
        [summed((0, i), (1, j)) / np.sqrt(summed((0, i), (0, i)) * summed((1, j), (1, j))) for j in range(3)] for i in range(3)
    ]  # fmt: skip
    found = cka(first, batches, second if two else None, theirs if two else None, unbiased)
    np.testing.assert_allclose(found.values, expected, rtol=1e-6, atol=1e-9)
    assert found.images == 11 and found.rows == found.cols == ("embedding", "layer 0", "layer 1")
    if not two:
        np.testing.assert_allclose(np.diag(found.values), 1)


@pytest.mark.parametrize("unbiased", [True, False])
def test_cka_sees_no_rotation_no_scale_and_no_shift(unbiased):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 12, generator=generator, dtype=torch.float64)
    turned = 3 * x @ torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))[0] + 7
    one, two = (centred(values @ values.T, unbiased) for values in (x, turned))
    torch.testing.assert_close(9 * one, two, rtol=1e-6, atol=1e-6)


def test_the_unbiased_estimate_of_what_has_nothing_in_common_is_zero():
    """Over many draws; the biased one of 8 images in 40 dimensions is near 1."""
    generator = torch.Generator().manual_seed(1)
    values = {True: [], False: []}
    for _ in range(200):
        x, y = (torch.randn(8, 40, generator=generator, dtype=torch.float64) for _ in range(2))
        for unbiased, found in values.items():
            one, two = (centred(part @ part.T, unbiased) for part in (x, y))
            found.append(float((one * two).sum() / (one.norm() * two.norm())))
    assert abs(np.mean(values[True])) < 3 * np.std(values[True]) / np.sqrt(200)
    assert np.mean(values[False]) > 0.7


def test_what_stands_for_an_image():
    config = PLAIN["registers"]
    model, images = stirred(config), several(config, 6)[0]
    tokens = [values.reshape(6, 19, 32) for values in features(model, images)]
    for read, part in (("patches", lambda v: v[:, 4:].mean(1)), ("prefix", lambda v: v[:, :4].reshape(6, -1))):
        rows = [part(values) for values in tokens]
        expected = hsic(rows[1], rows[2], True) / np.sqrt(hsic(rows[1], rows[1], True) * hsic(rows[2], rows[2], True))
        assert cka(model, images, read=read).values[1, 2] == pytest.approx(expected, rel=1e-6)
    with pytest.raises(DataError, match="no class token"):
        cka(stirred(PLAIN["average"]), images, read="prefix")


def test_a_vit_beside_a_resnet_and_a_hybrid():
    images = several(HYBRID, 6)[0]
    found = cka(stirred(HYBRID), images, stirred(RESNET))
    assert found.values.shape == (3, 2) and found.cols == ("stage 0", "stage 1")
    assert (found.values <= 1).all()


def test_cka_of_different_images_is_refused():
    model = stirred(FLAT)
    for ours, theirs in ((several(FLAT, 6), several(FLAT, 5)), (several(FLAT, 6, 6), several(FLAT, 6))):
        with pytest.raises(DataError, match="different images") as caught:
            cka(model, ours, model, theirs)
        assert caught.value.code == "VT131"
    with pytest.raises(DataError, match="compares images"):
        cka(model, several(FLAT, 3, 3))


LOOKS = {
    "attention distance": attention_distance,
    "token norms": token_norms,
    "logit lens": lambda model, images: logit_lens(model, ((batch, torch.zeros(len(batch))) for batch in images)),
    "head ablation": lambda model, images: head_ablation(model, ((batch, torch.zeros(len(batch))) for batch in images)),
    "cka": cka,
}


@pytest.mark.parametrize("name", LOOKS)
def test_images_are_let_go(name):
    """Of ten batches at most two are alive at a time: the one looked at and the one that comes."""
    alive, most = [], []

    def stream():
        for batch in several(FLAT, *[4] * 10):
            batch = batch.clone()
            alive.append(weakref.ref(batch))
            most.append(sum(kept() is not None for kept in alive))
            yield batch

    LOOKS[name](stirred(FLAT), stream())
    assert len(most) == 10 and max(most) <= 2
