"""Cheaper steps: the same gradient bit for bit from less memory; patches left out with their positions."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

import tiny
from vitrail.errors import UsageError
from vitrail.model.block import Block
from vitrail.model.mixers import TokenMLP
from vitrail.model.pairs import RelativeBias, Rotary2D
from vitrail.model.pools import AttentionPool, ClassToken, GlobalAverage
from vitrail.model.positions import Learned1D, NoPosition, SineCosine
from vitrail.model.resnet import ResNet
from vitrail.model.sizes import resnet
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import Size, ViT, ViTConfig
from vitrail.training.thrift import Thrift


def vit(block=Block(dropout=0.2, drop_path=0.3), position=Learned1D(), pool=ClassToken(), thrift=Thrift()):
    torch.manual_seed(0)
    config = ViTConfig(Size(16, 3, 2, 64), LinearPatches((4, 4), 1), position, block, pool, image_size=(32, 32))
    model = ViT(config).train()
    thrift.prepare(model)
    return model


IMAGES = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(1))


def test_recomputed_activations_give_the_same_gradient_from_less_memory():
    """Bit for bit, with dropout and DropPath; fewer than half of the bytes are kept."""
    found = []
    for thrift in (Thrift(), Thrift(recompute=True)):
        model, kept = vit(thrift=thrift), {}

        def keep(tensor, kept=kept):
            kept[tensor.data_ptr()] = tensor.nbytes
            return tensor

        torch.manual_seed(7)
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model.represent(IMAGES).square().sum()
        loss.backward()
        found.append(
            (loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, sum(kept.values()))
        )
    (loss, gradients, whole), (again, same, less) = found
    assert loss == again and gradients.keys() == same.keys() and len(same) > 30
    assert all(torch.equal(gradients[name], same[name]) for name in gradients)
    assert less < whole / 2


@pytest.mark.parametrize(
    ("position", "pool"),
    [(Learned1D(), ClassToken(registers=2)), (SineCosine(), GlobalAverage()), (NoPosition(), AttentionPool()),
     (Rotary2D(), GlobalAverage()), (RelativeBias(), ClassToken())],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_patches_are_left_out_with_their_positions(position, pool):
    """The same tokens as those of all patches, at the kept places; nothing is left out in evaluation."""
    model, whole = vit(Block(), position, pool, Thrift(patch_dropout=0.6)), vit(Block(), position, pool)
    torch.manual_seed(3)
    tokens, every = model.embed(IMAGES), whole.embed(IMAGES)
    assert tokens.kept.shape == (4, 26) and tokens.prefix == every.prefix  # 64 * 0.4 = 25.6
    assert torch.equal(tokens.kept, tokens.kept.sort(dim=1).values) and tokens.kept.unique().numel() > 50
    for row in range(4):
        torch.testing.assert_close(tokens.patches[row], every.patches[row, tokens.kept[row]])
    torch.testing.assert_close(tokens.values[:, : tokens.prefix], every.values[:, : tokens.prefix])
    model(IMAGES).sum().backward()
    assert torch.equal(model.eval().represent(IMAGES), whole.eval().represent(IMAGES))


def test_every_patch_is_left_out_as_often():
    model = vit(Block(), thrift=Thrift(patch_dropout=0.5))
    kept = torch.stack([model.embed(IMAGES).kept for _ in range(100)])
    counts = torch.bincount(kept.flatten(), minlength=64).double()
    assert counts.sum() == 100 * 4 * 32 and (counts - 200).abs().max() < 5 * (400 * 0.25) ** 0.5


def test_what_cannot_be_is_refused(pictures, tmp_path):
    for share in (-0.1, 1.0):
        with pytest.raises(UsageError, match=r"thrift\.patch_dropout"):
            Thrift(patch_dropout=share)
    with pytest.raises(UsageError, match="no encoder blocks"):
        Thrift(True).prepare(ResNet(resnet("R26x1", 3)))
    nested = '{"type": "averaged", "objective": {"type": "sharpness-aware"}}'
    with pytest.raises(UsageError, match=r"sharpness-aware and thrift\.recompute"):
        tiny.tiny(pictures, tmp_path, **{"objective": nested, "thrift.recompute": "true"})
    model = vit(Block(mixer=TokenMLP(8)), NoPosition(), GlobalAverage(), Thrift(patch_dropout=0.5))
    with pytest.raises(UsageError, match="met 32 of"):
        model(IMAGES)


def test_a_run_with_both_ends_and_recomputing_alone_changes_nothing(pictures, run, tmp_path):
    tiny.tiny(pictures, tmp_path / "same", thrift__recompute="true")
    assert tiny.digests(tmp_path / "same") == tiny.digests(run)
    both = {"thrift__recompute": "true", "thrift__patch_dropout": "0.5", "objective": "averaged"}
    tiny.tiny(pictures, tmp_path / "both", **both)
    tiny.tiny(pictures, tmp_path / "both again", **both)
    assert tiny.digests(tmp_path / "both") == tiny.digests(tmp_path / "both again") != tiny.digests(run)
