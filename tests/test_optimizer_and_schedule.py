"""Learning rates equal the official schedule; updates equal their textbook formulas in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from vitrail.errors import UsageError
from vitrail.model.block import Block
from vitrail.model.heads import TanhHead
from vitrail.model.pools import POOLS, AttentionPool, ClassToken
from vitrail.model.positions import POSITIONS, Learned1D, Relative1D
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import Size, ViT, ViTConfig
from vitrail.training.optimizer import OPTIMIZERS, SGD, AdamW, Muon, set_factor
from vitrail.training.schedule import SCHEDULES, Cosine, Linear


def config(**changes):
    return ViTConfig(
        **{"size": Size(16, 2, 2, 24), "tokenizer": LinearPatches((4, 4), 1), "image_size": (8, 8)} | changes
    )


@pytest.mark.parametrize(
    ("name", "base", "schedule"),
    [
        ("T100_base0.03_cosine_warmup10", 0.03, Cosine(warmup=10)),
        ("T100_base0.03_cosine_warmup10", 0.03, Cosine(warmup=0.1)),
        ("T100_base0.03_linear_warmup10", 0.03, Linear(warmup=10, end=1e-5 / 0.03)),
        ("T50_base0.003_linear_warmup0", 0.003, Linear(warmup=0, end=1e-5 / 0.003)),
    ],
)
def test_equals_the_official_schedule(parity, name, base, schedule):
    official = parity("l_lr_schedule.io")[name]
    total = len(official) - 1
    ours = [base * schedule.factor(step, total) for step in range(total + 1)]
    np.testing.assert_allclose(ours, official, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    "schedule", [kind(warmup=w) for kind in SCHEDULES.values() for w in (0, 0.05, 7, 0.5)], ids=str
)
@pytest.mark.parametrize("total", [1, 2, 10, 333])
def test_rises_once_and_falls_to_the_end(schedule, total):
    factors = [schedule.factor(step, total) for step in range(total + 1)]
    assert all(0 <= factor <= 1 for factor in factors)
    top = int(np.argmax(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    if total > 10:
        assert factors[top] > 0.99 and factors[-1] < 1e-9


@pytest.mark.parametrize("kind", [Cosine, Linear])
@pytest.mark.parametrize("warmup", [-0.1, float("inf"), float("nan")])
def test_impossible_warm_up_is_refused(kind, warmup):
    with pytest.raises(UsageError, match=r"schedule\.warmup"):
        kind(warmup=warmup)


@pytest.fixture
def problem():
    """A matrix, a bias, and five gradients for each."""
    random = np.random.default_rng(5)
    layer = nn.Linear(4, 3)
    values = {name: p.detach().numpy().astype(np.float64) for name, p in layer.named_parameters()}
    gradients = [{name: random.normal(size=value.shape) for name, value in values.items()} for _ in range(5)]
    return layer, values, gradients


def play(layer, optimizers, gradients, factors):
    for step, factor in zip(gradients, factors, strict=True):
        set_factor(optimizers, factor)
        for name, parameter in layer.named_parameters():
            parameter.grad = torch.from_numpy(step[name]).float()
        for optimizer in optimizers:
            optimizer.step()


FACTORS = (0.0, 0.5, 1.0, 0.7, 0.1)


def test_adamw_equals_its_formula(problem):
    """Loshchilov & Hutter 2019, algorithm 2; the bias is not decayed."""
    layer, values, gradients = problem
    lr, decay, (beta1, beta2) = 0.02, 0.3, (0.8, 0.95)
    play(layer, AdamW(lr, decay, (beta1, beta2)).build(layer), gradients, FACTORS)
    for name, value in values.items():
        first, second = np.zeros_like(value), np.zeros_like(value)
        for step, (gradient, factor) in enumerate(zip(gradients, FACTORS, strict=True), start=1):
            rate = lr * factor
            value = value * (1 - rate * decay) if name == "weight" else value
            first = beta1 * first + (1 - beta1) * gradient[name]
            second = beta2 * second + (1 - beta2) * gradient[name] ** 2
            value = value - rate * (first / (1 - beta1**step)) / (np.sqrt(second / (1 - beta2**step)) + 1e-8)
        np.testing.assert_allclose(dict(layer.named_parameters())[name].detach(), value, rtol=0, atol=2e-6)


def test_sgd_with_momentum_equals_its_formula(problem):
    """velocity = momentum velocity + gradient; a step with rate 0 moves the velocity only, as in the official code."""
    layer, values, gradients = problem
    play(layer, SGD(lr=0.1, momentum=0.9).build(layer), gradients, FACTORS)
    for name, value in values.items():
        velocity = np.zeros_like(value)
        for gradient, factor in zip(gradients, FACTORS, strict=True):
            velocity = 0.9 * velocity + gradient[name]
            value = value - 0.1 * factor * velocity
        np.testing.assert_allclose(dict(layer.named_parameters())[name].detach(), value, rtol=0, atol=2e-6)


def test_muon_moves_along_the_orthogonalised_momentum():
    """The first update of a hidden matrix has the gradient's singular vectors and almost equal singular values."""
    model = ViT(config())
    name = "blocks.0.mlp.expand.weight"
    weight = dict(model.named_parameters())[name]
    before, generator = weight.detach().clone(), torch.Generator().manual_seed(0)
    gradient = torch.randn(weight.shape, generator=generator)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    weight.grad = gradient.clone()
    optimizers = Muon(weight_decay=0.0).build(model)
    set_factor(optimizers, 1.0)
    for optimizer in optimizers:
        optimizer.step()
    left, _, right = np.linalg.svd(gradient.double().numpy(), full_matrices=False)
    moved = left.T @ (before - weight.detach()).double().numpy() @ right.T
    strengths = np.diag(moved)
    assert strengths.min() > 0.5 * strengths.max()
    assert np.abs(moved - np.diag(strengths)).max() < 0.1 * strengths.max()


def test_which_parameters_decay():
    """Matrices do; biases, norms, LayerScale, positions, class token and registers do not."""
    model = ViT(config(pool=ClassToken(registers=2), block=Block(layer_scale=0.1), head=TanhHead(3, 8)))
    decaying, plain = AdamW(weight_decay=0.1).build(model)[0].param_groups
    assert decaying["weight_decay"] == 0.1 and plain["weight_decay"] == 0.0
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    blocks = ("mixer.query_key_value", "mixer.project", "mlp.expand", "mlp.contract")
    assert {names[id(parameter)] for parameter in decaying["params"]} == {
        "tokenizer.project.weight", "head.represent.0.weight", "head.linear.weight",
        *(f"blocks.{layer}.{part}.weight" for layer in (0, 1) for part in blocks),
    }  # fmt: skip


@pytest.mark.parametrize("position", [Learned1D(), Relative1D()], ids=str)
def test_learned_positions_and_probes_do_not_decay(position):
    model = ViT(config(pool=AttentionPool(), position=position))
    plain = {id(parameter) for parameter in SGD().build(model)[0].param_groups[1]["params"]}
    learned = [p for name, p in model.named_parameters() if name.startswith("position.") or name == "pool.probe"]
    assert len(learned) > 1 and all(id(parameter) in plain for parameter in learned)


@pytest.mark.parametrize("kind", OPTIMIZERS.values())
@pytest.mark.parametrize("position", POSITIONS.values())
@pytest.mark.parametrize("pool", POOLS.values())
def test_every_parameter_has_exactly_one_owner(kind, position, pool):
    model = ViT(config(position=position(), pool=pool(registers=1), block=Block(layer_scale=0.1)))
    owned = [id(p) for optimizer in kind().build(model) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(map(id, model.parameters()))


def test_muon_owns_the_matrices_of_the_blocks_and_adamw_the_rest():
    model = ViT(config(pool=AttentionPool()))
    muon, adamw = Muon(lr=0.02, adam_lr=0.001).build(model)
    hidden = {id(p) for name, p in model.named_parameters() if name.startswith("blocks.") and name.endswith("weight")}
    hidden -= {id(p) for name, p in model.named_parameters() if "norm" in name}
    assert {id(p) for p in muon.param_groups[0]["params"]} == hidden and len(hidden) == 2 * 4
    assert set_factor([muon, adamw], 0.5) == pytest.approx(0.01)
    assert adamw.param_groups[0]["lr"] == pytest.approx(0.0005)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        *[(AdamW, "lr", -1.0), (SGD, "momentum", -0.1), (Muon, "adam_lr", float("inf")), (Muon, "weight_decay", -1.0)],
        *[(AdamW, "betas", (0.9, 1.0)), (Muon, "adam_betas", (-0.1, 0.9)), (SGD, "lr", float("nan"))],
    ],
)
def test_impossible_rates_are_refused(kind, field, value):
    with pytest.raises(UsageError, match=f"optimizer.{field}"):
        kind(**{field: value})
