"""Learning rates equal the official schedule; updates equal their textbook formulas in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from vitrail.errors import UsageError
from vitrail.model.block import Block
from vitrail.model.heads import TanhHead
from vitrail.model.pools import POOLS, AttentionPool, ClassToken
from vitrail.model.positions import POSITIONS, Both, Learned1D, Relative1D, RelativeBias
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import Size, ViT, ViTConfig
from vitrail.training.optimizer import OPTIMIZERS, SGD, Adafactor, AdamW, LayerDecay, Lion, Muon, set_factor
from vitrail.training.schedule import SCHEDULES, Constant, Cosine, Linear, ReciprocalSquareRoot, Stairs


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
    "schedule",
    [
        Stairs(w, milestones=(0.8, 0.9)) if kind is Stairs else kind(warmup=w)  # what falls must have risen
        for kind in SCHEDULES.values()
        for w in (0, 0.05, 7, 0.5)
    ],
    ids=str,
)
@pytest.mark.parametrize("total", [1, 2, 10, 333])
def test_rises_once_and_falls_to_the_end(schedule, total):
    factors = [schedule.factor(step, total) for step in range(total + 1)]
    assert all(0 <= factor <= 1 for factor in factors)
    top = int(np.argmax(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    if total > 10:
        last = {Constant: 1, Stairs: 0.01}.get(type(schedule), 0)
        assert factors[top] > 0.98 and factors[-1] == pytest.approx(last, abs=1e-9)


@pytest.mark.parametrize(("warmup", "timescale", "cooldown"), [(10, 20, 30), (0, 7, 0), (0.1, 0.2, 0.3)])
def test_reciprocal_square_root_equals_big_visions(warmup, timescale, cooldown):
    """rsqrt of its create_learning_rate_schedule, from its text, in steps of a run of 100."""
    schedule = ReciprocalSquareRoot(warmup, timescale, cooldown)
    w, t, c = (value * 100 if value < 1 else value for value in (warmup, timescale, cooldown))
    steps = np.arange(101)
    expected = np.where(w <= steps, 1 / np.sqrt(1 + np.maximum(steps - w, 0) / t), 1.0)
    expected = expected * (np.minimum(1, steps / w) if w else 1) * (np.minimum(1, (100 - steps) / c) if c else 1)
    np.testing.assert_allclose([schedule.factor(step, 100) for step in steps], expected, rtol=1e-12, atol=1e-15)


def test_stairs_equal_the_hyperrule():
    """BiT's medium schedule, by hand: warm-up over 500, a tenth after 3,000, 6,000 and 9,000 of 10,000 steps."""
    schedule = Stairs(warmup=500)
    places = {0: 0, 250: 0.5, 500: 1, 3000: 1, 3001: 0.1, 6000: 0.1, 6001: 0.01, 9000: 0.01, 9001: 0.001, 9999: 0.001}
    assert [schedule.factor(step, 10_000) for step in places] == pytest.approx(list(places.values()))
    steps = Stairs(warmup=100, milestones=(200, 300, 400))
    assert [steps.factor(s, 500) for s in (200, 201, 301, 401)] == pytest.approx([1, 0.1, 0.01, 0.001])


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (ReciprocalSquareRoot, "timescale", 0.0), (ReciprocalSquareRoot, "cooldown", -1.0), (Stairs, "drop", 2.0),
        (Stairs, "milestones", (0.5, 0.0)), (Constant, "warmup", -1.0), (Linear, "end", -0.1), (Linear, "end", float("nan")),
    ],
)  # fmt: skip
def test_impossible_schedules_are_refused(kind, field, value):
    with pytest.raises(UsageError, match=f"schedule.{field}"):
        kind(**{field: value})


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


@pytest.mark.parametrize("follows", ["rate", "schedule"])
def test_adamw_equals_its_formula(problem, follows):
    """Loshchilov & Hutter 2019, algorithm 2; the bias is not decayed. Theirs is "schedule": eta times lambda, not alpha."""
    layer, values, gradients = problem
    lr, decay, (beta1, beta2) = 0.02, 0.3, (0.8, 0.95)
    play(layer, AdamW(lr, decay, (beta1, beta2), None, follows).build(layer), gradients, FACTORS)
    for name, value in values.items():
        first, second = np.zeros_like(value), np.zeros_like(value)
        for step, (gradient, factor) in enumerate(zip(gradients, FACTORS, strict=True), start=1):
            rate = lr * factor
            lost = decay * (rate if follows == "rate" else factor)
            value = value * (1 - lost) if name == "weight" else value
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


def test_rounded_momentum_equals_its_formula(problem):
    """0.9 is 0.8984375 in bfloat16; the buffer keeps 8 significant bits, the step is made before it is rounded."""
    layer, values, gradients = problem
    play(layer, SGD(lr=0.1, buffer="bfloat16", weight_decay=0.2).build(layer), gradients, FACTORS)
    for name, value in values.items():
        velocity = np.zeros_like(value)
        for gradient, factor in zip(gradients, FACTORS, strict=True):
            decayed = gradient[name] + (0.2 * value if name == "weight" else 0)
            velocity = 0.8984375 * velocity + decayed
            value = value - 0.1 * factor * velocity
            share, power = np.frexp(velocity)
            velocity = np.ldexp(np.round(share * 256) / 256, power)
        # A buffer at the edge between two roundings may fall to the other side in float32.
        np.testing.assert_allclose(dict(layer.named_parameters())[name].detach(), value, rtol=0, atol=2e-6)


def test_lion_equals_its_formula(problem):
    """Chen et al. 2023, program 1."""
    layer, values, gradients = problem
    play(layer, Lion(lr=0.01, weight_decay=0.5, betas=(0.7, 0.95)).build(layer), gradients, FACTORS)
    for name, value in values.items():
        momentum = np.zeros_like(value)
        for gradient, factor in zip(gradients, FACTORS, strict=True):
            update = np.sign(0.7 * momentum + (1 - 0.7) * gradient[name])
            momentum = 0.95 * momentum + (1 - 0.95) * gradient[name]
            value = value - 0.01 * factor * (update + (0.5 * value if name == "weight" else 0))
        np.testing.assert_allclose(dict(layer.named_parameters())[name].detach(), value, rtol=0, atol=2e-6)


def test_adafactor_equals_its_formula():
    """Shazeer & Stern 2018, algorithms 4 and 5, with big_vision's numbers; a large matrix, a small one, a bias."""
    random = np.random.default_rng(8)
    model = nn.Sequential(nn.Linear(40, 33), nn.Linear(33, 3))
    values = {name: p.detach().numpy().astype(np.float64) for name, p in model.named_parameters()}
    gradients = [{name: random.normal(size=value.shape) for name, value in values.items()} for _ in FACTORS]
    optimizers = Adafactor(0.05, 0.3).build(model)
    play(model, optimizers, gradients, FACTORS)
    for name, value in values.items():
        second, rows, cols, momentum = 0.0, 0.0, 0.0, np.zeros_like(value)
        for step, (gradient, factor) in enumerate(zip(gradients, FACTORS, strict=True), start=1):
            beta, square = min(0.999, 1 - step**-0.8), gradient[name] ** 2 + 1e-30
            if value.shape == (33, 40):
                rows = beta * rows + (1 - beta) * square.mean(axis=1)
                cols = beta * cols + (1 - beta) * square.mean(axis=0)
                second = rows[:, None] * cols[None] / rows.mean()
            else:
                second = beta * second + (1 - beta) * square
            momentum = 0.8984375 * momentum + (1 - 0.9) * gradient[name] / np.sqrt(second)
            value = value - 0.05 * factor * (momentum + (0.3 * value if name.endswith("weight") else 0))
            share, power = np.frexp(momentum)
            momentum = np.ldexp(np.round(share * 256) / 256, power)
        # One rounding of a momentum below 1 to the other side is 0.004 of it, times the rate.
        ours = dict(model.named_parameters())[name].detach().numpy()
        assert np.quantile(np.abs(ours - value), 0.99) < 2e-6 and np.abs(ours - value).max() < 2e-4
    kept = sum(v.nbytes for state in optimizers[0].state.values() for v in state.values())
    assert kept < 0.5 * sum(8 * p.numel() for p in model.parameters())


@pytest.mark.parametrize("inner", [AdamW(0.01, 0.1), SGD(0.1), Muon(0.02)], ids=lambda inner: type(inner).__name__)
def test_layer_decay_shrinks_the_rate_towards_the_image(inner):
    """BEiT's formula by the names of the parameters: rate * decay^(depth + 1 - layer)."""
    model = ViT(config(pool=ClassToken(registers=2)))
    names = {id(p): name for name, p in model.named_parameters()}
    plain = {names[id(p)]: group for o in inner.build(model) for group in o.param_groups for p in group["params"]}
    optimizers = LayerDecay(inner, 0.5).build(model)
    seen = {names[id(p)]: group for o in optimizers for group in o.param_groups for p in group["params"]}
    expected = {"tokenizer": 0.125, "position": 0.125, "blocks.0": 0.25, "blocks.1": 0.5, "pool.norm": 1, "head": 1}
    expected |= {"pool.class_token": 0.125, "pool.registers": 0.125}
    assert seen.keys() == plain.keys()
    for name, group in seen.items():
        (scale,) = [value for start, value in expected.items() if name.startswith(start)]
        assert group["base_lr"] == pytest.approx(plain[name]["base_lr"] * scale), name
        assert group["weight_decay"] == plain[name]["weight_decay"]
    rate = optimizers[0].param_groups[0]["base_lr"]
    assert rate == max(group["base_lr"] for group in optimizers[0].param_groups)
    assert set_factor(optimizers, 0.5) == pytest.approx(rate / 2)  # the log shows the largest


@pytest.mark.parametrize("follows", ["rate", "schedule"])
def test_layer_decay_lets_a_decay_be_that_the_rate_does_not_change(follows):
    """What a step takes away of each weight: rate * decay, or the decay alone whatever the layer."""
    model = ViT(config())
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    (optimizer,) = LayerDecay(AdamW(0.01, 0.1, decay_follows=follows), 0.5).build(model)
    for value in model.parameters():
        value.grad = torch.zeros_like(value)
    optimizer.step()
    for name, scale in (("blocks.0.mlp.expand.weight", 0.25), ("blocks.1.mlp.expand.weight", 0.5)):
        lost = 1 - (dict(model.named_parameters())[name] / before[name]).detach().numpy()
        np.testing.assert_allclose(lost, 0.01 * scale * 0.1 if follows == "rate" else 0.1, rtol=1e-2, err_msg=name)


def test_layer_decay_needs_layers():
    with pytest.raises(UsageError, match="no encoder blocks"):
        LayerDecay().build(nn.Linear(3, 2))


def test_the_head_may_decay_otherwise():
    """ViT-G: a strong decay of the last matrices, a weak one of the body; biases have none."""
    model = ViT(config(head=TanhHead(3, 8)))
    names = {id(p): name for name, p in model.named_parameters()}
    (optimizer,) = AdamW(0.1, 0.03, head_decay=3.0).build(model)
    decays = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name for name, decay in decays.items() if decay == 3.0} == {"head.linear.weight", "head.represent.0.weight"}
    assert decays["blocks.0.mlp.expand.weight"] == 0.03 and decays["head.linear.bias"] == 0


@pytest.mark.parametrize("kind", OPTIMIZERS.values())
def test_what_is_frozen_has_no_owner(kind):
    """Of a model whose head and one matrix learn, and of one that does not learn at all."""
    model = ViT(config()).requires_grad_(False)
    with pytest.raises(UsageError, match="all of it is frozen"):
        kind().build(model)
    model.head.requires_grad_(True)
    if kind is Muon:
        with pytest.raises(UsageError, match="nothing that learns is a matrix of the encoder's blocks"):
            kind().build(model)
    model.blocks[0].mlp.expand.requires_grad_(True)
    owned = {id(p) for optimizer in kind().build(model) for group in optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for part in (model.head, model.blocks[0].mlp.expand) for p in part.parameters()}


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
    # A relative bias has a place for a class token, and for no other.
    tokens = ClassToken() if position in (RelativeBias, Both) else pool(registers=1)
    model = ViT(config(position=position(), pool=tokens, block=Block(layer_scale=0.1)))
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
    assert muon.param_groups[0]["weight_decay"] == 0.05 and adamw.param_groups[0]["weight_decay"] == 0


@pytest.mark.parametrize(
    ("shape", "kept"), [((32, 40), {"rows", "cols"}), ((40, 31), {"squares"}), ((64,), {"squares"})]
)
def test_adafactor_keeps_vectors_of_matrices_whose_sides_are_at_least_32(shape, kept):
    model = nn.ModuleDict({"part": nn.ParameterList([nn.Parameter(torch.ones(shape))])})
    (optimizer,) = Adafactor().build(model)
    (parameter,) = model.parameters()
    parameter.grad = torch.ones(shape)
    optimizer.step()
    state = optimizer.state[parameter]
    assert state.keys() == {"step", "momentum", *kept} and state["momentum"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        *[(AdamW, "lr", -1.0), (SGD, "momentum", -0.1), (Muon, "adam_lr", float("inf")), (Muon, "weight_decay", -1.0)],
        *[(AdamW, "betas", (0.9, 1.0)), (Muon, "adam_betas", (-0.1, 0.9)), (SGD, "lr", float("nan"))],
        *[(Lion, "betas", (1.0, 0.9)), (LayerDecay, "decay", 0.0), (AdamW, "head_decay", -1.0)],
        *[(SGD, "momentum", 1.0), (Adafactor, "momentum", 1.5)],
    ],
)
def test_impossible_rates_are_refused(kind, field, value):
    with pytest.raises(UsageError, match=f"optimizer.{field}"):
        kind(**{field: value})
