"""Every axis value exports to every runtime, or refuses with the reason; two that met trouble do so in every test."""

from dataclasses import replace

import numpy as np
import onnxruntime
import openvino
import pytest
import torch

from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.deployment import graph
from vitrail.deployment.classifier import Classifier
from vitrail.errors import UsageError
from vitrail.model.backbone import build
from vitrail.model.block import MLP, Block, SwiGLU
from vitrail.model.heads import LinearHead, ProjectedHead, TanhHead, TwoHeads
from vitrail.model.mixers import Attention, QuadraticAttention, TokenMLP
from vitrail.model.pairs import Relative1D, RelativeBias, Rotary2D
from vitrail.model.pools import AttentionPool, ClassToken, DistilledToken, GlobalAverage, TokenAndAverage
from vitrail.model.positions import Both, Learned1D, Learned2D, NoPosition, Normed, SineCosine
from vitrail.model.resnet import ResNetConfig
from vitrail.model.tokenizers import ConvolutionalStem, LinearPatches
from vitrail.model.trunks import BIT, HYBRID, PostActivation, PreActivation
from vitrail.model.vit import Size, ViTConfig
from vitrail.preprocessing import Preprocessing

VIT = ViTConfig(Size(16, 2, 2, 24), LinearPatches((4, 4)), head=LinearHead(3), image_size=(16, 16))
STEM = ConvolutionalStem((8, 8), trunk=PostActivation((1, 1), 32))
NARROW = replace(VIT, position=NoPosition(), pool=GlobalAverage())
FAMILIES = {
    "vit": VIT,
    "hybrid": replace(VIT, tokenizer=STEM),
    "resnet": ResNetConfig(PreActivation((1, 1), 32, BIT), LinearHead(3), (20, 20)),
    "resnet-hybrid-numerics": ResNetConfig(PostActivation((1, 1), 32, HYBRID), LinearHead(3), (20, 20)),
    "mixer": replace(NARROW, block=Block(TokenMLP(8))),
    "quadratic": replace(NARROW, block=Block(QuadraticAttention())),
    "learned-2d": replace(VIT, position=Learned2D()),
    "every-layer": replace(VIT, position=Learned1D("every-layer")),
    "sine-cosine": replace(VIT, position=SineCosine()),
    "normed": replace(VIT, position=Normed()),
    "relative-1d": replace(VIT, position=Relative1D()),
    "relative-bias": replace(VIT, position=RelativeBias()),
    "both": replace(VIT, position=Both()),
    "rotary": replace(VIT, size=Size(16, 2, 2, 24), position=Rotary2D()),
    "registers": replace(VIT, pool=ClassToken(registers=2)),
    "distilled": replace(VIT, pool=DistilledToken(), head=TwoHeads(3)),
    "token-and-average": replace(VIT, pool=TokenAndAverage()),
    "attention-pool": replace(VIT, pool=AttentionPool()),
    "erf": replace(VIT, block=Block(mlp=MLP("erf"))),
    "quick": replace(VIT, block=Block(mlp=MLP("quick"))),
    "swiglu": replace(VIT, block=Block(mlp=SwiGLU())),
    "no-key-bias": replace(VIT, block=Block(Attention(key_bias=False), layer_scale=0.1)),
    "tanh-head": replace(VIT, head=TanhHead(3, 8)),
    "projected-head": replace(VIT, head=ProjectedHead(3, 8)),
}
QUICK = ("resnet",)
SEVERAL = {"vit", "learned-2d", "every-layer", "sine-cosine", "normed", "registers", "distilled", "token-and-average",
           "attention-pool", "erf", "quick", "swiglu", "no-key-bias", "tanh-head", "projected-head"}  # fmt: skip


def classifier(config):
    """Random weights, none of them zero, so that every part says something."""
    model = build(config, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    preprocessing = Preprocessing(image_size=config.image_size, mean=(0.4, 0.5, 0.6))
    return Classifier(Checkpoint(config, model.state_dict(), preprocessing, ("a", "b", "c"), temperature=1.5))


def onnx_answer(one):
    session = onnxruntime.InferenceSession(graph.onnx_model(one).SerializeToString())
    return lambda images: session.run(None, {"images": images})


def openvino_answer(one):
    compiled = openvino.Core().compile_model(graph.openvino_model(one), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: [compiled(images)[name] for name in ("logits", "probabilities")]


def torch_answer(one):
    run = graph.program(one)[0].module()
    return lambda images: [answer.numpy() for answer in run(torch.from_numpy(images))]


ANSWERS = {"onnx": onnx_answer, "openvino": openvino_answer, "torch-export": torch_answer}


def agrees(name, target):
    one = classifier(FAMILIES[name])
    images = np.random.default_rng(0).integers(0, 256, (3, 3, *one.preprocessing.image_size), dtype=np.uint8)
    logits, probabilities = ANSWERS[target](one)(images)
    expected = one.logits(images)
    assert np.ptp(expected, axis=0).min() > 1e-3  # it looks at the pictures
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(probabilities, one.probabilities(expected), atol=1e-5)


@pytest.mark.parametrize("name", QUICK)
def test_stems_and_trunks_agree_in_onnx_runtime(name):
    """It moves a Pad with zeros into max-pooling, which pads with minus infinity."""
    agrees(name, "onnx")


@pytest.mark.slow
@pytest.mark.parametrize("target", ANSWERS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_agrees(name, target):
    agrees(name, target)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_several_sizes_agree_or_are_refused(name):
    one = classifier(FAMILIES[name])
    if name not in SEVERAL:
        with pytest.raises(UsageError, match="several image sizes") as refused:
            graph.program(one, [(16, 16), (24, 16)])
        assert refused.value.code == "VT156"
        return
    import jaxtyping

    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)  # dynamic sides are no ints to beartype
    try:
        sizes = [(16, 16), (24, 16), (16, 24)]
        session = onnxruntime.InferenceSession(graph.onnx_model(one, sizes).SerializeToString())
        for size in sizes:
            images = np.random.default_rng(0).integers(0, 256, (3, 3, *size), dtype=np.uint8)
            with torch.no_grad():
                expected = one.module.at(size)(one.preprocessing.normalise(torch.from_numpy(images))).numpy()
            logits, _ = session.run(None, {"images": images})
            np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def test_a_hybrid_refuses_several_sizes():
    with pytest.raises(UsageError) as refused:
        graph.program(classifier(FAMILIES["hybrid"]), [(16, 16), (24, 16)])
    assert refused.value.code == "VT156" and "stem" in refused.value.what
