"""Every explanation method against float64 NumPy written from its definition, and its refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import oracle
from test_model import TINY, images_for, stirred
from vitrail.errors import DataError, UsageError, VitrailError
from vitrail.inspection import gradients, method
from vitrail.inspection.gradients import GradCAM, GradientAttention, IntegratedGradients, StemGradCAM, cell_sums
from vitrail.inspection.methods import METHODS, method_named
from vitrail.inspection.occlusion import PixelOcclusion, TokenDrop
from vitrail.inspection.orders import BASELINES
from vitrail.model.block import Block
from vitrail.model.heads import Features, LinearHead
from vitrail.model.mixers import QuadraticAttention, TokenMLP
from vitrail.model.pools import AttentionPool, ClassToken, GlobalAverage
from vitrail.model.positions import Relative1D
from vitrail.model.resnet import ResNetConfig
from vitrail.model.tokenizers import ConvolutionalStem, LinearPatches
from vitrail.model.trunks import PostActivation, PreActivation
from vitrail.model.vit import Size, ViTConfig, build

SMALL = ViTConfig(
    Size(8, 2, 2, 12), LinearPatches((4, 4), 1), head=LinearHead(3), image_size=(8, 12)
)  # 2 rows, 3 columns
POOLS = {
    "class token": SMALL,
    "registers": replace(SMALL, pool=ClassToken(registers=2)),
    "average": replace(SMALL, pool=GlobalAverage(registers=1)),
    "probe": replace(SMALL, pool=AttentionPool(registers=1)),
    "relative": replace(SMALL, position=Relative1D("every-layer")),
}
RESNET = ResNetConfig(PreActivation((1, 1, 1), width=32), LinearHead(3), (28, 28), channels=1)
HYBRID = replace(SMALL, tokenizer=ConvolutionalStem((8, 8), 1, PostActivation((1,), width=32)), image_size=(16, 24))
CLASSES = torch.tensor([2, 0])


@pytest.fixture(scope="module", params=POOLS)
def known(request):
    """A model, images, and their logits as a function of the oracle's world."""
    model = stirred(POOLS[request.param], scale=0.25)
    return model, images_for(model.config)


def logit(model, image, index, drop=None):
    """By the oracle; without the patch `drop` no one may attend to it, and the pool does not see it."""
    p, config = oracle.parameters(model), model.config
    prefix = config.pool.class_tokens + config.pool.registers
    with pytest.MonkeyPatch.context() as patched:
        if drop is not None:
            plain = oracle.softmax

            def blind(scores):
                scores = scores.copy()
                scores[:, prefix + drop] = -np.inf
                return plain(scores)

            patched.setattr(oracle, "softmax", blind)
        x, _ = oracle.encode(image.double().numpy(), p, config)
    x = x if drop is None else np.delete(x, prefix + drop, axis=0)
    return oracle.head(oracle.pool(x, p, config, config.pool.registers, "tanh"), p)[index]


def test_token_drop_is_what_the_equations_lose_without_a_patch(known):
    model, images = known
    found = TokenDrop().maps(model, images, CLASSES).values
    assert found.shape == (2, 2, 3)
    for image, index, values in zip(images, CLASSES, found, strict=True):
        whole = logit(model, image, index)
        lost = [whole - logit(model, image, index, drop) for drop in range(6)]
        np.testing.assert_allclose(values.ravel(), lost, atol=2e-5)
        assert np.ptp(lost) > 1e-3


def nudged(name, call, change):
    """The oracle's function, with something added to the answer of one call."""
    plain, calls = getattr(oracle, name), [0]

    def answer(*arguments, **named):
        calls[0] += 1
        found = plain(*arguments, **named)
        return found + change if calls[0] - 1 == call else found

    return answer


def slope(model, image, index, name, call, change, step=1e-5):
    """How the logit follows a change inside the equations: central differences."""
    ends = []
    for sign in (1, -1):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(oracle, name, nudged(name, call, sign * step * change))
            ends.append(oracle.forward(model, image[None])[0][0, index])
    return (ends[0] - ends[1]) / (2 * step)


def unit(shape, place):
    change = np.zeros(shape)
    change[place] = 1
    return change


@pytest.mark.parametrize("name", POOLS)
def test_gradient_attention_is_the_published_rule_by_finite_differences(name):
    model, index = stirred(replace(POOLS[name], image_size=(4, 12)), scale=0.25), 1
    image = images_for(model.config)[0]
    size, depth, heads = len(model.pool.prepend(model.tokenizer(image[None])).values[0]), 2, 2
    _, maps = oracle.forward(model, image[None])
    relevance = np.eye(size)
    for layer in range(depth):
        weighted = np.zeros((size, size))
        for head in range(heads):
            attention = maps[0, layer, head]
            gradient = [slope(model, image, index, "softmax", layer * heads + head, unit(attention.shape, place))
                        for place in np.ndindex(attention.shape)]  # fmt: skip
            weighted += np.maximum(0, attention * np.reshape(gradient, attention.shape)) / heads
        relevance = relevance + weighted @ relevance
    prefix = size - 3
    if name == "probe":  # cross attention: the probe's own weighted attention asks the relevance
        asked = oracle.probe_attention(oracle.encode(image.double().numpy(), oracle.parameters(model), model.config)[0],
                                       oracle.parameters(model), model.config)  # fmt: skip
        gradient = [[slope(model, image, index, "softmax", depth * heads + head, unit((1, 3), (0, place)))
                     for place in range(3)] for head in range(heads)]  # fmt: skip
        expected = np.maximum(0, asked[:, prefix:] * gradient).mean(axis=0) @ relevance[prefix:]
    elif name == "average":
        expected = (relevance - np.eye(size))[prefix:].mean(axis=0)
    else:
        expected = relevance[0]
    found = GradientAttention().maps(model, image[None], torch.tensor([index])).values[0]
    np.testing.assert_allclose(found.ravel(), expected[prefix:], rtol=2e-3, atol=1e-6)
    assert np.ptp(found) > 1e-5


def test_grad_cam_is_the_mean_gradient_of_every_channel_by_finite_differences(known):
    model, images = known
    found = GradCAM().maps(model, images[:1], CLASSES[:1]).values[0]
    prefix = model.config.pool.class_tokens + model.config.pool.registers
    p, config = oracle.parameters(model), model.config
    seen = []
    with pytest.MonkeyPatch.context() as patched:
        plain = oracle.layer_norm
        patched.setattr(oracle, "layer_norm", lambda *a, **named: seen.append(plain(*a, **named)) or seen[-1])
        oracle.encode(images[0].double().numpy(), p, config)
    normed = seen[2]  # the first norm of the second block
    expected = np.zeros(6)
    for channel in range(8):
        change = np.zeros(normed.shape)
        change[prefix:, channel] = 1 / 6
        weight = slope(model, images[0], CLASSES[0], "layer_norm", 2, change)
        expected += weight * normed[prefix:, channel]
    np.testing.assert_allclose(found.ravel(), np.maximum(0, expected), rtol=1e-3, atol=1e-6)


def test_integrated_gradients_share_out_the_difference_to_the_mean_colour(known):
    model, images = known
    found = IntegratedGradients().maps(model, images, CLASSES)
    for image, index, values, gap in zip(images, CLASSES, found.values, found.gap, strict=True):
        whole = logit(model, image, index) - logit(model, torch.zeros_like(image), index)
        assert values.sum() == pytest.approx(whole, rel=0.011) and gap < 0.01
    coarse = IntegratedGradients(steps=1, most=1).maps(model, images, CLASSES)
    for index in range(2):
        missed = abs(coarse.values[index].sum() - found.values[index].sum()) / abs(found.values[index].sum())
        assert coarse.gap[index] == pytest.approx(missed, rel=0.1, abs=0.02) and coarse.gap[index] > 0.02


def test_integrated_gradients_follow_each_patch_along_the_way():
    model = stirred(POOLS["average"], scale=0.25)
    image, index = images_for(model.config)[0], 1
    expected, nodes, step = np.zeros((2, 3)), 100, 1e-4
    for row, col in np.ndindex(2, 3):
        patch = torch.zeros_like(image)
        part = (slice(None), slice(4 * row, 4 * row + 4), slice(4 * col, 4 * col + 4))
        patch[part] = image[part]
        way = [(node + 0.5) / nodes for node in range(nodes)]
        up, down = (oracle.forward(model, torch.stack([(share * image.double() + sign * step * patch) for share in way]))[0]
                    for sign in (1, -1))  # fmt: skip
        expected[row, col] = ((up - down)[:, index] / (2 * step)).mean()
    found = IntegratedGradients(steps=128).maps(model, image[None], torch.tensor([index])).values[0]
    np.testing.assert_allclose(found, expected, atol=5e-3 * np.abs(expected).max())


def test_pixel_occlusion_paints_one_patch_in_the_mean_colour(known):
    model, images = known
    found = PixelOcclusion().maps(model, images, CLASSES).values
    for image, index, values in zip(images, CLASSES, found, strict=True):
        for row, col in np.ndindex(2, 3):
            painted = image.clone()
            painted[:, 4 * row : 4 * row + 4, 4 * col : 4 * col + 4] = 0
            lost = logit(model, image, index) - logit(model, painted, index)
            assert values[row, col] == pytest.approx(lost, abs=2e-5)


def test_grad_cam_of_a_resnet_reads_the_last_map_that_has_places():
    model = stirred(RESNET, scale=0.1)
    images = images_for(RESNET)
    found = GradCAM().maps(model, images, CLASSES).values
    assert found.shape == (2, 4, 4)  # of 7x7, 4x4 and 2x2
    activations = model.trunk(images)[1].detach()
    activations.requires_grad_()
    pooled = model.trunk.last(model.trunk.stages[2](activations)).mean(dim=(2, 3))
    gradient = torch.autograd.grad(model.head(pooled)[[0, 1], CLASSES].sum(), activations)[0]
    cam = (gradient.mean(dim=(2, 3), keepdim=True) * activations).sum(dim=1).clamp(min=0).detach()
    np.testing.assert_allclose(found, cam, rtol=1e-3, atol=1e-5 * float(cam.max()))
    larger = images_for(replace(RESNET, image_size=(64, 64)))
    weight = model.head.linear.weight[CLASSES]  # of the last map it is the plain class activation map
    plain = torch.einsum("bd,bdrk->brk", weight, model.trunk(larger)[-1]).clamp(min=0) / 16
    np.testing.assert_allclose(GradCAM().maps(model, larger, CLASSES).values, plain.detach(), rtol=1e-4, atol=1e-6)


def test_grad_cam_of_a_hybrid_reads_the_trunk_and_adds_up_to_patches():
    config = replace(HYBRID, tokenizer=ConvolutionalStem((8, 8), 1, PostActivation((1,), width=32)))
    model, images = stirred(config, scale=0.1), images_for(config)
    found = StemGradCAM().maps(model, images, CLASSES).values
    assert found.shape == (2, 2, 3)
    activations = model.tokenizer.trunk(images)[-1].detach().requires_grad_()  # 4x6 places, four a patch
    tokens = model.tokenizer.patches(activations)
    logits = model.head(model.pool(model.encode(model.position.add(model.pool.prepend(tokens)))))
    gradient = torch.autograd.grad(logits[[0, 1], CLASSES].sum(), activations)[0]
    cam = (gradient.mean(dim=(2, 3), keepdim=True) * activations).sum(dim=1).clamp(min=0)
    np.testing.assert_allclose(found, cam.unfold(1, 2, 2).unfold(2, 2, 2).sum(dim=(3, 4)).detach(), rtol=1e-4)


@pytest.mark.parametrize("name", [*METHODS, *BASELINES])
def test_every_method_keeps_the_contract(name, monkeypatch):
    """Finite maps on the grid, the same whatever is asked at a time; a class of its own exactly where it says so."""
    config = HYBRID if name == "grad-cam-stem" else replace(SMALL, image_size=(8, 20))
    model, images = stirred(config, scale=0.25), images_for(config, count=3)
    method_ = (METHODS | BASELINES)[name]()
    first, second = torch.zeros(3, dtype=torch.int64), torch.full((3,), 2)
    found = method_.maps(model, images, first).values
    assert found.shape == (3, *config.grid) and np.isfinite(found).all() and found.dtype == np.float64
    if not method_.signed and name != "centre":
        assert (found >= 0).all()
    other = method_.maps(model, images, second).values
    monkeypatch.setattr(method, "_VALUES", 1)
    np.testing.assert_allclose(method_.maps(model, images, first).values, found, rtol=1e-4, atol=1e-6)
    assert method_.class_specific == (not np.allclose(other, found, rtol=1e-4, atol=1e-7))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert method_.definition and method_.tells
    assert name in BASELINES or method_.caveats


REFUSED = {
    "no attention: ResNet": (RESNET, {"attention", "rollout", "gradient-attention"}, "VT041"),
    "no attention: Mixer": (replace(SMALL, block=Block(TokenMLP(4)), pool=GlobalAverage()),
                            {"attention", "rollout", "gradient-attention"}, "VT041"),
    "no tokens to drop": (RESNET, {"token-drop"}, "VT142"),
    "a Mixer knows its tokens by place": (replace(SMALL, block=Block(TokenMLP(4)), pool=GlobalAverage()), {"token-drop"},
                                          "VT142"),
    "no head": (replace(SMALL, head=Features()),
                {"gradient-attention", "integrated-gradients", "grad-cam", "token-drop", "pixel-occlusion"}, "VT045"),
    "no stem": (SMALL, {"grad-cam-stem"}, "VT142"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_method_that_cannot_run_says_why_and_no_other_takes_its_place(case):
    config, names, code = REFUSED[case]
    model = config.build().eval()
    for name in names:
        with pytest.raises(UsageError) as refused:
            method_named(name).maps(model, images_for(config), CLASSES)
        assert refused.value.code == code and len(refused.value.what) > 20


def test_attention_that_hangs_on_places_alone_has_no_gradient():
    config = replace(SMALL, block=Block(QuadraticAttention()), pool=GlobalAverage())
    with pytest.raises(UsageError, match="cannot be followed by a gradient"):
        GradientAttention().maps(stirred(config), images_for(config), CLASSES)


def test_damage_and_wrong_shapes_are_named():
    model = build(SMALL, 0).eval()
    with torch.no_grad():
        model.head.linear.weight.fill_(float("nan"))
    for name in ("token-drop", "integrated-gradients", "gradient-attention"):
        with pytest.raises(VitrailError, match="not a number"):
            method_named(name).maps(model, images_for(SMALL), CLASSES)
    with pytest.raises(DataError, match="all of one size"):
        TokenDrop().maps(build(SMALL, 0), torch.zeros(1, 8, 12), CLASSES[:1])
    with pytest.raises(UsageError, match="did you mean rollout") as unknown:
        method_named("rolout")
    assert unknown.value.code == "VT141"


def test_a_probe_is_no_longer_recorded_after_an_error(monkeypatch):
    model = stirred(POOLS["probe"])
    monkeypatch.setattr(gradients, "check_whole", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        GradientAttention().maps(model, images_for(model.config), CLASSES)
    assert not any(getattr(module, "request", None) for module in model.modules())


def test_pixels_are_added_up_where_the_grid_does_not_divide_the_image():
    pixels = torch.rand(2, 7, 5, dtype=torch.float64)
    found = cell_sums(pixels, (3, 2)).numpy()
    expected = np.zeros((2, 3, 2))
    for row, col in np.ndindex(7, 5):
        expected[:, int((row + 0.5) * 3 / 7), int((col + 0.5) * 2 / 5)] += pixels[:, row, col].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert TINY.grid == (4, 4)
