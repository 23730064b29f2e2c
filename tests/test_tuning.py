"""What of a model learns: frozen parts stay bit for bit, thin matrices equal their product, files hold merged weights."""

import pytest
import torch

import tiny
from vitrail.checkpoints.loading import read
from vitrail.errors import UsageError
from vitrail.model.heads import TanhHead
from vitrail.model.low_rank import MATRICES, merged
from vitrail.model.pools import ClassToken
from vitrail.model.resnet import ResNet
from vitrail.model.sizes import resnet
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import Size, ViT, ViTConfig
from vitrail.training import loop
from vitrail.training.loop import Trainer
from vitrail.training.optimizer import OPTIMIZERS, Muon
from vitrail.training.tuning import TUNINGS, Everything, Frozen, HeadOnly, LoRA


def vit(dim=16):
    torch.manual_seed(0)
    size, pool = Size(dim, 3, 2, 24), ClassToken(registers=1)
    return ViT(ViTConfig(size, LinearPatches((4, 4), 1), pool=pool, head=TanhHead(3, 8), image_size=(8, 8)))


def learning(tuning):
    model = vit()
    tuning.prepare(model, 0)
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_which_parts_learn():
    names = {name for name, _ in vit().named_parameters()}
    head = {name for name in names if name.startswith("head.")}
    early = {name for name in names if name.startswith(("tokenizer.", "position."))}
    early |= {"pool.class_token", "pool.registers"}
    blocks = [{name for name in names if name.startswith(f"blocks.{layer}.")} for layer in range(3)]
    assert learning(Everything()) == learning(Frozen()) == names
    assert learning(HeadOnly()) == head and len(head) == 4
    assert learning(Frozen(layers=2)) == names - early - blocks[0] - blocks[1]
    mlp = {name for name in names if name.startswith("blocks.1.mlp.")}
    assert learning(Frozen(("blocks.1.mlp", "position"))) == names - mlp - {
        n for n in names if n.startswith("position")
    }
    assert len(mlp) == 4  # the branch and the norm of the MLP have other names


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        (lambda: Frozen(("blocks.7",)).prepare(vit(), 0), "no parameter's name begins with blocks.7"),
        (lambda: Frozen(("tokeniser",)).prepare(vit(), 0), "did you mean tokenizer"),
        (lambda: Frozen(layers=4).prepare(vit(), 0), "at most 3"),
        (lambda: Frozen(layers=-1), "tuning.layers"),
        (lambda: LoRA(("query", "queries")), "tuning.matrices"),
        (lambda: LoRA(()), "tuning.matrices"),
        (lambda: LoRA(rank=0), "tuning.rank"),
        (lambda: LoRA().prepare(ResNet(resnet("R26x1", 3)), 0), "no encoder blocks"),
    ],
)
def test_what_cannot_be_is_refused(tuning, message):
    with pytest.raises(UsageError, match=message):
        tuning()


@pytest.mark.parametrize("matrices", [("query", "value"), ("key",), tuple(MATRICES)], ids=str)
def test_low_rank_equals_its_formula(matrices):
    """W + alpha / rank * up down on the named rows, in float64; at first nothing changes at all."""
    plain, model = vit(), vit()
    LoRA(matrices, rank=2, alpha=6.0).prepare(model, 5)
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(model.represent(images), plain.represent(images))
    generator, expected = torch.Generator().manual_seed(1), dict(plain.state_dict())
    for layer, block in enumerate(model.blocks):
        for place in {MATRICES[name][0] for name in matrices}:
            factors = block.get_submodule(place).parametrizations.weight[0]
            torch.nn.init.normal_(factors.up.data, generator=generator)
            weight = expected[f"blocks.{layer}.{place}.weight"].double().clone()
            chosen = [part for name, (module, part, _) in MATRICES.items() if name in matrices and module == place]
            rows = len(weight) // (3 if place.endswith("query_key_value") else 1)
            for index, part in enumerate(sorted(chosen)):
                change = factors.up[index].detach().double() @ factors.down[index].detach().double()
                weight[part * rows : (part + 1) * rows] += 3.0 * change
            expected[f"blocks.{layer}.{place}.weight"] = weight
    found = merged(model)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value.double(), expected[name].double(), rtol=0, atol=1e-5)
    plain.load_state_dict(found)
    torch.testing.assert_close(plain.represent(images), model.represent(images), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(plain.represent(images), vit().represent(images), atol=1e-3)


def test_low_rank_learns_little_else():
    """2 (16 + 16) numbers for each square matrix of 16, and the head."""
    model = vit()
    head = sum(parameter.numel() for parameter in model.head.parameters())
    LoRA(("query", "value", "project"), rank=2).prepare(model, 0)
    learns = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert learns == head + 3 * 3 * 2 * (16 + 16)


@pytest.mark.parametrize("kind", [kind for kind in OPTIMIZERS.values() if kind is not Muon])  # which refuses these
@pytest.mark.parametrize("tuning", [HeadOnly(), Frozen(layers=3), LoRA()], ids=lambda tuning: type(tuning).__name__)
def test_only_what_learns_moves(kind, tuning):
    model = vit()
    tuning.prepare(model, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizers = kind().build(model)
    for _ in range(2):
        model(torch.rand(4, 1, 8, 8)).square().sum().backward()
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad += 0.1  # the head of zeros would give none to what lies below
        for optimizer in optimizers:
            optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


@pytest.mark.parametrize("name", ["head-only", "lora"])
def test_a_run_from_weights_saves_merged_ones_and_goes_on_bit_for_bit(pictures, run, tmp_path, monkeypatch, name):
    """And with an average around it; the names in the file are those of any model."""
    changes = {"tuning": name, "objective": "averaged", "objective.decay": "0.5", "optimizer.lr": "0.1"}
    changes |= {"training.batch_size": "8", "training.evaluations": "1"}
    tiny.tiny(pictures, tmp_path / "whole", weights=str(run), **changes)
    update = Trainer._update
    with monkeypatch.context() as patched:
        patched.setattr(loop, "SAVE_SECONDS", -1)
        patched.setattr(Trainer, "_update", lambda self, batch: 1 / 0 if self.step == 2 else update(self, batch))
        with pytest.raises(ZeroDivisionError):
            tiny.tiny(pictures, tmp_path / "crashed", weights=str(run), **changes)
    tiny.tiny(pictures, tmp_path / "crashed", weights=str(run), **changes)
    assert tiny.digests(tmp_path / "crashed") == tiny.digests(tmp_path / "whole")
    first, tuned = read(run).weights, read(tmp_path / "whole").weights
    assert first.keys() == tuned.keys()
    fused = "blocks.0.mixer.query_key_value.weight"
    query, key, value = (torch.equal(a, b) for a, b in zip(first[fused].chunk(3), tuned[fused].chunk(3), strict=True))
    assert key and query == value == (name == "head-only")
    assert not torch.equal(first["head.linear.weight"], tuned["head.linear.weight"])


def test_every_tuning_leaves_something_to_learn():
    assert all(learning(kind()) for kind in TUNINGS.values())


def test_lora_begins_by_its_seed_alone():
    """Whatever luck was drawn before, and without a draw from it."""
    found = []
    for before in (1, 2):
        model = vit()
        torch.manual_seed(before)
        LoRA().prepare(model, 5)
        found.append(
            [p.clone() for name, p in model.named_parameters() if "parametrizations" in name and p.requires_grad]
        )
        left = torch.rand(1)
        torch.manual_seed(before)
        assert torch.equal(left, torch.rand(1))
    assert found[0] and all(torch.equal(a, b) for a, b in zip(*found, strict=True))
