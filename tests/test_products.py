"""The quicker ways of a step: equal to what the plain ones compute, taken where they should be, left alone elsewhere."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import tiny
from vitrail.errors import UsageError
from vitrail.model.block import Block
from vitrail.model.mixers import TokenMLP
from vitrail.model.pairs import Rotary2D
from vitrail.model.pools import AttentionPool, ClassToken
from vitrail.model.positions import Learned1D
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import Size, ViT, ViTConfig
from vitrail.training import products
from vitrail.training.products import Mixture, Product, QuickProducts, quick_products
from vitrail.training.thrift import Thrift

MODELS = {
    "class token": (Block(), Learned1D(), ClassToken()),
    "probe": (Block(), Learned1D(), AttentionPool()),
    "rotary": (Block(), Rotary2D(), ClassToken()),
    "mixer": (Block(TokenMLP(8)), Learned1D(), AttentionPool()),
}


def vit(name="class token", depth=2):
    block, position, pool = MODELS[name]
    torch.manual_seed(0)
    return ViT(ViTConfig(Size(32, depth, 4, 64), LinearPatches((4, 4), 1), position, block, pool, image_size=(16, 16)))


IMAGES = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))
QUERIES, KEYS, VALUES, GIVEN = torch.randn(4, 2, 3, 50, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def taken(monkeypatch):
    """Which ways were taken; float32 products go to oneDNN whatever the processor."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this PyTorch has no oneDNN, and takes the plain way always")
    monkeypatch.setattr(products, "_onednn_is_quicker", lambda: True)
    names = []
    for way in (Product, Mixture):
        plain = way.apply
        monkeypatch.setattr(way, "apply", lambda *a, plain=plain, way=way: names.append(way.__name__) or plain(*a))
    return names


def gradients(model, images, half=False):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        answer = model.represent(images)
    answer.double().square().sum().backward()
    return torch.cat(
        [answer.double().flatten(), *(p.grad.double().flatten() for p in model.parameters() if p.grad is not None)]
    )


def distance(found, expected):
    return float(((found - expected).norm() / expected.norm()).detach())


@pytest.mark.parametrize("name", MODELS)
def test_float32_products_equal_those_in_float64(name, taken):
    model = vit(name).train()
    with quick_products("cpu"):
        found = gradients(model, IMAGES)
    assert taken and set(taken) == {"Product"}
    assert distance(found, gradients(model.double(), IMAGES.double())) < 1e-5


@pytest.mark.parametrize("name", ["class token", "probe", "rotary"])
def test_bfloat16_is_as_near_to_float64_as_the_plain_way(name, taken):
    model = vit(name).train()
    plain = gradients(model, IMAGES, half=True)
    with quick_products("cpu"):
        found = gradients(model, IMAGES, half=True)
    assert taken.count("Mixture") == 2 + (name == "probe") and "Product" not in taken
    expected = gradients(model.double(), IMAGES.double())
    assert distance(found, expected) < 2 * distance(plain, expected) < 0.03


@pytest.mark.parametrize("scores", [2**20, 2500, 1], ids=["at once", "a head at a time", "too small for one"])
@pytest.mark.parametrize("kept", [0, 256], ids=["weights computed again", "weights kept"])
def test_attention_equals_its_formula_however_it_is_portioned(scores, kept, monkeypatch):
    """Written out in float64: softmax(Q K' / sqrt(d)) V, and its gradients by autograd. The queries are fewer than the tokens."""
    monkeypatch.setattr(products, "SCORES", scores)
    monkeypatch.setattr(products, "KEPT", kept)
    parts = [QUERIES[:, :, :7], KEYS, VALUES]
    exact = [part.double().bfloat16().double().requires_grad_() for part in parts]
    weights = (exact[0] @ exact[1].transpose(-1, -2) / math.sqrt(16)).softmax(-1)
    (weights @ exact[2]).backward(GIVEN[:, :, :7].bfloat16().double())
    ours = [part.bfloat16().requires_grad_() for part in parts]
    mixed = Mixture.apply(*ours)
    mixed.backward(GIVEN[:, :, :7].bfloat16())
    assert distance(mixed.double(), weights @ exact[2]) < 5e-3
    for own, right in zip(ours, exact, strict=True):
        assert own.grad.shape == right.shape and distance(own.grad.double(), right.grad) < 1e-2


def test_frozen_weights_and_missing_biases_get_no_gradient(taken):
    values, weight = torch.randn(2, 3, 8, requires_grad=True), torch.randn(4, 8)
    with quick_products("cpu"):
        F.linear(values, weight).sum().backward()
    assert taken == ["Product"] and weight.grad is None
    torch.testing.assert_close(values.grad, weight.sum(0).expand(2, 3, 8))


def test_what_they_do_not_know_goes_the_plain_way(taken):
    half = [part.bfloat16().requires_grad_() for part in (QUERIES, KEYS, VALUES)]
    with quick_products("cpu"):
        F.scaled_dot_product_attention(*half, attn_mask=torch.zeros(50, 50, dtype=torch.bfloat16))
        F.scaled_dot_product_attention(*half, is_causal=True)
        F.scaled_dot_product_attention(*half, None, 0.5)
        F.scaled_dot_product_attention(QUERIES, KEYS, VALUES)
        F.linear(torch.ones(2, 8).double(), torch.ones(4, 8).double())
        with torch.no_grad():
            vit()(IMAGES)
            F.scaled_dot_product_attention(*half)
    F.scaled_dot_product_attention(*half)
    assert taken == []
    assert isinstance(quick_products("cpu"), QuickProducts) and not isinstance(quick_products("cuda"), QuickProducts)


def test_attention_is_captured_as_ever(taken):
    model = vit()
    with model.capture("attention", layers=[-1]) as plain:
        model(IMAGES)
    with quick_products("cpu"), model.capture("attention", layers=[-1]) as tape:
        model(IMAGES)
    assert taken
    torch.testing.assert_close(tape[0].weights, plain[0].weights)


@pytest.mark.parametrize("half", [False, True])
def test_activations_are_computed_again_in_the_same_way(half, taken):
    found = []
    for thrift in (Thrift(), Thrift(recompute=True)):
        model = vit().train()
        thrift.prepare(model)
        with quick_products("cpu"):
            found.append(gradients(model, IMAGES, half))
    assert torch.equal(*found) and taken


def test_freed_memory_is_used_again():
    """Ten arrays of 64 MiB, one after the other: the pages of one, and not of ten, are asked of the system."""
    if not sys.platform.startswith("linux"):
        pytest.skip("only the C library of Linux can be told so")
    code = """if True:
        import resource
        from vitrail.memory import freed_kept
        def faults(count):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(count): b"x" * 2**26
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        before = faults(10)
        with freed_kept():
            print(before, faults(10))"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    plain, kept = map(int, out.split())
    assert kept < plain / 3


def test_compiling_needs_a_compiler_and_no_recomputing(monkeypatch):
    with pytest.raises(UsageError, match="together"):
        Thrift(recompute=True, compile=True)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match=r"no C\+\+ compiler"):
        Thrift(compile=True).prepare(vit())


COMPILED = """
import sys, tiny
from vitrail.errors import Interrupted
from vitrail.training.loop import Trainer
data, out, until = sys.argv[1:]
advance = Trainer.advance
def stopped(self, batch):
    if self.step == int(until):
        self._save()
        raise Interrupted("VT081", "here")
    return advance(self, batch)
Trainer.advance = stopped
settings = {"thrift__compile": "true", "training__micro_batch": "5", "training__precision": "bfloat16"}
try:
    tiny.tiny(data, out, **settings)
except Interrupted:
    print("stopped")
"""


@pytest.mark.slow
def test_a_compiled_run_goes_on_bit_for_bit(pictures, tmp_path):
    """In processes of their own: the compiler does not take modules whose types are checked as they run."""
    if not shutil.which("g++"):
        pytest.skip("there is no g++ to compile with")

    def run(out, until):
        command = [sys.executable, "-c", COMPILED, str(pictures), str(tmp_path / out), str(until)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert "stopped" not in run("whole", -1)
    assert "stopped" in run("parts", 7)
    run("parts", -1)
    assert tiny.digests(tmp_path / "parts") == tiny.digests(tmp_path / "whole")
